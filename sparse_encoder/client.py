"""Clients of the service, for Python: batches, several requests at once, and patience while it is full or away.

    with SparseEncoderClient("http://localhost:8080") as client:
        encoded = client.encode(["손해배상", "인공지능"], input_type="query")
        encoded.vectors[0]["배상"]
        for vector in client.stream(open("texts.txt")):  # of any number of texts
            ...

Needs the extra `client` and nothing of the service. `AsyncSparseEncoderClient` is the same with `async` and `await`.
"""

from __future__ import annotations

import asyncio
import math
import re
import threading
import time
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Coroutine, Iterable, Iterator, Sized
from concurrent.futures import FIRST_COMPLETED, Future, wait
from itertools import chain
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar, Unpack

import httpx
from tqdm import tqdm

from sparse_encoder.requests import (
    ITEM,
    RETRIED,
    TOO_LARGE,
    USUAL_BYTES,
    USUAL_TEXTS,
    Batch,
    Batches,
    Encoded,
    Options,
    ServiceUnavailable,
    SparseEncoderError,
    Vector,
    error_of,
    retry_after,
    together,
    wait_seconds,
)

__all__ = [
    "AsyncSparseEncoderClient",
    "Encoded",
    "Options",
    "ServiceUnavailable",
    "SparseEncoderClient",
    "SparseEncoderError",
    "Vector",
]

T = TypeVar("T")


class _Running(Protocol):
    def done(self) -> bool: ...

    def cancelled(self) -> bool: ...

    def exception(self) -> BaseException | None: ...


def _failed(running: Iterable[_Running]) -> BaseException | None:
    """The first failure among what is done, whatever waits before it."""
    done = (one for one in running if one.done() and not one.cancelled())
    return next(filter(None, (one.exception() for one in done)), None)


class AsyncSparseEncoderClient:
    """`SparseEncoderClient` for one event loop. An asynchronous context manager; or `aclose` it."""

    def __init__(
        self,
        url: str = "http://localhost:8080",
        *,
        api_key: str | None = None,
        timeout_seconds: float = 70.0,
        batch_size: int = 64,
        concurrency: int = 4,
        patience_seconds: float = 60.0,
    ) -> None:
        """
        :param timeout_seconds: of one try; longer than the service's own (60 s), so that it says what is wrong.
        :param batch_size: texts in one request at most; fewer where the service takes fewer, or fewer bytes.
        :param concurrency: requests at once.
        :param patience_seconds: for how long a request is tried again while the service is full, restarts or is away.
        :raises ValueError: if one of them can mean nothing.
        """
        for name, number, least in (("batch_size", batch_size, 1), ("concurrency", concurrency, 1)):
            if type(number) is not int or number < least:
                raise ValueError(f"{name} must be a whole number from {least} on, got {number!r}")
        for name, seconds in (("timeout_seconds", timeout_seconds), ("patience_seconds", patience_seconds)):
            if not (isinstance(seconds, int | float) and math.isfinite(seconds) and seconds >= 0) or (
                name == "timeout_seconds" and not seconds
            ):
                raise ValueError(f"{name} must be a positive number of seconds, got {seconds!r}")
        if not re.match("https?://.", url):
            raise ValueError(f"url must begin with http:// or https://, got {url!r}")
        self._url = url.rstrip("/")
        self._batch_size = batch_size
        self._concurrency = concurrency
        self._patience_seconds = patience_seconds
        self._limits: tuple[int, int] | None = None
        self._http = httpx.AsyncClient(
            base_url=self._url,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx.Timeout(timeout_seconds, pool=None),
            limits=httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency),
        )

    async def encode(
        self, texts: Iterable[str] | AsyncIterable[str], *, progress: bool = False, **options: Unpack[Options]
    ) -> Encoded:
        """As `SparseEncoderClient.encode`; what is left is not asked for any more if the caller is cancelled."""
        return together([part async for part in self._parts(texts, progress, options)])

    async def stream(
        self, texts: Iterable[str] | AsyncIterable[str], *, progress: bool = False, **options: Unpack[Options]
    ) -> AsyncIterator[Vector]:
        """As `SparseEncoderClient.stream`; `texts` may be asynchronous as well."""
        async for part in self._parts(texts, progress, options):
            for vector in part.vectors:
                yield vector

    async def info(self) -> dict[str, Any]:
        """Model, limits and figures of the service."""
        document: dict[str, Any] = (await self._ask("GET", "/info")).json()
        return document

    async def aclose(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _parts(
        self, texts: Iterable[str] | AsyncIterable[str], progress: bool, options: Options
    ) -> AsyncIterator[Encoded]:
        running: deque[asyncio.Task[Encoded]] = deque()

        async def first() -> Encoded:
            while not (failure := _failed(running)) and not running[0].done():
                await asyncio.wait([one for one in running if not one.done()], return_when=FIRST_COMPLETED)
            if failure:
                raise failure
            return running.popleft().result()

        with _bar(texts, progress) as bar:
            try:
                async for batch in self._cut(texts):
                    running.append(asyncio.ensure_future(self.encode_batch(batch, options)))
                    while len(running) >= self._concurrency:
                        yield _counted(bar, await first())
                while running:
                    yield _counted(bar, await first())
            finally:
                for task in running:
                    task.cancel()
                await asyncio.gather(*running, return_exceptions=True)

    async def _cut(self, texts: Iterable[str] | AsyncIterable[str]) -> AsyncIterator[Batch]:
        batches: Batches | None = None
        async for text in _each(texts):
            batches = batches or Batches(*await self.limits())
            if batch := batches.add(text):
                yield batch
        if batches and (batch := batches.rest()):
            yield batch

    async def limits(self) -> tuple[int, int]:
        """Texts and bytes of one request, at most; asked of the service once."""
        if self._limits is None:
            try:
                limits = (await self.info())["limits"]
                texts, most_bytes = int(limits["max_texts_per_request"]), int(limits["max_body_bytes"])
            except (SparseEncoderError, KeyError, TypeError, ValueError) as error:
                if isinstance(error, ServiceUnavailable) or getattr(error, "status", None) == httpx.codes.UNAUTHORIZED:
                    raise
                texts, most_bytes = USUAL_TEXTS, USUAL_BYTES
            self._limits = min(self._batch_size, texts), most_bytes - 1000  # for the options
        return self._limits

    async def encode_batch(self, batch: Batch, options: Options) -> Encoded:
        """Of what is too much at once, each half."""
        try:
            response = await self._ask("POST", "/encode", batch.body(options))
        except SparseEncoderError as error:
            if error.status == TOO_LARGE and len(batch.texts) > 1:
                return together([await self.encode_batch(half, options) for half in batch.halves()])
            message = ITEM.sub(lambda found: f"item {batch.first + int(found[1])}", str(error))
            raise type(error)(message, error.status, error.type, error.param) from None
        return Encoded(
            vectors=response.json(),
            versions=frozenset({response.headers["x-model-version"]}),
            tokens=int(response.headers["x-tokens"]),
        )

    async def _ask(self, method: str, path: str, body: bytes | None = None) -> httpx.Response:
        started, tries = time.monotonic(), 0
        headers = {"Content-Type": "application/json"} if body is not None else {}
        while True:
            tries += 1
            asked = 0.0
            try:
                response = await self._http.request(method, path, content=body, headers=headers)
            except httpx.TransportError as problem:
                error: SparseEncoderError = ServiceUnavailable(
                    f"{self._url} cannot be reached ({problem!r}): is it the right address?"
                )
            else:
                if response.is_success:
                    return response
                error = error_of(response)
                if response.status_code not in RETRIED:
                    raise error
                asked = retry_after(response.headers)
            seconds = wait_seconds(tries, asked)
            if time.monotonic() - started + seconds > self._patience_seconds:
                raise ServiceUnavailable(
                    f"given up after {tries} tries, in the {self._patience_seconds:g} s of patience_seconds, the last "
                    f"one: {error}",
                    error.status,
                    error.type,
                    error.param,
                )
            await asyncio.sleep(seconds)


class SparseEncoderClient:
    """Safe to use from several threads. A context manager; or `close` it.

    Requests run in a thread of its own, so that Ctrl-C or an error ends all of them at once.
    """

    def __init__(self, url: str = "http://localhost:8080", **settings: Any) -> None:
        """See `AsyncSparseEncoderClient`, which takes the same settings.

        :raises ValueError: if one of them can mean nothing.
        """
        self._client = AsyncSparseEncoderClient(url, **settings)
        self._concurrency: int = settings.get("concurrency", 4)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="sparse-encoder-client", daemon=True)
        self._thread.start()

    def encode(self, texts: Iterable[str], *, progress: bool = False, **options: Unpack[Options]) -> Encoded:
        """The vectors of `texts`, in order: a list, a generator, a column of numpy or pandas.

        `progress` draws a bar on standard error.

        :raises SparseEncoderError: if the service refuses; of what was encoded, nothing is returned then.
        :raises ServiceUnavailable: if it could not be had within `patience_seconds`.
        :raises TypeError: if one of the texts is none.
        """
        return together(list(self._parts(texts, progress, options)))

    def stream(self, texts: Iterable[str], *, progress: bool = False, **options: Unpack[Options]) -> Iterator[Vector]:
        """The vectors of any number of `texts`, in order, as they come: a few batches are in memory at a time.

        What was yielded before an error is right; what it raises is as for `encode`.
        """
        return chain.from_iterable(part.vectors for part in self._parts(texts, progress, options))

    def info(self) -> dict[str, Any]:
        """Model, limits and figures of the service."""
        return self._submit(self._client.info()).result()

    def close(self) -> None:
        if self._loop.is_closed():
            return
        self._submit(self._client.aclose()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _parts(self, texts: Iterable[str], progress: bool, options: Options) -> Iterator[Encoded]:
        """The caller's iterable runs in the caller's thread."""
        running: deque[Future[Encoded]] = deque()

        def first() -> Encoded:
            while not (failure := _failed(running)) and not running[0].done():
                wait([one for one in running if not one.done()], return_when=FIRST_COMPLETED)
            if failure:
                raise failure
            return running.popleft().result()

        with _bar(texts, progress) as bar:
            try:
                for batch in self._cut(texts):
                    running.append(self._submit(self._client.encode_batch(batch, options)))
                    while len(running) >= self._concurrency:
                        yield _counted(bar, first())
                while running:
                    yield _counted(bar, first())
            finally:
                for one in running:
                    one.cancel()

    def _cut(self, texts: Iterable[str]) -> Iterator[Batch]:
        batches: Batches | None = None
        for text in _checked(texts):
            batches = batches or Batches(*self._submit(self._client.limits()).result())
            if batch := batches.add(text):
                yield batch
        if batches and (batch := batches.rest()):
            yield batch

    def _submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)


def _bar(texts: object, progress: bool) -> tqdm[Any]:
    return tqdm(total=len(texts) if isinstance(texts, Sized) else None, unit="text", disable=not progress)


def _counted(bar: tqdm[Any], part: Encoded) -> Encoded:
    bar.update(len(part.vectors))
    return part


async def _each(texts: Iterable[str] | AsyncIterable[str]) -> AsyncIterator[str]:
    if isinstance(texts, AsyncIterable):
        async for text in texts:
            yield text
    else:
        for text in _checked(texts):
            yield text


def _checked(texts: Iterable[str]) -> Iterable[str]:
    if isinstance(texts, str | bytes):
        raise TypeError("texts must be a list of strings, this is one string: put it into a list")
    return texts
