"""The directory of a run, here or in an object store. What is in it is there whole or not at all.

It is written to by way of the store's files (`sparse_encoder.store_files`), which give just that. A file is made in
memory, so a part must fit there.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

from sparse_encoder.store_files import open_files

LOCK = "run.lock"
P = ParamSpec("P")
T = TypeVar("T")


class RunError(Exception):
    """The run cannot begin or go on. The message says why, and what to do."""


class SinkError(Exception):
    """Nothing more can be written. The message says why, and what to do."""


class RunFiles:
    """Files at `url`, a directory or an fsspec URL; names are relative to it, with `/`. May be sent to another process.

    Two writers of one file do each other no harm: the last one has it.
    """

    def __init__(self, url: str) -> None:
        """:raises StoreError: if there is no such kind of store here."""
        self.url = url.rstrip("/")
        self._files = open_files(self.url, {})

    def __reduce__(self) -> tuple[type[RunFiles], tuple[str]]:
        return RunFiles, (self.url,)

    def read(self, name: str) -> bytes | None:
        """:raises SinkError: if it cannot be read."""
        return self._do("read", name, self._files.read, name)

    def read_json(self, name: str) -> Any:
        """None if it is not there."""
        content = self.read(name)
        return None if content is None else json.loads(content)

    def write(self, name: str, content: bytes) -> None:
        """:raises SinkError: if it cannot be written."""
        self._do("written", name, self._files.replace, name, content)

    def write_json(self, name: str, document: object) -> None:
        self.write(name, json.dumps(document, ensure_ascii=False, indent=1).encode())

    def write_first_json(self, name: str, document: object) -> Any:
        """Writes it if it is not there. What is there then: of two at once, one is the first."""
        content = json.dumps(document, ensure_ascii=False, indent=1).encode()
        self._do("written", name, self._files.update, name, lambda there: there or content)
        return self.read_json(name)

    def remove(self, name: str) -> None:
        self._do("removed", name, self._files.remove_file, name)

    def names(self, folder: str = "") -> list[str]:
        """Of the files and directories in it, sorted."""
        return self._do("listed", folder, self._files.names, folder)

    def clear(self) -> None:
        """Removes what writers left that died while they wrote."""
        for folder in ("", "receipts", "rejected"):
            for name in self.names(folder):
                if left_over(name):
                    self.remove(f"{folder}/{name}".lstrip("/"))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """For one process at a time. An object store has no lock: there, two do everything twice, and no harm.

        :raises RunError: if another process has the run.
        """
        directory = self._files.local("")
        if directory is None:
            yield
            return
        try:
            directory.mkdir(parents=True, exist_ok=True)
            lock = (directory / LOCK).open("w")
        except OSError as error:
            raise RunError(f"{self.url} cannot be used ({error}): give a directory that can be written") from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RunError(f"another process works on {self.url}: wait for it, or end it") from error
            yield

    def _do(self, done: str, name: str, operation: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return operation(*args, **kwargs)
        except Exception as error:  # clients of object stores raise exceptions of their own
            reason = getattr(error, "strerror", None) or error
            raise SinkError(
                f"{self.url}/{name} cannot be {done} ({reason}): see to it, then the same command goes on"
            ) from error


def left_over(name: str) -> bool:
    """Whether a writer left the file that died while it wrote."""
    return name.startswith(".") and name.endswith(".partial")
