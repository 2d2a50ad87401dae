"""Retrieval on a live OpenSearch node against the same vectors offline, latency of each way to query, speed of ingest.

    python -m benchmarks.opensearch --data DIR --set NAME --out DIR

reads `DIR/NAME.corpus.jsonl` (`_id`, `text`) and `DIR/NAME.queries.jsonl` (`query`, `pos`: ids), or both as `.xz`. For
each version of OpenSearch it starts a node (scripts/opensearch_node.py) and the service, and writes `opensearch.json`,
`opensearch.md` and `opensearch.png`. Timings are of one client on this machine, which node and service share.
"""

from __future__ import annotations

import argparse
import json
import lzma
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import matplotlib
from tqdm import tqdm

from app.opensearch.cluster import Cluster
from app.opensearch.service import EncoderService
from app.opensearch.vectors import vectors_of
from scripts.opensearch_node import running_node
from scripts.opensearch_parts import VERSIONS
from tests.app.server import running

Vector = Mapping[str, float]
NAME = "benchmark"
INDEX = f"{NAME}-index"
CUTOFF = 10
WARM_UP_QUERIES = 20
BULK_DOCUMENTS = 128
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class RetrievalSet:
    documents: dict[str, str]
    queries: list[tuple[str, set[str]]]


@dataclass
class Way:
    """One way to index and query, and what came of it."""

    opensearch: str
    way: str
    ndcg_node: float
    ndcg_offline: float
    p50_ms: float
    p95_ms: float


def read_set(directory: Path, name: str, max_documents: int, max_queries: int) -> RetrievalSet:
    """The first queries, the documents they need, and as many more as fit."""
    queries = [(row["query"], set(row["pos"])) for row in rows(directory, f"{name}.queries.jsonl")]
    corpus = {row["_id"]: row["text"] for row in rows(directory, f"{name}.corpus.jsonl")}
    documents: dict[str, str] = {}
    chosen = []
    for query, positives in queries[:max_queries]:
        if len(documents.keys() | positives) <= max_documents:
            documents |= {id_: corpus[id_] for id_ in positives}
            chosen.append((query, positives))
    for id_, text in corpus.items():
        if len(documents) < max_documents:
            documents[id_] = text
    return RetrievalSet(documents, chosen)


def rows(directory: Path, name: str) -> Iterator[dict[str, Any]]:
    plain, packed = directory / name, directory / f"{name}.xz"
    content = plain.read_bytes() if plain.exists() else lzma.decompress(packed.read_bytes())
    yield from map(json.loads, content.decode().splitlines())


def ndcg(ranking: Sequence[str], positives: set[str]) -> float:
    gain = sum(1 / math.log2(rank + 2) for rank, id_ in enumerate(ranking[:CUTOFF]) if id_ in positives)
    return gain / sum(1 / math.log2(rank + 2) for rank in range(min(CUTOFF, len(positives))))


def encode(service: EncoderService, texts: Sequence[str], what: str, **fields: object) -> list[Vector]:
    vectors: list[Vector] = []
    for start in tqdm(range(0, len(texts), 64), desc=f"encoding {what}", disable=None):
        vectors += service.encode(texts[start : start + 64], **fields)
    return vectors


def offline_ndcg(documents: Mapping[str, Vector], queries: Sequence[Vector], positives: Sequence[set[str]]) -> float:
    postings: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for id_, vector in documents.items():
        for token, weight in vector.items():
            postings[token].append((id_, weight))
    values = []
    for query, relevant in zip(queries, positives, strict=True):
        scores: dict[str, float] = defaultdict(float)
        for token, weight in query.items():
            for id_, other in postings[token]:
                scores[id_] += weight * other
        values.append(ndcg(sorted(scores, key=lambda id_: -scores[id_]), relevant))
    return statistics.mean(values)


class Bench:
    """One version of OpenSearch."""

    def __init__(self, version: str, cluster: Cluster, service: EncoderService, retrieval: RetrievalSet) -> None:
        self.version, self.cluster, self.service, self.retrieval = version, cluster, service, retrieval
        self.positives = [positives for _, positives in retrieval.queries]
        texts = [query for query, _ in retrieval.queries]
        self.query_texts = texts
        self.documents = dict(
            zip(retrieval.documents, encode(service, list(retrieval.documents.values()), "documents"), strict=True)
        )
        info = service.info()
        assert info
        self.has_query_tokens = "inference_free" in info["model"]["query_encodings"]
        self.queries = {"model": encode(service, texts, "queries", input_type="query", query_encoding="model")}
        if self.has_query_tokens:
            fields = {"input_type": "query", "query_encoding": "inference_free"}
            self.queries["inference_free"] = encode(service, texts, "queries, inference-free", **fields)

    def set_up(self, *options: str) -> None:
        command = (sys.executable, "-m", "app.opensearch", "setup", "--opensearch", self.cluster.url, "--name", NAME)
        subprocess.run([*command, "--encoder", self.service.url, *options], check=True, stdout=subprocess.DEVNULL)

    def ingest(self, index: str, documents: Sequence[tuple[str, str]]) -> float:
        """Documents a second."""
        start = time.perf_counter()
        for first in tqdm(range(0, len(documents), BULK_DOCUMENTS), desc=f"{self.version} ingest", disable=None):
            lines = []
            for id_, text in documents[first : first + BULK_DOCUMENTS]:
                lines += [json.dumps({"index": {"_index": index, "_id": id_}}), json.dumps({"text": text})]
            answer = self.cluster.request("POST", "/_bulk", ("\n".join(lines) + "\n").encode())
            assert not answer["errors"], answer
        seconds = time.perf_counter() - start
        self.cluster.request("POST", f"/{index}/_forcemerge?max_num_segments=1")
        self.cluster.request("POST", f"/{index}/_refresh")
        return len(documents) / seconds

    def damaged_keys(self) -> int:
        """U+FFFD in the tokens of all documents of the index."""
        damaged, after = 0, None
        while True:
            body: dict[str, Any] = {"size": 500, "sort": ["_doc"], "_source": ["text_sparse"]}
            body |= {"search_after": after} if after else {}
            hits = self.cluster.request("POST", f"/{INDEX}/_search?search_pipeline=_none", body)["hits"]["hits"]
            if not hits:
                return damaged
            damaged += sum(
                "\ufffd" in token
                for hit in hits
                for vector in vectors_of(hit["_source"].get("text_sparse"))
                for token in vector
            )
            after = hits[-1]["sort"]

    def measure(self, way: str, encoding: str, **body: Any) -> Way:
        rankings, milliseconds = [], []
        for text in tqdm(self.query_texts[:WARM_UP_QUERIES] + self.query_texts, desc=way, disable=None):
            clause: dict[str, Any] = {"query_text": text, **body.get("clause", {})}
            query = {"size": CUTOFF, "_source": False, "query": {"neural_sparse": {"text_sparse": clause}}}
            query |= {"search_pipeline": body["search_pipeline"]} if "search_pipeline" in body else {}
            start = time.perf_counter()
            hits = self.cluster.request("POST", f"/{INDEX}/_search", query)["hits"]["hits"]
            milliseconds.append((time.perf_counter() - start) * 1000)
            rankings.append([hit["_id"] for hit in hits])
        skip = len(rankings) - len(self.query_texts)
        node = statistics.mean(map(ndcg, rankings[skip:], self.positives))
        offline = offline_ndcg(self.documents, self.queries[encoding], self.positives)
        percentiles = statistics.quantiles(milliseconds[skip:], n=20)
        return Way(self.version, way, node, offline, statistics.median(milliseconds[skip:]), percentiles[18])

    def one_phase(self) -> dict[str, Any]:
        """The search pipeline without its two-phase processor."""
        pipeline = self.cluster.request("GET", f"/_search/pipeline/{NAME}")[NAME]
        kept = [p for p in pipeline["request_processors"] if "neural_sparse_two_phase_processor" not in p]
        return {"request_processors": kept}

    def new_index(self, parameters: Mapping[str, Any] | None = None) -> None:
        """The index that the template describes; `parameters` for SEISMIC."""
        self.cluster.request("DELETE", f"/{INDEX}?ignore_unavailable=true")
        template = self.cluster.request("POST", f"/_index_template/_simulate/{NAME}")["template"]
        if parameters:
            template["mappings"]["properties"]["text_sparse"]["method"]["parameters"].update(parameters)
        template["settings"]["index"]["number_of_replicas"] = "0"
        self.cluster.request("PUT", f"/{INDEX}", {"settings": template["settings"], "mappings": template["mappings"]})

    def ways(self, artifact: Sequence[str]) -> Iterator[Way]:
        everything = list(self.retrieval.documents.items())
        self.set_up("--two-phase")
        self.new_index()
        self.ingest(INDEX, everything)
        yield self.measure("rank_features, queries by the service", "model")
        yield self.measure("the same in one phase", "model", search_pipeline=self.one_phase())
        if self.has_query_tokens:
            self.set_up("--queries", "tokenizer", *artifact)
            yield self.measure("rank_features, queries inside OpenSearch", "inference_free")
            yield self.measure("the same in one phase", "inference_free", search_pipeline=self.one_phase())
        if self.version.startswith("2."):
            return
        self.set_up("--engine", "seismic")
        self.new_index({"approximate_threshold": 1})  # else so few documents are scored exactly
        self.ingest(INDEX, everything)
        yield self.measure("seismic, queries by the service", "model")
        yield self.measure("the same, top_n 30", "model", clause={"method_parameters": {"top_n": 30}})
        if self.has_query_tokens:
            self.set_up("--engine", "seismic", "--queries", "tokenizer", *artifact)
            yield self.measure("seismic, queries inside OpenSearch", "inference_free")

    def ingest_speeds(self, documents: int) -> dict[int, float]:
        """Documents a second by batch size."""
        some = list(self.retrieval.documents.items())[:documents]
        speeds = {}
        for batch_size in BATCH_SIZES:
            self.set_up("--batch-size", str(batch_size))
            self.new_index()
            speeds[batch_size] = self.ingest(INDEX, some)
        return speeds


def table(ways: Sequence[Way], damaged: Mapping[str, int], speeds: Mapping[str, Mapping[int, float]]) -> str:
    lines = ["| OpenSearch | way | nDCG@10 on the node | offline | p50 ms | p95 ms |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {w.opensearch} | {w.way} | {w.ndcg_node:.4f} | {w.ndcg_offline:.4f} | {w.p50_ms:.1f} | {w.p95_ms:.1f} |"
        for w in ways
    ]
    lines += ["", "| batch_size | " + " | ".join(f"documents/s, {version}" for version in speeds) + " |"]
    lines += ["|---" * (len(speeds) + 1) + "|"]
    for size in BATCH_SIZES:
        lines.append(f"| {size} | " + " | ".join(f"{speed[size]:.1f}" for speed in speeds.values()) + " |")
    lines += ["", *(f"U+FFFD in indexed tokens, {version}: {count}" for version, count in damaged.items())]
    return "\n".join(lines) + "\n"


def plot(speeds: Mapping[str, Mapping[int, float]], target: Path) -> None:
    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.5), layout="constrained")
    for version, speed in speeds.items():
        axes.plot(list(speed), list(speed.values()), marker="o", label=f"OpenSearch {version}")
    axes.set_xscale("log", base=2)
    axes.set_xticks(BATCH_SIZES, [str(size) for size in BATCH_SIZES])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("batch_size of the ingest pipeline")
    axes.set_ylabel("documents a second")
    axes.legend()
    figure.savefig(target, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.opensearch", description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="directory with the retrieval set")
    parser.add_argument("--set", required=True, help="its name")
    parser.add_argument("--out", type=Path, required=True, help="directory for the results")
    parser.add_argument("--model", type=Path, help="a published model; without it, the embedded one")
    parser.add_argument("--versions", nargs="+", default=list(VERSIONS), help="of OpenSearch")
    parser.add_argument("--documents", type=int, default=2000, help="at most (default %(default)s)")
    parser.add_argument("--queries", type=int, default=500, help="at most (default %(default)s)")
    parser.add_argument("--speed-documents", type=int, default=256, help="for each batch size (default %(default)s)")
    options = parser.parse_args()
    retrieval = read_set(options.data, options.set, options.documents, options.queries)
    model = ("--model", str(options.model)) if options.model else ()
    artifact = ("--artifact", str(options.model)) if options.model else ()
    ways: list[Way] = []
    damaged: dict[str, int] = {}
    speeds: dict[str, dict[int, float]] = {}
    with running("-m", "app", *model, "--port", "0") as server:
        service = EncoderService(server.url, timeout_seconds=600.0)
        info = httpx.get(f"{server.url}/info").json()
        for version in options.versions:
            with (
                tempfile.TemporaryDirectory() as work,
                running_node(version, Path(work)) as node,
                Cluster(node.url, timeout_seconds=600.0) as cluster,
            ):
                bench = Bench(version, cluster, service, retrieval)
                ways += bench.ways(artifact)
                damaged[version] = bench.damaged_keys()
                speeds[version] = bench.ingest_speeds(options.speed_documents)
    options.out.mkdir(parents=True, exist_ok=True)
    report = {
        "set": options.set,
        "documents": len(retrieval.documents),
        "queries": len(retrieval.queries),
        "model": info["model"]["version"],
        "largest_document_weight": max(max(v.values(), default=0.0) for v in bench.documents.values()),
        "largest_query_weight": {k: max(max(v.values(), default=0.0) for v in q) for k, q in bench.queries.items()},
        "ways": [asdict(way) for way in ways],
        "damaged_keys": damaged,
        "documents_per_second": speeds,
    }
    (options.out / "opensearch.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    (options.out / "opensearch.md").write_text(table(ways, damaged, speeds), encoding="utf-8")
    plot(speeds, options.out / "opensearch.png")
    sys.stdout.write(table(ways, damaged, speeds))


if __name__ == "__main__":
    main()
