"""What a search costs: time of queries and size of the index, by the words that vectors keep, beside BM25.

    python -m benchmarks.search_cost --data DIR --set NAME [--out DIR]

encodes the first documents and queries of a retrieval set (files as `benchmarks.opensearch` reads them) with the
service, makes 100,000 documents of them by changing their weights at random, and starts an OpenSearch node
(scripts/opensearch_node.py). Each index has one shard and one segment. Prints a Markdown table and JSON; with `--out`
writes both. Timings are of one client on this machine, from request to answer, and no answer holds a document; beside
them stands the CPU time of the node, which another load on the machine does not change.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from app.opensearch.cluster import Cluster
from app.opensearch.service import EncoderService
from benchmarks.figures import add_argument, write_figures
from benchmarks.opensearch import Vector, encode, read_set
from scripts.opensearch_node import running_node
from tests.app.server import running

QUERY_WORDS = (64, 24)
DOCUMENT_WORDS = (256, 128, 80)
RESULTS = 10
WARM_UP_QUERIES = 1000  #: the JVM compiles what it does often
CPU_SECONDS = 1.1  #: after which the node measures its CPU time anew
BULK_DOCUMENTS = 500
CHANGE = 0.1  #: standard deviation of the logarithm of what a weight is multiplied by
#: As `python -m app.opensearch setup --two-phase` makes it.
TWO_PHASE = {"prune_ratio": 0.4, "expansion_rate": 5.0, "max_window_size": 10000}
PIPELINE = {"request_processors": [{"neural_sparse_two_phase_processor": {"two_phase_parameter": TWO_PHASE}}]}


@dataclass(frozen=True)
class Encoded:
    """The same vectors with tokens and with token ids as keys, heaviest first."""

    words: Sequence[Vector]
    ids: Sequence[Vector]


@dataclass(frozen=True)
class Cost:
    """One way to search, and what it costs."""

    way: str
    query_words: int | None
    document_words: int | None
    two_phase: bool
    median_ms: float
    p95_ms: float
    cpu_ms: float  #: of the node, a query
    kilobytes_a_document: float


def heaviest(vector: Vector, count: int) -> dict[str, float]:
    """`vector` is in order."""
    return dict(itertools.islice(vector.items(), count))


def replicated(texts: Sequence[str], vectors: Sequence[Vector], words: int, count: int) -> Iterator[dict[str, Any]]:
    """`count` documents out of fewer, each time with other weights, of which the `words` heaviest are kept; without
    `words` texts only. The same ones for the same arguments."""
    random = np.random.default_rng(0)
    known = [(list(vector), np.array(list(vector.values()))) for vector in vectors]
    for number in range(count):
        document: dict[str, Any] = {"text": texts[number % len(texts)]}
        if words:
            tokens, weights = known[number % len(known)]
            changed = weights * random.lognormal(0, CHANGE, len(weights))
            kept = np.argsort(-changed)[:words]
            document["vector"] = {tokens[i]: float(f"{changed[i]:.5g}") for i in kept}
        yield document


class Bench:
    """A node, and what is indexed on it."""

    def __init__(self, cluster: Cluster, texts: Sequence[str], queries: Sequence[str], documents: int) -> None:
        self.cluster, self.texts, self.queries, self.count = cluster, texts, queries, documents

    def index(self, name: str, field: Mapping[str, Any] | None, vectors: Sequence[Vector], words: int) -> float:
        """Makes the index, with vectors of so many `words`, none of 0; kilobytes a document."""
        sparse = {"index.sparse": "true"} if field and field["type"] == "sparse_vector" else {}
        settings = {"number_of_shards": 1, "number_of_replicas": 0, "refresh_interval": "-1", **sparse}
        properties = {"text": {"type": "text", "analyzer": "cjk"}, **({"vector": field} if field else {})}
        self.cluster.request("PUT", f"/{name}", {"settings": settings, "mappings": {"properties": properties}})
        everything = replicated(self.texts, vectors, words, self.count)
        with tqdm(total=self.count, desc=f"index {name}", disable=None) as bar:
            while part := list(itertools.islice(everything, BULK_DOCUMENTS)):
                lines = [line for document in part for line in ('{"index": {}}', json.dumps(document))]
                answer = self.cluster.request("POST", f"/{name}/_bulk", ("\n".join(lines) + "\n").encode())
                assert not answer["errors"], str(answer)[:1000]
                bar.update(len(part))
        self.cluster.request("POST", f"/{name}/_forcemerge?max_num_segments=1")
        self.cluster.request("POST", f"/{name}/_refresh")
        size = self.cluster.request("GET", f"/{name}/_stats/store")["_all"]["primaries"]["store"]["size_in_bytes"]
        return float(size) / self.count / 1000

    def milliseconds(self, name: str, queries: Sequence[Mapping[str, Any]], *, two_phase: bool) -> list[float]:
        """What each query takes."""
        times = []
        for query in tqdm(queries, desc=f"search {name}", disable=None):
            body = {"size": RESULTS, "_source": False, "query": query}
            body |= {"search_pipeline": PIPELINE} if two_phase else {}
            start = time.perf_counter()
            self.cluster.request("POST", f"/{name}/_search", body)
            times.append((time.perf_counter() - start) * 1000)
        return times

    def cpu_milliseconds(self) -> int:
        """Of the node since its start."""
        time.sleep(CPU_SECONDS)
        (node,) = self.cluster.request("GET", "/_nodes/stats/process")["nodes"].values()
        return int(node["process"]["cpu"]["total_in_millis"])

    def cost(self, way: str, name: str, queries: Sequence[Mapping[str, Any]], size: float, **settings: Any) -> Cost:
        two_phase = settings["two_phase"]
        warm_up = list(itertools.islice(itertools.cycle(queries), WARM_UP_QUERIES))
        self.milliseconds(name, warm_up, two_phase=two_phase)
        before = self.cpu_milliseconds()
        times = self.milliseconds(name, queries, two_phase=two_phase)
        cpu = (self.cpu_milliseconds() - before) / len(queries)
        median, p95 = statistics.median(times), statistics.quantiles(times, n=20)[18]
        cost = Cost(way, median_ms=median, p95_ms=p95, cpu_ms=cpu, kilobytes_a_document=size, **settings)
        print(cost, file=sys.stderr, flush=True)
        return cost

    def match(self, documents: Encoded) -> Iterator[Cost]:
        size = self.index("match", None, documents.words, 0)
        queries = [{"match": {"text": query}} for query in self.queries]
        nothing: dict[str, Any] = {"query_words": None, "document_words": None, "two_phase": False}
        yield self.cost("`match`", "match", queries, size, **nothing)
        self.cluster.request("DELETE", "/match")

    def sparse(
        self, engine: str, documents: Encoded, queries: Encoded, document_words: Sequence[int]
    ) -> Iterator[Cost]:
        """Documents of so many words each with every cut of queries."""
        features = engine == "rank_features"
        stored, asked = (documents.words, queries.words) if features else (documents.ids, queries.ids)
        field: dict[str, Any] = {"type": engine}
        if not features:  # else so few documents are scored exactly
            field["method"] = {"name": "seismic", "parameters": {"approximate_threshold": 1}}
        for words in document_words:
            name = f"{engine}-{words}".replace("_", "-")
            size = self.index(name, field, stored, words)
            for count in QUERY_WORDS:
                clauses = [
                    {"neural_sparse": {"vector": {"query_tokens": heaviest(vector, count)}}}
                    for vector in asked
                    if vector  # a query of none is an error
                ]
                for two_phase in (False, True) if features else (False,):
                    settings = {"query_words": count, "document_words": words, "two_phase": two_phase}
                    yield self.cost(f"`{engine}`", name, clauses, size, **settings)
            self.cluster.request("DELETE", f"/{name}")


def table(costs: Sequence[Cost]) -> str:
    """The first one is what the others are compared with."""
    lines = [
        "| way | query words | document words | two-phase | median ms | p95 ms | CPU ms | × `match` | KB a document |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for cost in costs:
        words = " | ".join("" if count is None else str(count) for count in (cost.query_words, cost.document_words))
        lines.append(
            f"| {cost.way} | {words} | {'yes' if cost.two_phase else ''} | {cost.median_ms:.1f} | {cost.p95_ms:.1f} "
            f"| {cost.cpu_ms:.1f} | {cost.median_ms / costs[0].median_ms:.1f} | {cost.kilobytes_a_document:.1f} |"
        )
    return "\n".join(lines) + "\n"


def encoded(service: EncoderService, texts: Sequence[str], what: str, **fields: object) -> Encoded:
    words = encode(service, texts, what, **fields)
    return Encoded(words, encode(service, texts, f"{what}, ids", sparse_embedding_format="sparse_vector", **fields))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search_cost", description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="directory with the retrieval set")
    parser.add_argument("--set", required=True, help="its name")
    parser.add_argument("--out", type=Path, help="directory for the results; without it, they are only printed")
    parser.add_argument("--model", type=Path, help="a published model; without it, the embedded one")
    parser.add_argument("--version", default="3.6.0", help="of OpenSearch (default %(default)s)")
    parser.add_argument("--documents", type=int, default=100_000, help="in each index (default %(default)s)")
    parser.add_argument("--encoded", type=int, default=2000, help="of the set, that they are made of (%(default)s)")
    parser.add_argument(
        "--document-words", type=int, nargs="+", default=DOCUMENT_WORDS, help="kept of each (default: %(default)s)"
    )
    parser.add_argument("--queries", type=int, default=200, help="of the set (default %(default)s)")
    parser.add_argument("--engines", nargs="+", default=["rank_features", "sparse_vector"], help="(both)")
    add_argument(parser)
    options = parser.parse_args()
    retrieval = read_set(options.data, options.set, options.encoded, options.queries)
    texts = list(retrieval.documents.values())
    queries = [query for query, _ in retrieval.queries]
    model = ("--model", str(options.model)) if options.model else ()
    with running("-m", "app", *model, "--port", "0") as server:
        service = EncoderService(server.url, timeout_seconds=600.0)
        info = service.info()
        assert info
        documents = encoded(service, texts, "documents", top_k=max(options.document_words))
        asked = encoded(service, queries, "queries", input_type="query", top_k=max(QUERY_WORDS))
    costs: list[Cost] = []
    with (
        tempfile.TemporaryDirectory() as work,
        running_node(options.version, Path(work)) as node,
        Cluster(node.url, timeout_seconds=1800.0) as cluster,
    ):
        bench = Bench(cluster, texts, queries, options.documents)
        costs += bench.match(documents)
        for engine in options.engines:
            if engine == "sparse_vector" and options.version.startswith("2."):
                continue  # which has none
            costs += bench.sparse(engine, documents, asked, options.document_words)
    report = {
        "model": info["model"]["version"],
        "opensearch": options.version,
        "set": options.set,
        "documents": options.documents,
        "encoded_documents": len(texts),
        "queries": len(queries),
        "costs": [asdict(cost) for cost in costs],
    }
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "search_cost.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        (options.out / "search_cost.md").write_text(table(costs), encoding="utf-8")
    if options.figures:
        write_figures("search_cost", info["model"]["version"], table(costs))
    sys.stdout.write(f"{table(costs)}\n{json.dumps(report)}\n")


if __name__ == "__main__":
    main()
