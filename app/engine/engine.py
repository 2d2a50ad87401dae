"""From texts to vectors: admit, tokenise in threads, wait in a queue, encode in a thread, answer.

Requests run on the event loop; the encoder runs in a thread of its own (see `thread`), so it never waits for a busy
event loop, and a query that arrives while a batch runs is in the very next one. Texts that take long have another
thread and queue, so that nothing waits for them. Each request brings its model; a batch never has two. Identical texts
in flight are computed once, and recent queries not again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice

from app.encoders.base import LONG_TEXT
from app.engine.admission import Admission
from app.engine.cache import QueryCache
from app.engine.jobs import Job, Pending
from app.engine.thread import EncodingThread, Outcome
from app.errors import EncodingFailed, TextTooLong, Unavailable
from app.metrics import Metrics
from app.models.loaded import LoadedModel
from sparse_encoder.artifact import InputType
from sparse_encoder.query_tokens import QueryTokens
from sparse_encoder.tokenizer import Piece, TokenisedText, unfolded
from sparse_encoder.vector import SparseVector

# The tokenizer spreads each call over all cores itself; two callers keep a query from waiting for a long document.
TOKENISER_THREADS = 2
# Of a request that is tokenised on the event loop: it takes 0.1 ms, and the way to a thread and back more than that.
SHORT_CHARACTERS = 256
# Tokenised by one call: about 10 ms and 10 MB. Between two calls other requests get their turn.
CHARACTERS_AT_ONCE = 64 * 1024
#: Queries looked up before other requests get a turn on the event loop, which takes about 2 ms.
LOOKUPS_AT_ONCE = 16
EMPTY = SparseVector.from_pairs([], [])
#: In the place of the windows of a text that is too long, and not cut.
TOO_LONG = TokenisedText([], False, 0)


@dataclass(frozen=True, slots=True)
class Encoding:
    """The answer to one request, and where its time went."""

    vectors: list[SparseVector]  #: one for each text, in order
    tokens: int  #: encoded, special ones included
    tokenize_seconds: float
    queue_seconds: float
    encode_seconds: float  #: the encoder runs that had a text of this request
    failed: frozenset[int]  #: places of texts that could not be encoded, whose vectors are empty; if that was allowed


@dataclass(frozen=True, slots=True)
class Statistics:
    """What the engine has to do now."""

    texts_in_flight: int  #: of requests that were taken and are not answered
    pending_texts: int  #: that wait for the encoder or are in it; identical ones count once
    pending_waiters: int  #: how often requests wait for one of these
    queued_texts: int  #: that wait for the encoder
    queued_tokens: int  #: of these
    tokens_per_second: float | None  #: that the encoder lately computed; None if that is not known yet
    tokens_in_time: int | None  #: of one request that is alone, at most


class Engine:
    """`start`, then `encode` from any number of tasks of one event loop, then `stop`."""

    def __init__(
        self,
        metrics: Metrics,
        admission: Admission,
        *,
        max_batch_tokens: int,
        query_cache_size: int,
        longest_run_seconds: float,
    ) -> None:
        """`longest_run_seconds`: a text that will take longer is encoded aside."""
        self._metrics = metrics
        self._admission = admission
        self._max_batch_tokens = max_batch_tokens
        self._longest_run_seconds = longest_run_seconds
        self._thread = EncodingThread(max_batch_tokens, metrics, self._deliver)
        self._aside = EncodingThread(max_batch_tokens, metrics, self._deliver, aside=True)
        self._pending = Pending()
        self._query_cache = QueryCache(query_cache_size)
        self._failing: set[str] = set()  # versions whose last batch failed

    def start(self) -> None:
        """Starts the threads; must run on the event loop that will call `encode`."""
        self._loop = asyncio.get_running_loop()
        self._helpers = ThreadPoolExecutor(TOKENISER_THREADS, thread_name_prefix="tokenise")
        self._thread.start()
        self._aside.start()

    async def stop(self) -> None:
        """Refuses new requests, answers the ones in the queue, and ends the threads."""
        for thread in (self._thread, self._aside):
            thread.stop()
        for thread in (self._thread, self._aside):
            await thread.ended()
        self._helpers.shutdown(wait=False, cancel_futures=True)

    def statistics(self) -> Statistics:
        return Statistics(
            texts_in_flight=self._admission.texts_in_flight,
            pending_texts=len(self._pending),
            pending_waiters=self._pending.waiters,
            queued_texts=self._thread.waiting_texts() + self._aside.waiting_texts(),
            queued_tokens=self._thread.waiting_tokens() + self._aside.waiting_tokens(),
            tokens_per_second=self._admission.pace.tokens_per_second,
            tokens_in_time=self._admission.tokens_in_time(),
        )

    async def check(self, model: LoadedModel) -> None:
        """Returns if a request to `model` would be answered: its last batch was, or a probe is now.

        :raises ServiceError: if not.
        """
        self._refuse_if_stopping()
        if model.version in self._failing:
            await self.encode(model, [model.probe], "document")  # a query might come from the cache

    async def encode(
        self,
        model: LoadedModel,
        texts: Sequence[str],
        input_type: InputType,
        query_tokens: QueryTokens | None = None,
        *,
        client: str = "",
        weight: float = 1.0,
        truncate: bool = True,
        max_windows: int = 1,
        lenient: bool = False,
    ) -> Encoding:
        """The vectors of `texts`. If the caller is cancelled, what is not yet being encoded never will be.

        Clients share what the service can do, by the name `client` and in proportion to `weight`. With `query_tokens`
        the vectors come from that table and the encoder is not asked. A text that is longer than the model reads is
        encoded in overlapping windows, `max_windows` at most, and has the maximum of their vectors; what does not fit
        them is cut off. Without `truncate` every text must fit whole. If it is `lenient`, a text that does not, or that
        the encoder fails on, costs itself alone.

        :raises Overloaded: if too many texts are in flight, or so many wait that these would not be encoded in time;
            none of `texts` is taken then.
        :raises TooLarge: if they cannot be encoded in time even alone.
        :raises TextTooLong: if a text does not fit and must not be cut.
        :raises Unavailable: if the service stops or the request times out.
        :raises EncodingFailed: if the encoder fails.
        """
        self._refuse_if_stopping()
        counted = self._admission.enter(client, len(texts), sum(map(len, texts)), weight)
        job = Job(model, client, weight, self._loop.create_future(), missing=len(texts), lenient=lenient)
        timeout_seconds = self._admission.request_timeout_seconds
        try:
            async with asyncio.timeout(timeout_seconds):
                return await self._run(job, texts, input_type, query_tokens, truncate, max_windows)
        except TimeoutError:
            raise Unavailable(
                f"not encoded within {timeout_seconds:g} s: send fewer texts at once, or try again later"
            ) from None
        finally:
            self._admission.leave(client, len(texts), counted)
            job.abandoned = True  # which changes nothing for one that is done
            if job.missing:
                unwanted = [entry for entry in job.entries if entry.abandoned]
                self._pending.forget(unwanted)
                self._thread.forget(unwanted)
                self._aside.forget(unwanted)
            job.entries.clear()  # a circle, which would keep the model in memory beyond its last request
            self._metrics.abandoned_texts.inc(job.missing)

    async def pieces(
        self, model: LoadedModel, texts: Sequence[str], input_type: InputType, *, special: bool
    ) -> list[list[Piece]]:
        """What the tokenizer of `model` makes of whole texts, with their prompts and, if `special`, special tokens."""
        prompted = [model.manifest.prompted(text, input_type) for text in texts]
        pieces: list[list[Piece]] = []
        for part in in_parts(prompted, CHARACTERS_AT_ONCE):
            cut = partial(model.tokenizer.pieces, part, special=special)
            pieces += await self._loop.run_in_executor(self._helpers, cut)
        return pieces

    def _refuse_if_stopping(self) -> None:
        if self._thread.stopping:
            raise Unavailable("the service is stopping")

    async def _run(
        self,
        job: Job,
        texts: Sequence[str],
        input_type: InputType,
        query_tokens: QueryTokens | None,
        truncate: bool,
        max_windows: int,
    ) -> Encoding:
        started = time.perf_counter()
        model, is_query = job.model, input_type == "query"
        if is_query and query_tokens is None and (cached := self._cached(model, texts)):
            self._metrics.query_cache_hits.inc(len(texts))
            return self._encoding(job, input_type, *cached, started, time.perf_counter())
        tokenised = await self._tokenise(job, texts, input_type, truncate, max_windows, encoder=query_tokens is None)
        queued = time.perf_counter()
        tokens = [sum(len(window.ids) for window in windows if window.content_tokens) for windows in tokenised]
        if query_tokens is not None:
            vectors = []
            for number, windows in enumerate(tokenised, start=1):
                vectors.append(query_tokens.vector(windows[0].ids))
                if number % LOOKUPS_AT_ONCE == 0:
                    await asyncio.sleep(0)
            return self._encoding(
                job, input_type, vectors, tokens, started, queued, failed_texts(tokenised, job.failed)
            )
        together = [window for windows in tokenised for window in windows]
        waiting = [(index, tuple(window.ids)) for index, window in enumerate(together) if window.content_tokens]
        job.vectors = [EMPTY] * len(together)
        job.missing = 0  # if it is refused, it was not abandoned
        if waiting:
            self._refuse_if_too_late(job, [len(ids) for _, ids in waiting], is_query)
            job.missing = len(waiting)
            self._enqueue(job, waiting, is_query)
            await job.done
            if job.lost:
                raise EncodingFailed
        if is_query:
            for text, found, vector, count in zip(texts, together, job.vectors, tokens, strict=True):
                # A cut one must be refused when a request says so; what failed may not fail the next time.
                if not found.truncated and found is not TOO_LONG and not job.failed:
                    self._query_cache.put(model.version, text, vector, count)
        failed = failed_texts(tokenised, job.failed)
        return self._encoding(job, input_type, await self._merge(job, tokenised), tokens, started, queued, failed)

    def _goes_aside(self, tokens: int) -> bool:
        pace = self._admission.pace
        return tokens > LONG_TEXT or pace.seconds(pace.work(tokens)) > self._longest_run_seconds

    def _refuse_if_too_late(self, job: Job, tokens: Sequence[int], is_query: bool) -> None:
        """`tokens`: of each text that must be encoded.

        :raises Overloaded: see `Admission.refuse_if_too_late`.
        """
        pace = self._admission.pace
        own = {self._thread: 0, self._aside: 0}
        for count in tokens:
            own[self._aside if self._goes_aside(count) else self._thread] += pace.work(count)
        ahead = 0
        for thread, other in ((self._thread, self._aside), (self._aside, self._thread)):
            if own[thread]:
                before = thread.work_ahead(job.client, own[thread], weight=job.weight, is_query=is_query)
                if thread is self._aside:  # runs of the other one are short
                    before += pace.left(*thread.running())
                # Both have the same processors: while one does this much, the other does as much, if it has it.
                beside = min(other.waiting_work(), before + own[thread])
                ahead = max(ahead, before + beside)
        self._admission.refuse_if_too_late(sum(own.values()), ahead)

    async def _merge(self, job: Job, tokenised: Sequence[Sequence[TokenisedText]]) -> list[SparseVector]:
        """One vector for each text, of those of its windows."""
        if len(job.vectors) == len(tokenised):
            return job.vectors
        counts = map(len, tokenised)
        return await self._loop.run_in_executor(self._helpers, _merged, job.vectors, list(counts))

    def _cached(self, model: LoadedModel, texts: Sequence[str]) -> tuple[list[SparseVector], list[int]] | None:
        """Vectors and token counts, if all texts were asked lately."""
        found = [self._query_cache.get(model.version, text) for text in texts]
        known = [pair for pair in found if pair is not None]
        if not found or len(known) < len(found):
            return None
        return [vector for vector, _ in known], [tokens for _, tokens in known]

    async def _tokenise(
        self, job: Job, texts: Sequence[str], input_type: InputType, truncate: bool, max_windows: int, *, encoder: bool
    ) -> list[list[TokenisedText]]:
        """Of each text its windows; all but the first are of what would else be cut off. `encoder`: they are for the
        encoder, which must be able to encode them in time."""
        most, tokenizer = job.model.max_length(input_type), job.model.tokenizer
        texts = [job.model.manifest.prompted(text, input_type) for text in texts]
        if sum(map(len, texts)) <= SHORT_CHARACTERS and sum(map(unfolded, texts)) <= SHORT_CHARACTERS:
            tokenised = tokenizer.encode_windows(texts, most, max_windows)
        else:
            tokenised, work = [], 0
            for part in in_parts(texts, tokenizer.most_characters(most, max_windows)):
                tokenise = partial(tokenizer.encode_windows, part, most, max_windows)
                new = await self._loop.run_in_executor(self._helpers, tokenise)
                tokenised += new
                windows = [window for windows in new for window in windows if window.content_tokens]
                work += sum(self._admission.pace.work(len(window.ids)) for window in windows)
                if encoder:
                    job.missing = 0  # if it is refused, it was not abandoned
                    self._admission.refuse_if_never(len(texts), len(tokenised), work)
                    job.missing = len(texts)
        cut = [index for index, windows in enumerate(tokenised) if windows[-1].truncated]
        if cut and not truncate and job.lenient:
            for index in cut:
                tokenised[index] = [TOO_LONG]
            return tokenised
        if cut and not truncate:
            job.missing = 0  # refused, not abandoned
            reads = f"reads in {max_windows} windows" if max_windows > 1 else "reads"
            raise TextTooLong(
                f"{len(cut)} of the texts, first item {cut[0]}, have more than the {most} "
                f'tokens that the model {reads}: split them, or send "truncate": "end"'
            )
        self._metrics.truncated_texts.inc(len(cut))
        self._metrics.windows.inc(sum(len(windows) for windows in tokenised if len(windows) > 1))
        return tokenised

    def _enqueue(self, job: Job, texts: Sequence[tuple[int, tuple[int, ...]]], is_query: bool) -> None:
        """`texts`: the place of each in the job, and its ids."""
        work = self._admission.pace.work
        joined = [self._pending.join(job, index, ids, work(len(ids)), is_query) for index, ids in texts]
        new = [entry for entry, is_new in joined if is_new]
        job.entries = [entry for entry, _ in joined]
        self._metrics.shared_texts.inc(len(joined) - len(new))
        aside = [self._goes_aside(entry.tokens) for entry in new]
        for thread in (self._thread, self._aside):
            if entries := [entry for entry, long in zip(new, aside, strict=True) if long is (thread is self._aside)]:
                thread.add(entries)

    def _deliver(self, outcome: Outcome) -> None:
        """On the event loop: gives every job of the batch its vectors, or the failure."""
        batch, version = outcome.batch, outcome.batch[0].model.version
        if any(vector is not None for vector in outcome.vectors):
            self._failing.discard(version)
        else:
            self._failing.add(version)
            self._metrics.failed_batches.inc()
        if not outcome.aside:
            self._admission.pace.observe(sum(entry.tokens for entry in batch), outcome.busy_seconds)
        else:
            tokens = sum(entry.tokens for entry in batch) // len(batch)
            self._admission.pace.observe_alone(tokens, outcome.seconds / len(batch))
        self._metrics.count_batch([entry.tokens for entry in batch], self._max_batch_tokens)
        for job in {job for entry in batch for job, _ in entry.waiters}:
            job.encode_seconds += outcome.seconds
        self._pending.forget(batch)
        for entry, vector in zip(batch, outcome.vectors, strict=True):
            entry.deliver(vector)

    def _encoding(
        self,
        job: Job,
        input_type: InputType,
        vectors: list[SparseVector],
        tokens: Sequence[int],
        started: float,
        queued: float,
        failed: frozenset[int] = frozenset(),
    ) -> Encoding:
        job.missing = 0  # those of a cache or a table were never waited for
        encoding = Encoding(
            vectors=vectors,
            tokens=sum(tokens),
            tokenize_seconds=queued - started,
            queue_seconds=max(0.0, time.perf_counter() - queued - job.encode_seconds),
            encode_seconds=job.encode_seconds,
            failed=failed,
        )
        self._metrics.texts.labels(input_type).inc(len(tokens))
        self._metrics.tokens.inc(encoding.tokens)
        for stage in ("tokenize", "queue", "encode"):
            self._metrics.stage_seconds[stage].observe(getattr(encoding, f"{stage}_seconds"))
        return encoding


def failed_texts(tokenised: Sequence[Sequence[TokenisedText]], failed: Set[int]) -> frozenset[int]:
    """Places of the texts that are too long, or one of whose windows is at a place of `failed`."""
    texts, place = set(), 0
    for number, windows in enumerate(tokenised):
        places = range(place, place + len(windows))
        if windows[0] is TOO_LONG or not failed.isdisjoint(places):
            texts.add(number)
        place += len(windows)
    return frozenset(texts)


def in_parts(texts: Sequence[str], most_characters: int) -> Iterator[Sequence[str]]:
    """`texts` in order, in parts of about `CHARACTERS_AT_ONCE`; of a text no more than `most_characters` are read."""
    begin = characters = 0
    for index, text in enumerate(texts):
        characters += min(len(text), most_characters)
        if characters >= CHARACTERS_AT_ONCE:
            yield texts[begin : index + 1]
            begin, characters = index + 1, 0
    if begin < len(texts):
        yield texts[begin:]


def _merged(vectors: Sequence[SparseVector], counts: Sequence[int]) -> list[SparseVector]:
    """The maximum of each `counts` vectors that follow each other."""
    rest = iter(vectors)
    return [SparseVector.maximum(list(islice(rest, count))) for count in counts]
