"""`python -m sparse_encoder related`: a user's own related words, without training."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from sparse_encoder.artifact import MANIFEST, Artifact, ArtifactError, read_artifact
from sparse_encoder.packed import HEADER_SUFFIX, unpack
from sparse_encoder.related.changes import Change, RefusedError, parse_tsv, parse_weight
from sparse_encoder.related.revise import Encoder, Model, apply, write
from sparse_encoder.store import Store, StoreRefusal, who

_TSV = "lines of a word, a related one and perhaps a weight, with tabs between; weight 0 removes; - for standard input"


def add_parsers(commands: Any) -> None:
    related = commands.add_parser("related", help="related words of a model: show, add and remove your own")
    what = related.add_subparsers(dest="command", required=True)
    parsers = {
        "show": what.add_parser(
            "show", help="what words are related to, strongest first; * marks what was added by hand"
        ),
        "list": what.add_parser(
            "list", help="all that was added and removed by hand, as `add --tsv --one-way` reads it"
        ),
        "add": what.add_parser("add", help="relate words; writes a new version"),
        "remove": what.add_parser("remove", help="relate words no longer; writes a new version"),
    }
    for parser in parsers.values():
        parser.add_argument("model", help="directory of a model, or a version or alias of the store")
        parser.add_argument("--store", help="directory or fsspec URL, such as s3://bucket/models")
    parsers["show"].add_argument("words", nargs="+", metavar="word")
    for name in ("add", "remove"):
        parser = parsers[name]
        parser.add_argument("word", nargs="?")
        parser.add_argument("related", nargs="?")
        parser.add_argument("--tsv", help=_TSV)
        parser.add_argument("--one-way", action="store_true", help="not in the other direction as well")
        parser.add_argument("--out", type=Path, help="write the version as a directory in this one")
        parser.add_argument(
            "--alias", action="append", default=[], help="of the store, that shall stand for the version"
        )
        parser.add_argument("--note", default="", help="why; kept in the store")
    parsers["add"].add_argument(
        "weight", nargs="?", type=_weight, help="default: so that it weighs 0.6 of the word in a query of it alone"
    )
    for name, run in {"show": _show, "list": _list, "add": _add, "remove": _remove}.items():
        parsers[name].set_defaults(run=run)


def _weight(text: str) -> float:
    try:
        return parse_weight(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _show(options: argparse.Namespace) -> None:
    refused = []
    with tempfile.TemporaryDirectory(prefix="related-") as folder:
        model = Model(_open(options, Path(folder)))
        for text in options.words:
            try:
                word = model.words.find(text)
            except RefusedError as error:
                refused.append(f"{text}: {error}")
                continue
            for related, weight in model.table.row(word).items():
                mark = " *" if model.by_hand.get((word, related)) else ""
                _print(f"{model.name(word)}\t{model.name(related)}\t{weight:.3g}{mark}")
    _refuse(refused)


def _list(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(prefix="related-") as folder:
        sys.stdout.write(Model(_open(options, Path(folder))).by_hand_tsv())


def _add(options: argparse.Namespace) -> None:
    _change(options, removed=False)


def _remove(options: argparse.Namespace) -> None:
    _change(options, removed=True)


def _change(options: argparse.Namespace, *, removed: bool) -> None:
    changes = [
        replace(change, weight=0.0 if removed else change.weight, both=not options.one_way)
        for change in _read_changes(options)
    ]
    if not options.out and not options.store:
        raise ArtifactError("say where the new version shall go: --out DIRECTORY, --store URL, or both")
    if options.alias and not options.store:
        raise ArtifactError("an alias is one of a store: give --store URL as well")
    with tempfile.TemporaryDirectory(prefix="related-") as temporary:
        folder = Path(temporary)
        model = Model(_open(options, folder))
        if options.store:
            _check_aliases(options, model.artifact.manifest.version)
        outcome = apply(model, changes)
        _print(*outcome.made)
        _refuse(outcome.refused)
        if not outcome.made:
            raise ArtifactError("nothing was changed, so there is no new version")
        path = write(model, outcome, options.out or folder, _reference())
        if options.store:
            Store(options.store).publish(path, aliases=options.alias, by=who(), note=options.note)
        _print(f"{path.name}: {len(outcome.made)} rows changed, {len(outcome.refused)} refused")


def _read_changes(options: argparse.Namespace) -> list[Change]:
    if bool(options.tsv) == bool(options.word) or bool(options.word) != bool(options.related):
        raise ArtifactError("give a word and a related one, or --tsv FILE")
    if options.word:
        return [Change(options.word, options.related, getattr(options, "weight", None))]
    if options.tsv == "-":
        return parse_tsv(sys.stdin, "standard input")
    try:
        with Path(options.tsv).open(encoding="utf-8-sig") as lines:
            return parse_tsv(lines, options.tsv)
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{options.tsv} cannot be read ({error}): give a text file in UTF-8") from error


def _open(options: argparse.Namespace, folder: Path) -> Artifact:
    path = Path(options.model)
    if options.store and not path.is_dir():
        store = Store(options.store)
        return store.fetch(store.resolve(options.model), folder / "fetched")
    if not path.is_dir():
        raise ArtifactError(f"{path} is no directory: give one, or a version of a store with --store URL")
    if (path / MANIFEST).is_file() and any(path.glob(f"*{HEADER_SUFFIX}")):
        return unpack(path, folder / "unpacked")
    return read_artifact(path)


def _check_aliases(options: argparse.Namespace, version: str) -> None:
    """An alias moves on from the version that was changed only: else what others published meanwhile would be lost."""
    aliases = Store(options.store).aliases()
    for name in options.alias:
        if name in aliases and aliases[name].version != version:
            raise StoreRefusal(
                f"{name} stands for {aliases[name].version}, the change is to {version}: change {name}, or leave out "
                f"--alias and point {name} at the new version with `store {options.store} alias` if you mean it"
            )


def _reference() -> Callable[[Artifact], Encoder] | None:
    """Looks for torch only; it is imported if a golden vector is computed."""
    import importlib.util

    if not all(importlib.util.find_spec(name) for name in ("torch", "transformers")):
        return None

    def load(artifact: Artifact) -> Encoder:
        from sparse_encoder.checkpoint.reference import Reference

        return Reference(artifact)

    return load


def _print(*lines: str) -> None:
    sys.stdout.writelines(f"{line}\n" for line in lines)


def _refuse(lines: list[str]) -> None:
    sys.stderr.writelines(f"refused: {line}\n" for line in lines)
