"""Around every request: its id, its line in the log, its count, and `Connection: close` once the service drains; and
whether its client may ask."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
import time
import uuid
from typing import NamedTuple

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import ERROR_TYPE, EncodingFailed, Overloaded, Unauthorized, Unavailable, error_response, error_types
from app.logs import request_id
from app.metrics import Metrics
from app.web.access import ApiKeys
from app.web.lifecycle import Lifecycle

#: For the machines that watch the service; they tell nothing of texts. The admin routes have a key of their own.
OPEN_PATHS = {"/", "/livez", "/readyz", "/ping", "/health", "/metrics"}
ADMIN = "/admin/"
#: Their requests are logged, others for debugging only.
ENCODING = {
    f"{side}{path}" for side in ("", "/query", "/document") for path in ("/encode", "/embed_sparse", "/tokenize")
}
#: Key of the ASGI scope for the name of the client whose API key was shown.
CLIENT = "sparse_encoder.client"
#: And for the weight of its share.
WEIGHT = "sparse_encoder.weight"
SAFE_ID = re.compile(r"[\w.:/+=-]{1,128}", re.ASCII)

log = logging.getLogger(__name__)


class Client(NamedTuple):
    """One of those who share the service."""

    name: str
    weight: float  #: how many times the share of a client without a key it gets


def client_of(scope: Scope) -> Client:
    """Whose request it is: by API key, or else by address."""
    if name := scope.get(CLIENT):
        return Client(f"key {name}", scope[WEIGHT])
    return Client(_address_of(scope), 1.0)


def _address_of(scope: Scope) -> str:
    """A client has many addresses of version 6, but hardly more than one network of 64 bits."""
    host = scope["client"][0] if scope.get("client") else ""
    if ":" not in host:
        return f"address {host}"
    try:
        address = ipaddress.IPv6Address(host.partition("%")[0])
    except ValueError:
        return f"address {host}"
    if address.ipv4_mapped:
        return f"address {address.ipv4_mapped}"
    return f"address {ipaddress.IPv6Network((address, 64), strict=False)}"


class RequestMiddleware:
    """A client's own `X-Request-Id` is kept, if it is safe to log."""

    def __init__(self, app: ASGIApp, lifecycle: Lifecycle, metrics: Metrics) -> None:
        self._app = app
        self._lifecycle = lifecycle
        self._metrics = metrics
        for type_ in error_types():
            metrics.refusals.labels(type_)  # a rate needs the zero before the first one
        for path in ENCODING:
            for status in (Overloaded.status, EncodingFailed.status, Unavailable.status):
                metrics.requests.labels(path, status)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        method = scope["method"]
        if method == "HEAD":  # what answers GET answers HEAD; without the body, see below
            scope = {**scope, "method": "GET"}
        given = Headers(scope=scope).get("x-request-id", "")
        identifier = given if SAFE_ID.fullmatch(given) else uuid.uuid4().hex
        request_id.set(identifier)
        status = 500  # unless an answer starts, an exception is on its way to the handler outside
        answering = False

        async def send_with_headers(message: Message) -> None:
            nonlocal status, answering
            if message["type"] == "http.response.start":
                status, answering = message["status"], True
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = identifier
                if self._lifecycle.draining:
                    headers["Connection"] = "close"
            elif method == "HEAD":
                message = {**message, "body": b""}
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except asyncio.CancelledError:  # the server does so when the grace period is over
            task = asyncio.current_task()
            if task is None or answering or not self._lifecycle.draining:
                raise
            task.uncancel()
            scope[ERROR_TYPE] = Unavailable.type
            message = "the service stopped before the answer was ready: try again"
            refusal = error_response(Unavailable.status, Unavailable.type, message, headers=Unavailable.headers)
            await refusal(scope, receive, send_with_headers)
        finally:
            route = scope.get("route")
            path = getattr(route, "path", "other")  # only known paths: each one is a time series
            seconds = time.perf_counter() - started
            self._metrics.requests.labels(path, status).inc()
            self._metrics.request_seconds.labels(path).observe(seconds)
            fields = {
                "method": method,
                "path": scope["path"],
                "status": status,
                "milliseconds": round(seconds * 1000, 2),
            }
            if client := scope.get(CLIENT):
                fields["client"] = client
            if status >= 400:
                fields["error"] = scope.get(ERROR_TYPE, EncodingFailed.type)
                self._metrics.refusals.labels(fields["error"]).inc()
            log.log(logging.INFO if path in ENCODING else logging.DEBUG, "request", extra={"fields": fields})


class AccessMiddleware:
    """Answers 401 to everything but `OPEN_PATHS` unless an API key is shown; before a byte of a body is read."""

    def __init__(self, app: ASGIApp, keys: ApiKeys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._keys.required and not self._is_open(scope["path"]):
            key = self._keys.find(Headers(scope=scope).get("authorization", ""))
            if key is None:
                scope[ERROR_TYPE] = Unauthorized.type
                message = 'the API key is missing or wrong: send "Authorization: Bearer KEY"'
                refusal = error_response(Unauthorized.status, Unauthorized.type, message, headers=Unauthorized.headers)
                await refusal(scope, receive, send)
                return
            scope[CLIENT], scope[WEIGHT] = key.client, float(key.weight)
        await self._app(scope, receive, send)

    @staticmethod
    def _is_open(path: str) -> bool:
        return path in OPEN_PATHS or path.startswith(ADMIN)
