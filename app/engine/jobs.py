"""Requests and their texts on the way through the engine. Only the event loop changes them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field

from app.models.loaded import LoadedModel
from sparse_encoder.vector import SparseVector


@dataclass(slots=True, eq=False)
class Job:
    """The texts of one request that wait for the encoder; of a long one each window."""

    model: LoadedModel
    client: str
    weight: float  #: of the client
    #: Never an error: its traceback would refer to the frames that refer to the job, and keep the model in memory.
    done: asyncio.Future[None]
    missing: int  #: texts without a vector yet
    lenient: bool = False  #: whether a text that cannot be encoded fails alone, or all with it
    vectors: list[SparseVector] = field(default_factory=list)
    failed: set[int] = field(default_factory=set)  #: places of those that the encoder failed on
    lost: bool = False  #: the encoder failed on one, and so all fail
    encode_seconds: float = 0.0
    abandoned: bool = False
    entries: list[Entry] = field(default_factory=list, repr=False)  #: that hold its texts


@dataclass(slots=True, eq=False)
class Entry:
    """One text in the queue, and which requests of its client wait for its vector: identical texts are computed once.

    Not for several clients: one would wait for the turn of another.
    """

    model: LoadedModel
    client: str
    weight: float
    ids: tuple[int, ...] = field(repr=False)
    work: int  #: tokens of short texts that take as long
    is_query: bool
    waiters: list[tuple[Job, int]]  #: a job, and the place of the text in it

    @property
    def tokens(self) -> int:
        return len(self.ids)

    @property
    def abandoned(self) -> bool:
        return all(job.abandoned for job, _ in self.waiters)

    def deliver(self, vector: SparseVector | None) -> None:
        """Answers all who wait for it; None: it could not be encoded."""
        for job, index in self.waiters:
            if vector is not None:
                job.vectors[index] = vector
            elif job.lenient:
                job.failed.add(index)
            else:
                job.lost = True
                if not job.done.done():
                    job.done.set_result(None)
                continue
            job.missing -= 1
            if not job.missing and not job.done.done():
                job.done.set_result(None)


class Pending:
    """The entries that are queued or being encoded."""

    def __init__(self) -> None:
        self._entries: dict[tuple[str, str, bool, tuple[int, ...]], Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def waiters(self) -> int:
        """Of all entries; a text that a request has twice counts twice."""
        return sum(len(entry.waiters) for entry in self._entries.values())

    def join(self, job: Job, index: int, ids: tuple[int, ...], work: int, is_query: bool) -> tuple[Entry, bool]:
        """The entry of a text, and whether it is new: an identical text that is on its way serves this one too."""
        key = (job.client, job.model.version, is_query, ids)
        entry = self._entries.get(key)
        if entry is not None and entry.model is job.model:
            entry.waiters.append((job, index))
            return entry, False
        self._entries[key] = entry = Entry(job.model, job.client, job.weight, ids, work, is_query, [(job, index)])
        return entry, True

    def forget(self, entries: Iterable[Entry]) -> None:
        """No text joins them any more."""
        for entry in entries:
            key = (entry.client, entry.model.version, entry.is_query, entry.ids)
            if self._entries.get(key) is entry:
                del self._entries[key]
