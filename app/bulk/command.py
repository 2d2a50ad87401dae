"""`python -m app.bulk`: encodes whole files into files or an index, and goes on where it was stopped."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

from app.bulk.encoding import BulkEncoder, Format, ModelChoice, VectorChoice, load, open_artifact
from app.bulk.files import RunError, RunFiles, SinkError
from app.bulk.index import Index, IndexSink
from app.bulk.making import Job
from app.bulk.options import LOOKED_AT, parser
from app.bulk.plan import Wanted, prefix_of, prepare, version_of_run
from app.bulk.progress import Metrics
from app.bulk.rows import Document, InputError, to_document
from app.bulk.run import Summary, Way, go_on, here
from app.bulk.sinks import JsonLines, Parquet, Sink, Target
from app.bulk.sources import Source, files_of, is_index, shards_of, split_index
from app.encoders.base import EncoderError
from app.models.loaded import ModelError
from app.opensearch.connection import from_options
from app.opensearch.facts import OpenSearchError
from sparse_encoder.artifact import ArtifactError
from sparse_encoder.store import StoreError

REJECTED = 3  #: exit status if rows were rejected, and everything else was done
WINDOWS = 64


def _vectors(options: argparse.Namespace, format_of_output: Format) -> VectorChoice:
    return VectorChoice(
        input_type=options.input_type,
        top_k=options.top_k or (64 if options.input_type == "query" else 256),
        min_weight=options.min_weight,
        max_windows=WINDOWS if options.long_texts == "windows" else 1,
        format=options.format or format_of_output,
    )


def _encode(options: argparse.Namespace) -> int:
    if options.concurrency and not options.address:
        raise RunError("--concurrency is of --address: one process uses every core already, see --threads")
    if options.merge and not is_index(options.output):
        raise RunError("--merge is of an index, http://HOST:9200/NAME: a directory has nothing to merge")
    _make_absolute(options)
    if options.query_model and (options.store or not options.model):
        raise RunError("--query-model goes with --model, which encodes the documents: give both, or neither")
    fields = options.text[:1] if options.join else options.text
    to_index = is_index(options.output)
    url, name = split_index(options.output) if to_index else ("", "")
    files = RunFiles(options.run_dir or str(Path(f"{name}.bulk").absolute()) if to_index else options.output)
    model = ModelChoice(
        model=options.model,
        query_model=options.query_model,
        store=options.store,
        version=version_of_run(files) or options.version,
        device=options.device,
        precision=options.precision,
        threads=options.threads,
        cache_dir=options.cache_dir,
    )
    with ExitStack() as stack:
        sources = _sources(options, stack)
        index = None
        if to_index:
            connection = from_options(options, url)
            index = Index(stack.enter_context(connection.open()), name, fields, _say)
        vectors = _vectors(options, index.format if index else "word")
        artifact = open_artifact(model)
        version = artifact.manifest.version
        if options.dry_run:
            return _dry_run(options, sources, BulkEncoder(load(model, artifact), vectors), version)
        wanted = Wanted(
            texts=options.text,
            joined=options.join,
            id_column=options.id,
            version=version,
            vectors=asdict(vectors),
            target=options.output if to_index else options.to,
            encoding=options.encoding,
            limit=options.limit,
            part_rows=options.part_rows,
        )
        stack.enter_context(files.locked())
        metrics = Metrics()
        stack.enter_context(metrics.served(options.metrics_port))
        way = _on_ray(options, stack) if options.address else here
        manifest = prepare(files, wanted, sources, _say)
        sink: Sink
        target: Target
        writing: AbstractContextManager[None] = nullcontext()
        if index:
            sink, target = IndexSink(connection, name, options.patience, _say), index
            writing = index.without_refresh(files)
        elif options.to == "jsonl":
            sink = target = JsonLines(files)
        else:
            sink = target = Parquet(files, version, wanted.fields, manifest.columns)
        job = Job(replace(model, version=version), wanted, sink)
        with writing:
            summary = go_on(files, manifest, sources, job, way, target, _say, metrics)
        for line in index.settle(options.patience, merged=options.merge) if index else ():
            _say(line)
    return _told(summary, files.url, options.max_rejected)


def _make_absolute(options: argparse.Namespace) -> None:
    """Paths that go to other processes, whose working directory is another."""
    for name in ("output", "run_dir", "store"):
        if (value := getattr(options, name)) is not None and "://" not in value:
            setattr(options, name, str(Path(value).absolute()))
    for name in ("cache_dir", "ca_file"):
        if (value := getattr(options, name)) is not None:
            setattr(options, name, value.absolute())
    for name in ("model", "query_model"):
        if (value := getattr(options, name)) and Path(value).is_dir():  # else it is a name on the hub
            setattr(options, name, str(Path(value).absolute()))


def _sources(options: argparse.Namespace, stack: ExitStack) -> list[Source]:
    found: list[Source] = []
    for one in options.inputs:
        if is_index(one):
            url, name = split_index(one)
            cluster = stack.enter_context(from_options(options, url).open())
            found += shards_of(cluster, name, options.text, options.patience, _say)
        else:
            found += files_of([one], options.encoding)
    if double := next((one.path for one in found if [other.path for other in found].count(one.path) > 1), None):
        raise InputError(f"{double} is named twice")
    return found


def _on_ray(options: argparse.Namespace, stack: ExitStack) -> Way:
    try:
        from app.bulk import on_ray
    except ModuleNotFoundError as error:
        raise RunError(f"--address needs the extra ray ({error}): pip install -e '.[bulk,ray]'") from error
    stack.enter_context(on_ray.cluster(options.address, _say))
    gpus = int(options.device.startswith("cuda"))
    return on_ray.OnRay(options.concurrency, options.threads, gpus, _say)


def _told(summary: Summary, directory: str, max_rejected: int) -> int:
    for line in summary.lines():
        _say(line)
    if not summary.rejected:
        return 0
    columns = ", ".join(f"{name} {count:,}" for name, count in sorted(summary.reasons.items()))
    _say(f"rejected, by column: {columns}; each with its file, row and reason in {directory}/rejected")
    return REJECTED if summary.rejected > max_rejected else 0


def _dry_run(options: argparse.Namespace, sources: Sequence[Source], encoder: BulkEncoder, version: str) -> int:
    first = sources[0]
    with closing(first.rows()) as every:
        rows = list(islice(every, LOOKED_AT))
    found = [to_document(row, options.text, options.id, prefix_of(first, 0)) for row in rows]
    documents = [one for one in found if isinstance(one, Document)]
    if not documents:
        raise RunError(f"none of the first {len(rows)} rows of {first.path} can be encoded: {found[:1]}")
    texts = [text for document in documents for text in document.texts.values()]
    encoder.encode(texts[:8])
    started = time.perf_counter()
    encoded = [one for one in encoder.encode(texts) if one]
    seconds = (time.perf_counter() - started) / len(documents)
    words = sum(len(one.weights) for one in encoded) / max(1, len(encoded))
    size = sum(len(json.dumps(one.weights, ensure_ascii=False).encode()) for one in encoded) / len(documents)
    _say(f"of the first {len(rows)} rows of {first.path} {len(documents)} can be encoded")
    _say(f"by {version}: {1 / seconds:,.0f} documents/s here, {words:.0f} words a vector")
    _say(f"a million documents: {1e6 * seconds / 3600:.1f} hours, {size / 1000:.1f} GB of vectors as JSON")
    return 0


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
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
