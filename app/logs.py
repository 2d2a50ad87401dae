"""Logs as one JSON object a line, with the ids of request and trace; whoever logs never waits for whoever reads."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from contextvars import ContextVar
from datetime import UTC, datetime

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
trace_id: ContextVar[str | None] = ContextVar("trace_id", default=None)

#: Of lines that wait to be written. What comes beyond is dropped and counted.
MAX_WAITING_BYTES = 4 * 1024 * 1024
#: Written at once, so that what a slow reader took makes room.
PIECE_BYTES = 64 * 1024
#: Lines of requests are written together: each time its thread wakes, it takes the interpreter from the event loop.
LINGER_SECONDS = 0.02
#: That the end of the process waits for lines to be written.
FLUSH_SECONDS = 1.0
#: What is logged to standard error: ours, and those of libraries that say what an operator must know.
LOGGERS = ("app", "sparse_encoder", "opentelemetry", "uvicorn")


class JsonFormatter(logging.Formatter):
    """`logging.info("...", extra={"fields": {...}})` adds the fields to the object."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        for identifier in (request_id, trace_id):
            if value := identifier.get():
                entry[identifier.name] = value
        entry |= getattr(record, "fields", {})
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


class PatientHandler(logging.Handler):
    """Writes in a thread of its own, so that a pipe that nobody reads stops that thread and nothing else."""

    def __init__(self, descriptor: int, dropped: Callable[[], None]) -> None:
        """`dropped` is called for each line that is lost, by whoever logs it."""
        super().__init__()
        self.setFormatter(JsonFormatter())
        self._descriptor = descriptor
        self._count_dropped = dropped
        self._changed = threading.Condition()  # guards what follows
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0  #: the line that is being written included
        self._dropped = 0  #: not yet told
        self._hurry = False  #: what waits is written at once
        self._closed = False
        threading.Thread(target=self._write, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record).encode() + b"\n"
        except Exception:
            self.handleError(record)
            return
        with self._changed:
            if self._waiting_bytes and self._waiting_bytes + len(line) > MAX_WAITING_BYTES:
                self._dropped += 1
            else:
                self._waiting.append(line)
                self._waiting_bytes += len(line)
                self._hurry |= record.levelno >= logging.WARNING
                if self._hurry or len(self._waiting) == 1:
                    self._changed.notify_all()
                return
        self._count_dropped()

    def flush(self) -> None:
        """Returns when all is written, or `FLUSH_SECONDS` later."""
        end = time.monotonic() + FLUSH_SECONDS
        with self._changed:
            self._hurry = True
            self._changed.notify_all()
            while self._waiting_bytes and (left := end - time.monotonic()) > 0:
                self._changed.wait(left)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        super().close()

    def _write(self) -> None:
        while lines := self._next():
            rest = memoryview(lines)
            while rest:
                try:
                    written = os.write(self._descriptor, rest[:PIECE_BYTES])
                except OSError:  # nobody will ever read it
                    for _ in range(bytes(rest).count(b"\n")):
                        self._count_dropped()
                    written = len(rest)
                rest = rest[written:]
                with self._changed:
                    self._waiting_bytes -= written
                    self._changed.notify_all()

    def _next(self) -> bytes:
        """All that waits; empty when there will be no more."""
        with self._changed:
            while not (self._waiting or self._dropped or self._closed):
                self._changed.wait()
            self._changed.wait_for(lambda: self._hurry or self._closed, LINGER_SECONDS)
            if self._dropped and not self._waiting:  # what was kept is read
                self._waiting.append(line := _dropped(self._dropped))
                self._waiting_bytes += len(line)
                self._dropped = 0
            lines = b"".join(self._waiting)
            self._waiting.clear()
            self._hurry = False
            return lines


def _dropped(lines: int) -> bytes:
    message = "%d lines were dropped, since nobody read the log"
    record = logging.LogRecord(__name__, logging.WARNING, __file__, 0, message, (lines,), None)
    return JsonFormatter().format(record).encode() + b"\n"


def configure_logging(level: str, dropped: Callable[[], None] = lambda: None) -> None:
    """Everything of `LOGGERS` from `level` on, warnings of others, to standard error. `dropped`: for each lost line."""
    handler = PatientHandler(2, dropped)
    for name in LOGGERS:
        logger = logging.getLogger(name)
        for before in logger.handlers:
            before.close()
        logger.handlers = [handler]
        logger.setLevel(level.upper())
        logger.propagate = False
    logging.getLogger("uvicorn.error").handlers = []
    logging.getLogger("uvicorn.error").propagate = True
    access = logging.getLogger("uvicorn.access")  # `middleware` logs each request itself
    access.handlers, access.propagate = [], False
    logging.lastResort = handler
