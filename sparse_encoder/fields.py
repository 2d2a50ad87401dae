"""`config.json` of a checkpoint, read field by field: known fields, of the right type, within bounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

#: Names of transformers for functions that the encoder computes.
ACTIVATIONS = ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "relu", "silu", "swish")
MOST_LAYERS = 200
MOST = 10_000_000  #: of any size; beyond it a file is damaged or hostile


class FieldError(ValueError):
    """A field of `config.json` is wrong. The message says which, and what to do."""


class Fields:
    """Reads fields; a missing one takes the default that transformers has for the architecture."""

    def __init__(self, fields: Mapping[str, Any], *, complete: bool = False) -> None:
        """`complete`: of an artifact, whose `config.json` has every field, so a missing size is an error."""
        self._fields = fields
        self._complete = complete

    def size(self, name: str, default: int, most: int = MOST) -> int:
        self._require(name)
        return int(self._get(name, default, lambda value: type(value) is int and 0 < value <= most, f"1 to {most:,}"))

    def count(self, name: str, default: int) -> int:
        self._require(name)
        return int(self._get(name, default, lambda value: type(value) is int and 0 <= value <= MOST, f"0 to {MOST:,}"))

    def exactly(self, name: str, only: int) -> int:
        return int(self._get(name, only, lambda value: value == only and type(value) is int, str(only)))

    def token(self, name: str, default: int) -> int:
        self._require(name)
        return int(self._get(name, default, lambda value: type(value) is int and 0 <= value <= MOST, "a token id"))

    def number(self, name: str, default: float) -> float:
        self._require(name)
        right = "a positive number"
        return float(self._get(name, default, lambda value: type(value) in (int, float) and 0 < value < 1e12, right))

    def flag(self, name: str, default: bool) -> bool:
        return bool(self._get(name, default, lambda value: type(value) is bool, "true or false"))

    def choice(self, name: str, default: str, choices: tuple[str, ...]) -> str:
        return str(self._get(name, default, lambda value: value in choices, f"one of {', '.join(choices)}"))

    def activation(self, name: str) -> str:
        return self.choice(name, "gelu", ACTIVATIONS)

    def table(self, name: str) -> dict[str, Any]:
        return dict(self._get(name, {}, lambda value: isinstance(value, dict), "an object"))

    def has(self, name: str) -> bool:
        return self._fields.get(name) is not None

    def of_any(self, name: str, default: int) -> int:
        """A number that may be below zero."""
        return int(self._get(name, default, lambda value: type(value) is int and abs(value) <= MOST, "a number"))

    def kinds(self, name: str, known: tuple[str, ...]) -> list[str]:
        """Some of `known`, from a list or from a text with bars between them."""
        value = self._fields.get(name)
        given = value.lower().replace(" ", "").split("|") if isinstance(value, str) else self.items(name)
        if not all(kind in known for kind in given):
            raise FieldError(
                f"config.json has {name} {str(value)[:80]!r}, this software computes {', '.join(known)}: use a "
                "checkpoint of that kind, or repair the file"
            )
        return given

    def items(self, name: str) -> list[Any]:
        return list(self._get(name, [], lambda value: isinstance(value, list), "a list"))

    def _require(self, name: str) -> None:
        if self._complete and not self.has(name):
            raise FieldError(f"config.json lacks {name!r}: publish the checkpoint again with its full config")

    def _get(self, name: str, default: Any, right: Callable[[Any], bool], expected: str) -> Any:
        value = self._fields.get(name)
        value = default if value is None else value
        if not right(value):
            raise FieldError(
                f"config.json has {name} {str(value)[:80]!r}, this software computes {expected}: "
                "use a checkpoint of that kind, or repair the file"
            )
        return value
