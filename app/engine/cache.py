"""The vectors of queries that were asked lately."""

from __future__ import annotations

from collections import OrderedDict

from sparse_encoder.vector import SparseVector


class QueryCache:
    """By version and text; what was asked longest ago leaves first."""

    LONGEST = 256  #: characters; longer ones are hardly asked twice

    def __init__(self, size: int) -> None:
        """`size`: vectors kept at most; 0 keeps none."""
        self._size = size
        self._vectors: OrderedDict[tuple[str, str], tuple[SparseVector, int]] = OrderedDict()

    def get(self, version: str, text: str) -> tuple[SparseVector, int] | None:
        """The vector, and how many tokens the text has."""
        found = self._vectors.get((version, text))
        if found is not None:
            self._vectors.move_to_end((version, text))
        return found

    def put(self, version: str, text: str, vector: SparseVector, tokens: int) -> None:
        if not self._size or len(text) > self.LONGEST:
            return
        self._vectors[version, text] = (vector, tokens)
        self._vectors.move_to_end((version, text))
        if len(self._vectors) > self._size:
            self._vectors.popitem(last=False)
