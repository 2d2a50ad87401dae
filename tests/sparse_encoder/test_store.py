"""The store of published versions, on a directory and on a real S3 server."""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from sparse_encoder.__main__ import main
from sparse_encoder.artifact import ArtifactError, read_artifact, write_artifact
from sparse_encoder.store import Store, StoreError, UnknownVersionError
from tests.sparse_encoder.s3_server import s3_server
from tests.sparse_encoder.test_artifact import DESCRIPTION, fill

ROOT = Path(__file__).parents[2]
Open = Callable[..., Store]
Make = Callable[..., Path]


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, Any]]:
    with s3_server() as options:
        yield options


@pytest.fixture(params=["local", "s3"])
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


_numbers = itertools.count()


@pytest.fixture
def open_store(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> Open:
    """Opens the same store each time, as another process would."""
    if kind == "local":
        return lambda **more: Store(str(tmp_path / "store"), **more)
    options, url = request.getfixturevalue("s3"), f"s3://models/store-{next(_numbers)}"
    return lambda **more: Store(url, options, **more)


@pytest.fixture
def store(open_store: Open) -> Store:
    return open_store()


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def make(version: str, extra: str = "") -> Path:
        def fill_more(directory: Path) -> None:
            fill(directory)
            (directory / "README.md").write_text(f"{version} {extra}")

        target = tmp_path / f"artifact-{next(_numbers)}"
        return write_artifact(target, fill_more, lambda _: dataclasses.replace(DESCRIPTION, version=version))

    return make


def test_what_is_published_is_found_and_fetched_whole(
    store: Store, open_store: Open, make: Make, tmp_path: Path
) -> None:
    assert (store.versions(), store.aliases()) == ([], {})
    artifact = make("v1")
    assert store.publish(artifact, aliases=["stable", "canary"], by="someone", note="first") == "v1"
    other = open_store()
    assert other.versions() == ["v1"]
    assert (other.resolve("stable"), other.resolve("v1")) == ("v1", "v1")
    assert other.manifest("v1") == read_artifact(artifact).manifest
    fetched = other.fetch("v1", tmp_path / "cache")
    assert {path.name: path.read_bytes() for path in fetched.path.iterdir()} == {
        path.name: path.read_bytes() for path in artifact.iterdir()
    }
    alias = other.aliases()["canary"]
    assert (alias.version, alias.previous, alias.by, alias.note) == ("v1", (), "someone", "first")


def test_an_alias_remembers_and_goes_back(store: Store, make: Make) -> None:
    for version in ("v1", "v2", "v3"):
        store.publish(make(version), aliases=["stable"], by="a")
    assert store.aliases()["stable"].previous == ("v2", "v1")
    assert store.rollback("stable", by="b").version == "v2"
    alias = store.aliases()["stable"]
    assert (alias.version, alias.previous, alias.note) == ("v2", ("v3", "v1"), "rollback from v3")
    assert store.set_alias("stable", "v1", by="c").previous == ("v2", "v3")
    with pytest.raises(StoreError, match="canary"):
        store.rollback("canary", by="b")


def test_there_is_nothing_before_the_first_version(store: Store, make: Make) -> None:
    store.publish(make("v1"), aliases=["stable"], by="a")
    with pytest.raises(StoreError, match="stable has no earlier version left to go back to: point it at one of v1"):
        store.rollback("stable", by="b")


def test_an_unknown_name_is_answered_with_those_that_exist(store: Store, make: Make, tmp_path: Path) -> None:
    store.publish(make("v1"), aliases=["stable"], by="a")
    wanted = r"has no version or alias '{}'; versions: v1; aliases: stable"
    for name in ("v9", "../v1"):
        message = wanted.format(name)
        for ask in (store.resolve, store.manifest, lambda n: store.fetch(n, tmp_path), lambda n: store.pin(n, by="a")):
            with pytest.raises(UnknownVersionError, match=message):
                ask(name)
        with pytest.raises(UnknownVersionError, match=message):
            store.set_alias("canary", name, by="a")
    assert set(store.aliases()) == {"stable"}
    for name in ("../x", "", ".hidden", "a/b"):
        with pytest.raises(StoreError, match="choose another name"):
            store.set_alias(name, "v1", by="a")


def test_a_version_never_changes(store: Store, make: Make) -> None:
    store.publish(make("v1"), by="a")
    store.publish(make("v1"), by="b")  # the same content
    with pytest.raises(StoreError, match="has a version v1 already, with other content"):
        store.publish(make("v1", "changed"), aliases=["stable"], by="c")
    assert store.aliases() == {}


def test_a_damaged_artifact_is_not_published(store: Store, make: Make) -> None:
    artifact = make("v1")
    (artifact / "config.json").write_text("changed")
    with pytest.raises(ArtifactError):
        store.publish(artifact, aliases=["stable"], by="a")
    assert (store.versions(), store.aliases()) == ([], {})


def test_a_damaged_version_is_never_fetched(store: Store, make: Make, tmp_path: Path) -> None:
    store.publish(make("v1"), by="a")
    store._files.replace("versions/v1/config.json", b"content of config.jsoN")
    with pytest.raises(ArtifactError, match="sha256 differs"):
        store.fetch("v1", tmp_path / "cache")
    assert not any((tmp_path / "cache").glob("*"))


def test_half_a_version_is_no_version(store: Store, open_store: Open, make: Make, tmp_path: Path) -> None:
    """A publisher that died before the manifest; the next one of this version completes it."""
    artifact = make("v1")
    store._files.replace("versions/v1/config.json", (artifact / "config.json").read_bytes())
    assert store.versions() == []
    with pytest.raises(UnknownVersionError):
        store.resolve("v1")
    with pytest.raises(UnknownVersionError):
        store.fetch("v1", tmp_path / "cache")
    assert open_store(grace_seconds=3600).collect_garbage(0) == []
    assert open_store(grace_seconds=0).collect_garbage(0) == ["v1"]
    store.publish(artifact, aliases=["stable"], by="a")
    store.fetch("v1", tmp_path / "cache")


def test_garbage_is_what_nothing_needs(open_store: Open, make: Make) -> None:
    store = open_store(grace_seconds=0)
    for number in range(8):
        store.publish(make(f"v{number}"), aliases=["stable"], by="a")
    store.publish(make("aside"), by="a")
    store.pin("v0", by="a", note="an index of March")
    store.renew_lease("service-1", ["v1"])
    store.set_alias("canary", "v2", by="a")
    assert open_store().collect_garbage(2) == []  # all of them are young
    assert store.collect_garbage(2, dry_run=True) == ["aside", "v3", "v4"]
    assert len(store.versions()) == 9
    assert store.collect_garbage(2) == ["aside", "v3", "v4"]
    assert sorted(store.versions()) == ["v0", "v1", "v2", "v5", "v6", "v7"]
    store.unpin("v0")
    store.drop_lease("service-1")
    assert store.collect_garbage(2) == ["v0", "v1"]
    assert store.rollback("stable", by="a").version == "v6"


def test_an_old_lease_does_not_count(open_store: Open, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(grace_seconds=0)
    store.publish(make("v1"), by="a")
    store.renew_lease("service-1", ["v1"])
    assert store.leases() == {"service-1": ["v1"]}
    monkeypatch.setattr("sparse_encoder.store.LEASE_LASTS", timedelta(0))
    assert store.leases() == {}
    assert store.collect_garbage(0) == ["v1"]


def test_what_cannot_be_read_is_said(store: Store, make: Make) -> None:
    store.publish(make("v1"), aliases=["stable"], by="a")
    store._files.replace("aliases/stable.json", b'{"format_version": 2}')
    with pytest.raises(StoreError, match=r"aliases/stable\.json of .* cannot be read"):
        store.resolve("stable")
    store._files.replace("aliases/stable.json", b'{"format_version": 1}')
    with pytest.raises(StoreError, match="is no alias"):
        store.aliases()


@pytest.mark.parametrize("kind", ["s3"], indirect=True)
def test_a_remote_version_is_downloaded_once_and_again_when_damaged(store: Store, make: Make, tmp_path: Path) -> None:
    store.publish(make("v1"), by="a")
    cache = tmp_path / "cache"
    first = store.fetch("v1", cache)
    inode = (first.path / "config.json").stat().st_ino
    assert (store.fetch("v1", cache).path / "config.json").stat().st_ino == inode
    (first.path / "config.json").write_text("broken")
    assert read_artifact(store.fetch("v1", cache).path).manifest.version == "v1"
    assert [path.name for path in cache.iterdir()] == [first.path.name]


@pytest.mark.parametrize("kind", ["s3"], indirect=True)
def test_an_upload_that_breaks_off_anywhere_shows_nothing(
    store: Store, open_store: Open, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = make("v1")
    put = store._files._filesystem.put_file  # type: ignore[attr-defined]
    files = len(list(artifact.iterdir()))
    for allowed in range(files):
        left = iter(range(allowed))

        def break_off(*arguments: Any, left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise ConnectionResetError("the network is gone")
            put(*arguments)

        monkeypatch.setattr(store._files._filesystem, "put_file", break_off)  # type: ignore[attr-defined]
        with pytest.raises(StoreError, match=r"failed to add_directory .*the network is gone"):
            store.publish(artifact, aliases=["stable"], by="a")
        assert (open_store().versions(), open_store().aliases()) == ([], {})
    monkeypatch.undo()
    store.publish(artifact, aliases=["stable"], by="a")
    assert open_store().resolve("stable") == "v1"


@pytest.mark.parametrize(("how", "least"), [("step", 30), ("kill", 50), ("full", 10)])
def test_dead_publishers_leave_only_complete_versions(how: str, least: int, tmp_path: Path) -> None:
    script = ROOT / "tests/sparse_encoder/dying_publishers.py"
    command = [sys.executable, str(script), str(tmp_path / "store"), str(tmp_path / "scratch"), how]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) >= least


def test_many_publish_and_point_at_once_and_nothing_is_lost(
    store: Store, open_store: Open, make: Make, kind: str
) -> None:
    artifacts = [make(f"v{number}") for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda artifact: open_store().publish(artifact, aliases=["stable"], by="a"), artifacts * 3))
    assert sorted(store.versions()) == [f"v{number}" for number in range(8)]
    alias = store.aliases()["stable"]
    if kind == "local":  # an object store has no lock: there the last one wins
        assert {alias.version, *alias.previous} == {f"v{number}" for number in range(8)}
    assert alias.version in store.versions()


def test_a_store_that_cannot_be_reached_is_said() -> None:
    with pytest.raises(StoreError, match="cannot be opened"):
        Store("nothing-known://bucket")
    options = {
        "key": "a",
        "secret": "b",
        "endpoint_url": "http://127.0.0.1:9",
        "config_kwargs": {"retries": {"max_attempts": 0}},
    }
    with pytest.raises(StoreError, match=r"s3://models/x failed to names .*see that it can be reached"):
        Store("s3://models/x", options).versions()


def test_the_command_line(tmp_path: Path, make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    url = str(tmp_path / "store")
    for version in ("v1", "v2"):
        Store(url).publish(make(version), aliases=["stable"], by="a", note=f"gates passed for {version}")

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(["store", url, *arguments])
        out, err = capsys.readouterr()
        return code, out, err

    assert run("alias", "canary", "stable")[:2] == (0, "canary -> v2\n")
    assert run("rollback", "stable", "--note", "slow")[:2] == (0, "stable -> v1\n")
    assert run("pin", "v2")[0] == 0
    code, out, _ = run("list")
    assert [line.split(" ", 1) for line in out.splitlines()] == [["v1", "(stable)"], ["v2", "(canary, pinned)"]]
    code, out, _ = run("show", "stable")
    assert out.startswith("stable: stands for it; set ")
    assert ": slow\n" in out
    assert '"version": "v1"' in out
    assert run("unpin", "v2")[0] == run("gc", "--dry-run")[0] == 0
    code, out, err = run("alias", "stable", "v9")
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert "versions: v1, v2; aliases: canary, stable" in err
