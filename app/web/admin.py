"""Routes for whoever runs the service. Each waits for the outcome: what is served now, or why that did not change."""

from __future__ import annotations

import hmac
from typing import Any, TypeVar

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, ValidationError

from app.errors import (
    Conflict,
    Forbidden,
    InvalidField,
    MalformedJson,
    ServiceError,
    Unauthorized,
    Unavailable,
    UnknownVersion,
)
from app.versions.stored import Stored
from app.web.access import bearer_key
from app.web.bodies import read_body
from app.web.schemas import ADMIN_ERRORS
from app.web.service import Service, get_service
from sparse_encoder.store import StoreError, StoreRefusal, UnknownVersionError, WrongNameError

B = TypeVar("B", bound=BaseModel)


class SetAlias(BaseModel):
    """The body of `PUT /admin/aliases/{name}`."""

    model_config = ConfigDict(extra="forbid")

    version: str


class Rollback(BaseModel):
    """The body of `POST /admin/rollback`."""

    model_config = ConfigDict(extra="forbid")

    alias: str


def _check_key(request: Request) -> None:
    key = get_service(request).admin_key
    if key is None:
        raise Forbidden("the admin routes are closed: start the service with --admin-key (SPARSE_ENCODER_ADMIN_KEY)")
    given = bearer_key(request.headers.get("authorization", ""))
    if given is None or not hmac.compare_digest(given.encode(), key.get_secret_value().encode()):
        raise Unauthorized('the admin key is missing or wrong: send "Authorization: Bearer KEY"')


def _body(model: type[BaseModel]) -> dict[str, Any]:
    """For OpenAPI, which FastAPI does not see: the key is checked before the body is read."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": model.model_json_schema()}}}}


router = APIRouter(prefix="/admin", dependencies=[Depends(_check_key)], responses=ADMIN_ERRORS)


@router.post("/versions/{version}/load", summary="Load a version or alias, though it was refused before")
async def load(version: str, request: Request) -> dict[str, object]:
    service = get_service(request)
    stored = _stored(service)
    await _poll(stored)
    stored.requested.forget_refusals()
    if stored.watcher.snapshot.resolve(version) == _version_of(stored, stored.swapper.alias):
        return await _follow(service, stored, retry=True)
    try:
        with service.versions.hold(await stored.requested.find(version)):
            return _outcome(service, stored)
    except Unavailable as error:
        raise Conflict(error.message, "version") from error


@router.put(
    "/aliases/{name}",
    summary="Let an alias stand for a version, or for what another alias stands for",
    openapi_extra=_body(SetAlias),
)
async def set_alias(name: str, request: Request) -> dict[str, object]:
    service = get_service(request)
    body = await _read(SetAlias, request)
    stored = _stored(service)
    try:
        await stored.watcher.do(_set_alias, stored, name, body.version)
    except StoreError as error:
        raise _store_error(stored, error, "name") from error
    return await _settled(service, stored, name)


@router.post("/rollback", summary="Let an alias stand for the version before", openapi_extra=_body(Rollback))
async def rollback(request: Request) -> dict[str, object]:
    service = get_service(request)
    body = await _read(Rollback, request)
    stored = _stored(service)
    try:
        await stored.watcher.do(stored.watcher.store.rollback, body.alias, by=stored.watcher.instance)
    except StoreError as error:
        raise _store_error(stored, error, "alias") from error
    return await _settled(service, stored, body.alias)


def _set_alias(stored: Stored, name: str, version: str) -> None:
    """`version`: or an alias, for what that stands for now. Blocks."""
    store = stored.watcher.store
    store.set_alias(name, store.resolve(version), by=stored.watcher.instance)


async def _read(model: type[B], request: Request) -> B:
    """After the key was checked, and no more than `max_body_bytes`: FastAPI would read any body before it asks."""
    try:
        return model.model_validate_json(await read_body(request, get_service(request).limits.max_body_bytes))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        if first["type"] == "json_invalid":
            raise MalformedJson(f"the body is not JSON: {first['msg']}") from None
        field = ".".join(map(str, first["loc"])) or None
        raise InvalidField(f"{field or 'body'}: {first['msg']}", field) from None


def _stored(service: Service) -> Stored:
    if service.stored is None:
        raise Conflict("this service serves one model from no store: start it with --store")
    return service.stored


async def _settled(service: Service, stored: Stored, alias: str) -> dict[str, object]:
    try:
        await _poll(stored)
    except ServiceError as error:
        raise Unavailable(f"{alias} is set; what it stands for is not served yet: {error.message}") from error
    return await _follow(service, stored) if alias == stored.swapper.alias else _outcome(service, stored)


async def _poll(stored: Stored) -> None:
    try:
        await stored.watcher.poll()
    except StoreError as error:
        raise _store_error(stored, error) from error


async def _follow(service: Service, stored: Stored, *, retry: bool = False) -> dict[str, object]:
    """`retry` is for a version refused before; an alias that was just set is tried without, by the poll or here."""
    await stored.swapper.follow(retry=retry)
    wanted, served = _version_of(stored, stored.swapper.alias), service.versions.serving.version
    if wanted != served:
        reason = (
            stored.public(stored.swapper.failure.reason) if stored.swapper.failure else "its alias changed meanwhile"
        )
        raise Conflict(
            f"{stored.swapper.alias} stands for {wanted}, which is refused: {reason}. {served} is still served",
            "version",
        )
    return _outcome(service, stored)


def _version_of(stored: Stored, alias: str) -> str | None:
    found = stored.watcher.snapshot.aliases.get(alias)
    return found.version if found else None


def _outcome(service: Service, stored: Stored) -> dict[str, object]:
    return {"serving": service.versions.serving.version, **stored.describe()}


def _store_error(stored: Stored, error: StoreError, name_field: str | None = None) -> ServiceError:
    """`name_field`: of the request, which holds the name of an alias."""
    message = stored.public(str(error))
    match error:
        case UnknownVersionError():
            return UnknownVersion(message)
        case WrongNameError():
            return InvalidField(message, name_field)
        case StoreRefusal():
            return Conflict(message, name_field)
    return Unavailable(message)
