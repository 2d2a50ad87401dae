"""`python -m sparse_encoder`: a store of published versions, their related words, and checkpoints of others.

`store URL ...` looks at a store and decides what services follow; `related` shows a model's related words and makes a
version with others; `inspect` says what a checkpoint is and whether it will be served; `convert` writes it as an
artifact.
"""

from __future__ import annotations

import argparse
import sys

from sparse_encoder.artifact import ArtifactError
from sparse_encoder.checkpoint import commands as checkpoint
from sparse_encoder.publishing import publish
from sparse_encoder.related import commands as related
from sparse_encoder.store import Store, StoreError, who


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sparse_encoder", description=__doc__)
    what = parser.add_subparsers(dest="what", required=True)
    checkpoint.add_parsers(what)
    related.add_parsers(what)
    store = what.add_parser("store", help="published versions")
    store.set_defaults(run=_run)
    store.add_argument("url", help="directory or fsspec URL, such as s3://bucket/models")
    commands = store.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="versions, aliases, and the services that hold them")
    publish = commands.add_parser("publish", help="put a model into the store, if it passes the gates")
    publish.add_argument("model", help="directory of an artifact, packed or not, or `embedded`")
    publish.add_argument("--alias", action="append", default=[], help="that shall stand for it; several are possible")
    publish.add_argument("--force", action="store_true", help="though a gate fails; needs --note")
    show = commands.add_parser("show", help="the manifest of a version and the history of its aliases")
    show.add_argument("version", help="version or alias")
    alias = commands.add_parser("alias", help="point an alias at a version")
    alias.add_argument("name")
    alias.add_argument("version")
    rollback = commands.add_parser("rollback", help="point an alias at the version before")
    rollback.add_argument("name")
    for name, text in (("pin", "keep a version from being collected"), ("unpin", "let it be collected again")):
        commands.add_parser(name, help=text).add_argument("version")
    for command in (alias, rollback, publish, commands.choices["pin"]):
        command.add_argument("--note", default="", help="why; kept in the store")
    gc = commands.add_parser("gc", help="remove versions that nothing needs")
    gc.add_argument("--keep", type=int, default=3, help="earlier versions of each alias that stay (default 3)")
    gc.add_argument("--dry-run", action="store_true", help="only say what would go")
    return parser


def _list(store: Store) -> None:
    aliases, pins, leases = store.aliases().values(), store.pins(), store.leases()
    versions = store.versions()
    if not versions:
        print(f"no versions in {store.url}", file=sys.stderr)  # noqa: T201
    for version in versions:
        marks = [alias.name for alias in aliases if alias.version == version]
        marks += ["pinned"] * (version in pins)
        marks += [f"held by {service}" for service, held in leases.items() if version in held]
        print(version, f"({', '.join(marks)})" if marks else "")  # noqa: T201


def _show(store: Store, name: str) -> None:
    version = store.resolve(name)
    for alias in store.aliases().values():
        if version in (alias.version, *alias.previous):
            state = "stands for it" if alias.version == version else f"stood for it, now for {alias.version}"
            print(f"{alias.name}: {state}; set {alias.updated} by {alias.by}: {alias.note or '-'}")  # noqa: T201
    print(store.manifest(version).to_json(), end="")  # noqa: T201


def _run(options: argparse.Namespace) -> None:
    store = Store(options.url)
    match options.command:
        case "list":
            _list(store)
        case "publish":
            if options.force and not options.note:
                raise StoreError("--force needs --note: say why, it is kept in the store")
            version = publish(store, options.model, options.alias, note=options.note, forced=options.force)
            print("\n".join(f"{alias} -> {version}" for alias in options.alias) or version)  # noqa: T201
        case "show":
            _show(store, options.version)
        case "alias":
            alias = store.set_alias(options.name, store.resolve(options.version), by=who(), note=options.note)
            print(f"{alias.name} -> {alias.version}")  # noqa: T201
        case "rollback":
            alias = store.rollback(options.name, by=who(), note=options.note)
            print(f"{alias.name} -> {alias.version}")  # noqa: T201
        case "pin":
            store.pin(store.resolve(options.version), by=who(), note=options.note)
        case "unpin":
            store.unpin(options.version)
        case "gc":
            for name in store.collect_garbage(options.keep, dry_run=options.dry_run):
                print(name)  # noqa: T201


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except (StoreError, ArtifactError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
