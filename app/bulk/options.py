"""What `python -m app.bulk` may be told."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

from app.bulk.encoding import Format
from app.models.loaded import default_cache_dir
from app.opensearch import connection

LOOKED_AT = 100  #: rows of a dry run


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m app.bulk", description="Encodes whole files or indices into files or an index."
    )
    commands = made.add_subparsers(dest="command", required=True)
    encode = commands.add_parser("encode", help="the same command again goes on after a stop, whatever stopped it")
    encode.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="JSONL, CSV, TSV or Parquet (.gz, .zst), a directory or pattern of them, here or s3://; or an index, "
        "http://localhost:9200/NAME",
    )
    encode.add_argument(
        "output", metavar="OUTPUT", help="a directory, also s3://, or an index: http://localhost:9200/ko-sparse-help"
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
    encode.add_argument("--metrics-port", type=int, metavar="PORT", help="serve Prometheus metrics while it runs")
    ray = encode.add_argument_group("Ray (extra ray)")
    ray.add_argument(
        "--address", help="HOST:PORT of a cluster's head, on one of its nodes; or local, to start one here"
    )
    ray.add_argument("--concurrency", type=_positive, metavar="N", help="processes (default as many as have room)")
    model = encode.add_argument_group("model")
    model.add_argument("--model", help="directory or name on the hub; without it, the embedded one")
    model.add_argument(
        "--query-model", help="what encodes queries beside --model, so that the version is the service's"
    )
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
    model.add_argument(
        "--threads", type=int, default=0, help="of a CPU; 0 for all (default), on Ray of its smallest node"
    )
    model.add_argument("--cache-dir", type=Path, default=default_cache_dir())
    index = encode.add_argument_group("index")
    index.add_argument("--run-dir", help="receipts and rejected rows (default ./INDEX.bulk)")
    connection.add_options(index)
    index.add_argument(
        "--merge", action="store_true", help="into one segment a shard in the end: quicker searches, if no more comes"
    )
    index.add_argument("--patience", type=float, default=300.0, help="seconds that OpenSearch may be away or full")
    return made


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number
