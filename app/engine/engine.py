"""From texts to vectors: admit, tokenise in threads, wait in the queue, encode in one thread, answer.

Requests run on the event loop; the encoder runs in a thread of its own, which takes the next batch from the queue by
itself the moment it is free. So it never waits for a busy event loop, and a query that arrives while a batch runs is in
the very next one. Each request brings its model; a batch never has two. Identical texts in flight are computed
once, and recent queries not again.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from app.encoders.base import OutOfMemory, TokenBatch
from app.engine.batching import BatchQueue
from app.engine.jobs import Entry, Job, Pending, QueryCache
from app.engine.pace import Pace
from app.errors import EncodingFailed, Overloaded, TextTooLong, Unavailable
from app.metrics import Metrics
from app.models.loaded import LoadedModel
from sparse_encoder.artifact import InputType
from sparse_encoder.query_tokens import QueryTokens
from sparse_encoder.vector import SparseVector

# The tokenizer spreads each call over all cores itself; two callers keep a query from waiting for a long document.
TOKENISER_THREADS = 2
# Of a request that is tokenised on the event loop: it takes 0.1 ms, and the way to a thread and back more than that.
SHORT_CHARACTERS = 256
# Seconds within which a batch that waited is taken from the queue.
AT_ONCE = 0.005
# Share of its time for which a request may be expected to wait: the batch that runs and the answer need some as well.
IN_TIME = 0.6
EMPTY = SparseVector.from_pairs([], [])

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Encoding:
    """The answer to one request, and where its time went."""

    vectors: list[SparseVector]  #: one for each text, in order
    tokens: int  #: encoded, special ones included
    tokenize_seconds: float
    queue_seconds: float
    encode_seconds: float  #: the encoder runs that had a text of this request


class Engine:
    """`start`, then `encode` from any number of tasks of one event loop, then `stop`."""

    def __init__(
        self,
        metrics: Metrics,
        *,
        max_batch_tokens: int,
        max_texts_in_flight: int,
        request_timeout_seconds: float,
        query_cache_size: int,
    ) -> None:
        self.texts_in_flight = 0
        self._metrics = metrics
        self._max_texts_in_flight = max_texts_in_flight
        self._request_timeout_seconds = request_timeout_seconds
        self._max_batch_tokens = max_batch_tokens
        self._queue: BatchQueue[Entry] = BatchQueue(max_batch_tokens)
        self._pace = Pace(max_batch_tokens)
        self._pending = Pending()
        self._query_cache = QueryCache(query_cache_size)
        self._queue_changed = threading.Condition()  # guards _queue and _stopping
        self._stopping = False
        self._last_end = 0.0  # of a batch, for the thread that encodes
        self._failing: set[str] = set()  # versions whose last batch failed

    def start(self) -> None:
        """Starts the threads; must run on the event loop that will call `encode`."""
        self._loop = asyncio.get_running_loop()
        self._tokenisers = ThreadPoolExecutor(TOKENISER_THREADS, thread_name_prefix="tokenise")
        self._worker = threading.Thread(target=self._encode_batches, name="encode", daemon=True)
        self._worker.start()

    async def stop(self) -> None:
        """Refuses new requests, answers the ones in the queue, and ends the threads."""
        with self._queue_changed:
            self._stopping = True
            self._queue_changed.notify()
        await asyncio.to_thread(self._worker.join)
        self._tokenisers.shutdown(wait=False, cancel_futures=True)

    @property
    def queue_tokens(self) -> int:
        """Tokens of the texts that wait for the encoder."""
        with self._queue_changed:
            return self._queue.query_tokens + self._queue.document_tokens

    async def check(self, model: LoadedModel) -> None:
        """Returns if a request to `model` would be answered: its last batch was, or a probe is now.

        :raises ServiceError: if not.
        """
        if self._stopping:
            raise Unavailable("the service is stopping")
        if model.version in self._failing:
            await self.encode(model, [model.probe], "query")

    async def encode(
        self,
        model: LoadedModel,
        texts: Sequence[str],
        input_type: InputType,
        query_tokens: QueryTokens | None = None,
        *,
        truncate: bool = True,
    ) -> Encoding:
        """The vectors of `texts`. If the caller is cancelled, what is not yet being encoded never will be.

        With `query_tokens` the vectors come from that table and the encoder is not asked. Without `truncate` a
        text must fit the model whole.

        :raises Overloaded: if too many texts are in flight, or so many wait that these would not be encoded in time;
            none of `texts` is taken then.
        :raises TextTooLong: if a text does not fit and must not be cut.
        :raises Unavailable: if the service stops or the request times out.
        :raises EncodingFailed: if the encoder fails.
        """
        if self._stopping:
            raise Unavailable("the service is stopping")
        if self.texts_in_flight + len(texts) > self._max_texts_in_flight:
            raise Overloaded(
                f"{self.texts_in_flight} texts are in flight and {len(texts)} more would exceed "
                f"{self._max_texts_in_flight}: try again later"
            )
        self.texts_in_flight += len(texts)
        job = Job(model, self._loop.create_future(), [EMPTY] * len(texts), missing=len(texts))
        try:
            async with asyncio.timeout(self._request_timeout_seconds):
                return await self._run(job, texts, input_type, query_tokens, truncate)
        except TimeoutError:
            raise Unavailable(
                f"not encoded within {self._request_timeout_seconds:g} s: send fewer texts at once, or try again later"
            ) from None
        finally:
            self.texts_in_flight -= len(texts)
            job.abandoned = True  # which changes nothing for one that is done
            for entry in job.entries:
                if entry.abandoned:  # the thread may drop it from now on
                    self._pending.remove(entry)
            job.entries.clear()  # a circle, which would keep the model in memory beyond its last request
            self._metrics.abandoned_texts.inc(job.missing)

    async def _run(
        self,
        job: Job,
        texts: Sequence[str],
        input_type: InputType,
        query_tokens: QueryTokens | None,
        truncate: bool,
    ) -> Encoding:
        started = time.perf_counter()
        model, is_query = job.model, input_type == "query"
        if is_query and query_tokens is None and (cached := self._cached(model, texts)):
            self._metrics.query_cache_hits.inc(len(texts))
            return self._encoded(job, input_type, *cached, started, time.perf_counter())
        tokenise = partial(model.tokenizer.encode_batch, texts, model.max_length(input_type))
        if sum(map(len, texts)) <= SHORT_CHARACTERS:
            tokenised = tokenise()
        else:
            tokenised = await self._loop.run_in_executor(self._tokenisers, tokenise)
        if not truncate and (cut := [index for index, text in enumerate(tokenised) if text.truncated]):
            job.missing = 0  # refused, not abandoned
            raise TextTooLong(
                f"{len(cut)} of the texts, first item {cut[0]}, have more than the {model.max_length(input_type)} "
                'tokens that the model reads: split them, or send "truncate": "end"'
            )
        self._metrics.truncated_texts.inc(sum(text.truncated for text in tokenised))
        queued = time.perf_counter()
        tokens = [len(text.ids) if text.content_tokens else 0 for text in tokenised]
        if query_tokens is not None:
            vectors = [query_tokens.vector(text.ids) for text in tokenised]
            return self._encoded(job, input_type, vectors, tokens, started, queued)
        waiting = [(index, tuple(text.ids)) for index, text in enumerate(tokenised) if text.content_tokens]
        job.missing = len(waiting)
        if waiting:
            self._refuse_if_too_late(job, sum(tokens), is_query)
            self._enqueue(job, waiting, is_query)
            await job.done
        if is_query:
            for text, found, vector, count in zip(texts, tokenised, job.vectors, tokens, strict=True):
                if not found.truncated:  # a cut one must be refused when a request says so
                    self._query_cache.put(model.version, text, vector, count)
        return self._encoded(job, input_type, job.vectors, tokens, started, queued)

    def _refuse_if_too_late(self, job: Job, tokens: int, is_query: bool) -> None:
        """A text that would only wait for its deadline is better sent elsewhere at once. Queries overtake documents."""
        with self._queue_changed:
            ahead = self._queue.query_tokens + (0 if is_query else self._queue.document_tokens)
        seconds = self._pace.seconds(ahead + tokens)
        # With nothing ahead it is tried: a pace that was measured at a bad moment would refuse all for ever.
        if ahead and seconds > IN_TIME * self._request_timeout_seconds:
            job.missing = 0  # refused, not abandoned
            raise Overloaded(
                f"{ahead} tokens wait, so {tokens} more would take {seconds:.1f} s, too much of the "
                f"{self._request_timeout_seconds:g} s that a request has: send less at once, or try again later"
            )

    def _cached(self, model: LoadedModel, texts: Sequence[str]) -> tuple[list[SparseVector], list[int]] | None:
        """Vectors and token counts, if all texts were asked lately."""
        found = [self._query_cache.get(model.version, text) for text in texts]
        known = [pair for pair in found if pair is not None]
        if not found or len(known) < len(found):
            return None
        return [vector for vector, _ in known], [tokens for _, tokens in known]

    def _encoded(
        self,
        job: Job,
        input_type: InputType,
        vectors: list[SparseVector],
        tokens: Sequence[int],
        started: float,
        queued: float,
    ) -> Encoding:
        job.missing = 0  # those of a cache or a table were never waited for
        encoded = Encoding(
            vectors=vectors,
            tokens=sum(tokens),
            tokenize_seconds=queued - started,
            queue_seconds=max(0.0, time.perf_counter() - queued - job.encode_seconds),
            encode_seconds=job.encode_seconds,
        )
        self._metrics.texts.labels(input_type).inc(len(tokens))
        self._metrics.tokens.inc(encoded.tokens)
        for stage in ("tokenize", "queue", "encode"):
            self._metrics.stage_seconds.labels(stage).observe(getattr(encoded, f"{stage}_seconds"))
        return encoded

    def _enqueue(self, job: Job, texts: Sequence[tuple[int, tuple[int, ...]]], is_query: bool) -> None:
        """`texts`: the place of each in the job, and its ids."""
        with self._queue_changed:
            if self._stopping:  # since `encode` looked; the thread may have ended
                raise Unavailable("the service is stopping")
            joined = [self._pending.join(job, index, ids, is_query) for index, ids in texts]
            new = [entry for entry, is_new in joined if is_new]
            job.entries = [entry for entry, _ in joined]
            self._metrics.shared_texts.inc(len(joined) - len(new))
            if new:
                self._queue.extend(new)
                self._queue_changed.notify()

    def _encode_batches(self) -> None:
        """The encoder's thread: runs until `stop`, whatever happens to a batch."""
        self._last_end = time.perf_counter()
        while self._encode_batch():
            pass

    def _encode_batch(self) -> bool:
        """False if there is nothing more to do. A function of its own: while it waits, it refers to no model."""
        asked = time.perf_counter()
        batch = self._next_batch()
        if not batch:
            return False
        started = time.perf_counter()
        # While texts wait, what passes between two batches counts as well: other threads want the same cores.
        busy_since = self._last_end if started - asked < AT_ONCE else started
        vectors: list[SparseVector | None] = [None] * len(batch)
        try:
            vectors = self._encode(batch)
        except Exception:
            log.exception(
                "a batch of %d texts failed", len(batch), extra={"fields": {"version": batch[0].model.version}}
            )
        self._last_end = time.perf_counter()
        took, busy = self._last_end - started, self._last_end - busy_since
        self._loop.call_soon_threadsafe(self._deliver, batch, vectors, took, busy)
        return True

    def _encode(self, batch: list[Entry]) -> list[SparseVector | None]:
        """None for a text that the device has no memory for, even alone."""
        model = batch[0].model
        tokens = TokenBatch.pad([entry.ids for entry in batch], model.tokenizer.pad_id)
        try:
            vectors = model.encoder.encode(tokens)
        except OutOfMemory as error:
            self._metrics.out_of_memory.inc()
            if len(batch) > 1:
                half = len(batch) // 2
                return self._encode(batch[:half]) + self._encode(batch[half:])
            log.error("no memory on the device for a text of %d tokens: %s", batch[0].tokens, error)
            return [None]
        if len(vectors) != len(batch):
            raise RuntimeError(f"the encoder returned {len(vectors)} vectors for {len(batch)} texts")
        return list(vectors)

    def _next_batch(self) -> list[Entry]:
        """Waits for texts; empty only when `stop` was called and none are left."""
        with self._queue_changed:
            while not (batch := self._queue.next_batch()) and not self._stopping:
                self._queue_changed.wait()
            return batch

    def _deliver(
        self, batch: list[Entry], vectors: list[SparseVector | None], seconds: float, busy_seconds: float
    ) -> None:
        """On the event loop: gives every job of the batch its vectors, or the failure."""
        version = batch[0].model.version
        if any(vector is not None for vector in vectors):
            self._failing.discard(version)
        else:
            self._failing.add(version)
            self._metrics.failed_batches.inc()
        self._pace.observe(sum(entry.tokens for entry in batch), busy_seconds)
        self._metrics.count_batch([entry.tokens for entry in batch], self._max_batch_tokens)
        for job in {job for entry in batch for job, _ in entry.waiters}:
            job.encode_seconds += seconds
        for entry, vector in zip(batch, vectors, strict=True):
            self._pending.remove(entry)
            for job, index in entry.waiters:
                if vector is None:
                    if not job.done.done():
                        job.done.set_exception(EncodingFailed())
                    continue
                job.vectors[index] = vector
                job.missing -= 1
                if not job.missing and not job.done.done():
                    job.done.set_result(None)
