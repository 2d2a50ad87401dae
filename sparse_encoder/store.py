"""Where published versions live and what services follow: the only contract between training and serving.

    versions/<version>/   an artifact: immutable, its manifest written last
    aliases/<name>.json   which version a name such as "stable" stands for, and which ones it stood for before
    pins/<version>.json   a version that must stay although nothing refers to it
    leases/<service>.json the versions that a running service holds, renewed while it runs

All methods block; any number of processes may use one store at once.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
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
from sparse_encoder.store_files import (
    AlreadyThereError,
    StoreError,
    StoreRefusal,
    UnknownVersionError,
    WrongNameError,
    manifest_path,
    open_files,
)
from sparse_encoder.store_records import Alias, AliasError, now, parse_lease, to_json, who

__all__ = ["Alias", "AliasError", "Store", "StoreError", "StoreRefusal", "UnknownVersionError", "WrongNameError", "who"]

LEASE_LASTS = timedelta(hours=1)
LEASE_REMOVED = timedelta(days=1)  #: so much later than it counts that nobody renews it at that moment
GRACE_SECONDS = 3600.0  #: what is younger is never collected: its publisher may not be done with it
PREVIOUS_VERSIONS = 20  #: that an alias remembers

P = ParamSpec("P")
T = TypeVar("T")


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
        self._created: dict[str, str] = {}  # by version; never changes, so it is read once

    @property
    def places(self) -> tuple[str, str]:
        """Where it is, as messages may name it."""
        return self.url, self._files.root

    def versions(self) -> list[str]:
        """The complete versions, oldest first."""
        found = {name for name in self._do(self._files.versions) if SAFE_NAME.fullmatch(name)}
        known, created = self._created, {}  # threads share a store: what one iterates, no other changes
        for name in found:
            with suppress(UnknownVersionError):  # just removed
                created[name] = known[name] if name in known else self._read_created(name)
        self._created = created
        return sorted(created, key=lambda name: (created[name], name))

    def _read_created(self, version: str) -> str:
        try:
            return self.manifest(version).created
        except ArtifactError:
            return ""  # published, but not by a publisher that this software understands; listed first

    def manifest(self, version: str) -> Manifest:
        """:raises UnknownVersionError: if there is no such complete version.
        :raises ArtifactError: if its manifest is wrong."""
        return Manifest.from_json(self._manifest_text(version))

    def _manifest_text(self, version: str) -> str:
        content = self._do(self._files.read, manifest_path(version)) if SAFE_NAME.fullmatch(version) else None
        if content is None:
            raise self._unknown(version)
        return content.decode("utf-8", "replace")

    def read_file(self, version: str, name: str) -> bytes | None:
        """A small file of a version, checked; None if the version has no such file.

        :raises UnknownVersionError: if there is no such complete version.
        :raises ArtifactError: if the version is damaged.
        """
        record = self.manifest(version).files.get(name)
        if record is None:
            return None
        content = self._do(self._files.read, f"versions/{version}/{name}")
        if content is None:
            self._manifest_text(version)  # says so if it was just removed
        if content is None or sha256(content).hexdigest() != record.sha256:
            raise ArtifactError(f"{name} of {version} in {self.url} is damaged: publish the model under a new version")
        return content

    def aliases(self) -> dict[str, Alias]:
        """By name. An alias file that cannot be read is an error: it must not look like an alias that is gone."""
        return {name: alias for name in self.alias_names() if (alias := self.alias(name))}

    def alias_names(self) -> list[str]:
        return self._json_names("aliases")

    def alias(self, name: str) -> Alias | None:
        """:raises AliasError: if its file cannot be read."""
        path = f"aliases/{name}.json"
        content = self._do(self._files.read, path)
        return None if content is None else Alias.from_json(name, content, f"{path} of {self.url}")

    def resolve(self, name: str) -> str:
        """The version that an alias stands for, or the version of that name.

        :raises UnknownVersionError: if there is neither.
        """
        if SAFE_NAME.fullmatch(name):
            if alias := self.alias(name):
                return alias.version
            if self._exists(name):
                return name
        raise self._unknown(name)

    def _exists(self, version: str) -> bool:
        return self._do(self._files.read, manifest_path(version)) is not None

    def _unknown(self, name: str) -> UnknownVersionError:
        known = [n for n in self._do(self._files.versions) if SAFE_NAME.fullmatch(n)]
        return UnknownVersionError(
            f"{self.url} has no version or alias {name!r}; versions: {', '.join(known) or 'none'}; "
            f"aliases: {', '.join(self.alias_names()) or 'none'}"
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
            with suppress(AlreadyThereError):  # somebody else was faster; looked at below
                self._do(self._files.add_directory, artifact, f"versions/{version}", [*manifest.files, MANIFEST])
            if not self._holds(manifest):
                raise StoreError(
                    f"versions/{version} of {self.url} has other files and no manifest: another publisher is at work, "
                    "or died; publish under another version, or collect garbage when it is an hour old"
                )
        for alias in aliases:
            self.set_alias(alias, version, by=by, note=note)
        return version

    def _holds(self, manifest: Manifest) -> bool:
        try:
            held = self.manifest(manifest.version)
        except UnknownVersionError:
            return False
        except ArtifactError:
            held = None
        if held and held.files == manifest.files:
            return True
        raise StoreError(
            f"{self.url} has a version {manifest.version} already, with other content: versions never change; point an "
            "alias at that one, or publish under another version"
        )

    def set_alias(self, name: str, version: str, *, by: str, note: str = "") -> Alias:
        """Points `name` at `version`, at once for every reader.

        :raises UnknownVersionError: if there is no such version.
        :raises StoreRefusal: if a version is called `name`.
        """
        self._check_name(name)
        if self._exists(name):
            raise StoreRefusal(f"{name} is a version of {self.url}: choose another name for the alias")
        return self._set_alias(name, lambda _: (version, note), by)

    def _set_alias(self, name: str, choose: Callable[[Alias | None], tuple[str, str]], by: str) -> Alias:
        """`choose` gives the version and the note, from the alias as it is."""
        path = f"aliases/{name}.json"
        before: bytes | None = None
        alias: Alias | None = None

        def change(content: bytes | None) -> bytes:
            nonlocal before, alias
            old = None if content is None else Alias.from_json(name, content, f"{path} of {self.url}")
            version, note = choose(old)
            self._manifest_text(version)
            history = (old.version, *old.previous) if old else ()
            previous = tuple(dict.fromkeys(v for v in history if v != version))[:PREVIOUS_VERSIONS]
            before, alias = content, Alias(name, version, previous, now().isoformat(), by, note)
            return alias.to_json()

        with self._locked():
            self._do(self._files.update, path, change)
            assert alias
            ours = alias.to_json()
            try:
                self._manifest_text(alias.version)
            except UnknownVersionError:  # collected meanwhile, where there is no lock
                self._do(self._files.update, path, lambda content: before if content == ours else content)
                raise
            return alias

    def rollback(self, name: str, *, by: str, note: str = "") -> Alias:
        """Points `name` at the version that it stood for before, of those that still exist.

        :raises StoreRefusal: if there is none.
        """

        def choose(alias: Alias | None) -> tuple[str, str]:
            if alias is None:
                raise self._unknown(name)
            for version in alias.previous:
                if self._exists(version):
                    return version, note or f"rollback from {alias.version}"
            raise StoreRefusal(
                f"{name} has no earlier version left to go back to: point it at one of {', '.join(self.versions())}"
            )

        self._check_name(name)
        return self._set_alias(name, choose, by)

    def fetch(self, version: str, cache_dir: Path) -> Artifact:
        """The artifact, every byte checked. A local store's is read in place; a remote one's is kept in `cache_dir`.

        :raises UnknownVersionError: if there is no such complete version.
        :raises ArtifactError: if it is damaged.
        """
        text = self._manifest_text(version)
        try:
            if (path := self._files.local(f"versions/{version}")) is not None:
                artifact = read_artifact(path)
            else:
                name = f"{version}-{sha256(text.encode()).hexdigest()[:12]}"
                artifact = self._download(version, text, cache_dir / name)
        except (ArtifactError, StoreError, OSError) as error:
            if not self._exists(version):  # collected meanwhile
                raise self._unknown(version) from error
            if isinstance(error, OSError):
                raise StoreError(f"{version} of {self.url} cannot be read ({error}): see to the disk") from error
            raise
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
        return read_artifact(target)  # perhaps that of another process

    def pin(self, version: str, *, by: str, note: str = "") -> None:
        """Keeps `version` from being collected until `unpin`.

        :raises UnknownVersionError: if there is no such version.
        """
        with self._locked():
            self._manifest_text(version)
            self._write_json(f"pins/{version}.json", {"by": by, "note": note, "updated": now().isoformat()})
            try:
                self._manifest_text(version)
            except UnknownVersionError:  # collected meanwhile, where there is no lock
                self._do(self._files.remove_file, f"pins/{version}.json")
                raise

    def unpin(self, version: str) -> None:
        """:raises StoreRefusal: if it is not pinned."""
        if version not in (pins := self.pins()):
            raise StoreRefusal(f"{version!r} is not pinned in {self.url}; pinned: {', '.join(pins) or 'none'}")
        self._do(self._files.remove_file, f"pins/{version}.json")

    def pins(self) -> list[str]:
        """The pinned versions."""
        return self._json_names("pins")

    def renew_lease(self, instance: str, versions: Iterable[str]) -> None:
        """Says that the service `instance` holds `versions`; good for an hour."""
        self._check_name(instance)
        self._write_json(f"leases/{instance}.json", {"versions": sorted(versions), "renewed": now().isoformat()})

    def drop_lease(self, instance: str) -> None:
        self._check_name(instance)
        self._do(self._files.remove_file, f"leases/{instance}.json")

    def leases(self) -> dict[str, list[str]]:
        """Versions by the service that holds them, of leases that still count."""
        leases = {service: self._lease(service) for service in self._json_names("leases")}
        return {service: versions for service, (versions, age) in leases.items() if age < LEASE_LASTS}

    def _lease(self, service: str) -> tuple[list[str], timedelta]:
        path = f"leases/{service}.json"
        content = self._do(self._files.read, path)
        if content is None:  # dropped meanwhile
            return [], timedelta.max
        held, renewed = parse_lease(content, f"{path} of {self.url}")
        return held, now() - renewed

    def collect_garbage(self, keep: int, *, dry_run: bool = False) -> list[str]:
        """Removes versions that nothing needs, and what dead publishers left; returns the names removed.

        A version stays while an alias stands for it, or did so within its last `keep` versions, while it is pinned or
        a service holds it, and for an hour after it was written.
        """
        if keep < 0:
            raise StoreError(f"keep must be 0 or more, got {keep}")
        removed = []
        for name in self._do(self._files.names, "versions"):
            with self._locked():  # so that no alias comes to it meanwhile
                if name in self._needed(keep) or not self._is_old(f"versions/{name}"):
                    continue
                if dry_run or self._do(
                    self._files.remove_directory, f"versions/{name}", partial(self._is_needed, name, keep)
                ):
                    removed.append(name)
        if not dry_run:
            for folder in ("aliases", "pins", "leases"):
                for name in self._do(self._files.names, folder):
                    if name.startswith(".") and self._is_old(f"{folder}/{name}"):
                        self._do(self._files.remove_file, f"{folder}/{name}")
            for service in self._json_names("leases"):
                if self._lease(service)[1] > LEASE_REMOVED:
                    self.drop_lease(service)
        return removed

    def _is_old(self, path: str) -> bool:
        return self._do(self._files.age_seconds, path) >= self._grace_seconds

    def _is_needed(self, version: str, keep: int) -> bool:
        return version in self._needed(keep)

    def _needed(self, keep: int) -> set[str]:
        needed = {*self.pins(), *(version for held in self.leases().values() for version in held)}
        for alias in self.aliases().values():
            needed |= {alias.version, *alias.previous[:keep]}
        return needed

    def _check_name(self, name: str) -> None:
        if not SAFE_NAME.fullmatch(name):
            raise WrongNameError(f"{name[:128]!r} must be letters, digits and ._- (at most 128): choose another name")

    def _json_names(self, folder: str) -> list[str]:
        """Names without their ending; not what a publisher that died left."""
        names = (name.removesuffix(".json") for name in self._do(self._files.names, folder) if name.endswith(".json"))
        return [name for name in names if SAFE_NAME.fullmatch(name)]

    def _write_json(self, path: str, document: dict[str, Any]) -> None:
        self._do(self._files.replace, path, to_json(document))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        lock = self._files.lock()
        self._do(lock.__enter__)
        try:
            yield
        finally:
            lock.__exit__(None, None, None)

    def _do(self, operation: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return operation(*args, **kwargs)
        except (StoreError, ArtifactError):
            raise
        except Exception as error:  # clients of object stores raise exceptions of their own
            raise StoreError(
                f"{self.url} failed at {operation.__name__.strip('_')} ({type(error).__name__}: {error}): see that it "
                "can be reached, that there is room, and that you may do this there"
            ) from error
