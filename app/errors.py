"""What can go wrong with a request: one small tree with the status on the class, and one JSON shape for all of it.

ServiceError
├── MalformedJson 400
├── Unauthorized 401
├── Forbidden 403
├── UnknownVersion 404
├── Conflict 409
├── TooLarge 413
├── UnsupportedEncoding 415
├── InvalidField 422
│   └── TextTooLong
├── Overloaded 429
├── ClientGone 499
├── Unavailable 503
└── EncodingFailed 500

The message of a `ServiceError` is written for the client. Whatever else is raised becomes a 500 that says nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import ClassVar

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException

#: Key of the ASGI scope for the type of the error that a request was answered with.
ERROR_TYPE = "sparse_encoder.error_type"
# OpenSearch before 3.8 retries a refused request only if this header says so.
RETRY_HEADERS = {"Retry-After": "1", "x-amzn-ErrorType": "ThrottlingException"}


class ServiceError(Exception):
    """An answer other than 200. `param` names the field of the request that is wrong, if one is."""

    status: ClassVar[int]
    type: ClassVar[str]
    headers: ClassVar[Mapping[str, str]] = {}

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class MalformedJson(ServiceError):
    """The body is not JSON."""

    status = 400
    type = "malformed_json"


class Unauthorized(ServiceError):
    """The key is missing or wrong."""

    status = 401
    type = "unauthorized"
    headers: ClassVar[Mapping[str, str]] = {"WWW-Authenticate": "Bearer"}


class Forbidden(ServiceError):
    """Nobody may do this here."""

    status = 403
    type = "forbidden"


class UnknownVersion(ServiceError):
    """No version or alias has this name."""

    status = 404
    type = "unknown_version"

    def __init__(self, message: str) -> None:
        super().__init__(message, "version")


class Conflict(ServiceError):
    """An admin request that was understood and not fulfilled, such as serving a version that fails its checks."""

    status = 409
    type = "refused"


class TooLarge(ServiceError):
    """The body has too many bytes or too many texts."""

    status = 413
    type = "too_large"


class UnsupportedEncoding(ServiceError):
    """The body is packed in a way that is not unpacked here."""

    status = 415
    type = "unsupported_encoding"
    headers: ClassVar[Mapping[str, str]] = {"Accept-Encoding": "gzip, zstd"}


class InvalidField(ServiceError):
    """A field is unknown or has a value that it cannot have."""

    status = 422
    type = "invalid_field"


class TextTooLong(InvalidField):
    """A text has more tokens than the model reads, and its end must not be cut off."""

    type = "text_too_long"

    def __init__(self, message: str) -> None:
        super().__init__(message, "texts")


class Overloaded(ServiceError):
    """Too much is in flight already; a later try may succeed."""

    status = 429
    type = "overloaded"
    headers = RETRY_HEADERS


class ClientGone(ServiceError):
    """The client hung up. Nobody reads this answer; the status is for the log."""

    status = 499
    type = "client_gone"

    def __init__(self) -> None:
        super().__init__("the client hung up before the answer was ready")


class Unavailable(ServiceError):
    """The service is stopping, or could not answer in time; another instance or a later try may succeed."""

    status = 503
    type = "unavailable"
    headers = RETRY_HEADERS


class EncodingFailed(ServiceError):
    """The encoder failed. The log says why, the client does not learn it."""

    status = 500
    type = "internal_error"

    def __init__(self) -> None:
        super().__init__("encoding failed; the log of the service says why")


def error_types(kind: type[ServiceError] = ServiceError) -> set[str]:
    """The `type` of every error below `kind`."""
    return {below.type for below in kind.__subclasses__()}.union(*map(error_types, kind.__subclasses__()))


def error_response(
    status: int, type_: str, message: str, param: str | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    body = json.dumps({"error": {"type": type_, "message": message, "param": param}})
    return Response(body, status, dict(headers or {}), "application/json")


def install_error_handlers(app: FastAPI) -> None:
    """The one place where exceptions become answers. The type is left in the scope, for the log and the metrics."""

    def answer(
        request: Request,
        status: int,
        type_: str,
        message: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        request.scope[ERROR_TYPE] = type_
        return error_response(status, type_, message, param, headers)

    @app.exception_handler(ServiceError)
    async def service_error(request: Request, error: ServiceError) -> Response:
        return answer(request, error.status, error.type, error.message, error.param, error.headers)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        known = {
            404: ("not_found", f"there is no {request.url.path} here: texts go to POST /encode, GET /docs shows how"),
            405: ("method_not_allowed", f"{request.url.path} does not take {request.method}"),
        }
        type_, message = known.get(error.status_code, ("http_error", str(error.detail)))
        return answer(request, error.status_code, type_, message, headers=error.headers)

    @app.exception_handler(Exception)
    async def unexpected_error(_: Request, error: Exception) -> Response:
        return error_response(500, "internal_error", "internal error; the log of the service says why")
