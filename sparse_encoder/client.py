"""Clients of the service, for Python: batches, several requests at once, and patience while the service is full.

    with SparseEncoderClient("http://localhost:8080") as client:
        encoded = client.encode(["손해배상", "인공지능"], input_type="query")
        encoded.vectors[0]["배상"]

Needs the extra `client` and nothing of the service. `AsyncSparseEncoderClient` is the same with `async` and `await`.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, Literal, Self, TypedDict, Unpack

import httpx
from tqdm import tqdm

#: Answers that say: later, or elsewhere. Encoding twice does no harm, so neither does asking again.
RETRIED = {429, 502, 503, 504}
FIRST_WAIT_SECONDS = 0.2
LONGEST_WAIT_SECONDS = 20.0

Vector = dict[str, float]  #: token, or token id as a string, to weight; heaviest first


class Options(TypedDict, total=False):
    """What the service shall do with the texts; what is not given is as the service has it by default."""

    input_type: Literal["document", "query"]
    sparse_embedding_format: Literal["word", "token_id"]
    query_encoding: Literal["model", "inference_free"]
    top_k: int
    min_weight: float
    truncate: Literal["end", "error"]
    long_texts: Literal["cut", "windows"]  #: of documents
    version: str  #: model version or alias


@dataclass(frozen=True, slots=True)
class Encoded:
    """The answer to all batches of one call."""

    vectors: list[Vector]  #: one for each text, in order
    versions: frozenset[str]  #: more than one if the service went over to another model meanwhile
    tokens: int  #: encoded, special ones included


class SparseEncoderError(Exception):
    """The service refused, and would again. `type` and `param` are those of its answer."""

    def __init__(self, message: str, status: int | None = None, type_: str | None = None, param: str | None = None):
        super().__init__(message)
        self.status = status
        self.type = type_
        self.param = param


class ServiceUnavailable(SparseEncoderError):
    """The service is full, stopping or away, and was so each time it was asked."""


class _Client:
    """What both clients are made of."""

    _make: Callable[..., Any]

    def __init__(
        self,
        url: str = "http://localhost:8080",
        *,
        api_key: str | None = None,
        timeout_seconds: float = 70.0,
        batch_size: int = 64,
        concurrency: int = 4,
        max_tries: int = 8,
    ) -> None:
        """
        :param timeout_seconds: of one try; longer than the service's own (60 s), so that it says what is wrong.
        :param batch_size: texts in one request; at most the service's `max_texts_per_request`.
        :param concurrency: requests at once.
        :param max_tries: of each request, the first one included.
        """
        self._url = url.rstrip("/")
        self._batch_size = batch_size
        self._concurrency = concurrency
        self._max_tries = max_tries
        self._http = self._make(
            base_url=self._url,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx.Timeout(timeout_seconds, pool=None),
            limits=httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency),
        )

    def _batches(self, texts: Sequence[str]) -> list[Sequence[str]]:
        return [texts[start : start + self._batch_size] for start in range(0, len(texts), self._batch_size)]

    def _judge(self, outcome: httpx.Response | httpx.TransportError, tries: int) -> float | None:
        """None if `outcome` is an answer to use, else the seconds to wait before the next try.

        :raises SparseEncoderError: if there shall be none.
        """
        if isinstance(outcome, httpx.Response):
            if outcome.is_success:
                return None
            error = _error(outcome)
            if outcome.status_code not in RETRIED:
                raise error
        else:
            error = ServiceUnavailable(f"{self._url} cannot be reached ({outcome!r}): is it the right address?")
        if tries >= self._max_tries:
            raise ServiceUnavailable(
                f"given up after {tries} tries, the last one: {error}", error.status, error.type, error.param
            )
        asked = retry_after(outcome.headers) if isinstance(outcome, httpx.Response) else 0.0
        return wait_seconds(tries, asked)


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that `Retry-After` asks for, as a number or as a date; 0 without one that can be read."""
    value = headers.get("retry-after", "")
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):  # no date, or one without a time zone
        return 0.0


def wait_seconds(tries: int, asked: float) -> float:
    """Before try number `tries` + 1: what the service `asked` for, and a random time more, longer after each try.

    Random, so that clients that were refused together do not come back together.
    """
    most = min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2 ** (tries - 1))
    return asked + random.uniform(0, most)


def _error(response: httpx.Response) -> SparseEncoderError:
    kind = ServiceUnavailable if response.status_code in RETRIED else SparseEncoderError
    try:
        error = response.json()["error"]
        return kind(f"{response.status_code} {error['message']}", response.status_code, error["type"], error["param"])
    except (ValueError, KeyError, TypeError):  # not of the service: a proxy's page
        return kind(f"{response.status_code} {response.text[:200]}", response.status_code)


def _together(responses: Sequence[httpx.Response]) -> Encoded:
    return Encoded(
        vectors=[vector for response in responses for vector in response.json()],
        versions=frozenset(response.headers["x-model-version"] for response in responses),
        tokens=sum(int(response.headers["x-tokens"]) for response in responses),
    )


class SparseEncoderClient(_Client):
    """Safe to use from several threads. A context manager; or `close` it."""

    _make = httpx.Client
    _http: httpx.Client

    def encode(self, texts: Sequence[str], *, progress: bool = False, **options: Unpack[Options]) -> Encoded:
        """The vectors of `texts`, in order. `progress` draws a bar on standard error.

        :raises SparseEncoderError: if the service refuses; of what was encoded, nothing is returned then.
        :raises ServiceUnavailable: if it could not be had after all tries.
        """
        batches = self._batches(_checked(texts))
        with (
            ThreadPoolExecutor(min(self._concurrency, len(batches)) or 1, "encode") as pool,
            tqdm(total=len(texts), unit="text", disable=not progress) as bar,
        ):
            asked = [pool.submit(self._ask, "POST", "/encode", {**options, "texts": batch}) for batch in batches]
            try:
                responses = []
                for batch, future in zip(batches, asked, strict=True):
                    responses.append(future.result())
                    bar.update(len(batch))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return _together(responses)

    def info(self) -> dict[str, Any]:
        """Model, limits and figures of the service."""
        document: dict[str, Any] = self._ask("GET", "/info").json()
        return document

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, method: str, path: str, body: object = None) -> httpx.Response:
        tries = 0
        while True:
            tries += 1
            outcome: httpx.Response | httpx.TransportError
            try:
                outcome = self._http.request(method, path, json=body)
            except httpx.TransportError as error:
                outcome = error
            wait = self._judge(outcome, tries)
            if wait is None:
                assert isinstance(outcome, httpx.Response)
                return outcome
            time.sleep(wait)


class AsyncSparseEncoderClient(_Client):
    """`SparseEncoderClient` for one event loop. An asynchronous context manager; or `aclose` it."""

    _make = httpx.AsyncClient
    _http: httpx.AsyncClient

    async def encode(self, texts: Sequence[str], *, progress: bool = False, **options: Unpack[Options]) -> Encoded:
        """As `SparseEncoderClient.encode`; what is left is not asked for any more if the caller is cancelled."""
        batches, turn = self._batches(_checked(texts)), asyncio.Semaphore(self._concurrency)
        with tqdm(total=len(texts), unit="text", disable=not progress) as bar:

            async def ask(batch: Sequence[str]) -> httpx.Response:
                async with turn:
                    response = await self._ask("POST", "/encode", {**options, "texts": batch})
                bar.update(len(batch))
                return response

            asking = [asyncio.ensure_future(ask(batch)) for batch in batches]
            try:
                return _together(await asyncio.gather(*asking))
            finally:
                for task in asking:
                    task.cancel()

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

    async def _ask(self, method: str, path: str, body: object = None) -> httpx.Response:
        tries = 0
        while True:
            tries += 1
            outcome: httpx.Response | httpx.TransportError
            try:
                outcome = await self._http.request(method, path, json=body)
            except httpx.TransportError as error:
                outcome = error
            wait = self._judge(outcome, tries)
            if wait is None:
                assert isinstance(outcome, httpx.Response)
                return outcome
            await asyncio.sleep(wait)


def _checked(texts: Sequence[str]) -> Sequence[str]:
    if isinstance(texts, str):
        raise TypeError("texts must be a list of strings, this is one string: put it into a list")
    return texts
