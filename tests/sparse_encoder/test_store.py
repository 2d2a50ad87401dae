"""The store, local and on a real S3 server."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from sparse_encoder.__main__ import main
from sparse_encoder.artifact import ArtifactError
from sparse_encoder.store import Store, StoreError, UnknownVersionError
from sparse_encoder.store_files import Files
from tests.sparse_encoder.stores import check, make_artifact


@pytest.fixture
def store(url: str, tmp_path: Path) -> Store:
    """Holds v1, v2 and v3; `stable` stood for each in turn."""
    store = Store(url, grace_seconds=0)
    for version in ("v1", "v2", "v3"):
        store.publish(make_artifact(tmp_path / version, version), aliases=["stable"], by="test", note=f"note {version}")
    return store


def test_an_empty_store_is_empty(url: str) -> None:
    store = Store(url)
    assert (store.versions(), store.aliases(), store.pins(), store.leases(), store.collect_garbage(0)) == ([], {}, [], {}, [])
    with pytest.raises(UnknownVersionError, match="no version or alias 'stable'; versions: none; aliases: none"):
        store.resolve("stable")


def test_what_is_published_is_fetched(store: Store, url: str, tmp_path: Path) -> None:
    check(url, tmp_path / "cache", {"v1", "v2", "v3"})
    artifact = Store(url).fetch("v2", tmp_path / "cache")
    for name in (*artifact.manifest.files, "manifest.json"):
        assert (artifact.path / name).read_bytes() == (tmp_path / "v2" / name).read_bytes()
    assert Store(url).manifest("v2") == artifact.manifest
    assert Store(url).read_file("v2", "config.json") == (tmp_path / "v2" / "config.json").read_bytes()
    assert Store(url).read_file("v2", "none.json") is None


def test_versions_are_listed_by_age(store: Store, tmp_path: Path) -> None:
    path = make_artifact(tmp_path / "a", "v0")
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, "created": "2020-01-01T00:00:00+00:00"}))
    store.publish(path, by="test")
    assert store.versions() == ["v0", "v1", "v2", "v3"]


def test_the_alias_remembers_who_when_why_and_what_was_before(store: Store) -> None:
    alias = store.aliases()["stable"]
    assert (alias.version, alias.previous, alias.by, alias.note) == ("v3", ("v2", "v1"), "test", "note v3")
    again = store.set_alias("stable", "v1", by="me", note="why")
    assert (again.version, again.previous, again.by, again.note) == ("v1", ("v3", "v2"), "me", "why")
    assert store.aliases()["stable"] == again
    assert store.resolve("stable") == "v1"
    assert again.updated > alias.updated


def test_rollback_goes_to_the_latest_version_that_still_exists(store: Store) -> None:
    assert store.rollback("stable", by="me").version == "v2"
    store.set_alias("stable", "v3", by="me")
    store.set_alias("other", "v1", by="me")
    assert store.collect_garbage(0) == ["v2"]
    alias = store.rollback("stable", by="me")
    assert (alias.version, alias.note) == ("v1", "rollback from v3")
    with pytest.raises(StoreError, match="other has no earlier version left"):
        store.rollback("other", by="me")
    with pytest.raises(UnknownVersionError, match="aliases: other, stable"):
        store.rollback("none", by="me")


def test_an_alias_never_names_what_does_not_exist(store: Store) -> None:
    before = store.aliases()
    with pytest.raises(UnknownVersionError, match="no version or alias 'v9'; versions: v1, v2, v3; aliases: stable"):
        store.set_alias("stable", "v9", by="me")
    with pytest.raises(StoreError, match="v1 is a version"):
        store.set_alias("v1", "v2", by="me")
    for name in ("../x", ".hidden", "", "a/b"):
        with pytest.raises(StoreError, match="choose another name"):
            store.set_alias(name, "v1", by="me")
    assert store.aliases() == before


def test_publishing_the_same_again_changes_nothing(store: Store, tmp_path: Path) -> None:
    again = make_artifact(tmp_path / "again", "v1")
    assert store.publish(again, by="test") == "v1"
    assert store.versions() == ["v1", "v2", "v3"]


def test_a_version_never_changes(store: Store, url: str, tmp_path: Path) -> None:
    other = make_artifact(tmp_path / "other", "v1", content="other")
    with pytest.raises(StoreError, match="has a version v1 already, with other content"):
        store.publish(other, aliases=["stable"], by="test")
    assert store.resolve("stable") == "v3"
    check(url, tmp_path / "cache", {"v1", "v2", "v3"})


def test_a_damaged_artifact_is_not_published(url: str, tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path / "v1", "v1")
    (artifact / "config.json").write_text("changed, of course")
    with pytest.raises(ArtifactError, match="config"):
        Store(url).publish(artifact, by="test")
    assert Store(url).versions() == []


def test_garbage_is_what_nothing_needs(store: Store, tmp_path: Path) -> None:
    for version in ("v4", "v5", "v6"):
        store.publish(make_artifact(tmp_path / version, version), aliases=["stable"], by="test")
    store.pin("v1", by="me", note="index of march")
    store.renew_lease("service-1", ["v2"])
    assert store.pins() == ["v1"]
    assert store.leases() == {"service-1": ["v2"]}
    assert store.collect_garbage(1, dry_run=True) == ["v3", "v4"]
    assert len(store.versions()) == 6
    assert store.collect_garbage(1) == ["v3", "v4"]
    store.drop_lease("service-1")
    assert store.collect_garbage(1) == ["v2"]
    store.unpin("v1")
    assert store.collect_garbage(0) == ["v1", "v5"]
    assert store.versions() == ["v6"]
    with pytest.raises(StoreError, match="keep must be 0 or more"):
        store.collect_garbage(-1)


def test_what_is_young_is_no_garbage(store: Store, url: str) -> None:
    assert Store(url).collect_garbage(0) == []


def test_a_pin_needs_a_version(store: Store) -> None:
    with pytest.raises(UnknownVersionError):
        store.pin("v9", by="me")
    assert store.pins() == []


def test_a_lease_that_is_not_renewed_ends(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.renew_lease("service-1", ["v1"])
    store.renew_lease("service-2", ["v2"])
    monkeypatch.setattr("sparse_encoder.store.LEASE_LASTS", monkeypatch_zero())
    assert store.leases() == {}
    monkeypatch.setattr("sparse_encoder.store.LEASE_REMOVED", monkeypatch_zero())
    assert store.collect_garbage(0) == ["v1", "v2"]
    monkeypatch.undo()
    assert store.leases() == {}  # they are gone, not only old


def monkeypatch_zero() -> object:
    from datetime import timedelta

    return timedelta(0)


class During:
    """Runs `action` once, right after the store has removed a manifest or hidden a version."""


def test_a_version_that_is_aliased_while_it_is_collected_stays(
    store: Store, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = store._files
    asked: list[str] = []
    original = files.remove_directory

    def remove(path: str, still_needed: object) -> bool:
        # An object store has no lock: the other process comes between the look and the removal.
        document = {**json.loads(files.read("aliases/stable.json") or b""), "version": "v1"}
        files.replace("aliases/stable.json", json.dumps(document).encode())
        asked.append(path)
        return original(path, still_needed)  # type: ignore[arg-type]

    monkeypatch.setattr(files, "remove_directory", remove)
    assert store.collect_garbage(1) == []
    assert asked == ["versions/v1"]
    check(url, tmp_path / "cache", {"v1", "v2", "v3"})


def test_an_alias_to_what_is_collected_meanwhile_is_taken_back(
    store: Store, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = store._files
    original = files.update

    def update(path: str, change: object) -> None:
        original(path, change)  # type: ignore[arg-type]
        monkeypatch.undo()
        files.remove_directory("versions/v1", lambda: False)

    for name in ("stable", "fresh"):
        before = store.aliases()
        store.publish(Path(make_path(url, store)), by="test")
        monkeypatch.setattr(files, "update", update)
        with pytest.raises(UnknownVersionError, match="'v1'"):
            store.set_alias(name, "v1", by="me")
        assert store.aliases() == before


def make_path(url: str, store: Store) -> Path:
    return Path(os.environ["PYTEST_STORE_V1"])


@pytest.fixture(autouse=True)
def _v1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_STORE_V1", str(tmp_path / "v1"))
