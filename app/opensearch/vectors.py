"""Vectors as documents hold them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Vector = Mapping[str, float]
#: Share of the weight in which two vectors of one text by one model may differ. In bf16 with AMX 400 short texts, each
#: alone and in a batch, did by .012 in the middle and .10 at most. So a model that differs by less is not noticed here.
SAME = 0.12


def at(source: Mapping[str, Any], name: str) -> Any:
    """The value of the field `name` of a document, nested or with dots in its key; None if there is none."""
    if name in source:
        return source[name]
    value: Any = source
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def vectors_of(value: Any) -> list[Vector]:
    """One vector, alone or in an array, or those of the chunks; none of a text without a token."""
    if isinstance(value, Mapping):
        return [value] if value else []
    return [one.get("sparse_encoding", one) for one in value or ()]


def differing(left: Vector, right: Vector) -> bool:
    """Whether these are vectors of different texts, or by different models."""
    tokens = {*left, *right}
    apart = sum(abs(left.get(token, 0) - right.get(token, 0)) for token in tokens)
    return apart > SAME * max(sum(left.values()), sum(right.values()))
