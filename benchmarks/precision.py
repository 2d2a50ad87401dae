"""`python -m benchmarks.precision --data DIR --set NAME ...`: what each precision costs in quality and gives in speed.

Encodes whole retrieval sets (`DIR/NAME.corpus.jsonl` and `DIR/NAME.queries.jsonl`, or both as `.xz`) in each precision
and ranks exactly. Overlap is the share of the twenty heaviest tokens of a text that f32 has among its own.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from app.encoders.base import Encoder, TokenBatch
from app.encoders.openvino_encoder import OpenVINOEncoder
from app.models.loaded import EMBEDDED
from benchmarks.figures import add_argument, write_figures
from benchmarks.models import CACHE
from benchmarks.opensearch import read_set
from sparse_encoder.batching import by_length
from sparse_encoder.packed import read_packed
from sparse_encoder.tokenizer import Tokenizer
from sparse_encoder.vector import SparseVector
from training.retrieval import measure, rank, to_matrix

PRECISIONS = ("f32", "bf16", "int8", "int8-static")
TOP_K = {"document": 256, "query": 64}  # as the service prunes by default
BATCH_TOKENS = 2048
MOST_QUERIES = 1000


def encode(encoder: Encoder, tokenizer: Tokenizer, texts: Sequence[str], length: int, top_k: int) -> list[SparseVector]:
    """In batches of texts of near-equal length, as the service makes them."""
    tokenised = [text.ids for text in tokenizer.encode_batch(texts, length)]
    vectors = [SparseVector.from_pairs([], [])] * len(texts)
    for places in by_length([len(ids) for ids in tokenised], BATCH_TOKENS):
        batch = TokenBatch.pad([tokenised[place] for place in places], tokenizer.pad_id)
        for place, vector in zip(places, encoder.encode(batch), strict=True):
            vectors[place] = vector.prune(top_k=top_k)
    return vectors


def overlap(mine: Sequence[SparseVector], exact: Sequence[SparseVector]) -> float:
    shares = [
        len(set(a.ids[:20].tolist()) & set(b.ids[:20].tolist())) / min(20, len(b))
        for a, b in zip(mine, exact, strict=True)
        if len(b)
    ]
    return float(np.mean(shares))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.precision", description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--set", nargs="+", required=True)
    parser.add_argument("--precision", nargs="+", default=PRECISIONS)
    add_argument(parser)
    options = parser.parse_args()
    artifact = read_packed(EMBEDDED)
    manifest, tokenizer = artifact.manifest, Tokenizer.from_file(artifact.path / "tokenizer.json")
    rows: dict[str, list[str]] = {}
    exact: dict[str, tuple[list[SparseVector], list[SparseVector]]] = {}
    for precision in options.precision:
        encoder = OpenVINOEncoder(artifact, precision, cache_dir=CACHE)
        for name in options.set:
            data = read_set(options.data, name, max_documents=10**9, max_queries=MOST_QUERIES)
            ids, texts = list(data.documents), list(data.documents.values())
            asked = data.queries
            started = time.perf_counter()
            documents = encode(encoder, tokenizer, texts, manifest.max_length_document, TOP_K["document"])
            seconds = time.perf_counter() - started
            queries = encode(encoder, tokenizer, [q for q, _ in asked], manifest.max_length_query, TOP_K["query"])
            size = manifest.vocabulary_size
            ranked = rank(to_matrix(queries, size), to_matrix(documents, size))
            ndcg = measure(ranked, [relevant for _, relevant in asked], ids)["nDCG@10"]
            first = exact.setdefault(name, (queries, documents))
            common = (
                "" if first[0] is queries else f"{overlap(queries, first[0]):.3f} / {overlap(documents, first[1]):.3f}"
            )
            tokens = sum(len(t.ids) for t in tokenizer.encode_batch(texts, manifest.max_length_document))
            rows.setdefault(precision, []).append(f"{ndcg:.4f} | {common}")
            print(
                f"{precision:12} {name:16} {rows[precision][-1]}   {tokens / seconds:,.0f} tokens a second", flush=True
            )
    print(table(options.set, rows))
    if options.figures:
        write_figures("precision", manifest.version, table(options.set, rows))


def table(sets: Sequence[str], rows: dict[str, list[str]]) -> str:
    """nDCG@10, and overlap with the first precision (query / document)."""
    lines = [
        f"| | {' | '.join(f'{name} nDCG@10 | overlap' for name in sets)} |",
        "|---|" + "---|---|" * len(sets),
        *(f"| `{precision}` | {' | '.join(cells)} |" for precision, cells in rows.items()),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
