"""The small JSON files of a store: what they hold, and how they are read and written."""

from __future__ import annotations

import dataclasses
import getpass
import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sparse_encoder.store_files import StoreError

FORMAT_VERSION = 1


class AliasError(StoreError):
    """One alias cannot be read; others can."""


@dataclass(frozen=True, slots=True)
class Alias:
    """A name that services follow."""

    name: str
    version: str
    previous: tuple[str, ...]  #: versions it stood for before, newest first
    updated: str  #: UTC, ISO 8601
    by: str  #: who set it
    note: str  #: why

    def to_json(self) -> bytes:
        return to_json({key: value for key, value in dataclasses.asdict(self).items() if key != "name"})

    @classmethod
    def from_json(cls, name: str, content: bytes, where: str) -> Alias:
        """:raises AliasError: if `content` is no alias."""
        try:
            document = _parse(content, where)
            return cls(
                name=name,
                version=str(document["version"]),
                previous=tuple(map(str, document["previous"])),
                updated=str(document["updated"]),
                by=str(document["by"]),
                note=str(document["note"]),
            )
        except StoreError as error:
            raise AliasError(str(error)) from error
        except (KeyError, TypeError) as error:
            raise AliasError(f"{where} is no alias ({error!r}): remove it and set it again") from error


def parse_lease(content: bytes, where: str) -> tuple[list[str], datetime]:
    """The versions that a service holds, and when it last said so.

    :raises StoreError: if `content` is no lease.
    """
    document = _parse(content, where)
    try:
        renewed = datetime.fromisoformat(document["renewed"])
        if renewed.tzinfo is None:
            raise ValueError(f"{renewed} has no time zone")
        return list(map(str, document["versions"])), renewed
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{where} is no lease ({error!r}): remove it") from error


def to_json(document: Mapping[str, Any]) -> bytes:
    text = json.dumps({"format_version": FORMAT_VERSION, **document}, ensure_ascii=False, indent=2) + "\n"
    return text.encode()


def _parse(content: bytes, where: str) -> dict[str, Any]:
    try:
        document = json.loads(content)
        if not isinstance(document, dict):
            raise ValueError("no object")
        version = document.pop("format_version")
    except (ValueError, KeyError) as error:
        raise StoreError(f"{where} cannot be read ({error!r}): remove it and set it again") from error
    if version != FORMAT_VERSION:
        raise StoreError(
            f"{where} has format_version {version!r}, this software reads {FORMAT_VERSION}: use the software that "
            "wrote it, or remove it and set it again"
        )
    return document


def now() -> datetime:
    return datetime.now(UTC)


def who() -> str:
    """`user@host`, for the records of a store."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in a container
        user = "unknown"
    return f"{user}@{socket.gethostname()}"
