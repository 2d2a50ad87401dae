"""The few file operations that a store needs, on a local directory and on an object store.

Both give the same guarantees by different means: a small file is replaced at once, and a version appears whole.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import fsspec
from fsspec.implementations.local import LocalFileSystem

from sparse_encoder.artifact import MANIFEST, new_directory


class StoreError(Exception):
    """The store cannot do what was asked. The message says why, and what to do."""


class Files(Protocol):
    """Paths are relative to the store, with `/`. What is not there reads as None and lists as empty."""

    def read(self, path: str) -> bytes | None: ...

    def replace(self, path: str, content: bytes) -> None:
        """Writes a small file; a reader sees the old or the new content, never a part."""
        ...

    def names(self, path: str) -> list[str]:
        """Names of the files and directories in `path`, hidden ones too, sorted."""
        ...

    def add_directory(self, source: Path, path: str, file_names: list[str]) -> None:
        """Copies files of `source` to the new directory `path`, the manifest last.

        :raises FileExistsError: if `path` is there already (a local store only).
        """
        ...

    def download(self, path: str, target: Path) -> None: ...

    def remove(self, path: str) -> None:
        """Removes a file or a directory with its files, the manifest first; nothing to remove is no error."""
        ...

    def age_seconds(self, path: str) -> float:
        """Seconds since the newest change of a directory."""
        ...

    def local(self, path: str) -> Path | None:
        """Where `path` can be read without copying; None for a remote store."""
        ...

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Held by one writer at a time. An object store has none: there the last writer wins."""
        ...


def open_files(url: str, storage_options: Mapping[str, Any]) -> Files:
    """`url`: a directory, or what fsspec knows (`s3://bucket/models`).

    :raises StoreError: if there is no such kind of store here.
    """
    try:
        filesystem, root = fsspec.core.url_to_fs(url, use_listings_cache=False, **storage_options)
    except (ImportError, ValueError) as error:
        raise StoreError(
            f"the store {url!r} cannot be opened ({error}): give a directory or an fsspec URL, and install what the "
            "URL needs (pip install 'sparse-encoder-service[s3]' for s3://)"
        ) from error
    return LocalFiles(Path(root)) if isinstance(filesystem, LocalFileSystem) else RemoteFiles(filesystem, root)


class LocalFiles:
    """A directory, also one that several machines mount."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def read(self, path: str) -> bytes | None:
        try:
            return (self._root / path).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def replace(self, path: str, content: bytes) -> None:
        target = self._root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.partial")
        try:
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def names(self, path: str) -> list[str]:
        try:
            return sorted(entry.name for entry in os.scandir(self._root / path))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def add_directory(self, source: Path, path: str, file_names: list[str]) -> None:
        target = self._root / path
        if target.exists():
            raise FileExistsError(target)
        with new_directory(target) as directory:
            for name in file_names:
                shutil.copyfile(source / name, directory / name)

    def download(self, path: str, target: Path) -> None:
        shutil.copyfile(self._root / path, target)

    def remove(self, path: str) -> None:
        target = self._root / path
        if target.is_dir():
            # Out of sight at once: a reader finds all of it or nothing.
            hidden = target.with_name(f".{target.name.lstrip('.')}.{uuid.uuid4().hex}.partial")
            target.rename(hidden)
            shutil.rmtree(hidden)
        else:
            target.unlink(missing_ok=True)

    def age_seconds(self, path: str) -> float:
        target = self._root / path
        try:
            newest = max(entry.stat().st_mtime for entry in (target, *target.glob("*")))
        except FileNotFoundError:  # gone meanwhile
            return 0.0
        return time.time() - newest

    def local(self, path: str) -> Path | None:
        return self._root / path

    @contextmanager
    def lock(self) -> Iterator[None]:
        self._root.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._root / ".lock", os.O_CREAT | os.O_RDWR, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)  # which unlocks, as does the death of the process


class RemoteFiles:
    """An object store through fsspec: every object is written whole, so order gives the guarantees."""

    def __init__(self, filesystem: fsspec.AbstractFileSystem, root: str) -> None:
        self._filesystem = filesystem
        self._root = root.rstrip("/")

    def _at(self, path: str) -> str:
        return f"{self._root}/{path}"

    def read(self, path: str) -> bytes | None:
        try:
            content: bytes = self._filesystem.cat_file(self._at(path))
        except FileNotFoundError:
            return None
        return content

    def replace(self, path: str, content: bytes) -> None:
        self._filesystem.pipe_file(self._at(path), content)

    def names(self, path: str) -> list[str]:
        self._filesystem.invalidate_cache()
        try:
            found = self._filesystem.ls(self._at(path), detail=False, refresh=True)
        except FileNotFoundError:
            return []
        return sorted({name.rstrip("/").rsplit("/", 1)[-1] for name in found} - {path.rsplit("/", 1)[-1]})

    def add_directory(self, source: Path, path: str, file_names: list[str]) -> None:
        for name in sorted(file_names, key=lambda name: name == MANIFEST):
            self._filesystem.put_file(str(source / name), self._at(f"{path}/{name}"))

    def download(self, path: str, target: Path) -> None:
        self._filesystem.get_file(self._at(path), str(target))

    def remove(self, path: str) -> None:
        self._filesystem.invalidate_cache()
        names = self.names(path)
        for name in sorted(names, key=lambda name: name != MANIFEST):
            self._filesystem.rm_file(self._at(f"{path}/{name}"))
        if not names and self._filesystem.exists(self._at(path)):
            self._filesystem.rm_file(self._at(path))

    def age_seconds(self, path: str) -> float:
        self._filesystem.invalidate_cache()
        entries = self._filesystem.ls(self._at(path), detail=True, refresh=True)
        newest = [entry["LastModified"].timestamp() for entry in entries if "LastModified" in entry]
        return time.time() - max(newest, default=time.time())

    def local(self, path: str) -> Path | None:
        return None

    @contextmanager
    def lock(self) -> Iterator[None]:
        yield
