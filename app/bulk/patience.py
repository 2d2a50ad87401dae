"""Waiting for an OpenSearch that is full or away."""

from __future__ import annotations

import time
from collections.abc import Callable

from app.bulk.files import SinkError
from app.opensearch.cluster import RequestFailed
from app.opensearch.facts import OpenSearchError

Say = Callable[[str], None]

LATER = (429, 500, 502, 503, 504)  #: answers after which the same may go well
PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 20.0


def may_pass(error: OpenSearchError) -> bool:
    """Whether the same request may go well later: it was refused for now, or not answered."""
    return not isinstance(error, RequestFailed) or error.status in LATER


class Patience:
    """Pauses that grow, up to `seconds` in all."""

    def __init__(self, name: str, seconds: float, say: Say) -> None:
        self._name, self._seconds, self._say = name, seconds, say
        self._started, self._pause = time.monotonic(), PAUSE_SECONDS

    def wait(self, what: str, why: str) -> None:
        """:raises SinkError: if it was waited for long enough."""
        if time.monotonic() - self._started > self._seconds:
            raise SinkError(
                f"{self._name} was away or full for {self._seconds:.0f} s ({why}): nothing is lost, the same command "
                "goes on where this stopped"
            )
        self._say(f"{what} for OpenSearch ({why})")
        time.sleep(self._pause)
        self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)
