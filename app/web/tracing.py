"""OpenTelemetry traces: a span for each request, and below it one for each stage that the answer names.

Needs the extra `otel`; `main` imports this only if traces are asked for. What the SDK reads from the environment holds
(`OTEL_TRACES_SAMPLER`, `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_BSP_SCHEDULE_DELAY`, ...).
"""

from __future__ import annotations

import re
import time

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import ERROR_TYPE
from app.logs import trace_id

#: Asked every few seconds by machines: a trace of each would hide the others.
NOT_TRACED = {"/livez", "/readyz", "/health", "/metrics"}
STAGE = re.compile(r"([a-z_]+);dur=([0-9.]+)")  #: of Server-Timing, in milliseconds


def exporting_to(endpoint: str) -> TracerProvider:
    """Sends spans to the collector at `endpoint` (OTLP over HTTP, such as http://collector:4318), in a thread.

    `shutdown` sends what is left. A collector that is away costs spans and a line in the log, never a request.
    """
    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: "sparse-encoder"}))
    exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


class TracingMiddleware:
    """Goes on with the trace of the caller (W3C `traceparent`), or begins one; its id is in the log."""

    def __init__(self, app: ASGIApp, provider: TracerProvider) -> None:
        self._app = app
        self._tracer: Tracer = provider.get_tracer("sparse-encoder")
        self._propagator = TraceContextTextMapPropagator()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in NOT_TRACED:
            await self._app(scope, receive, send)
            return
        caller = self._propagator.extract(dict(Headers(scope=scope)))
        attributes = {"http.request.method": scope["method"], "url.path": scope["path"]}
        with self._tracer.start_as_current_span(scope["method"], caller, SpanKind.SERVER, attributes) as span:
            trace_id.set(format(span.get_span_context().trace_id, "032x"))

            async def send_and_tell(message: Message) -> None:
                if message["type"] == "http.response.start":
                    self._tell(span, scope, message)
                await send(message)

            await self._app(scope, receive, send_and_tell)

    def _tell(self, span: Span, scope: Scope, answer: Message) -> None:
        """When an answer starts, all its stages are over."""
        headers, status = Headers(raw=answer["headers"]), answer["status"]
        if path := getattr(scope.get("route"), "path", None):
            span.update_name(f"{scope['method']} {path}")
            span.set_attribute("http.route", path)
        span.set_attribute("http.response.status_code", status)
        for name, header in (("request_id", "x-request-id"), ("version", "x-model-version"), ("tokens", "x-tokens")):
            if value := headers.get(header):
                span.set_attribute(f"sparse_encoder.{name}", int(value) if name == "tokens" else value)
        if error := scope.get(ERROR_TYPE):
            span.set_attribute("error.type", error)
        if status >= 500:
            span.set_status(StatusCode.ERROR)
        stages = [(name, round(float(ms) * 1e6)) for name, ms in STAGE.findall(headers.get("server-timing", ""))]
        # One after the other: a request whose texts go in several batches waits and is encoded by turns.
        start = time.time_ns() - sum(nanoseconds for _, nanoseconds in stages)
        for name, nanoseconds in stages:
            stage = self._tracer.start_span(name, start_time=start)  # a child of `span`, which is current
            start += nanoseconds
            stage.end(start)
