"""The store, local and on a real S3 server."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from sparse_encoder.__main__ import main
from sparse_encoder.artifact import ArtifactError, read_artifact
from sparse_encoder.store import Store, StoreError, UnknownVersionError, who
from tests.sparse_encoder.stores import check, make_artifact

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.fixture
def store(url: str, tmp_path: Path) -> Store:
    """Holds v1, v2 and v3; `stable` stood for each in turn."""
    store = Store(url, grace_seconds=0)
    for version in ("v1", "v2", "v3"):
        store.publish(make_artifact(tmp_path / version, version), aliases=["stable"], by="test", note=f"note {version}")
    return store


@pytest.fixture
def two_versions(tmp_path: Path) -> Path:
    for version in ("v1", "v2"):
        make_artifact(tmp_path / version, version)
    return tmp_path


def test_an_empty_store_is_empty(url: str) -> None:
    store = Store(url)
    assert (store.versions(), store.aliases(), store.pins(), store.leases(), store.collect_garbage(0)) == (
        [],
        {},
        [],
        {},
        [],
    )
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
    monkeypatch.setattr("sparse_encoder.store.LEASE_LASTS", timedelta(0))
    assert store.leases() == {}
    monkeypatch.setattr("sparse_encoder.store.LEASE_REMOVED", timedelta(0))
    assert store.collect_garbage(0) == ["v1", "v2"]
    monkeypatch.undo()
    assert store.leases() == {}  # they are gone, not only too old


def test_a_version_that_is_aliased_while_it_is_collected_stays(
    store: Store, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, remove = store._files, store._files.remove_directory

    def other_process_first(path: str, still_needed: Callable[[], bool]) -> bool:
        assert path == "versions/v1"
        document = {**json.loads(files.read("aliases/stable.json") or b""), "version": "v1"}
        files.replace("aliases/other.json", json.dumps(document).encode())
        return remove(path, still_needed)

    monkeypatch.setattr(files, "remove_directory", other_process_first)
    assert store.collect_garbage(1) == []
    check(url, tmp_path / "cache", {"v1", "v2", "v3"})


@pytest.mark.parametrize("name", ["stable", "fresh"])
def test_an_alias_to_what_is_collected_meanwhile_is_taken_back(
    store: Store, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, update = store.aliases(), store._files.update

    def other_process_next(path: str, change: Callable[[bytes | None], bytes | None]) -> None:
        update(path, change)
        store._files.remove_directory("versions/v1", lambda: False) if store._exists("v1") else None

    monkeypatch.setattr(store._files, "update", other_process_next)
    with pytest.raises(UnknownVersionError, match="'v1'"):
        store.set_alias(name, "v1", by="me")
    assert store.aliases() == before


def test_a_version_that_is_collected_while_it_is_fetched_is_unknown(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = store._files.local

    def other_process_first(path: str) -> Path | None:
        store._files.remove_directory("versions/v1", lambda: False)
        return local(path)

    monkeypatch.setattr(store._files, "local", other_process_first)
    with pytest.raises(UnknownVersionError, match="'v1'; versions: v2, v3"):
        store.fetch("v1", tmp_path / "cache")
    assert not list(tmp_path.glob("cache/*"))


def test_a_remote_version_is_downloaded_once_and_again_when_damaged(store: Store, tmp_path: Path) -> None:
    fetched = store.fetch("v1", tmp_path / "cache").path / "config.json"
    inode = fetched.stat().st_ino
    assert (store.fetch("v1", tmp_path / "cache").path / "config.json").stat().st_ino == inode
    if fetched.is_relative_to(tmp_path / "cache"):
        fetched.write_text("broken")
        store.fetch("v1", tmp_path / "cache")
        assert fetched.read_bytes() == (tmp_path / "v1" / "config.json").read_bytes()


def test_damage_is_found(store: Store, tmp_path: Path) -> None:
    store._files.replace("versions/v2/model.safetensors", b"x" * 20_000)
    with pytest.raises(ArtifactError, match="model"):
        store.fetch("v2", tmp_path / "cache")
    store._files.replace("versions/v2/config.json", b"x")
    with pytest.raises(ArtifactError, match=r"config\.json of v2"):
        store.read_file("v2", "config.json")
    assert store.fetch("v1", tmp_path / "cache").manifest.version == "v1"
    assert not [path for path in tmp_path.glob("cache/*") if path.name.startswith("v2")]


def test_a_record_that_cannot_be_read_is_an_error_and_no_reason_to_collect(store: Store) -> None:
    for path, content in (("aliases/stable.json", b"{"), ("leases/a.json", b'{"format_version": 1}')):
        before = store._files.read(path)
        store._files.replace(path, content)
        with pytest.raises(StoreError, match=re.escape(path)):
            store.collect_garbage(0)
        store._files.replace(path, before) if before else store._files.remove_file(path)
    assert store.versions() == ["v1", "v2", "v3"]


def test_what_died_publishers_left_is_collected_when_it_is_old(store: Store, tmp_path: Path) -> None:
    left = ("versions/v4/config.json", "versions/.v5.1.partial/config.json", "aliases/.stable.json.1.partial")
    for path in left:
        store._files.replace(path, b"half")
    young = Store(store.url)
    assert young.versions() == ["v1", "v2", "v3"]
    with pytest.raises(UnknownVersionError):
        young.resolve("v4")
    with pytest.raises(StoreError, match="has other files and no manifest"):
        young.publish(make_artifact(tmp_path / "v4", "v4"), by="test")
    assert young.collect_garbage(5) == []
    assert all(store._files.read(path) for path in left)
    assert sorted(store.collect_garbage(5)) == [".v5.1.partial", "v4"]
    assert not any(store._files.read(path) for path in left)
    young.publish(tmp_path / "v4", by="test")


def test_two_publishers_of_one_version_never_mix(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On an object store they write into one folder; the second meets a file of the first."""
    ours, theirs = (make_artifact(tmp_path / name, "v1", content=name) for name in ("ours", "theirs"))
    store, other = Store(url), Store(url)
    add = store._files.add_directory

    def other_first(*arguments: Any) -> None:
        other.publish(theirs, aliases=["stable"], by="other")
        add(*arguments)

    monkeypatch.setattr(store._files, "add_directory", other_first)
    with pytest.raises(StoreError, match="with other content"):
        store.publish(ours, aliases=["stable"], by="test")
    check(url, tmp_path / "cache", {"v1"})
    assert other.fetch("v1", tmp_path / "cache").manifest == read_artifact(theirs).manifest
    assert store.aliases()["stable"].by == "other"


def test_no_change_of_an_alias_is_lost(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process changes it between our reading and our writing."""
    store.set_alias("fresh", "v3", by="me")
    other, read = Store(store.url), store._files.read
    thread = Thread(target=lambda: other.set_alias("fresh", "v1", by="other"))

    def read_then_other(path: str) -> bytes | None:
        content = read(path)
        if path == "aliases/fresh.json" and not thread.ident:
            thread.start()
            thread.join(1)  # in a local store it waits for us instead, for the lock
        return content

    monkeypatch.setattr(store._files, "read", read_then_other)
    store.set_alias("fresh", "v2", by="me")
    thread.join()
    alias = store.aliases()["fresh"]
    assert sorted({alias.version, *alias.previous}) == ["v1", "v2", "v3"]


def run(*command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.sparse_encoder.store_worker", *command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def output(process: subprocess.Popen[str]) -> str:
    out, error = process.communicate()
    assert process.returncode == 0, error
    return out


@pytest.mark.timeout(120)
def test_processes_at_once(store: Store, url: str, tmp_path: Path) -> None:
    """Publishers of one version, and aliases: nothing fails and nothing that was set is forgotten."""
    artifacts = [make_artifact(tmp_path / name, "v4") for name in ("a", "b")]
    count = 8
    publishers = [run("publish", url, str(path), path.name) for path in artifacts]
    setters = [run("aliases", url, "stable", version, str(count)) for version in ("v1", "v2")]
    for process in (*publishers, *setters):
        output(process)
    check(url, tmp_path / "cache", {"v1", "v2", "v3", "v4"})
    aliases = store.aliases()
    assert {name: alias.version for name, alias in aliases.items() if name != "stable"} == {"a": "v4", "b": "v4"}
    assert {aliases["stable"].version, *aliases["stable"].previous} == {"v1", "v2", "v3"}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["kill", "full disk"])
def test_a_fault_at_any_step_of_publishing(url: str, kind: str, two_versions: Path) -> None:
    """Stores whose publisher died, or found the disk full, at its n-th step, for every n."""
    assert int(output(run("faults", url, str(two_versions), kind))) >= 7  # five files, the manifest, the alias


@pytest.mark.timeout(300)
def test_a_publisher_killed_at_fifty_random_moments(tmp_path: Path) -> None:
    assert output(run("kills", str(tmp_path / "store"), str(tmp_path), "50")) == "50\n"


def test_writes_that_stop_in_the_middle(tmp_path: Path, two_versions: Path) -> None:
    assert int(output(run("limits", str(tmp_path / "store"), str(two_versions)))) >= 7


def test_a_store_that_cannot_be_reached_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no directory")
    with pytest.raises(StoreError, match="failed at"):
        Store(str(tmp_path / "file")).set_alias("stable", "v1", by="me")
    with pytest.raises(StoreError, match="cannot be opened"):
        Store("nonsense://models")
    options = {
        "key": "a",
        "secret": "b",
        "endpoint_url": "http://127.0.0.1:9",
        "config_kwargs": {"retries": {"max_attempts": 0}},
    }
    with pytest.raises(StoreError, match="see that it can be reached"):
        Store("s3://models/x", options).versions()


def test_the_command_line(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    def command(*arguments: str, code: int = 0) -> str:
        assert main(["store", store.url, *arguments]) == code
        captured = capsys.readouterr()
        return captured.err if code else captured.out

    store.renew_lease("pod-1", ["v2"])
    assert command("list") == "v1 \nv2 (held by pod-1)\nv3 (stable)\n"
    assert command("alias", "canary", "v1", "--note", "to look at") == "canary -> v1\n"
    assert "canary: stands for it; set " in (shown := command("show", "canary"))
    assert f"by {who()}: to look at\n" in shown
    assert '"version": "v1"' in shown
    assert command("rollback", "stable") == "stable -> v2\n"
    command("pin", "stable")
    assert store.pins() == ["v2"]
    command("unpin", "v2")
    assert store.pins() == []
    assert command("gc", "--keep", "0") == ""  # all are young
    for wrong in (
        ("unpin", "v1"),
        ("show", "v9"),
        ("alias", "stable", "v9"),
        ("rollback", "canary"),
        ("gc", "--keep", "-1"),
    ):
        assert command(*wrong, code=1).startswith("error: ")
