"""What the service counts, on a registry of its own, so that two services in one process do not share numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from sparse_encoder.artifact import InputType

CONTENT_TYPE = CONTENT_TYPE_LATEST

_NAMESPACE = "sparse_encoder"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_BATCH_TOKENS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
_ACTIVE_TOKENS = (0, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
_SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)

#: Of a request.
STAGES = ("tokenize", "queue", "encode", "write")
#: Why a connection is ended by the service.
CONNECTION_REFUSALS = ("headers_too_large", "malformed_http", "method_not_allowed", "request_timeout", "unread_answer")


class Metrics:
    """Every metric of one service, by the name it is exposed under without its prefix."""

    def __init__(self, request_timeout_seconds: float = 60.0) -> None:
        """What a request takes is told apart up to twice its timeout, so that one that ended by it is seen."""
        seconds = (*(bound for bound in _SECONDS if bound < request_timeout_seconds),)
        seconds += (request_timeout_seconds, 2 * request_timeout_seconds)
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests", "Requests answered.", "path", "status")
        self.request_seconds = self._histogram("request_seconds", "Seconds from headers to answer.", seconds, "path")
        self.refusals = self._counter("refusals", "Requests that got an error instead, by its type.", "reason")
        self.client_texts = self._counter(
            "client_texts", "Texts asked for, taken or not, by API key; - for all without one.", "client"
        )
        self.texts = self._counter("texts", "Texts encoded.", "input_type")
        self.tokens = self._counter("tokens", "Tokens encoded, special ones included.")
        self.padding_tokens = self._counter("padding_tokens", "Tokens computed only because batches are padded.")
        self.truncated_texts = self._counter("truncated_texts", "Texts whose end did not fit the model.")
        self.cut_texts = self._counter("cut_texts", "Texts of more characters than are taken, cut to these.")
        self.windows = self._counter("windows", "Windows of texts that were longer than the model reads.")
        self.abandoned_texts = self._counter(
            "abandoned_texts", "Texts, or windows of one, whose request ended before they were encoded."
        )
        self.shared_texts = self._counter(
            "shared_texts", "Texts, or windows of one, answered by an identical one that was in flight."
        )
        self.query_cache_hits = self._counter("query_cache_hits", "Queries answered by the vectors of recent ones.")
        self.out_of_memory = self._counter("out_of_memory", "Batches that the device had no memory for.")
        self.failed_batches = self._counter("failed_batches", "Batches on which the encoder failed.")
        stages = self._histogram("stage_seconds", "Seconds of a request in each stage.", seconds, "stage")
        self.stage_seconds = {stage: stages.labels(stage) for stage in STAGES}
        self.batch_texts = self._histogram("batch_texts", "Texts of one encoder run.", _TEXTS)
        self.batch_tokens = self._histogram("batch_tokens", "Tokens of one encoder run.", _BATCH_TOKENS)
        self.batch_fill = self._histogram("batch_fill", "Share of max_batch_tokens that a run used.", _SHARES)
        self.active_tokens = self._histogram(
            "active_tokens", "Tokens of one text's vector before top_k.", _ACTIVE_TOKENS, "input_type"
        )
        self.answered_tokens = self._counter(
            "answered_tokens", "Tokens of vectors of the encoder as they were answered, after top_k.", "input_type"
        )
        self.answered_vectors = self._counter("answered_vectors", "Vectors of the encoder.", "input_type")
        self.swaps = self._counter("swaps", "Attempts to serve another version: served, or why not.", "result")
        self.swap_stage_seconds = self._histogram(
            "swap_stage_seconds", "Seconds of loading a version in each stage.", _SECONDS, "stage"
        )
        self.dropped_log_lines = self._counter("dropped_log_lines", "Log lines lost because nobody read the log.")
        self.connection_refusals = self._counter(
            "connection_refusals", "Connections ended before they had a request, or its answer was read.", "reason"
        )
        for reason in CONNECTION_REFUSALS:
            self.connection_refusals.labels(reason)  # a rate needs the zero before the first one
        self.failed_polls = self._counter("store_failed_polls", "Polls that did not reach the store.")
        self.resident = self._gauge("resident", "1 for each version in memory.", "version")
        self.model = self._gauge("model", "1 for the version that is served.", "version")
        self.refused_version = self._gauge(
            "refused_version", "1 for the version that the alias stands for and that is not served.", "version", "stage"
        )
        self._active_band = self._gauge(
            "answered_tokens_band",
            "Least and most tokens that a vector of this version has on average, by its manifest.",
            "input_type",
            "bound",
        )
        self._store_age = self._gauge("store_poll_age_seconds", "Seconds since the store was last read; 0 without one.")
        self._texts_in_flight = self._gauge("texts_in_flight", "Texts accepted and not yet answered.")
        self._clients = self._gauge("clients_in_flight", "Clients that have texts in flight.")
        self._largest_share = self._gauge("largest_client_share", "Of what is in flight, that one client has; 0 to 1.")
        self._device_memory = self._gauge("device_memory_bytes", "Memory of a GPU that the process has; 0 on a CPU.")
        self._queue_tokens = self._gauge("queue_tokens", "Tokens of the texts that wait for the encoder.")
        ProcessCollector(registry=self.registry)  # memory and CPU of the process, under the names that all services use

    def watch(
        self,
        *,
        texts_in_flight: Callable[[], int],
        clients_in_flight: Callable[[], int],
        largest_client_share: Callable[[], float],
        queue_tokens: Callable[[], int],
        device_memory_bytes: Callable[[], int],
    ) -> None:
        """Calls these for each rendering."""
        self._texts_in_flight.set_function(texts_in_flight)
        self._clients.set_function(clients_in_flight)
        self._largest_share.set_function(largest_client_share)
        self._queue_tokens.set_function(queue_tokens)
        self._device_memory.set_function(device_memory_bytes)

    def watch_store(self, age_seconds: Callable[[], float]) -> None:
        """Calls it for each rendering."""
        self._store_age.set_function(age_seconds)

    def count_batch(self, tokens: Sequence[int], max_batch_tokens: int) -> None:
        """One encoder run of texts with so many `tokens` each."""
        used = sum(tokens)
        self.batch_texts.observe(len(tokens))
        self.batch_tokens.observe(used)
        self.batch_fill.observe(min(1.0, used / max_batch_tokens))  # a longer text goes alone
        self.padding_tokens.inc(len(tokens) * max(tokens) - used)

    def show_served(self, version: str, bands: Mapping[InputType, tuple[float, float]]) -> None:
        """`version` is served from now on. `bands`: tokens of a vector on average, by input type, at least and most."""
        self.model.clear()
        self.model.labels(version).set(1)
        for input_type, (least, most) in bands.items():
            self._active_band.labels(input_type, "least").set(least)
            self._active_band.labels(input_type, "most").set(most)

    def show_refused(self, version: str, stage: str) -> None:
        """`version`, which the alias stands for, is not served."""
        self.refused_version.clear()
        self.refused_version.labels(version, stage).set(1)

    def count_answer(
        self, input_type: str, active_tokens: Sequence[int], answered_tokens: int | None, write_seconds: float
    ) -> None:
        """Vectors with so many `active_tokens` each, and the time it took to write them.

        `answered_tokens`: those that were written, added up; None if the vectors are of a table, which has fewer.
        """
        if answered_tokens is not None:
            self.answered_tokens.labels(input_type).inc(answered_tokens)
            self.answered_vectors.labels(input_type).inc(len(active_tokens))
        observe = self.active_tokens.labels(input_type).observe
        for count in active_tokens:
            observe(count)
        self.stage_seconds["write"].observe(write_seconds)

    def count_connection_refusal(self, reason: str) -> None:
        self.connection_refusals.labels(reason).inc()

    def render(self) -> bytes:
        """The text that `GET /metrics` answers with, in `CONTENT_TYPE`."""
        return generate_latest(self.registry)

    def _counter(self, name: str, help_: str, *labels: str) -> Counter:
        return Counter(name, help_, labels, namespace=_NAMESPACE, registry=self.registry)

    def _gauge(self, name: str, help_: str, *labels: str) -> Gauge:
        return Gauge(name, help_, labels, namespace=_NAMESPACE, registry=self.registry)

    def _histogram(self, name: str, help_: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(name, help_, labels, namespace=_NAMESPACE, registry=self.registry, buckets=buckets)
