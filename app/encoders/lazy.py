"""A compiled graph that is made when it is first needed, and let go when nobody needs it any more."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import openvino as ov  # type: ignore[import-untyped]


class LazyRequest:
    def __init__(self, make: Callable[[], ov.InferRequest | None]) -> None:
        """`make`: None if it cannot be made now; it is asked again after the next `give_back`."""
        self._make = make
        self._asked = False
        self._request: ov.InferRequest | None = None
        self._used = False  #: since `give_back` was last called
        self._lock = threading.Lock()

    @contextmanager
    def held(self) -> Iterator[ov.InferRequest | None]:
        """For one thread at a time, its outputs included: they are the request's own memory."""
        with self._lock:
            if not self._asked:
                self._asked = True
                self._request = self._make()
            self._used = True
            yield self._request

    def give_back(self) -> None:
        """Lets go what was not used since this was last called. What is in use is left alone: a long text may keep it
        for a minute."""
        if not self._lock.acquire(blocking=False):
            return
        try:
            if not self._used or self._request is None:
                self._request, self._asked = None, False
            self._used = False
        finally:
            self._lock.release()
