"""What the clients are made of: texts cut into requests, answers put together, and what a refusal means."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Literal, TypedDict

import httpx

#: Answers that say: later, or elsewhere. Encoding twice does no harm, so neither does asking again.
RETRIED = {429, 502, 503, 504}
TOO_LARGE = 413
FIRST_WAIT_SECONDS = 0.2
LONGEST_WAIT_SECONDS = 20.0
#: Where the service does not say how much it takes at once.
USUAL_TEXTS, USUAL_BYTES = 64, 1_000_000
#: How the service names the text of a batch that is wrong.
ITEM = re.compile(r"\bitem (\d+)\b")

#: Token, or token id as a string, to weight, heaviest first. As the service answers, if other formats are asked for.
Vector = dict[str, float]


class Options(TypedDict, total=False):
    """What the service shall do with the texts; what is not given is as the service has it by default."""

    input_type: Literal["document", "query"]
    sparse_embedding_format: Literal["word", "token_id", "sparse_vector", "full", "indices"]
    return_tokens: bool  #: with the format indices
    query_encoding: Literal["model", "inference_free"]
    top_k: int
    min_weight: float
    truncate: Literal["end", "error"]
    long_texts: Literal["cut", "windows"]  #: of documents
    version: str  #: model version or alias
    on_error: Literal["error", "null"]  #: null: None in the place of a text that cannot be encoded


@dataclass(frozen=True, slots=True)
class Encoded:
    """The answer to all batches of one call."""

    vectors: list[Vector]  #: one for each text, in order
    versions: frozenset[str]  #: more than one if the service went over to another model meanwhile
    tokens: int  #: encoded, special ones included


class SparseEncoderError(Exception):
    """The service refused, and would again. `type` and `param` are those of its answer.

    The items that the message names are those of the caller's texts.
    """

    def __init__(self, message: str, status: int | None = None, type_: str | None = None, param: str | None = None):
        super().__init__(message)
        self.status = status
        self.type = type_
        self.param = param


class ServiceUnavailable(SparseEncoderError):
    """The service is full, stopping or away, and was so for as long as the client is patient."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Texts of one request, each as JSON already."""

    first: int  #: number of its first text among the caller's
    texts: list[bytes]

    def halves(self) -> tuple[Batch, Batch]:
        middle = len(self.texts) // 2
        return Batch(self.first, self.texts[:middle]), Batch(self.first + middle, self.texts[middle:])

    def body(self, options: Options) -> bytes:
        rest = json.dumps({**options, "texts": []}).encode()
        return rest.removesuffix(b"]}") + b",".join(self.texts) + b"]}"


@dataclass(slots=True)
class Batches:
    """Cuts texts into batches, as they come."""

    most_texts: int
    most_bytes: int
    _first: int = 0
    _texts: list[bytes] = field(default_factory=list)
    _bytes: int = 0

    def add(self, text: object) -> Batch | None:
        """The batch that is full before `text`, if there is one.

        :raises TypeError: if it is no string.
        """
        if not isinstance(text, str):
            number = self._first + len(self._texts)
            raise TypeError(f"expected strings only, item {number} is {text!r:.80}: leave it out, or put a text there")
        # A lone surrogate, which is no text, becomes U+FFFD in the service.
        encoded = json.dumps(text, ensure_ascii=False).encode("utf-8", "surrogatepass")
        full = None
        if len(self._texts) == self.most_texts or self._bytes + len(encoded) > self.most_bytes:
            full = self.rest()
        self._texts.append(encoded)
        self._bytes += len(encoded) + 1
        return full

    def rest(self) -> Batch | None:
        if not self._texts:
            return None
        batch = Batch(self._first, self._texts)
        self._first, self._texts, self._bytes = self._first + len(self._texts), [], 0
        return batch


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
    most = min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2 ** min(tries - 1, 30))
    return asked + random.uniform(0, most)


def error_of(response: httpx.Response) -> SparseEncoderError:
    kind = ServiceUnavailable if response.status_code in RETRIED else SparseEncoderError
    try:
        error = response.json()["error"]
        return kind(f"{response.status_code} {error['message']}", response.status_code, error["type"], error["param"])
    except (ValueError, KeyError, TypeError):  # not of the service: a proxy's page
        return kind(f"{response.status_code} {response.text[:200]}", response.status_code)


def together(parts: list[Encoded]) -> Encoded:
    return Encoded(
        vectors=[vector for part in parts for vector in part.vectors],
        versions=frozenset().union(*(part.versions for part in parts)),
        tokens=sum(part.tokens for part in parts),
    )
