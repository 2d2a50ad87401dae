"""Who may ask: API keys, of which the service knows the SHA-256 only.

    python -m app.access NAME

makes a key for the client NAME: the key itself for the client, and the line `NAME:SHA256` for the service; with `:3`
after it that client has three times the share of others. Keys made so have 256 random bits, which is why a plain hash
is enough; a password would need a slow one.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import re
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import SecretStr

ENTRY = re.compile(r"(?P<name>[\w.-]{1,64}):(?P<sha256>[0-9a-f]{64})(:(?P<weight>[1-9]\d{0,2}))?", re.ASCII)
POLL_SECONDS = 1.0

log = logging.getLogger(__name__)


class ApiKey(NamedTuple):
    """What the service knows of one."""

    client: str  #: the name of who has it
    sha256: str
    weight: int  #: how many times the share of others the client gets


class ApiKeys:
    """The clients that may ask, from a setting and from a file that is read again when it changes."""

    def __init__(self, entries: SecretStr, file: Path | None) -> None:
        """`entries`: `NAME:SHA256` or `NAME:SHA256:WEIGHT` each, separated by commas or white space; the same in
        `file`, where `#` begins a comment.

        :raises ValueError: if an entry is wrong, or the file cannot be read.
        """
        self._given = _parse(entries.get_secret_value(), "the API keys")
        self._file = file
        self._content: str | None = None
        self._read: Sequence[ApiKey] = ()
        self.reload()

    @property
    def required(self) -> bool:
        """Whether anyone has to show a key. A file without an entry lets nobody in."""
        return bool(self._given) or self._file is not None

    def find(self, authorization: str) -> ApiKey | None:
        """The key in this `Authorization` header; None for one that is missing or wrong.

        Takes the same time for every wrong key.
        """
        key = bearer_key(authorization)
        given = hashlib.sha256((key or "").encode("utf-8", "replace")).hexdigest()
        found = None
        for known in (*self._given, *self._read):
            if hmac.compare_digest(given, known.sha256):
                found = known
        return None if key is None else found

    def reload(self) -> None:
        """Reads the file.

        :raises ValueError: if it cannot be read or has a wrong entry; the keys stay what they were.
        """
        if self._file is None:
            return
        try:
            content = self._file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"the file of API keys {self._file} cannot be read: {error}") from error
        if content != self._content:
            without_comments = re.sub("#.*", "", content)
            self._read = _parse(without_comments, str(self._file))
            self._content = content
            log.info("%d API keys in %s", len(self._read), self._file)

    async def watch(self) -> None:
        """Follows the file, if there is one, until cancelled."""
        told = ""
        while self._file:
            await asyncio.sleep(POLL_SECONDS)
            try:
                await asyncio.to_thread(self.reload)
                told = ""
            except ValueError as error:
                if str(error) != told:
                    told = str(error)
                    log.error("the API keys stay as they were: %s", error)


def bearer_key(authorization: str) -> str | None:
    """The key in an `Authorization` header, whose scheme may be written in any case; None if it is another scheme."""
    scheme, blank, key = authorization.partition(" ")
    return key.lstrip(" ") if blank and scheme.lower() == "bearer" else None


def _parse(entries: str, where: str) -> list[ApiKey]:
    keys: dict[str, ApiKey] = {}
    for number, entry in enumerate(re.split(r"[\s,]+", entries.strip()) if entries.strip() else [], start=1):
        found = ENTRY.fullmatch(entry)
        if not found:  # not shown: it may be a key that somebody forgot to hash
            raise ValueError(
                f"entry {number} of {where} is not NAME:SHA256 (64 hexadecimal digits), nor NAME:SHA256:WEIGHT (1 to "
                "999): `python -m app.access NAME` makes one"
            )
        if found["name"] in keys:
            raise ValueError(f"{where} have two keys of {found['name']}: give the second another name")
        keys[found["name"]] = ApiKey(found["name"], found["sha256"], int(found["weight"] or 1))
    return list(keys.values())


def main() -> None:
    if len(sys.argv) != 2 or not ENTRY.fullmatch(f"{sys.argv[1]}:{'0' * 64}"):
        sys.exit("usage: python -m app.access NAME   (letters, digits, . _ -; says a new key and its entry)")
    key = secrets.token_urlsafe(32)
    entry = f"{sys.argv[1]}:{hashlib.sha256(key.encode()).hexdigest()}"
    print(f"key, for the client:    {key}\nentry, for the service: {entry}")  # noqa: T201
