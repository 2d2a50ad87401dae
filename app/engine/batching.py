"""Which waiting texts are encoded next. Pure: no event loop, no threads, no clock."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, Protocol, TypeVar

#: Batches of queries after which a waiting document gets its turn, however many queries wait.
QUERY_BATCHES_IN_A_ROW = 4
#: Texts looked at for one batch, oldest first.
WINDOW = 512


class Entry(Protocol):
    """A tokenised text that waits."""

    @property
    def tokens(self) -> int: ...

    @property
    def is_query(self) -> bool: ...

    @property
    def model(self) -> object:
        """What encodes it; a batch has one."""

    @property
    def abandoned(self) -> bool:
        """Nobody waits for the answer any more."""


E = TypeVar("E", bound=Entry)


class BatchQueue(Generic[E]):
    """Two lanes, queries ahead of documents.

    Every batch is led by the oldest text of its lane, so none starves, and is filled with those of its model that
    are nearest to it in length, so little of it is padding. A waiting document is passed over at most
    `QUERY_BATCHES_IN_A_ROW` times.
    """

    def __init__(self, max_batch_tokens: int) -> None:
        """`max_batch_tokens`: longest text times number of texts in a batch, at most; a longer text goes alone."""
        self._max_batch_tokens = max_batch_tokens
        self._queries: list[E] = []
        self._documents: list[E] = []
        self._query_batches_in_a_row = 0
        self.query_tokens = 0  #: that wait, those of texts that were abandoned since the last batch included
        self.document_tokens = 0

    def __len__(self) -> int:
        return len(self._queries) + len(self._documents)

    def extend(self, entries: Iterable[E]) -> None:
        for entry in entries:
            if entry.is_query:
                self._queries.append(entry)
                self.query_tokens += entry.tokens
            else:
                self._documents.append(entry)
                self.document_tokens += entry.tokens

    def next_batch(self) -> list[E]:
        """Removes and returns the next texts to encode; abandoned ones are dropped; empty if none wait."""
        self._queries = [entry for entry in self._queries if not entry.abandoned]
        self._documents = [entry for entry in self._documents if not entry.abandoned]
        documents_turn = self._documents and self._query_batches_in_a_row >= QUERY_BATCHES_IN_A_ROW
        if self._queries and not documents_turn:
            self._query_batches_in_a_row += 1
            batch, self._queries = self._take(self._queries)
        else:
            self._query_batches_in_a_row = 0
            batch, self._documents = self._take(self._documents)
        self.query_tokens = sum(entry.tokens for entry in self._queries)
        self.document_tokens = sum(entry.tokens for entry in self._documents)
        return batch

    def _take(self, lane: list[E]) -> tuple[list[E], list[E]]:
        """A batch led by the first of `lane`, and what is left of it, in order."""
        if not lane:
            return [], []
        lead, model = lane[0].tokens, lane[0].model
        chosen: set[int] = set()
        shortest = longest = lead
        together = [index for index, entry in enumerate(lane[:WINDOW]) if entry.model is model]
        for index in sorted(together, key=lambda index: abs(lane[index].tokens - lead)):
            tokens = lane[index].tokens
            low, high = min(shortest, tokens), max(longest, tokens)
            # At most about half of a row is padding: beyond that a batch of its own is cheaper.
            fits = high * (len(chosen) + 1) <= self._max_batch_tokens and high <= 2 * low + 8
            if fits or not chosen:  # the lead is nearest to itself, so it comes first
                chosen.add(index)
                shortest, longest = low, high
        batch = [lane[index] for index in sorted(chosen)]
        return batch, [entry for index, entry in enumerate(lane) if index not in chosen]
