"""Which waiting texts are encoded next. Pure: no event loop, no threads, no clock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Generic, Protocol, TypeVar

#: Batches of queries after which a waiting document gets its turn, however many queries wait.
QUERY_BATCHES_IN_A_ROW = 4
#: Texts of one client, and of all others, that are looked at for one batch, oldest first.
WINDOW = 512
#: While queries come, a batch of documents has this share of the tokens of others, and no less than so many, since the
#: next query waits for its end; until so many batches of documents went by without one.
SHARE_AMONG_QUERIES = 0.125
LEAST_AMONG_QUERIES = 128
DOCUMENT_BATCHES_AFTER_A_QUERY = 16


class Entry(Protocol):
    """A tokenised text that waits."""

    @property
    def tokens(self) -> int: ...

    @property
    def work(self) -> int:
        """Tokens of short texts that take as long as it."""

    @property
    def is_query(self) -> bool: ...

    @property
    def client(self) -> str:
        """Whose it is; waiting clients get shares by their weights."""

    @property
    def weight(self) -> float:
        """Of its client, which gets so many times the share of one of weight 1."""

    @property
    def model(self) -> object:
        """What encodes it; a batch has one."""

    @property
    def abandoned(self) -> bool:
        """Nobody waits for the answer any more."""


E = TypeVar("E", bound=Entry)


class Lane(Generic[E]):
    """The texts of one kind, in the order in which they came; each client gets as much work done as the others,
    times its weight.

    A batch is led by the oldest text of the client that was served least, filled with that client's, and with those of
    others where there is room. A client that comes (again) is treated as if it had been served as much as the one whose
    turn it is: neither what it had before nor that it had nothing counts.
    """

    def __init__(self) -> None:
        self._waiting: list[E] = []
        self._weights: dict[str, float] = {}  #: of the clients that wait
        self._served: dict[str, float] = {}  #: work by weight, of the same
        self._now = 0.0  #: what the client that led the last batch had been served before
        self.work: Counter[str] = Counter()  #: that waits, by client

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def tokens(self) -> int:
        return sum(entry.tokens for entry in self._waiting)

    def append(self, entry: E) -> None:
        self._waiting.append(entry)
        self._weights[entry.client] = entry.weight
        self.work[entry.client] += entry.work

    def forget_abandoned(self) -> None:
        self._waiting = [entry for entry in self._waiting if not entry.abandoned]
        self._count()

    def ahead(self, client: str, work: int, weight: float) -> int:
        """What is done before the last of `work` more of `client`, of its own and of others."""
        own = self.work[client]
        turns = (own + work) / weight
        others = ((other, theirs) for other, theirs in self.work.items() if other != client)
        return own + sum(min(theirs, int(turns * self._weights[other])) for other, theirs in others)

    def take(self, most_tokens: int) -> list[E]:
        """Removes and returns a batch; the lane must not be empty."""
        clients = dict.fromkeys(entry.client for entry in self._waiting)
        self._served = {client: self._served.get(client, self._now) for client in clients}
        self._weights = {client: self._weights[client] for client in clients}
        leader = min(clients, key=self._served.__getitem__)  # of equals the one that waits longest
        own = [index for index, entry in enumerate(self._waiting) if entry.client == leader][:WINDOW]
        others = [index for index, entry in enumerate(self._waiting[: 2 * WINDOW]) if entry.client != leader][:WINDOW]
        chosen = _fitting(self._waiting, own, others, most_tokens)
        self._now = self._served[leader]
        for index in chosen:
            client = self._waiting[index].client
            self._served[client] += self._waiting[index].work / self._weights[client]
        batch = [self._waiting[index] for index in sorted(chosen)]
        self._waiting = [entry for index, entry in enumerate(self._waiting) if index not in chosen]
        self._count()
        return batch

    def _count(self) -> None:
        self.work = Counter()
        for entry in self._waiting:
            self.work[entry.client] += entry.work


class BatchQueue(Generic[E]):
    """Two lanes, queries ahead of documents, whoever they are from.

    Every batch is led by a text whose turn it is, so none starves, and is filled with those of its model that are
    nearest to it in length, so little of it is padding. A waiting document is passed over at most
    `QUERY_BATCHES_IN_A_ROW` times.
    """

    def __init__(self, max_batch_tokens: int) -> None:
        """`max_batch_tokens`: longest text times number of texts in a batch, at most; a longer text goes alone."""
        self._max_batch_tokens = max_batch_tokens
        self._queries: Lane[E] = Lane()
        self._documents: Lane[E] = Lane()
        self._query_batches_in_a_row = 0
        self._document_batches_in_a_row = DOCUMENT_BATCHES_AFTER_A_QUERY

    def __len__(self) -> int:
        return len(self._queries) + len(self._documents)

    @property
    def tokens(self) -> int:
        """That wait, those of texts that were abandoned since the last batch included."""
        return self._queries.tokens + self._documents.tokens

    @property
    def work(self) -> int:
        """That waits, as `tokens`."""
        return self._queries.work.total() + self._documents.work.total()

    def forget_abandoned(self) -> None:
        self._queries.forget_abandoned()
        self._documents.forget_abandoned()

    def ahead(self, client: str, work: int, *, weight: float = 1.0, is_query: bool) -> int:
        """What is done before the last of `work` more of `client`, if no more comes."""
        if is_query:
            return self._queries.ahead(client, work, weight)
        return self._queries.work.total() + self._documents.ahead(client, work, weight)

    def extend(self, entries: Iterable[E]) -> None:
        for entry in entries:
            (self._queries if entry.is_query else self._documents).append(entry)

    def next_batch(self) -> list[E]:
        """Removes and returns the next texts to encode; abandoned ones are dropped; empty if none wait."""
        self.forget_abandoned()
        documents_turn = self._documents and self._query_batches_in_a_row >= QUERY_BATCHES_IN_A_ROW
        if self._queries and not documents_turn:
            self._query_batches_in_a_row += 1
            self._document_batches_in_a_row = 0
            return self._queries.take(self._max_batch_tokens)
        self._query_batches_in_a_row = 0
        if not self._documents:
            return []
        self._document_batches_in_a_row += 1
        most = self._max_batch_tokens
        if self._document_batches_in_a_row <= DOCUMENT_BATCHES_AFTER_A_QUERY:
            most = min(most, max(LEAST_AMONG_QUERIES, int(most * SHARE_AMONG_QUERIES)))
        return self._documents.take(most)


def _fitting(waiting: Sequence[Entry], own: Sequence[int], others: Sequence[int], most_tokens: int) -> set[int]:
    """Indices of a batch that is led by the first of `own`: of those first, then of `others`, the nearest in length."""
    lead, model = waiting[own[0]].tokens, waiting[own[0]].model
    chosen: set[int] = set()
    shortest = longest = lead
    for candidates in (own, others):
        together = [index for index in candidates if waiting[index].model is model]
        for index in sorted(together, key=lambda index: abs(waiting[index].tokens - lead)):
            tokens = waiting[index].tokens
            low, high = min(shortest, tokens), max(longest, tokens)
            # At most about half of a row is padding: beyond that a batch of its own is cheaper.
            fits = high * (len(chosen) + 1) <= most_tokens and high <= 2 * low + 8
            if fits or not chosen:  # the lead is nearest to itself, so it comes first
                chosen.add(index)
                shortest, longest = low, high
    return chosen
