"""`python -m app.opensearch`: connect an OpenSearch cluster to the service, see whether it works, undo it."""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import get_args
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from app.models.loaded import ModelError, open_artifact
from app.opensearch import connection
from app.opensearch.check import check
from app.opensearch.cluster import Cluster
from app.opensearch.explaining import as_lines, doubts, explain_hit
from app.opensearch.facts import OpenSearchError
from app.opensearch.plan import Access, Hybrid, IndexEngine, Options, Queries, make_plan
from app.opensearch.reindex import reindex
from app.opensearch.resources import model_ids
from app.opensearch.roles import as_patch, make_roles
from app.opensearch.runner import Runner
from app.opensearch.service import EncoderService
from app.opensearch.tokenizer_export import write_sparse_tokenizer
from sparse_encoder.artifact import ArtifactError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m app.opensearch", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    setup = commands.add_parser("setup", help="make what is missing; a second run changes nothing")
    checking = commands.add_parser("check", help="encode, index, find and delete a document")
    teardown = commands.add_parser("teardown", help="remove what setup made, and nothing else")
    export = commands.add_parser("export-tokenizer", help="write the SPARSE_TOKENIZE model of the query side")
    ids = commands.add_parser("ids", help="print the ids of the models, for queries that must name theirs")
    moving = commands.add_parser("reindex", help="copy an index into one of this set-up, and move an alias to it")
    why = commands.add_parser(
        "explain", help="which words give a document its score for a query, and what brought them"
    )
    roles = commands.add_parser("roles", help="write roles for who sets up, indexes and searches, with what each needs")
    for command in (setup, checking, ids, moving, why, teardown):
        command.add_argument("--opensearch", default="http://localhost:9200", metavar="URL", help="default %(default)s")
        connection.add_options(command)
    for command in (setup, checking, ids, moving, why, teardown, roles):
        command.add_argument("--name", default="ko-sparse", help="of all that is made (default %(default)s)")
    for command in (setup, checking, why):
        command.add_argument(
            "--encoder", default="http://localhost:8080", metavar="URL", help="the service, as the nodes see it"
        )
        command.add_argument("--api-key-file", type=Path, metavar="FILE", help="holds the key that the service wants")
        command.add_argument(
            "--encoder-ca-file", type=Path, metavar="FILE", help="trust these certificates of it (PEM)"
        )
    for command in (setup, teardown):
        command.add_argument("--dry-run", action="store_true", help="print the requests that would change something")
    setup.add_argument("--field", nargs="+", default=["text"], help="text fields to encode, each into NAME_sparse")
    setup.add_argument("--index-pattern", default="", help="indices that get the mapping (default NAME-*)")
    setup.add_argument(
        "--queries",
        choices=get_args(Queries),
        default="service",
        help="who encodes queries: the service by a connector of their own (default); the service by the documents' "
        "connector, told apart by OpenSearch (3.6 and newer); or a tokenizer inside OpenSearch, without any call",
    )
    setup.add_argument(
        "--engine", choices=get_args(IndexEngine), default="rank_features", help="seismic: approximate, 3.3 and newer"
    )
    setup.add_argument("--chunks", action="store_true", help="cut long texts, one vector a chunk (nested field)")
    setup.add_argument("--html", action="store_true", help="the fields hold HTML, whose markup is not to be encoded")
    setup.add_argument(
        "--two-phase",
        action="store_true",
        help="quicker neural_sparse queries by a rescore, with which sort, search_after, collapse, scroll and "
        "_delete_by_query fail or go wrong",
    )
    setup.add_argument(
        "--hybrid",
        choices=get_args(Hybrid),
        default="mean",
        help="how the parts of a hybrid query become one score: the mean of their normalised scores (default), or "
        "reciprocal ranks (2.19 and newer)",
    )
    setup.add_argument(
        "--hybrid-weights",
        nargs="+",
        type=float,
        default=[],
        metavar="W",
        help="of the parts, in their order; 1.0 in sum",
    )
    setup.add_argument(
        "--priority", type=int, metavar="N", help="of the index template (default 200 and the length of its pattern)"
    )
    setup.add_argument(
        "--access",
        choices=get_args(Access),
        help="who may use the models, where the cluster controls it (plugins.ml_commons.model_access_control_enabled): "
        "all who may call models (public, the default there), users with one of --backend-roles, or only you",
    )
    setup.add_argument("--backend-roles", nargs="+", default=[], metavar="ROLE", help="for --access restricted")
    setup.add_argument("--overwrite", action="store_true", help="replace pipelines that somebody edited by hand")
    moving.add_argument("source", help="index to copy")
    moving.add_argument("target", help="index that the template of the set-up is for; made if it is not there")
    moving.add_argument("--alias", help="moved from the source to the target in the end")
    moving.add_argument("--page", type=int, default=256, help="documents in a bulk (default %(default)s)")
    why.add_argument("--index", required=True, help="that holds the document")
    why.add_argument("--id", required=True, help="of the document")
    why.add_argument("--query", required=True, help="text of the query")
    why.add_argument("--field", help="whose vector the query is for; where several have one")
    why.add_argument("--json", action="store_true", help="as a JSON object")
    ids.add_argument("--json", action="store_true", help="as a JSON object")
    setup.add_argument("--batch-size", type=int, default=32, help="documents in a request (default %(default)s)")
    setup.add_argument(
        "--model-version", help="version or alias that the service shall use; without it, its own choice"
    )
    for command in (setup, export):
        command.add_argument(
            "--artifact", type=Path, metavar="DIR", help="the published model, for its tokenizer; default the embedded"
        )
    roles.add_argument(
        "--index-pattern", nargs="+", default=[], metavar="PATTERN", help="indices that they are for (default NAME-*)"
    )
    roles.add_argument(
        "--cluster-settings", action="store_true", help="the operator may change cluster settings, as setup may have to"
    )
    roles.add_argument("target", type=Path, help="JSON file to write, for PATCH /_plugins/_security/api/roles")
    export.add_argument("target", type=Path, help="zip file to write")
    return parser


def _connect(options: argparse.Namespace) -> Cluster:
    return connection.from_options(options, options.opensearch).open()


def _service(options: argparse.Namespace) -> EncoderService:
    key = connection.secret("--api-key-file", options.api_key_file)
    return EncoderService(options.encoder, key, ca_file=options.encoder_ca_file)


def _tokenizer(artifact_dir: Path | None, service: EncoderService) -> bytes:
    """The query tokenizer of the artifact, which must be the one that the service encodes documents with."""
    artifact = open_artifact(artifact_dir)
    with tempfile.TemporaryDirectory() as directory:
        info = service.info()
        served = info and info["model"]["version"]
        if served and served != artifact.manifest.version:
            raise OpenSearchError(
                f"{service.url} serves {served}, the artifact is {artifact.manifest.version}: give the artifact of "
                f"{served} with --artifact"
            )
        return _timeless(write_sparse_tokenizer(artifact, Path(directory) / "queries.zip"))


def _timeless(file: Path) -> bytes:
    """The zip `file` without the times in it, so that the same tokenizer is the same bytes."""
    content = io.BytesIO()
    with ZipFile(file) as archive, ZipFile(content, "w", ZIP_DEFLATED) as copy:
        for name in archive.namelist():
            copy.writestr(ZipInfo(name), archive.read(name), ZIP_DEFLATED)
    return content.getvalue()


def _setup(options: argparse.Namespace) -> None:
    wanted = Options(
        encoder=options.encoder,
        name=options.name,
        index_pattern=options.index_pattern,
        fields=tuple(options.field),
        queries=options.queries,
        engine=options.engine,
        chunks=options.chunks,
        html=options.html,
        two_phase=options.two_phase,
        hybrid=options.hybrid,
        hybrid_weights=tuple(options.hybrid_weights),
        priority=options.priority,
        batch_size=options.batch_size,
        model_version=options.model_version,
        api_key=connection.secret("--api-key-file", options.api_key_file),
        access=options.access,
        backend_roles=tuple(options.backend_roles),
    )
    service = _service(options)
    encoder = service.describe(options.model_version)
    if service.info() is None:
        _say(f"{options.encoder} cannot be reached from here; perhaps the nodes can, which check will tell")
    tokenizer = _tokenizer(options.artifact, service) if options.queries == "tokenizer" else None
    with _connect(options) as cluster:
        plan = make_plan(wanted, cluster.facts(), encoder, tokenizer)
        runner = Runner(cluster, options.name, _say, dry_run=options.dry_run)
        changed = runner.set_up(plan, overwrite=options.overwrite)
        if options.two_phase:
            _say(
                "two-phase search is on: sort, search_after, collapse, scroll and _delete_by_query fail or go wrong "
                "with it"
            )
        for side, id_ in model_ids(cluster, options.name).items():
            _say(f"{side} are encoded by the model {id_}")
        if not changed:
            _say("nothing had to be changed")


def _ids(options: argparse.Namespace) -> None:
    with _connect(options) as cluster:
        ids = model_ids(cluster, options.name)
    if not ids:
        raise OpenSearchError(f"there are no pipelines of the set-up {options.name}: run setup")
    _say(json.dumps(ids) if options.json else "\n".join(f"{side} {id_}" for side, id_ in ids.items()))


def _explain(options: argparse.Namespace) -> None:
    with _connect(options) as cluster:
        hit = explain_hit(
            cluster, options.name, _service(options), options.index, options.id, options.query, options.field
        )
    _say(json.dumps(asdict(hit), ensure_ascii=False) if options.json else "\n".join(as_lines(hit)))
    if found := doubts(hit):
        raise OpenSearchError("\nerror: ".join(found))


def _teardown(options: argparse.Namespace) -> None:
    with _connect(options) as cluster:
        if not Runner(cluster, options.name, _say, dry_run=options.dry_run).tear_down():
            _say(f"there is nothing of the set-up {options.name}")


def _run(options: argparse.Namespace) -> None:
    match options.command:
        case "setup":
            _setup(options)
        case "check":
            with _connect(options) as cluster:
                check(cluster, options.name, _service(options), _say)
        case "ids":
            _ids(options)
        case "explain":
            _explain(options)
        case "reindex":
            with _connect(options) as cluster:
                reindex(cluster, options.name, options.source, options.target, options.alias, options.page, _say)
        case "teardown":
            _teardown(options)
        case "roles":
            patterns = options.index_pattern or [f"{options.name}-*"]
            made = make_roles(options.name, patterns, cluster_settings=options.cluster_settings)
            text = json.dumps(as_patch(made), indent=2, ensure_ascii=False) + "\n"
            _write(options.target, lambda: options.target.write_text(text, encoding="utf-8"))
        case "export-tokenizer":
            artifact = open_artifact(options.artifact)
            _write(options.target, lambda: write_sparse_tokenizer(artifact, options.target))


def _write(target: Path, write: Callable[[], object]) -> None:
    try:
        write()
    except OSError as error:
        raise OpenSearchError(f"{target} cannot be written: {error}") from error
    _say(str(target))


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        _run(options)
    except (OpenSearchError, ArtifactError, ModelError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
