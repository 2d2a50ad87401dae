"""How far a run is: on a terminal, in a log, and for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server
from tqdm import tqdm

from app.bulk.files import RunError
from app.bulk.patience import Say

SECONDS_BETWEEN_LINES = 30.0  #: of progress, where there is no terminal


class Progress:
    """A bar on a terminal, else a line now and then; and metrics. A context manager."""

    def __init__(self, rows: int, say: Say, metrics: Metrics) -> None:
        self._metrics = metrics
        metrics.rows.set(rows)
        self._bar = tqdm(total=rows, unit="row", disable=None, smoothing=0)
        self._say, self._rows, self._done = say, rows, 0
        self._tokens = self._rejected = 0
        self._started = self._said = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._bar.close()

    def skip(self, receipt: Mapping[str, Any]) -> None:
        """What was done before."""
        self._add(receipt)
        self._bar.initial = self._done  # which is not part of the pace
        self._started = time.monotonic()

    def made(self, receipt: Mapping[str, Any]) -> None:
        self._tokens += receipt["tokens"]
        self._add(receipt)
        pace = f"{self._tokens / (time.monotonic() - self._started):,.0f} tokens/s"
        self._bar.set_postfix_str(f"{pace}, {self._rejected:,} rejected", refresh=False)
        if self._bar.disable and time.monotonic() - self._said > SECONDS_BETWEEN_LINES:
            self._said = time.monotonic()
            self._say(f"{self._done:,} of {self._rows:,} rows, {self._rejected:,} rejected, {pace}")

    def _add(self, receipt: Mapping[str, Any]) -> None:
        self._done += receipt["rows"]
        self._rejected += receipt["rejected"]
        self._bar.update(receipt["rows"])
        self._metrics.add(receipt)


class Metrics:
    """Of a run, at a port."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        name = "sparse_encoder_bulk"
        self.rows = Gauge(f"{name}_rows", "Of the run.", registry=self._registry)
        self._counters = {
            "rows": Counter(f"{name}_done_rows", "Rows of parts that are done.", registry=self._registry),
            "documents": Counter(f"{name}_documents", "Documents that were written.", registry=self._registry),
            "rejected": Counter(f"{name}_rejected_rows", "Rows that were rejected.", registry=self._registry),
            "tokens": Counter(f"{name}_tokens", "Tokens that were encoded.", registry=self._registry),
            "seconds": Counter(f"{name}_work_seconds", "In which parts were made, by all.", registry=self._registry),
        }

    def add(self, receipt: Mapping[str, Any]) -> None:
        for name, counter in self._counters.items():
            counter.inc(receipt[name])

    @contextmanager
    def served(self, port: int | None) -> Iterator[None]:
        """:raises RunError: if the port cannot be had."""
        if port is None:
            yield
            return
        try:
            server, thread = start_http_server(port, registry=self._registry)
        except (OSError, OverflowError) as error:
            raise RunError(f"--metrics-port {port} cannot be listened to ({error}): give another") from error
        try:
            yield
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
