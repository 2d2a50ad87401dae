"""What OpenSearch makes of two vectors: which words they share as it stores them, and the score that it computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sparse_encoder.vector import SparseVector

#: `rank_features`: Lucene keeps nine bits of a document's weight, those of a query are whole. `sparse_vector`: a byte
#: of each, as its approximate search does; below the `approximate_threshold` it scores as `rank_features`. `none`: as
#: they were sent.
Rounding = Literal["rank_features", "sparse_vector", "none"]
CUT_BITS = 15  #: of a float32, at its end
LARGEST_BYTE = 255
#: `quantization_ceiling_ingest` and `quantization_ceiling_search` of a field that does not say others.
CEILING_INGEST, CEILING_SEARCH = 3.0, 16.0


@dataclass(frozen=True, slots=True)
class Shared:
    """A word of both vectors."""

    id: int
    query: float  #: its weight in the query, rounded
    document: float  #: and in the document
    adds: float  #: to the score


def as_sent(weights: NDArray[np.float32], max_weight: float) -> NDArray[np.float32]:
    """`weights` as they arrive: with the five digits that answers have, at most `max_weight`."""
    return np.array([float(f"{min(weight, max_weight):.5g}") for weight in weights.tolist()], np.float32)


def shared_words(
    query: SparseVector,
    document: SparseVector,
    rounding: Rounding,
    ceilings: tuple[float, float] = (CEILING_INGEST, CEILING_SEARCH),
) -> list[Shared]:
    """The words of both, those first that add most; weights as they were sent. `ceilings`: of ingest and search.

    A word whose weight is rounded to zero is none.
    """
    _, mine, theirs = np.intersect1d(query.ids, document.ids, assume_unique=True, return_indices=True)
    asked, stored = query.weights[mine], document.weights[theirs]
    if rounding == "rank_features":
        stored = _cut(stored)
    elif rounding == "sparse_vector":
        stored, asked = _byte(stored, ceilings[0]), _byte(asked, ceilings[1])
    adds = asked * stored
    words = [
        Shared(*values)
        for values in zip(query.ids[mine].tolist(), asked.tolist(), stored.tolist(), adds.tolist(), strict=True)
    ]
    return sorted((word for word in words if word.adds > 0), key=lambda word: (-word.adds, word.id))


def _cut(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    cut: NDArray[np.float32] = ((weights.view(np.int32) >> CUT_BITS) << CUT_BITS).view(np.float32)
    return cut


def _byte(weights: NDArray[np.float32], ceiling: float) -> NDArray[np.float32]:
    """What the nearest of 256 steps from 0 to `ceiling` stands for; half a step is rounded up."""
    step = np.float32(ceiling / LARGEST_BYTE)
    steps: NDArray[np.float32] = np.floor(np.clip(weights, 0, ceiling) / step + np.float32(0.5))
    return (steps * step).astype(np.float32)
