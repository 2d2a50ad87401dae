"""Calls that may never return, as those of a store that hangs. Whoever waits for one gives up in time, and the end of
the process does not wait at all."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import ParamSpec, TypeVar

from sparse_encoder.store import StoreError

#: Calls that were given up and still run, after which no more are begun: each holds a thread.
MOST_LATE = 8

P = ParamSpec("P")
T = TypeVar("T")


class Patience:
    """Runs each call in a thread of its own. Used on the event loop only."""

    def __init__(self, store_url: str) -> None:
        self._store_url = store_url
        self._late = 0

    async def call(self, seconds: float, operation: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `operation` returns or raises.

        :raises StoreError: if it does neither within `seconds`; whether it is done later is not known then.
        """
        if self._late >= MOST_LATE:
            raise StoreError(
                f"{self._store_url} hangs: {MOST_LATE} calls were not answered and still wait, so no more are begun; "
                "see that it works"
            )
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        results: list[T] = []
        errors: list[BaseException] = []
        late = False

        def run() -> None:
            try:
                results.append(operation(*args, **kwargs))
            except BaseException as error:
                errors.append(error)
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(end)

        def end() -> None:
            if late:
                self._late -= 1
            ended.set()

        threading.Thread(target=run, name="store", daemon=True).start()
        try:
            async with asyncio.timeout(seconds):
                await ended.wait()
        except TimeoutError:
            late = not ended.is_set()
        if late:
            self._late += 1
            name = getattr(operation, "__name__", "a call").strip("_")
            raise StoreError(
                f"{self._store_url} did not answer {name} within {seconds:g} s: see that it works and can be reached"
            )
        # In no variable here: an error holds its traceback and so this frame, which would hold it in turn, and with
        # both what the callers have in hand (models), until the collector of garbage comes.
        if errors:
            raise errors.pop()
        return results.pop()
