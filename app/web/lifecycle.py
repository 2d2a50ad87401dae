"""From SIGTERM to the end of listening: not ready any more, but still answering.

A load balancer needs a moment to see `/readyz` fail, and clients with open connections need an answer that says
`Connection: close` before the connection goes away. Only then does the server's own shutdown begin: it stops
listening, lets accepted requests finish, and exits.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Lifecycle:
    """Shared by the routes and the middleware of one service."""

    draining: bool = False

    @contextmanager
    def drain_on_sigterm(self, drain_seconds: float) -> Iterator[None]:
        """Puts `drain_seconds` between SIGTERM and the handler of the server; a second SIGTERM does not wait."""
        handler = signal.getsignal(signal.SIGTERM)
        if not callable(handler) or threading.current_thread() is not threading.main_thread():
            yield  # no server that handles signals, as in tests
            return
        stop = handler
        loop = asyncio.get_running_loop()

        def drain(signum: int, frame: FrameType | None) -> None:
            if self.draining:
                stop(signum, frame)
                return
            self.draining = True
            loop.call_soon_threadsafe(begin, signum)

        def begin(signum: int) -> None:
            log.info("SIGTERM: not ready any more, listening for another %g s", drain_seconds)
            loop.call_later(drain_seconds, stop, signum, None)

        signal.signal(signal.SIGTERM, drain)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, handler)
