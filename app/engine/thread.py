"""The thread that encodes: it takes the next batch from the queue by itself, the moment it is free."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from app.encoders.base import Encoder, OutOfMemory, TokenBatch
from app.engine.batching import BatchQueue
from app.engine.jobs import Entry
from app.errors import Unavailable
from app.metrics import Metrics
from sparse_encoder.vector import SparseVector

# Seconds within which a batch that waited is taken from the queue.
AT_ONCE = 0.005

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """A batch that went through the encoder."""

    batch: list[Entry]
    vectors: list[SparseVector | None]  #: None for a text that could not be encoded, even alone
    seconds: float  #: in the encoder
    aside: bool  #: beside other batches
    busy_seconds: float  #: since the batch before, if texts waited: other threads want the same cores


class EncodingThread:
    """`start`, then `add` from the event loop; after `stop` it has `ended` once nothing waits."""

    def __init__(
        self, max_batch_tokens: int, metrics: Metrics, deliver: Callable[[Outcome], None], *, aside: bool = False
    ) -> None:
        """`deliver` is called on the event loop, for each batch. `aside`: see `Encoder.encode`."""
        self._queue: BatchQueue[Entry] = BatchQueue(max_batch_tokens)
        self._metrics = metrics
        self._deliver = deliver
        self._aside = aside
        self._changed = threading.Condition()  # guards _queue and _stopping
        self._stopping = False
        self._running = 0  # work of the batch that is in the encoder
        self._running_since = 0.0
        self._last_end = 0.0  # of a batch

    def start(self) -> None:
        """Must run on the event loop that `deliver` is to be called on."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(
            target=self._encode_batches, name="encode-aside" if self._aside else "encode", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """From now on nothing can be added."""
        with self._changed:
            self._stopping = True
            self._changed.notify()

    async def ended(self) -> None:
        """Returns when, after `stop`, all that waited is encoded."""
        await asyncio.to_thread(self._thread.join)

    @property
    def stopping(self) -> bool:
        return self._stopping

    def waiting_texts(self) -> int:
        with self._changed:
            return len(self._queue)

    def waiting_tokens(self) -> int:
        with self._changed:
            return self._queue.tokens

    def work_ahead(self, client: str, work: int, *, weight: float, is_query: bool) -> int:
        """What is done before the last of `work` more of `client`."""
        with self._changed:
            return self._queue.ahead(client, work, weight=weight, is_query=is_query)

    def waiting_work(self) -> int:
        with self._changed:
            return self._queue.work

    def running(self) -> tuple[int, float]:
        """The work that is in the encoder, and for how many seconds; 0 of both if nothing is."""
        with self._changed:
            return self._running, time.perf_counter() - self._running_since if self._running else 0.0

    def add(self, entries: Iterable[Entry]) -> None:
        """:raises Unavailable: after `stop`."""
        with self._changed:
            if self._stopping:
                raise Unavailable("the service is stopping")
            self._queue.extend(entries)
            self._changed.notify()

    def forget(self, entries: Iterable[Entry]) -> None:
        """Those that still wait are not encoded."""
        with self._changed:
            self._queue.remove(entries)

    def _encode_batches(self) -> None:
        """Runs until `stop`, whatever happens to a batch."""
        self._last_end = time.perf_counter()
        while self._encode_batch():
            pass

    def _encode_batch(self) -> bool:
        """False if there is nothing more to do. A function of its own: while it waits, it refers to no model."""
        asked = time.perf_counter()
        batch = self._next_batch()
        if not batch:
            return False
        if self._aside:
            self._prepare(batch)
        started = time.perf_counter()
        busy_since = self._last_end if started - asked < AT_ONCE else started
        errors: list[Exception] = []
        vectors = self._encode(batch, errors)
        if errors:
            lost, fields = vectors.count(None), {"version": batch[0].model.version}
            log.error(
                "%d of %d texts failed, each alone", lost, len(batch), exc_info=errors[-1], extra={"fields": fields}
            )
            errors.clear()  # a circle with their tracebacks, which would keep the model in memory
        self._last_end = time.perf_counter()
        with self._changed:
            self._running = 0
        outcome = Outcome(batch, vectors, self._last_end - started, self._aside, self._last_end - busy_since)
        self._loop.call_soon_threadsafe(self._deliver, outcome)
        return True

    def _prepare(self, batch: list[Entry]) -> None:
        try:
            _encoder_of(batch).prepare_aside()
        except Exception:
            log.exception("what long texts need of %s cannot be made", batch[0].model.version)

    def _next_batch(self) -> list[Entry]:
        """Waits for texts; empty only when `stop` was called and none are left."""
        with self._changed:
            while not (batch := self._queue.next_batch()) and not self._stopping:
                self._changed.wait()
            self._running = sum(entry.work for entry in batch)
            self._running_since = time.perf_counter()
            return batch

    def _encode(self, batch: list[Entry], errors: list[Exception]) -> list[SparseVector | None]:
        """A batch that fails is halved, so that a text that cannot be encoded, for memory or whatever reason, fails
        alone: its vector is None, and `errors` gets the reason."""
        try:
            ids = TokenBatch.pad([entry.ids for entry in batch], batch[0].model.tokenizer.pad_id)
            vectors = _encoder_of(batch).encode(ids, aside=self._aside)
            if len(vectors) != len(batch):
                raise RuntimeError(f"the encoder returned {len(vectors)} vectors for {len(batch)} texts")
            return list(vectors)
        except Exception as error:
            if isinstance(error, OutOfMemory):
                self._metrics.out_of_memory.inc()
            if len(batch) == 1:
                errors.append(error)
                return [None]
        half = len(batch) // 2
        return self._encode(batch[:half], errors) + self._encode(batch[half:], errors)


def _encoder_of(batch: list[Entry]) -> Encoder:
    """A batch has texts of one model and one type."""
    return batch[0].model.encoder_of("query" if batch[0].is_query else "document")
