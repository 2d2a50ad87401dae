"""Which words belong together in a corpus, in two ways that err differently.

*Feedback* asks for the words of the passages that are most about a word, as a search engine does to widen a query
(RM3, Lavrenko and Croft 2001): by the passages' scores and by idf. *Association* asks which words are in the same texts
more often than by chance (pointwise mutual information), common ones and often seen pairs a little more.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from tqdm import tqdm

_LEAST_TEXTS = 4  #: that hold a word, for it to have a row
_LEAST_SHARED = 2  #: passages that a feedback word must be in
_LEAST_TOGETHER = 3  #: texts that a pair must be in
_MOST_TOGETHER = 50  #: above which more of them say no more
_SAMPLE = 4000  #: texts of a word that association looks at
_KEPT = 80  #: words of a row, of at least ``_FAINTEST`` of the first one's weight
_FAINTEST = 0.12
_SATURATION, _LENGTH = 1.2, 0.75  #: BM25's k1 and b
_COMMON = 0.85  #: power of a word's frequency, where 1 would be mutual information


@dataclass(frozen=True, eq=False)
class Cooccurrence:
    feedback: sp.csr_matrix  #: [vocabulary, vocabulary], the first word of each row weighs 1
    association: sp.csr_matrix
    frequency: NDArray[np.int64]  #: [vocabulary] texts that hold each word
    texts: int

    def save(self, folder: Path) -> None:
        sp.save_npz(folder / "feedback.npz", self.feedback)
        sp.save_npz(folder / "association.npz", self.association)
        np.savez(folder / "frequency.npz", frequency=self.frequency, texts=self.texts)

    @classmethod
    def load(cls, folder: Path) -> Cooccurrence:
        feedback, association = (
            sp.csr_matrix(sp.load_npz(folder / f"{name}.npz")) for name in ("feedback", "association")
        )
        with np.load(folder / "frequency.npz") as arrays:
            return cls(feedback, association, arrays["frequency"], int(arrays["texts"]))


class _Rows:
    """Collects the rows of a matrix, each scaled to its largest weight."""

    def __init__(self) -> None:
        self.rows: list[NDArray[np.int64]] = []
        self.columns: list[NDArray[np.int64]] = []
        self.weights: list[NDArray[np.float64]] = []

    def add(self, row: int, columns: NDArray[np.int64], weights: NDArray[np.float64]) -> None:
        most = weights.max(initial=0.0)
        if most <= 0:
            return
        order = np.argsort(-weights, kind="stable")[:_KEPT]
        order = order[weights[order] > _FAINTEST * most]
        self.rows.append(np.full(len(order), row))
        self.columns.append(columns[order])
        self.weights.append(weights[order] / most)

    def matrix(self, size: int) -> sp.csr_matrix:
        none = np.zeros(0, np.int64)
        rows, columns = np.concatenate([none, *self.rows]), np.concatenate([none, *self.columns])
        values = np.concatenate([none.astype(np.float32), *self.weights]).astype(np.float32)
        return sp.csr_matrix((values, (rows, columns)), shape=(size, size))


def cooccurrence(counts: sp.csr_matrix, depth: int, description: str) -> Cooccurrence:
    """Of ``counts`` [texts, vocabulary], as ``term_matrix`` makes them; ``depth``: best passages of a word."""
    texts, size = counts.shape
    frequency = np.bincount(counts.indices, minlength=size)
    idf = np.log1p((texts - frequency + 0.5) / (frequency + 0.5))
    lengths = np.asarray(counts.sum(1)).ravel()
    norms = _SATURATION * (1 - _LENGTH + _LENGTH * lengths / max(float(lengths.mean()) if texts else 0.0, 1e-9))
    scores = counts.copy()
    scores.data = counts.data / (counts.data + np.repeat(norms, np.diff(counts.indptr)).astype(np.float32))
    holders = scores.T.tocsr()
    present = counts.copy()
    present.data = np.minimum(counts.data, 1.0)
    feedback, association = _Rows(), _Rows()
    words: list[int] = np.flatnonzero(frequency >= _LEAST_TEXTS).tolist()
    for word in tqdm(words, desc=description, unit="word", mininterval=2.0):
        start, stop = holders.indptr[word : word + 2]
        documents, weights = holders.indices[start:stop], holders.data[start:stop].astype(np.float64)
        feedback.add(word, *_feedback(word, documents, weights, present, idf, depth))
        association.add(word, *_association(word, documents, present, frequency, texts))
    return Cooccurrence(feedback.matrix(size), association.matrix(size), frequency, texts)


def _feedback(
    word: int,
    documents: NDArray[np.int32],
    scores: NDArray[np.float64],
    present: sp.csr_matrix,
    idf: NDArray[np.float64],
    depth: int,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    if len(documents) > depth:
        best = np.argsort(-scores, kind="stable")[:depth]
        documents, scores = documents[best], scores[best]
    passages = present[documents]
    relevance = np.repeat(scores / scores.sum(), np.diff(passages.indptr))
    columns, place, shared = np.unique(passages.indices, return_inverse=True, return_counts=True)
    weights = np.bincount(place, passages.data * relevance) * idf[columns]
    weights[(shared < _LEAST_SHARED) | (columns == word)] = 0.0
    return columns.astype(np.int64), weights


def _association(
    word: int,
    documents: NDArray[np.int32],
    present: sp.csr_matrix,
    frequency: NDArray[np.int64],
    texts: int,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    if len(documents) > _SAMPLE:
        documents = np.random.default_rng(word).choice(documents, _SAMPLE, replace=False)
    rows = present[documents]
    together = np.bincount(rows.indices, rows.data, minlength=len(frequency))
    together[word] = 0.0
    columns = np.flatnonzero(together >= _LEAST_TOGETHER)
    seen = together[columns]
    expected = len(documents) * frequency[columns] ** _COMMON * texts ** (1 - _COMMON) / texts
    weights = np.maximum(np.log(seen / expected), 0.0) * np.sqrt(np.minimum(seen, _MOST_TOGETHER))
    return columns, weights
