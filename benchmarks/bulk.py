"""Documents a second of `python -m app.bulk`, of the bare encoder, the client, and OpenSearch's _reindex.

    python -m benchmarks.bulk --data FILE.jsonl.xz --out DIR

takes the first passages (`text`) of the file. Each way does them all, one way after the other, several times; ratios
are within a round. What starts only once is told apart: a way's speed is that of its parts after the first.
"""

from __future__ import annotations

import argparse
import json
import lzma
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from app.bulk.encoding import BulkEncoder, ModelChoice, VectorChoice, load, open_artifact
from app.opensearch.__main__ import main as opensearch
from app.opensearch.cluster import Cluster
from benchmarks.figures import caption
from scripts.opensearch_node import running_node
from sparse_encoder.client import SparseEncoderClient
from tests.app.server import running

PART = 250  #: rows
BULK = 100  #: documents of a request, of those that fill the source of _reindex
WAYS = ("encoder", "here", "ray", "client", "index", "reindex")


class Speed(NamedTuple):
    documents_per_second: float
    start_seconds: float  #: before and with the first part


def texts_of(file: Path, count: int) -> list[str]:
    with lzma.open(file, "rt", encoding="utf-8") if file.suffix == ".xz" else file.open(encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in islice(lines, count)]


def by_encoder(texts: Sequence[str]) -> Speed:
    """No files, no rows: only the batches of each part."""
    begun = time.perf_counter()
    choice = ModelChoice()
    encoder = BulkEncoder(load(choice, open_artifact(choice)), VectorChoice())
    encoder.encode(texts[:PART])
    started = time.perf_counter()
    for start in range(PART, len(texts), PART):
        encoder.encode(texts[start : start + PART])
    return Speed((len(texts) - PART) / (time.perf_counter() - started), started - begun)


def by_command(texts: Sequence[str], work: Path, output: str, *options: str) -> Speed:
    """By when its receipts were written."""
    source, run = work / "rows.jsonl", work / f"run-{time.monotonic_ns()}"
    rows = [json.dumps({"id": str(n), "text": text}, ensure_ascii=False) for n, text in enumerate(texts)]
    source.write_text("\n".join(rows), encoding="utf-8")
    line = [sys.executable, "-m", "app.bulk", "encode", str(source), output or str(run), "--id", "id"]
    line += ["--part-rows", str(PART), *(("--run-dir", str(run)) if output else ()), *options]
    begun = time.time()
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL)
    written = sorted(path.stat().st_mtime for path in (run / "receipts").iterdir())
    return Speed((len(texts) - PART) / (written[-1] - written[0]), written[0] - begun)


def by_client(texts: Sequence[str], url: str) -> Speed:
    with SparseEncoderClient(url) as client:
        client.encode(texts[:PART])
        started = time.perf_counter()
        client.encode(texts[PART:])
        return Speed((len(texts) - PART) / (time.perf_counter() - started), 0.0)


def by_reindex(texts: Sequence[str], cluster: Cluster) -> Speed:
    """OpenSearch's own, through the pipeline that asks the service."""
    cluster.request("DELETE", "/plain,ko-sparse-reindexed?ignore_unavailable=true")
    for start in range(0, len(texts), BULK):
        lines = ['{"index": {}}\n' + json.dumps({"text": text}) + "\n" for text in texts[start : start + BULK]]
        cluster.request("POST", "/plain/_bulk?refresh=true", "".join(lines).encode())
    cluster.request("PUT", "/ko-sparse-reindexed", {})
    started = time.perf_counter()
    body = {"source": {"index": "plain"}, "dest": {"index": "ko-sparse-reindexed"}}
    done = cluster.request("POST", "/_reindex?wait_for_completion=true", body)
    if done["failures"] or done["created"] != len(texts):
        raise RuntimeError(f"_reindex: {done}")
    return Speed(len(texts) / (time.perf_counter() - started), 0.0)


def by_index(texts: Sequence[str], work: Path, cluster: Cluster) -> Speed:
    cluster.request("DELETE", "/ko-sparse-bulk?ignore_unavailable=true")
    cluster.request("PUT", "/ko-sparse-bulk", {})
    return by_command(texts, work, f"{cluster.url}/ko-sparse-bulk")


def measured(way: str, texts: Sequence[str], work: Path) -> Speed:
    if way == "encoder":
        return by_encoder(texts)
    if way == "here":
        return by_command(texts, work, "")
    if way == "ray":
        return by_command(texts, work, "", "--address", "local")
    with running("-m", "app", "--port", "0") as server:
        if way == "client":
            return by_client(texts, server.url)
        with (
            running_node("3.6.0", work / f"node-{time.monotonic_ns()}") as node,
            Cluster(node.url, timeout_seconds=600.0) as cluster,
        ):
            if opensearch(["setup", "--opensearch", node.url, "--encoder", server.url]):
                raise RuntimeError("setup failed")
            return by_index(texts, work, cluster) if way == "index" else by_reindex(texts, cluster)


def table(rounds: Sequence[dict[str, Speed]]) -> str:
    lines = ["| way | documents/s | of the bare encoder | start and first part, s |", "|---|---|---|---|"]
    for way in rounds[0]:
        speeds = [one[way] for one in rounds]
        ratios = [one[way].documents_per_second / one["encoder"].documents_per_second for one in rounds]
        lines.append(
            f"| {way} | {statistics.median(one.documents_per_second for one in speeds):.1f} | "
            f"{100 * statistics.median(ratios):.0f} % ({', '.join(f'{100 * ratio:.0f}' for ratio in ratios)}) | "
            f"{statistics.median(one.start_seconds for one in speeds):.0f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bulk", description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="JSONL with `text`, also .xz")
    parser.add_argument("--out", type=Path, required=True, help="directory for the results")
    parser.add_argument("--rows", type=int, default=50_000, help="passages (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", nargs="+", choices=WAYS[1:], default=WAYS[1:], help="beside the bare encoder")
    options = parser.parse_args()
    texts = texts_of(options.data, options.rows)
    rounds: list[dict[str, Speed]] = []
    with tempfile.TemporaryDirectory() as work:
        for _ in range(options.rounds):
            rounds.append({way: measured(way, texts, Path(work)) for way in ("encoder", *options.ways)})
            print(rounds[-1], flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    told = table(rounds) + "\n" + caption(open_artifact(ModelChoice()).manifest.version) + "\n"
    (options.out / "bulk.md").write_text(told, encoding="utf-8")
    print(told)


if __name__ == "__main__":
    main()
