"""What the service counts, on a registry of its own, so that two services in one process do not share numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

CONTENT_TYPE = CONTENT_TYPE_LATEST

_NAMESPACE = "sparse_encoder"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Metrics:
    """Every metric of one service, by the name it is exposed under without its prefix."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests", "Requests answered.", "path", "status")
        self.texts = self._counter("texts", "Texts encoded.", "input_type")
        self.tokens = self._counter("tokens", "Tokens encoded, special ones included.")
        self.padding_tokens = self._counter("padding_tokens", "Tokens computed only because batches are padded.")
        self.truncated_texts = self._counter("truncated_texts", "Texts whose end did not fit the model.")
        self.abandoned_texts = self._counter("abandoned_texts", "Texts whose request ended before they were encoded.")
        self.failed_batches = self._counter("failed_batches", "Batches on which the encoder failed.")
        self.stage_seconds = self._histogram("stage_seconds", "Seconds of a request in each stage.", _SECONDS, "stage")
        self.batch_texts = self._histogram("batch_texts", "Texts of one encoder run.", _TEXTS)
        self.swaps = self._counter("swaps", "Attempts to serve another version: served, or why not.", "result")
        self.swap_stage_seconds = self._histogram(
            "swap_stage_seconds", "Seconds of loading a version in each stage.", _SECONDS, "stage"
        )
        self.failed_polls = self._counter("store_failed_polls", "Polls that did not reach the store.")
        self.resident = self._gauge("resident", "1 for each version in memory.", "version")
        self.model = self._gauge("model", "1 for the version that is served.", "version")
        self._texts_in_flight = self._gauge("texts_in_flight", "Texts accepted and not yet answered.")

    def watch(self, *, texts_in_flight: Callable[[], int]) -> None:
        """Calls `texts_in_flight` for each rendering."""
        self._texts_in_flight.set_function(texts_in_flight)

    def render(self) -> bytes:
        """The text that `GET /metrics` answers with, in `CONTENT_TYPE`."""
        return generate_latest(self.registry)

    def _counter(self, name: str, help_: str, *labels: str) -> Counter:
        return Counter(name, help_, labels, namespace=_NAMESPACE, registry=self.registry)

    def _gauge(self, name: str, help_: str, *labels: str) -> Gauge:
        return Gauge(name, help_, labels, namespace=_NAMESPACE, registry=self.registry)

    def _histogram(self, name: str, help_: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(name, help_, labels, namespace=_NAMESPACE, registry=self.registry, buckets=buckets)
