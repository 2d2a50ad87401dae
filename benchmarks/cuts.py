"""`python -m benchmarks.cuts --data DIR --set NAME ...`: what ranking loses when vectors keep fewer words.

Encodes whole retrieval sets (files as `benchmarks.opensearch` reads them) as the service does on this machine, ranks
exactly, and prints for each cut nDCG@10 and how many words a query and a document share on average: sum_j p_j(query)
p_j(document) (Formal et al. 2021), which is what an inverted index has to add up. Beside them queries that need no
encoder (`query_encoding: inference_free`).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from app.encoders.openvino_encoder import OpenVINOEncoder
from app.encoders.select import cpu_flags, cpu_precision
from app.models.loaded import EMBEDDED
from benchmarks.figures import add_argument, write_figures
from benchmarks.models import CACHE
from benchmarks.opensearch import read_set
from benchmarks.precision import MOST_QUERIES, encode
from sparse_encoder.packed import read_packed
from sparse_encoder.query_tokens import QueryTokens
from sparse_encoder.tokenizer import Tokenizer
from sparse_encoder.vector import SparseVector
from training.retrieval import measure, rank, to_matrix

CUTS = ((64, 256), (40, 256), (24, 256), (40, 150), (24, 128), (16, 80))  #: words of a query, of a document


def shared(queries: Sequence[SparseVector], documents: Sequence[SparseVector], size: int) -> float:
    rates = [
        np.bincount(np.concatenate([v.ids for v in side]), minlength=size) / len(side) for side in (queries, documents)
    ]
    return float(rates[0] @ rates[1])


def pruned(vectors: Sequence[SparseVector], words: int) -> list[SparseVector]:
    return [vector.prune(top_k=words) for vector in vectors]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cuts", description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--set", nargs="+", required=True)
    parser.add_argument("--precision", default="auto")
    add_argument(parser)
    options = parser.parse_args()
    artifact = read_packed(EMBEDDED)
    manifest, tokenizer = artifact.manifest, Tokenizer.from_file(artifact.path / "tokenizer.json")
    own = QueryTokens.read(artifact.path, manifest.vocabulary_size)
    assert own, "the embedded model has queries without an encoder"
    encoder = OpenVINOEncoder(artifact, cpu_precision(options.precision, cpu_flags()), cache_dir=CACHE)
    rows: dict[str, dict[str, str]] = {}
    for name in options.set:
        data = read_set(options.data, name, max_documents=10**9, max_queries=MOST_QUERIES)
        ids, asked = list(data.documents), [query for query, _ in data.queries]
        relevant = [found for _, found in data.queries]
        documents = encode(encoder, tokenizer, list(data.documents.values()), manifest.max_length_document, CUTS[0][1])
        queries = encode(encoder, tokenizer, asked, manifest.max_length_query, CUTS[0][0])
        bare = [own.vector(text.ids) for text in tokenizer.encode_batch(asked, manifest.max_length_query)]
        size = manifest.vocabulary_size
        cells: dict[str, str] = {}
        for words, kept in CUTS:
            sides = pruned(queries, words), pruned(documents, kept)
            ndcg = measure(rank(*(to_matrix(side, size) for side in sides)), relevant, ids)["nDCG@10"]
            cells[f"{words} / {kept}"] = f"{ndcg:.3f} ({shared(*sides, size):.1f})"
        for words, kept in (CUTS[0], (24, 128)):
            sides = pruned(bare, words), pruned(documents, kept)
            ndcg = measure(rank(*(to_matrix(side, size) for side in sides)), relevant, ids)["nDCG@10"]
            cells[f"inference-free, {words} / {kept}"] = f"{ndcg:.3f} ({shared(*sides, size):.1f})"
        cells["active"] = f"{np.mean([len(q) for q in queries]):.0f} / {np.mean([len(d) for d in documents]):.0f}"
        rows[name] = cells
    print(table(rows), flush=True)
    if options.figures:
        write_figures("cuts", manifest.version, table(rows))


def table(rows: dict[str, dict[str, str]]) -> str:
    """nDCG@10, in brackets the words that a query and a document share."""
    cuts = list(next(iter(rows.values())))
    lines = [f"| words kept of a query / document | {' | '.join(rows)} |", "|---|" + "---|" * len(rows)]
    lines += [f"| {cut} | {' | '.join(row[cut] for row in rows.values())} |" for cut in cuts]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
