"""Where published versions live and what services follow: the only contract between training and serving.

    versions/<version>/   an artifact: immutable, its manifest written last
    aliases/<name>.json   which version a name such as "stable" stands for, and which ones it stood for before
    pins/<version>.json   a version that must stay although nothing refers to it
    leases/<service>.json the versions that a running service holds, renewed while it runs

All methods block; any number of processes may use one store at once.
"""

from __future__ import annotations

import dataclasses
import getpass
import json
import shutil
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from sparse_encoder.artifact import (
    MANIFEST,
    SAFE_NAME,
    Artifact,
    ArtifactError,
    ArtifactExistsError,
    Manifest,
    new_directory,
    read_artifact,
)
from sparse_encoder.store_files import StoreError, open_files

__all__ = ["Alias", "Store", "StoreError", "UnknownVersionError", "who"]

FORMAT_VERSION = 1
LEASE_LASTS = timedelta(hours=1)
GRACE_SECONDS = 3600.0  #: what is younger is never collected: its publisher may not be done with it
PREVIOUS_VERSIONS = 20  #: that an alias remembers

P = ParamSpec("P")
T = TypeVar("T")


class UnknownVersionError(StoreError):
    """No version or alias has this name; the message lists those that exist."""


@dataclass(frozen=True, slots=True)
class Alias:
    """A name that services follow."""

    name: str
    version: str
    previous: tuple[str, ...]  #: versions it stood for before, newest first
    updated: str  #: UTC, ISO 8601
    by: str  #: who set it
    note: str  #: why


class Store:
    """A store at `url`: a directory or an fsspec URL; `storage_options` as fsspec takes them. Nothing is read yet.

    Every method raises `StoreError` if the store cannot be reached or written.
    """

    def __init__(
        self, url: str, storage_options: Mapping[str, Any] | None = None, *, grace_seconds: float = GRACE_SECONDS
    ) -> None:
        self.url = url
        self._files = open_files(url, storage_options or {})
        self._grace_seconds = grace_seconds

    def versions(self) -> list[str]:
        """The complete versions, oldest first."""
        found: list[tuple[str, str]] = []
        for name in self._do(self._files.names, "versions"):
            if SAFE_NAME.fullmatch(name):
                with suppress(UnknownVersionError):  # no manifest: not complete, or just removed
                    found.append((self._created(name), name))
        return [name for _, name in sorted(found)]

    def _created(self, version: str) -> str:
        try:
            return self.manifest(version).created
        except ArtifactError:
            return ""  # published, but not by a publisher that this software understands; listed first

    def manifest(self, version: str) -> Manifest:
        """:raises UnknownVersionError: if there is no such complete version.
        :raises ArtifactError: if its manifest is wrong."""
        return Manifest.from_json(self._manifest_text(version))

    def _manifest_text(self, version: str) -> str:
        content = None
        if SAFE_NAME.fullmatch(version):
            content = self._do(self._files.read, f"versions/{version}/{MANIFEST}")
        if content is None:
            raise self._unknown(version)
        return content.decode("utf-8", "replace")

    def aliases(self) -> dict[str, Alias]:
        """By name. An alias file that cannot be read is an error: it must not look like an alias that is gone."""
        names = [name.removesuffix(".json") for name in self._do(self._files.names, "aliases") if name[0] != "."]
        return {name: alias for name in names if (alias := self._alias(name))}

    def _alias(self, name: str) -> Alias | None:
        document = self._read_json(f"aliases/{name}.json")
        if document is None:
            return None
        try:
            return Alias(
                name=name,
                version=str(document["version"]),
                previous=tuple(map(str, document["previous"])),
                updated=str(document["updated"]),
                by=str(document["by"]),
                note=str(document["note"]),
            )
        except (KeyError, TypeError) as error:
            raise StoreError(f"aliases/{name}.json of {self.url} is no alias ({error!r}): set it again") from error

    def resolve(self, name: str) -> str:
        """The version that an alias stands for, or the version of that name.

        :raises UnknownVersionError: if there is neither.
        """
        if SAFE_NAME.fullmatch(name):
            alias = self._alias(name)
            if alias:
                return alias.version
            if self._do(self._files.read, f"versions/{name}/{MANIFEST}") is not None:
                return name
        raise self._unknown(name)

    def _unknown(self, name: str) -> UnknownVersionError:
        known = [n for n in self._do(self._files.names, "versions") if SAFE_NAME.fullmatch(n)]
        aliases = [n.removesuffix(".json") for n in self._do(self._files.names, "aliases") if n[0] != "."]
        return UnknownVersionError(
            f"{self.url} has no version or alias {name!r}; versions: {', '.join(known) or 'none'}; "
            f"aliases: {', '.join(aliases) or 'none'}"
        )

    def publish(self, artifact: Path, *, aliases: Sequence[str] = (), by: str, note: str = "") -> str:
        """Copies the artifact into the store, then points `aliases` at it; returns its version.

        A version that is there already, with the same content, is not copied again.

        :raises ArtifactError: if `artifact` is damaged.
        :raises StoreError: if the version exists with other content; nothing is changed then.
        """
        manifest = read_artifact(artifact).manifest
        for alias in aliases:
            self._check_name(alias)
        version = manifest.version
        if not self._holds(manifest):
            names = [*manifest.files, MANIFEST]
            with suppress(FileExistsError, ArtifactExistsError):  # somebody else was faster; looked at below
                self._do(self._files.add_directory, artifact, f"versions/{version}", names)
            self._holds(manifest)
        for alias in aliases:
            self.set_alias(alias, version, by=by, note=note)
        return version

    def _holds(self, manifest: Manifest) -> bool:
        content = self._do(self._files.read, f"versions/{manifest.version}/{MANIFEST}")
        if content is None:
            return False
        with suppress(ArtifactError):
            if Manifest.from_json(content.decode("utf-8", "replace")).files == manifest.files:
                return True
        raise StoreError(
            f"{self.url} has a version {manifest.version} already, with other content: versions never change; publish "
            "under another version"
        )

    def set_alias(self, name: str, version: str, *, by: str, note: str = "") -> Alias:
        """Points `name` at `version`, at once for every reader.

        :raises UnknownVersionError: if there is no such version.
        """
        self._check_name(name)
        with self._locked():
            return self._set_alias(name, version, by, note)

    def _set_alias(self, name: str, version: str, by: str, note: str) -> Alias:
        self._manifest_text(version)
        before = self._alias(name)
        history = (before.version, *before.previous) if before else ()
        previous = tuple(dict.fromkeys(v for v in history if v != version))[:PREVIOUS_VERSIONS]
        alias = Alias(name, version, previous, _now().isoformat(), by, note)
        self._write_json(f"aliases/{name}.json", {k: v for k, v in dataclasses.asdict(alias).items() if k != "name"})
        try:
            self._manifest_text(version)  # on an object store it may have been collected in between
        except UnknownVersionError:
            if before:
                content = {k: v for k, v in dataclasses.asdict(before).items() if k != "name"}
                self._write_json(f"aliases/{name}.json", content)
            raise
        return alias

    def rollback(self, name: str, *, by: str, note: str = "") -> Alias:
        """Points `name` at the version that it stood for before, of those that still exist.

        :raises StoreError: if there is none.
        """
        with self._locked():
            alias = self._alias(name) if SAFE_NAME.fullmatch(name) else None
            if alias is None:
                raise self._unknown(name)
            for version in alias.previous:
                with suppress(UnknownVersionError):
                    return self._set_alias(name, version, by, note or f"rollback from {alias.version}")
        raise StoreError(
            f"{name} has no earlier version left to go back to: point it at one of {', '.join(self.versions())}"
        )

    def fetch(self, version: str, cache_dir: Path) -> Artifact:
        """The artifact, every byte checked. A local store's is read in place; a remote one's is kept in `cache_dir`.

        :raises UnknownVersionError: if there is no such complete version.
        :raises ArtifactError: if it is damaged.
        """
        text = self._manifest_text(version)
        if (path := self._files.local(f"versions/{version}")) is not None:
            artifact = read_artifact(path)
        else:
            artifact = self._download(version, text, cache_dir / f"{version}-{sha256(text.encode()).hexdigest()[:12]}")
        if artifact.manifest.version != version:
            raise ArtifactError(
                f"versions/{version} of {self.url} holds {artifact.manifest.version}: it was copied by hand to the "
                "wrong place; publish it again"
            )
        return artifact

    def _download(self, version: str, manifest_text: str, target: Path) -> Artifact:
        if target.is_dir():
            with suppress(ArtifactError):
                return read_artifact(target)
            shutil.rmtree(target)  # damaged in the cache
        with suppress(ArtifactExistsError), new_directory(target) as directory:
            for name in Manifest.from_json(manifest_text).files:
                self._do(self._files.download, f"versions/{version}/{name}", directory / name)
            (directory / MANIFEST).write_text(manifest_text, encoding="utf-8")
            read_artifact(directory)
        return read_artifact(target)

    def pin(self, version: str, *, by: str, note: str = "") -> None:
        """Keeps `version` from being collected until `unpin`.

        :raises UnknownVersionError: if there is no such version.
        """
        with self._locked():
            self._manifest_text(version)
            self._write_json(f"pins/{version}.json", {"by": by, "note": note, "updated": _now().isoformat()})

    def unpin(self, version: str) -> None:
        self._check_name(version)
        self._do(self._files.remove, f"pins/{version}.json")

    def pins(self) -> list[str]:
        return [name.removesuffix(".json") for name in self._do(self._files.names, "pins") if name[0] != "."]

    def renew_lease(self, instance: str, versions: Iterable[str]) -> None:
        """Says that the service `instance` holds `versions`; good for an hour."""
        self._check_name(instance)
        self._write_json(f"leases/{instance}.json", {"versions": sorted(versions), "renewed": _now().isoformat()})

    def drop_lease(self, instance: str) -> None:
        self._check_name(instance)
        self._do(self._files.remove, f"leases/{instance}.json")

    def leases(self) -> dict[str, list[str]]:
        """Versions by the service that holds them, of leases that still count."""
        held: dict[str, list[str]] = {}
        for name in self._do(self._files.names, "leases"):
            document = self._read_json(f"leases/{name}") if name[0] != "." else None
            if document and _now() - datetime.fromisoformat(document["renewed"]) < LEASE_LASTS:
                held[name.removesuffix(".json")] = list(document["versions"])
        return held

    def collect_garbage(self, keep: int, *, dry_run: bool = False) -> list[str]:
        """Removes versions that nothing needs, and what dead publishers left; returns the names removed.

        A version stays while an alias stands for it, or did so within its last `keep` versions, while it is pinned or
        a service holds it, and for an hour after it was written.
        """
        removed = []
        for name in self._do(self._files.names, "versions"):
            with self._locked():  # so that no alias comes to it meanwhile
                if name in self._needed(keep):
                    continue
                if self._do(self._files.age_seconds, f"versions/{name}") < self._grace_seconds:
                    continue
                if not dry_run:
                    self._do(self._files.remove, f"versions/{name}")
            removed.append(name)
        return removed

    def _needed(self, keep: int) -> set[str]:
        needed = {*self.pins(), *(version for held in self.leases().values() for version in held)}
        for alias in self.aliases().values():
            needed |= {alias.version, *alias.previous[:keep]}
        return needed

    def _check_name(self, name: str) -> None:
        if not SAFE_NAME.fullmatch(name):
            raise StoreError(f"{name!r} must be letters, digits and ._- (at most 128): choose another name")

    def _read_json(self, path: str) -> dict[str, Any] | None:
        content = self._do(self._files.read, path)
        if content is None:
            return None
        try:
            document = json.loads(content)
            if not isinstance(document, dict) or document.pop("format_version") != FORMAT_VERSION:
                raise ValueError(f"no object with format_version {FORMAT_VERSION}")
        except (ValueError, KeyError) as error:
            raise StoreError(f"{path} of {self.url} cannot be read ({error!r}): remove it and set it again") from error
        return document

    def _write_json(self, path: str, document: dict[str, Any]) -> None:
        content = json.dumps({"format_version": FORMAT_VERSION, **document}, ensure_ascii=False, indent=2) + "\n"
        self._do(self._files.replace, path, content.encode())

    def _locked(self) -> Any:
        return self._files.lock()

    def _do(self, operation: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return operation(*args, **kwargs)
        except (StoreError, ArtifactError, FileExistsError):
            raise
        except Exception as error:  # clients of object stores raise exceptions of their own
            raise StoreError(
                f"{self.url} failed to {operation.__name__} ({type(error).__name__}: {error}): see that it can be "
                "reached, that there is room, and that these credentials may do it"
            ) from error


def who() -> str:
    """`user@host`, for the records of a store."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in a container
        user = "unknown"
    return f"{user}@{socket.gethostname()}"


def _now() -> datetime:
    return datetime.now(UTC)
