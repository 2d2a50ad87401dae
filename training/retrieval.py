"""Exact retrieval with sparse vectors, BM25 to compare with, and the usual measures (ir-measures, not our own)."""

from __future__ import annotations

from collections.abc import Sequence

import bm25s
import ir_measures
import numpy as np
import scipy.sparse as sp
from ir_measures import RR, R, nDCG
from numpy.typing import NDArray

from sparse_encoder.vector import SparseVector

MEASURES = {"nDCG@10": nDCG @ 10, "MRR@10": RR @ 10, "R@100": R @ 100}
DEPTH = 100

Ranking = dict[int, float]  #: what a query finds: scores by the place of the document


def to_matrix(vectors: Sequence[SparseVector], size: int) -> sp.csr_matrix:
    """Rows of weights: [texts, size]."""
    indptr = np.cumsum([0, *(len(vector) for vector in vectors)])
    ids = np.concatenate([vector.ids for vector in vectors]) if vectors else np.zeros(0, np.int32)
    weights = np.concatenate([vector.weights for vector in vectors]) if vectors else np.zeros(0, np.float32)
    return sp.csr_matrix((weights, ids, indptr), shape=(len(vectors), size), dtype=np.float32)


def rank(queries: sp.csr_matrix, documents: sp.csr_matrix) -> list[Ranking]:
    """The best ``DEPTH`` documents of each query by dot product; documents that share no word are not found."""
    transposed = documents.T.tocsr()
    runs: list[Ranking] = []
    for start in range(0, queries.shape[0], 256):
        scores: NDArray[np.float32] = (queries[start : start + 256] @ transposed).toarray()
        depth = min(DEPTH, scores.shape[1])
        top = np.argpartition(-scores, depth - 1, axis=1)[:, :depth]
        for row, columns in zip(scores, top, strict=True):
            runs.append({int(c): float(row[c]) for c in columns if row[c] > 0})
    return runs


def rank_dense(queries: NDArray[np.float32], documents: NDArray[np.float32]) -> list[Ranking]:
    """The best ``DEPTH`` documents of each query by dot product of dense vectors [texts, size]."""
    runs: list[Ranking] = []
    depth = min(DEPTH, len(documents))
    for start in range(0, len(queries), 256):
        scores = queries[start : start + 256] @ documents.T
        top = np.argpartition(-scores, depth - 1, axis=1)[:, :depth]
        runs += [{int(c): float(row[c]) for c in columns} for row, columns in zip(scores, top, strict=True)]
    return runs


def rank_bm25(documents: list[list[str]], queries: list[list[str]]) -> list[Ranking]:
    """BM25 (Lucene's form, k1 1.2, b 0.75) over given tokens."""
    retriever = bm25s.BM25(method="lucene", k1=1.2, b=0.75)
    retriever.index(documents, show_progress=False)
    runs: list[Ranking] = []
    depth = min(DEPTH, len(documents))
    for query in queries:
        known = [token for token in query if token in retriever.vocab_dict]
        if not known:
            runs.append({})
            continue
        found, scores = retriever.retrieve([known], k=depth, show_progress=False)
        runs.append({int(d): float(s) for d, s in zip(found[0], scores[0], strict=True) if s > 0})
    return runs


def measure(runs: list[Ranking], relevant: list[set[str]], document_ids: list[str]) -> dict[str, float]:
    """Mean of each measure over the queries; a query without any result counts as 0."""
    qrels = {str(q): dict.fromkeys(ids, 1) for q, ids in enumerate(relevant)}
    run = {str(q): {document_ids[d]: score for d, score in found.items()} for q, found in enumerate(runs)}
    for q in qrels:
        run.setdefault(q, {})
    totals = dict.fromkeys(MEASURES, 0.0)
    names = {str(measure): name for name, measure in MEASURES.items()}
    for metric in ir_measures.iter_calc(list(MEASURES.values()), qrels, run):
        totals[names[str(metric.measure)]] += metric.value
    return {name: total / len(qrels) for name, total in totals.items()}
