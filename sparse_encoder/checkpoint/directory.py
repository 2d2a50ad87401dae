"""The files of a checkpoint that somebody else made, read as data and never outside of their directory."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path, PurePosixPath
from typing import Any

from sparse_encoder.artifact import ArtifactError, file_record

#: tokenizer.json of 250,000 tokens has 17 MB.
MOST_TEXT_BYTES = 200_000_000


class SourceError(ArtifactError):
    """The checkpoint cannot be served. The message says why, and what to do."""


class Directory:
    """A directory of a checkpoint, or a folder of one. Links out of it are refused; what was read is remembered."""

    def __init__(self, root: Path, checkpoint: Directory | None = None) -> None:
        """`checkpoint`: what `root` is a folder of.

        :raises SourceError: if `root` is no directory.
        """
        if not root.is_dir():
            raise SourceError(f"{root} is no directory: give the directory of a checkpoint, or owner/name on the hub")
        self.root = root
        self._checkpoint = checkpoint or self
        self._used: set[Path] = set()
        self._inside = _whole(root.resolve())

    def folder(self, name: str) -> Directory:
        """:raises SourceError: if `name` leaves the directory or is none."""
        path = self._resolved(name)
        if not path.is_dir():
            raise SourceError(f"{self.root} has no directory {name!r}, which it names: download all of it again")
        return Directory(self.root / name, self._checkpoint)

    def file(self, name: str) -> Path | None:
        """The path of a plain file; None if there is none.

        :raises SourceError: if `name` leaves the directory, by itself or through a link.
        """
        path = self._resolved(name)
        if not path.is_file():
            return None
        self._checkpoint._used.add(self.root / name)
        return self.root / name

    def text(self, name: str) -> str | None:
        """:raises SourceError: if the file is too large to be text, or not in UTF-8."""
        path = self.file(name)
        if path is None:
            return None
        if (size := path.stat().st_size) > MOST_TEXT_BYTES:
            raise SourceError(
                f"{path} has {size:,} bytes, far more than such a file needs: it is not what its name says"
            )
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SourceError(f"{path} cannot be read as text ({error}): download it again") from error

    def json(self, name: str) -> Any:
        """Its content; None if there is no such file.

        :raises SourceError: if it is no JSON.
        """
        text = self.text(name)
        if text is None:
            return None
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise SourceError(f"{self.root / name} is no JSON ({error}): download it again") from error

    def settings(self, name: str) -> dict[str, Any]:
        """The object in a JSON file; empty if there is no such file.

        :raises SourceError: if it is no JSON object.
        """
        document = self.json(name)
        if document is None:
            return {}
        if not isinstance(document, dict):
            raise SourceError(
                f"{self.root / name} must hold a JSON object, got {str(document)[:80]!r}: download it again"
            )
        return document

    def names(self) -> list[str]:
        return sorted(entry.name for entry in self.root.iterdir())

    def hash(self, options: str) -> str:
        """Of the content of every file that was read, and of `options`: the same for the same checkpoint anywhere."""
        digest = hashlib.sha256(options.encode())
        for path in sorted(self._used):
            digest.update(f"{path.relative_to(self.root).as_posix()} {file_record(path).sha256}\n".encode())
        return digest.hexdigest()

    def _resolved(self, name: str) -> Path:
        parts = PurePosixPath(name)
        if parts.is_absolute() or ".." in parts.parts or "\\" in name or "\0" in name:
            raise SourceError(f"{self.root} names {name!r}, which leads out of it: do not trust this checkpoint")
        path = (self.root / name).resolve()
        if not path.is_relative_to(self._checkpoint._inside):
            raise SourceError(
                f"{self.root / name} is a link to {path}, outside of the checkpoint: copy the file itself"
            )
        return path


def _whole(root: Path) -> Path:
    """What links of `root` may lead to: the hub's cache keeps the content beside its snapshots, which are links."""
    caches = (folder.parent.parent for folder in (root, *root.parents) if folder.parent.name == "snapshots")
    return next((cache for cache in caches if (cache / "blobs").is_dir()), root)
