"""A sparse vector over a vocabulary: a few token ids, each with a weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Lucene's FeatureField refuses subnormal weights, so they are no weights here either.
SMALLEST_WEIGHT = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, slots=True, eq=False)
class SparseVector:
    """Token ids and their weights, heaviest first.

    Build one with `from_dense` or `from_pairs`, which check and sort; the plain constructor trusts its caller.
    """

    ids: NDArray[np.int32]  #: [n], unique, >= 0
    weights: NDArray[np.float32]  #: [n], finite, >= SMALLEST_WEIGHT, descending; equal weights by ascending id

    @classmethod
    def from_dense(cls, row: NDArray[np.floating[Any]]) -> SparseVector:
        """The positive entries of `row`, shape [vocabulary].

        :raises ValueError: if `row` is not one-dimensional or holds NaN or infinity.
        """
        if row.ndim != 1:
            raise ValueError(f"a dense row has one dimension, got shape {row.shape}: pass one text's row at a time")
        if not np.isfinite(row).all():
            raise ValueError("the dense row holds NaN or infinity: the encoder that made it is broken")
        ids = np.flatnonzero(row >= SMALLEST_WEIGHT)
        return cls.from_pairs(ids, row[ids])

    @classmethod
    def from_pairs(cls, ids: ArrayLike, weights: ArrayLike) -> SparseVector:
        """The vector of `ids` and `weights` (both of length n, in any order).

        :raises ValueError: if lengths differ, an id is negative or repeated, or a weight is not finite and positive.
        """
        id_array = np.asarray(ids, dtype=np.int32)
        weight_array = np.asarray(weights, dtype=np.float32)
        if id_array.ndim != 1 or id_array.shape != weight_array.shape:
            raise ValueError(
                f"ids and weights must be two lists of one length, got {id_array.shape}, {weight_array.shape}"
            )
        if (id_array < 0).any():
            raise ValueError(f"token ids must be >= 0, got {id_array.min()}")
        if len(np.unique(id_array)) != len(id_array):
            raise ValueError("a token id occurs twice: merge its weights first")
        usable = np.isfinite(weight_array) & (weight_array >= SMALLEST_WEIGHT)
        if not usable.all():
            raise ValueError(f"weights must be positive, normal float32 numbers, got {weight_array[~usable][0]}")
        order = np.lexsort((id_array, -weight_array))
        vector = cls(id_array[order], weight_array[order])
        vector.ids.setflags(write=False)
        vector.weights.setflags(write=False)
        return vector

    def __len__(self) -> int:
        """The number of active tokens."""
        return len(self.ids)

    def prune(self, *, top_k: int | None = None, min_weight: float = 0.0) -> SparseVector:
        """The at most `top_k` heaviest tokens whose weight is at least `min_weight`.

        :raises ValueError: if `top_k` is below 1.
        """
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k must be at least 1 or None, got {top_k}")
        least = min(min_weight, float(np.finfo(self.weights.dtype).max))
        keep = int(np.count_nonzero(self.weights >= least))  # a prefix, since weights descend
        if top_k is not None:
            keep = min(keep, top_k)
        return SparseVector(self.ids[:keep], self.weights[:keep])

    def to_words(self, vocabulary: Sequence[str]) -> dict[str, float]:
        """`{token: weight}`, heaviest first, where `vocabulary[id]` is the token.

        :raises ValueError: if an id is outside `vocabulary`.
        """
        if len(self) and int(self.ids.max()) >= len(vocabulary):
            raise ValueError(
                f"token id {self.ids.max()} is outside a vocabulary of {len(vocabulary)} tokens: "
                "use the vocabulary of the model that made the vector"
            )
        return {
            vocabulary[token]: weight for token, weight in zip(self.ids.tolist(), self.weights.tolist(), strict=True)
        }

    @classmethod
    def maximum(cls, vectors: Sequence[SparseVector]) -> SparseVector:
        """Every token of `vectors` at its heaviest. Empty for no vectors."""
        if len(vectors) == 1:
            return vectors[0]
        ids = np.concatenate([vector.ids for vector in vectors] or [np.zeros(0, np.int32)])
        weights = np.concatenate([vector.weights for vector in vectors] or [np.zeros(0, np.float32)])
        order = np.lexsort((-weights, ids))
        tokens, first = np.unique(ids[order], return_index=True)
        return cls.from_pairs(tokens, weights[order][first])

    def dot(self, other: SparseVector) -> float:
        """The relevance of one text to another: the sum over shared tokens of the product of their weights."""
        _, mine, theirs = np.intersect1d(self.ids, other.ids, assume_unique=True, return_indices=True)
        return float(self.weights[mine].astype(np.float64) @ other.weights[theirs].astype(np.float64))
