"""JSON as dataclasses: read strictly, every field by its name and type."""

from __future__ import annotations

import collections.abc
import dataclasses
import json
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")


class TypedJsonError(ValueError):
    """The document does not fit. The message says where, and what was expected."""


def parse(text: str) -> Any:
    """:raises ValueError: if `text` is no JSON; NaN and infinity are none."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON number")

    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError as error:
        raise ValueError(str(error)) from error


def build(kind: type[T], document: Any, where: str) -> T:
    """`document`, as `parse` gives it, as a dataclass `kind`, whose fields may be dataclasses, tuple[X, ...],
    Mapping[str, X], X | None, Literal, scalars, or anything. `where`: what messages call it.

    :raises TypedJsonError: if it does not fit; names the place.
    """
    made: T = _build(kind, document, where)
    return made


def _build(kind: Any, value: Any, where: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind) and isinstance(value, dict):
        types = get_type_hints(kind)
        defaults = {field.name for field in dataclasses.fields(kind) if field.default is not dataclasses.MISSING}
        if not types.keys() - defaults <= value.keys() <= types.keys():
            raise TypedJsonError(
                f"{where} lacks the fields {sorted(types.keys() - defaults - value.keys())} and has the unknown fields "
                f"{sorted(value.keys() - types.keys())}"
            )
        return kind(**{name: _build(types[name], item, f"{where}: {name}") for name, item in value.items()})
    if origin is UnionType and value is not None:  # X | None
        return _build(arguments[0], value, where)
    if origin is tuple and isinstance(value, list):
        return tuple(_build(arguments[0], item, where) for item in value)
    if origin is collections.abc.Mapping and isinstance(value, dict):
        return {name: _build(arguments[1], item, f"{where}: {name}") for name, item in value.items()}
    if origin is Literal and value in arguments:
        return value
    if kind is float and type(value) is int:
        return float(value)
    if kind is Any or type(value) is kind or (origin is UnionType and value is None):
        return value
    expected = " or ".join(map(repr, arguments)) if origin is Literal else getattr(kind, "__name__", kind)
    raise TypedJsonError(f"{where} must be {expected}, got {str(value)[:80]!r}")
