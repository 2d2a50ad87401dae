"""The few file operations that a store needs, on a local directory and on an object store.

Both give the same guarantees by different means: a small file is replaced at once, and a version appears whole.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, Protocol

import fsspec
from fsspec.implementations.local import LocalFileSystem

from sparse_encoder.artifact import MANIFEST, ArtifactExistsError, new_directory, read_artifact
from sparse_encoder.disk import fsync

_UPDATE_ATTEMPTS = 50
#: For a server that does not answer; the default waits for five minutes.
S3_PATIENCE = {"connect_timeout": 5, "read_timeout": 20, "retries": {"max_attempts": 1}}


class StoreError(Exception):
    """The store cannot do what was asked. The message says why, and what to do."""


class StoreRefusal(StoreError):
    """What was asked cannot be; the store works, and asking again changes nothing."""


class UnknownVersionError(StoreRefusal):
    """No version or alias has this name; the message lists those that exist."""


class WrongNameError(StoreRefusal):
    """Nothing in a store can have this name."""


class AlreadyThereError(StoreError):
    """Something else is where a version was to be written."""


def manifest_path(version: str) -> str:
    return f"versions/{version}/{MANIFEST}"


class Files(Protocol):
    """Paths are relative to the store, with `/`. What is not there reads as None and lists as empty."""

    @property
    def root(self) -> str:
        """Where the store is, as messages may name it."""
        ...

    def read(self, path: str) -> bytes | None: ...

    def replace(self, path: str, content: bytes) -> None:
        """Writes a small file; a reader sees the old or the new content, never a part."""
        ...

    def update(self, path: str, change: Callable[[bytes | None], bytes | None]) -> None:
        """Replaces a small file by `change` of its content, or removes it if that is None.

        `change` is called again if somebody else writes meanwhile. In a local store the caller holds `lock`.
        """
        ...

    def names(self, folder: str) -> list[str]:
        """Names of the files and directories in `folder`, hidden ones too, sorted."""
        ...

    def versions(self) -> list[str]:
        """Names of the directories in `versions` that hold a manifest, sorted."""
        ...

    def add_directory(self, source: Path, path: str, file_names: list[str]) -> None:
        """Copies files of `source` to the directory `path`, the manifest last. No file there is ever overwritten.

        :raises AlreadyThereError: if `path` has a manifest, or a file of other content.
        """
        ...

    def download(self, path: str, target: Path) -> None: ...

    def remove_file(self, path: str) -> None:
        """Nothing to remove is no error."""
        ...

    def remove_directory(self, path: str, still_needed: Callable[[], bool]) -> bool:
        """Removes a directory, its manifest first; then asks, and puts it back if it is needed. True if it is gone."""
        ...

    def age_seconds(self, path: str) -> float:
        """Seconds since the newest change of a file, or of a directory and what is in it."""
        ...

    def local(self, path: str) -> Path | None:
        """Where `path` can be read without copying; None for a remote store."""
        ...

    def lock(self) -> AbstractContextManager[None]:
        """Held by one writer at a time. An object store has none: `update` and `still_needed` do without."""
        ...


def open_files(url: str, storage_options: Mapping[str, Any]) -> Files:
    """`url`: a directory, or what fsspec knows (`s3://bucket/models`).

    :raises StoreError: if there is no such kind of store here.
    """
    if url.startswith(("s3://", "s3a://")):
        storage_options = {"config_kwargs": S3_PATIENCE, **storage_options}
    try:
        filesystem, root = fsspec.core.url_to_fs(url, use_listings_cache=False, **storage_options)
    except (ImportError, ValueError) as error:
        raise StoreError(
            f"the store {url!r} cannot be opened ({error}): give a directory or an fsspec URL, and install what the "
            "URL needs (this package's extra `s3` for s3://)"
        ) from error
    return LocalFiles(Path(root)) if isinstance(filesystem, LocalFileSystem) else RemoteFiles(filesystem, root)


class LocalFiles:
    """A directory, also one that several machines mount."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def root(self) -> str:
        return str(self._root)

    def read(self, path: str) -> bytes | None:
        try:
            return (self._root / path).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def replace(self, path: str, content: bytes) -> None:
        target = self._root / path
        target.parent.mkdir(exist_ok=True)  # a store that vanished is not made again
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
        fsync(target.parent)

    def update(self, path: str, change: Callable[[bytes | None], bytes | None]) -> None:
        content = change(self.read(path))
        if content is None:
            self.remove_file(path)
        else:
            self.replace(path, content)

    def names(self, folder: str) -> list[str]:
        try:
            return sorted(entry.name for entry in os.scandir(self._root / folder))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def versions(self) -> list[str]:
        return [name for name in self.names("versions") if (self._root / "versions" / name / MANIFEST).is_file()]

    def add_directory(self, source: Path, path: str, file_names: list[str]) -> None:
        try:
            with new_directory(self._root / path) as directory:
                for name in file_names:
                    shutil.copyfile(source / name, directory / name)
                read_artifact(directory)
        except ArtifactExistsError as error:
            raise AlreadyThereError(str(error)) from error

    def download(self, path: str, target: Path) -> None:
        shutil.copyfile(self._root / path, target)

    def remove_file(self, path: str) -> None:
        (self._root / path).unlink(missing_ok=True)

    def remove_directory(self, path: str, still_needed: Callable[[], bool]) -> bool:
        # Out of sight at once, with its manifest: a reader finds all of it or nothing.
        target = self._root / path
        hidden = target.with_name(f".{target.name.lstrip('.')}.{uuid.uuid4().hex}.partial")
        target.rename(hidden)
        if still_needed():
            hidden.rename(target)
            return False
        shutil.rmtree(hidden)
        return True

    def age_seconds(self, path: str) -> float:
        target = self._root / path
        try:
            newest = max(entry.stat().st_mtime for entry in (target, *target.glob("*")))
        except FileNotFoundError:  # gone, or changing
            return 0.0
        return time.time() - newest

    def local(self, path: str) -> Path | None:
        return self._root / path

    @contextmanager
    def lock(self) -> Iterator[None]:
        descriptor = os.open(self._root / ".lock", os.O_CREAT | os.O_RDWR, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)  # which unlocks, as does the death of the process


class RemoteFiles:
    """An object store through fsspec. Every object is written whole, and those of a version only if they are not there
    (conditional writes, which S3 checks itself): so order gives the guarantees."""

    def __init__(self, filesystem: fsspec.AbstractFileSystem, root: str) -> None:
        self._filesystem = filesystem
        self._root = root.rstrip("/")

    @property
    def root(self) -> str:
        return self._root

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

    def update(self, path: str, change: Callable[[bytes | None], bytes | None]) -> None:
        for _ in range(_UPDATE_ATTEMPTS):
            tag = self._tag(path)
            before = self.read(path)
            content = change(before)
            try:
                if content is None:
                    self.remove_file(path)
                elif before is None:
                    self._filesystem.pipe_file(self._at(path), content, mode="create")
                else:
                    self._filesystem.pipe_file(self._at(path), content, **({"IfMatch": tag} if tag else {}))
            except FileExistsError:
                continue
            except OSError:
                if self._tag(path) == tag:  # it was no conflict
                    raise
            else:
                return
        raise StoreError(f"{path} was changed by others {_UPDATE_ATTEMPTS} times in a row: try again")

    def _tag(self, path: str) -> str:
        """What a conditional write compares. Only S3 has it here: elsewhere the last writer of an alias wins."""
        try:
            return str(self._filesystem.info(self._at(path)).get("ETag", ""))
        except FileNotFoundError:
            return ""

    def names(self, folder: str) -> list[str]:
        try:
            found = self._filesystem.ls(self._at(folder), detail=False)
        except FileNotFoundError:
            return []
        names = {path.rstrip("/").removeprefix(f"{self._root}/{folder}").strip("/") for path in found}
        return sorted(names - {""})  # some list the folder itself

    def versions(self) -> list[str]:
        found = self._filesystem.find(self._at("versions"))  # one listing, however many versions
        paths = [path.removeprefix(self._at("versions/")).split("/") for path in found]
        return sorted(path[0] for path in paths if path[1:] == [MANIFEST])

    def add_directory(self, source: Path, path: str, file_names: list[str]) -> None:
        for name in sorted(set(file_names) - {MANIFEST}):
            self._add(source / name, self._at(f"{path}/{name}"))
        try:
            self._create(source / MANIFEST, self._at(f"{path}/{MANIFEST}"))
        except FileExistsError as error:
            raise AlreadyThereError(f"{path} has a manifest already") from error
        sizes = {entry["name"].rsplit("/", 1)[-1]: entry["size"] for entry in self._entries(path)}
        if any(sizes.get(name) != (source / name).stat().st_size for name in file_names):
            self.remove_file(f"{path}/{MANIFEST}")
            raise StoreError(f"{path} was collected while it was published: publish it again")

    def _add(self, source: Path, target: str) -> None:
        try:
            self._create(source, target)
        except FileExistsError as error:
            # Of a publisher that died, or of one that is at work with the same content. Another content must stay.
            with source.open("rb") as ours, self._filesystem.open(target, "rb") as theirs:
                if hashlib.file_digest(ours, "sha256").digest() != hashlib.file_digest(theirs, "sha256").digest():
                    raise AlreadyThereError(f"{target} has other content") from error
            self._filesystem.put_file(str(source), target)  # makes it young: a collector leaves the version alone

    def _create(self, source: Path, target: str) -> None:
        try:
            self._filesystem.put_file(str(source), target, mode="create")
        except OSError as error:
            if self._filesystem.exists(target):  # servers differ in how they say so
                raise FileExistsError(target) from error
            raise

    def _entries(self, path: str) -> list[dict[str, Any]]:
        try:
            entries: list[dict[str, Any]] = self._filesystem.ls(self._at(path), detail=True)
        except FileNotFoundError:
            return []
        return entries

    def download(self, path: str, target: Path) -> None:
        self._filesystem.get_file(self._at(path), str(target))

    def remove_file(self, path: str) -> None:
        with suppress(FileNotFoundError):
            self._filesystem.rm_file(self._at(path))

    def remove_directory(self, path: str, still_needed: Callable[[], bool]) -> bool:
        manifest = self.read(f"{path}/{MANIFEST}")
        if manifest is not None:
            self.remove_file(f"{path}/{MANIFEST}")
            if still_needed():
                self.replace(f"{path}/{MANIFEST}", manifest)
                return False
        for name in self.names(path):
            self.remove_file(f"{path}/{name}")
        return True

    def age_seconds(self, path: str) -> float:
        try:
            newest = [self._filesystem.modified(entry["name"]).timestamp() for entry in self._entries(path)]
        except FileNotFoundError:  # changing
            return 0.0
        return time.time() - max(newest, default=time.time())

    def local(self, path: str) -> Path | None:
        return None

    def lock(self) -> AbstractContextManager[None]:
        return nullcontext()
