"""Which waiting texts are encoded next. Pure: no event loop, no threads, no clock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from heapq import merge
from itertools import islice
from operator import itemgetter
from typing import Generic, Protocol, TypeVar

#: Batches of queries after which a waiting document gets its turn, however many queries wait.
QUERY_BATCHES_IN_A_ROW = 4
#: Texts of one client, and of all others, that are looked at for one batch, oldest first.
WINDOW = 512
#: While queries come, a batch of documents has this share of the tokens of others, and no less than so many, since the
#: next query waits for its end; until so many batches of documents went by without one.
SHARE_AMONG_QUERIES = 0.1
LEAST_AMONG_QUERIES = 64
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


E = TypeVar("E", bound=Entry)


class Lane(Generic[E]):
    """The texts of one kind, in the order in which they came; each client gets as much work done as the others,
    times its weight.

    A batch is led by the oldest text of the client that was served least, filled with that client's, and with those of
    others where there is room. A client that comes (again) is treated as if it had been served as much as the one whose
    turn it is: neither what it had before nor that it had nothing counts. No step looks at all that waits.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, dict[E, int]] = {}  #: by client, the oldest first; how many came before it
        self._came = 0
        self._weights: dict[str, float] = {}  #: of the clients that wait
        self._served: dict[str, float] = {}  #: work by weight, of those and of whoever had the last batch
        self._now = 0.0  #: what the client that led the last batch had been served before
        self.work: Counter[str] = Counter()  #: that waits, by client
        self.tokens = 0  #: that wait

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def append(self, entry: E) -> None:
        client = entry.client
        self._served.setdefault(client, self._now)
        self._waiting.setdefault(client, {})[entry] = self._came
        self._came += 1
        self._weights[client] = entry.weight
        self.work[client] += entry.work
        self.tokens += entry.tokens

    def remove(self, entry: E) -> None:
        """Nothing happens if it does not wait."""
        client = entry.client
        if self._waiting.get(client, {}).pop(entry, None) is None:
            return
        self.work[client] -= entry.work
        self.tokens -= entry.tokens
        if not self._waiting[client]:
            for of_waiting in (self._waiting, self._weights, self.work):
                del of_waiting[client]  # what it was served is forgotten when the next batch is taken without it

    def ahead(self, client: str, work: int, weight: float) -> int:
        """What is done before the last of `work` more of `client`, of its own and of others."""
        own = self.work[client]
        turns = (own + work) / weight
        others = ((other, theirs) for other, theirs in self.work.items() if other != client)
        return own + sum(min(theirs, int(turns * self._weights[other])) for other, theirs in others)

    def take(self, most_tokens: int) -> list[E]:
        """Removes and returns a batch; the lane must not be empty."""
        self._served = {client: self._served[client] for client in self._waiting}
        leader = min(self._waiting, key=self._served.__getitem__)  # of equals the one that waits longest
        own = list(islice(self._waiting[leader], WINDOW))
        chosen = _fitting(own, self._others(leader), most_tokens)
        self._now = self._served[leader]
        for entry in chosen:
            self._served[entry.client] += entry.work / self._weights[entry.client]
        batch = sorted(chosen, key=lambda entry: self._waiting[entry.client][entry])
        for entry in batch:
            self.remove(entry)
        return batch

    def _others(self, leader: str) -> Iterator[E]:
        """The oldest texts of the other clients."""
        theirs = (texts.items() for client, texts in self._waiting.items() if client != leader)
        oldest_first = merge(*theirs, key=itemgetter(1))
        return (entry for entry, _ in islice(oldest_first, WINDOW))


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
        """That wait."""
        return self._queries.tokens + self._documents.tokens

    @property
    def work(self) -> int:
        """That waits."""
        return self._queries.work.total() + self._documents.work.total()

    def remove(self, entries: Iterable[E]) -> None:
        """Those of `entries` that wait will never be in a batch."""
        for entry in entries:
            (self._queries if entry.is_query else self._documents).remove(entry)

    def ahead(self, client: str, work: int, *, weight: float = 1.0, is_query: bool) -> int:
        """What is done before the last of `work` more of `client`, if no more comes."""
        if is_query:
            return self._queries.ahead(client, work, weight)
        return self._queries.work.total() + self._documents.ahead(client, work, weight)

    def extend(self, entries: Iterable[E]) -> None:
        for entry in entries:
            (self._queries if entry.is_query else self._documents).append(entry)

    def next_batch(self) -> list[E]:
        """Removes and returns the next texts to encode; empty if none wait."""
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


def _fitting(own: Sequence[E], others: Iterable[E], most_tokens: int) -> list[E]:
    """A batch that is led by the first of `own`: of those first, then of `others`, the nearest in length."""
    lead = own[0]
    chosen: list[E] = []
    shortest = longest = lead.tokens
    for candidates in (own, others):
        if longest * (len(chosen) + 1) > most_tokens and chosen:
            break
        together = [(abs(entry.tokens - lead.tokens), entry) for entry in candidates if entry.model is lead.model]
        for _, entry in sorted(together, key=itemgetter(0)):
            tokens = entry.tokens
            low, high = min(shortest, tokens), max(longest, tokens)
            # At most about half of a row is padding: beyond that a batch of its own is cheaper.
            fits = high * (len(chosen) + 1) <= most_tokens and high <= 2 * low + 8
            if fits or not chosen:  # the lead is nearest to itself, so it comes first
                chosen.append(entry)
                shortest, longest = low, high
            elif longest * (len(chosen) + 1) > most_tokens:
                break
    return chosen
