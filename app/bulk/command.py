"""`python -m app.bulk`: encodes whole files into files or an index, and goes on where it was stopped."""

from __future__ import annotations

import argparse
import getpass
import json
import sys
import time
from contextlib import ExitStack, closing, nullcontext
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import get_args

from app.bulk.encoding import BulkEncoder, Format, ModelChoice, VectorChoice, load, open_artifact
from app.bulk.plan import RunError, Wanted, locked, prefix_of, prepare, version_of_run
from app.bulk.rows import Document, InputError, find_inputs, read_rows, to_document
from app.bulk.run import Summary, go_on
from app.bulk.sinks import Index, JsonLines, Parquet, Sink, SinkError
from app.encoders.base import EncoderError
from app.models.loaded import ModelError, default_cache_dir
from app.opensearch.cluster import Cluster
from app.opensearch.facts import OpenSearchError
from sparse_encoder.artifact import ArtifactError
from sparse_encoder.store import StoreError

LOOKED_AT = 100  #: rows of a dry run
REJECTED = 3  #: exit status if rows were rejected, and everything else was done
WINDOWS = 64


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m app.bulk", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    encode = commands.add_parser("encode", help="the same command again goes on after a stop, whatever stopped it")
    encode.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="JSONL, CSV, TSV or Parquet (.gz, .zst), a directory or pattern of them, here or s3://",
    )
    encode.add_argument(
        "output", metavar="OUTPUT", help="a directory, or an index: http://localhost:9200/ko-sparse-help"
    )
    encode.add_argument("--text", nargs="+", default=["text"], help="columns, each encoded into NAME_sparse")
    encode.add_argument(
        "--join", action="store_true", help="one vector of all of --text together, under the first name"
    )
    encode.add_argument("--id", help="column of the ids; without it, file and row")
    encode.add_argument(
        "--to", choices=("parquet", "jsonl"), default="parquet", help="in a directory (default parquet)"
    )
    encode.add_argument("--encoding", default="utf-8", help="of CSV and JSONL (default %(default)s)")
    encode.add_argument("--limit", type=_positive, help="rows, from the first")
    encode.add_argument("--dry-run", action="store_true", help=f"encode {LOOKED_AT} rows, say how long all would take")
    encode.add_argument("--max-rejected", type=int, default=0, help="rows that may be, for exit status 0 (default 0)")
    encode.add_argument(
        "--part-rows", type=_positive, default=1000, help="rows that a stop costs (default %(default)s)"
    )
    model = encode.add_argument_group("model")
    model.add_argument("--model", help="directory or name on the hub; without it, the embedded one")
    model.add_argument("--store", help="take the model from this store; a run keeps the version that it began with")
    model.add_argument("--version", default="stable", help="version or alias in the store (default %(default)s)")
    model.add_argument("--input-type", choices=("document", "query"), default="document")
    model.add_argument("--top-k", type=_positive, help="words kept of a vector (default 256, of queries 64)")
    model.add_argument("--min-weight", type=float, default=0.0)
    model.add_argument("--format", choices=get_args(Format), help="names of the tokens (default word, or as the index)")
    model.add_argument(
        "--long-texts",
        choices=("cut", "windows"),
        default="cut",
        help="windows: the whole text, in overlapping windows",
    )
    model.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    model.add_argument("--precision", default="auto", help="auto, f32, bf16, f16, int8 or int8-static")
    model.add_argument("--threads", type=int, default=0, help="of a CPU; 0 for all")
    model.add_argument("--cache-dir", type=Path, default=default_cache_dir())
    index = encode.add_argument_group("index")
    index.add_argument("--run-dir", type=Path, help="receipts and rejected rows (default ./INDEX.bulk)")
    index.add_argument("--user", help="name for basic authentication; the password is asked for")
    index.add_argument("--password-file", type=Path, metavar="FILE", help="holds the password of --user")
    index.add_argument("--ca-file", type=Path, metavar="FILE", help="trust these certificates (PEM)")
    index.add_argument("--insecure", action="store_true", help="trust any certificate")
    index.add_argument("--patience", type=float, default=300.0, help="seconds that OpenSearch may be away or full")
    return parser


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _vectors(options: argparse.Namespace, format_: Format) -> VectorChoice:
    return VectorChoice(
        input_type=options.input_type,
        top_k=options.top_k or (64 if options.input_type == "query" else 256),
        min_weight=options.min_weight,
        max_windows=WINDOWS if options.long_texts == "windows" else 1,
        format=format_,
    )


def _encode(options: argparse.Namespace) -> int:
    inputs = find_inputs(options.inputs)
    to_index = options.output.startswith(("http://", "https://"))
    url, _, name = options.output.rpartition("/") if to_index else ("", "", "")
    directory = Path(options.run_dir or f"{name}.bulk") if to_index else Path(options.output)
    choice = ModelChoice(
        model=options.model,
        store=options.store,
        version=version_of_run(directory) or options.version,
        device=options.device,
        precision=options.precision,
        threads=options.threads,
        cache_dir=options.cache_dir.absolute(),
    )
    fields = options.text[:1] if options.join else options.text
    with ExitStack() as stack:
        index = None
        if to_index:
            cluster = stack.enter_context(_connect(options, url))
            index = Index(cluster, name, fields, options.patience, _say)
            if len(index.formats) > 1:
                raise SinkError(f"the fields of {name} are of two types: encode them in two runs")
        format_: Format = options.format or (
            "sparse_vector" if index and index.formats == {"sparse_vector"} else "word"
        )
        vectors = _vectors(options, format_)
        artifact = open_artifact(choice)
        if options.dry_run:
            return _dry_run(options, inputs, BulkEncoder(load(choice, artifact), vectors), artifact.manifest.version)
        wanted = Wanted(
            texts=options.text,
            joined=options.join,
            id_column=options.id,
            version=artifact.manifest.version,
            vectors=asdict(vectors),
            target=options.output if to_index else options.to,
            encoding=options.encoding,
            limit=options.limit,
            part_rows=options.part_rows,
        )
        stack.enter_context(locked(directory))
        manifest = prepare(directory, wanted, inputs, _say)
        sink: Sink
        if index:
            sink = index
        elif options.to == "jsonl":
            sink = JsonLines(directory)
        else:
            sink = Parquet(directory, wanted.version, wanted.fields, manifest.columns)
        with index.without_refresh(directory) if index else nullcontext():
            summary = go_on(directory, manifest, lambda: BulkEncoder(load(choice, artifact), vectors), sink, _say)
    return _told(summary, directory, options.max_rejected)


def _told(summary: Summary, directory: Path, max_rejected: int) -> int:
    for line in summary.lines():
        _say(line)
    if not summary.rejected:
        return 0
    columns = ", ".join(f"{name} {count:,}" for name, count in sorted(summary.reasons.items()))
    _say(f"rejected, by column: {columns}; each with its file, row and reason in {directory}/rejected")
    return REJECTED if summary.rejected > max_rejected else 0


def _dry_run(options: argparse.Namespace, inputs: list[str], encoder: BulkEncoder, version: str) -> int:
    with closing(read_rows(inputs[0], options.encoding)) as every:
        rows = list(islice(every, LOOKED_AT))
    found = [to_document(row, options.text, options.id, prefix_of(inputs[0], 0)) for row in rows]
    documents = [one for one in found if isinstance(one, Document)]
    if not documents:
        raise RunError(f"none of the first {len(rows)} rows of {inputs[0]} can be encoded: {found[:1]}")
    texts = [text for document in documents for text in document.texts.values()]
    encoder.encode(texts[:8])
    started = time.perf_counter()
    encoded = [one for one in encoder.encode(texts) if one]
    seconds = (time.perf_counter() - started) / len(documents)
    words = sum(len(one.weights) for one in encoded) / max(1, len(encoded))
    size = sum(len(json.dumps(one.weights, ensure_ascii=False).encode()) for one in encoded) / len(documents)
    _say(f"{len(inputs)} files; of the first {len(rows)} rows of {inputs[0]} {len(documents)} can be encoded")
    _say(f"by {version}: {1 / seconds:,.0f} documents/s here, {words:.0f} words a vector")
    _say(f"a million documents: {1e6 * seconds / 3600:.1f} hours, {size / 1000:.1f} GB of vectors as JSON")
    return 0


def _connect(options: argparse.Namespace, url: str) -> Cluster:
    auth = None
    if options.user:
        try:
            password = options.password_file.read_text(encoding="utf-8").strip() if options.password_file else None
        except OSError as error:
            raise OpenSearchError(f"--password-file cannot be read: {error}") from error
        auth = (options.user, password or getpass.getpass(f"{options.user}'s password: "))
    return Cluster(url, auth=auth, ca_file=options.ca_file, insecure=options.insecure)


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        return _encode(options)
    except (
        ArtifactError,
        EncoderError,
        InputError,
        ModelError,
        OpenSearchError,
        RunError,
        SinkError,
        StoreError,
        ValueError,
    ) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)  # noqa: T201
        return 130
