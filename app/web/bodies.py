"""The bodies of requests: read within a limit, parsed, and measured."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NoReturn, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from app.errors import ClientGone, InvalidField, MalformedJson, TooLarge
from app.web.schemas import TEXTS_NAMES
from app.web.unpacking import unpacker_for

M = TypeVar("M", bound=BaseModel)


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The body, unpacked if it is packed.

    :raises TooLarge: as soon as there are more, packed or unpacked.
    :raises UnsupportedEncoding: if it is packed in an unknown way.
    :raises MalformedJson: if it is not packed as its header says.
    :raises ClientGone: if the client hangs up.
    """
    too_large = TooLarge(f"the body has more than {max_bytes} bytes: send fewer texts at once")
    if int(request.headers.get("content-length", 0)) > max_bytes:
        raise too_large
    unpacker = unpacker_for(request.headers.get("content-encoding", ""))
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += unpacker.unpack(chunk, max_bytes + 1 - len(body)) if unpacker else chunk
            if len(body) > max_bytes:
                raise too_large
    except ClientDisconnect as error:
        raise ClientGone from error
    if unpacker and not unpacker.ended:
        raise MalformedJson("the body ends before what is packed in it: send all of it")
    return bytes(body)


def check_size(texts: Sequence[str], most_texts: int, most_characters: int) -> None:
    """:raises TooLarge: if there are too many texts, or one is too long."""
    if len(texts) > most_texts:
        raise TooLarge(
            f"{len(texts)} texts in one request, at most {most_texts} are taken: send them in parts",
            "texts",
        )
    for index, text in enumerate(texts):
        if len(text) > most_characters:
            raise TooLarge(
                f"item {index} has {len(text)} characters, at most {most_characters} are taken: send "
                "its beginning, or split it",
                "texts",
            )


def parse(body: bytes, model: type[M]) -> M:
    """`body` as a `model`.

    :raises MalformedJson: if it is no JSON.
    :raises InvalidField: if a field is unknown or wrong.
    """
    try:
        document = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise MalformedJson(f'the body is not JSON ({error}): send {{"texts": ["..."]}}') from error
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise _invalid_field(error, model) from None  # the cause would carry texts into the log


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON number")


def _invalid_field(error: ValidationError, model: type[BaseModel]) -> InvalidField:
    errors = error.errors(include_url=False, include_input=False)
    # A misspelt name of the texts is two errors, of which the unknown field is the one to mend.
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    field = str(first["loc"][0]) if first["loc"] else None
    match first["type"]:
        case "extra_forbidden":
            known = ", ".join(model.model_fields)
            return InvalidField(f"unknown field {field!r}: known are {known}", field)
        case "missing":
            return InvalidField(f"no texts: give a list of strings as {', '.join(TEXTS_NAMES)}", "texts")
    message = first["msg"].removeprefix("Value error, ")
    return InvalidField(f"{field}: {message}" if field else message, field)
