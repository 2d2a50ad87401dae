"""Stores that hang, vanish or are damaged: the service goes on with what it has, says so, and stops when told to."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from s3fs import S3FileSystem

from app.models import memory
from app.versions import loading, patience, watching
from app.versions.patience import Patience
from app.versions.stored import without_places
from sparse_encoder.store import Store, StoreError
from tests.app.broken import put_broken
from tests.app.server import running as process
from tests.app.versions.test_stored import KEY, running
from tests.sparse_encoder.stores import s3_environment

# ruff: noqa: ASYNC240 - files on this machine

pytestmark = pytest.mark.slow


class Hanging:
    """An alias file that can be opened and is never read: a pipe without a writer."""

    def __init__(self, store: Store, alias: str = "stable") -> None:
        self._path = Path(store.url) / "aliases" / f"{alias}.json"
        self._content = self._path.read_bytes()

    def begin(self) -> None:
        self._path.unlink()
        os.mkfifo(self._path)

    def end(self) -> None:
        """Whoever waits reads nothing; from now on it is a file again."""
        if not self._path.is_fifo():
            return
        pipe = self._path.rename(self._path.with_name("pipe"))
        self._path.write_bytes(self._content)
        try:
            while True:
                os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
                time.sleep(0.001)
        except OSError:  # nobody waits
            pipe.unlink()


@pytest.fixture
def hanging(store: Store) -> Iterator[Hanging]:
    made = Hanging(store)
    yield made
    made.end()


async def test_a_store_that_hangs_is_given_up_in_time_told_and_followed_when_it_answers_again(
    store: Store,
    published: dict[str, Path],
    hanging: Hanging,
    monkeypatch: pytest.MonkeyPatch,
    show_logs: pytest.LogCaptureFixture,
) -> None:
    async with running(store) as service:
        monkeypatch.setattr(watching, "STORE_SECONDS", 0.2)
        hanging.begin()
        info = await service.until(lambda info: info["store_error"] is not None)
        assert "did not answer read within 0.2 s" in info["store_error"]
        while await service.metric("store_failed_polls_total") < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        assert await service.version() == "v1"
        assert await service.metric("store_poll_age_seconds") > 0.1
        response = await service.client.put("/admin/aliases/next", json={"version": "v1"}, headers=KEY)
        assert response.status_code == 503
        monkeypatch.undo()
        hanging.end()
        store.publish(published["v2"], aliases=["stable"], by="test")
        await service.serves("v2")
    messages = [record.getMessage() for record in show_logs.records]
    assert sum("cannot be read" in message for message in messages) == 1


async def test_an_answer_that_comes_with_the_end_of_the_time_is_taken() -> None:
    calls = Patience("s3://models")
    for seconds in (0.001, 0.002, 0.004) * 20:
        with suppress(StoreError):  # and nothing else
            await calls.call(seconds, time.sleep, seconds)


async def test_no_more_threads_are_given_to_a_store_than_a_few() -> None:
    release, calls = threading.Event(), Patience("s3://models")
    for _ in range(patience.MOST_LATE):
        with pytest.raises(StoreError, match=r"did not answer wait within 0\.001 s"):
            await calls.call(0.001, release.wait)
    with pytest.raises(StoreError, match="hangs: 8 calls were not answered"):
        await calls.call(10, release.wait)
    release.set()
    while True:
        try:
            assert await calls.call(10, lambda: 7) == 7
            break
        except StoreError:
            await asyncio.sleep(0.001)


def test_sigterm_does_not_wait_for_a_store_that_hangs(store: Store, hanging: Hanging) -> None:
    flags = ("--port", "0", "--store", store.url, "--poll-seconds", "0.05", "--drain-seconds", "0")
    leases = Path(store.url) / "leases"
    with process("-m", "app", *flags) as server:
        while not leases.is_dir():  # what it serves is not held yet
            time.sleep(0.01)
        hanging.begin()
        leases.rename(leases.with_name("no leases"))
        time.sleep(0.5)  # a poll hangs by now; if it does not, there is less to see
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(25) == 0  # a call to the store may take 30


async def test_a_server_that_accepts_and_never_answers_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a store in S3: the start says so in time, instead of after minutes."""
    monkeypatch.setattr(watching, "STORE_SECONDS", 0.5)
    monkeypatch.setattr(S3FileSystem, "cachable", False)  # another test's server may be remembered
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        for name, value in s3_environment(address).items():
            monkeypatch.setenv(name, value)
        with pytest.raises(StoreError, match=r"s3://models did not answer read within 0\.5 s"):
            async with running(Store("s3://models")):
                pass


async def test_a_start_without_the_store_serves_what_was_served_last(
    tmp_path: Path,
    published: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    show_logs: pytest.LogCaptureFixture,
) -> None:
    store = Store("memory://away-at-start")
    store.publish(published["v1"], aliases=["stable"], by="test")
    cache = tmp_path / "cache"
    async with running(store, cache_dir=cache):
        store.publish(published["v2"], aliases=["stable"], by="test")
    async with running(store, cache_dir=cache) as service:
        assert await service.version() == "v2"
    read = Store.alias_names

    def away(self: Store) -> None:
        raise StoreError("there is no way to it")

    monkeypatch.setattr(Store, "alias_names", away)
    async with running(store, cache_dir=cache) as service:
        assert await service.version() == "v2"
        assert (await service.client.get("/readyz")).status_code == 200
        assert "no way to it" in (await service.versions())["store_error"]
        assert "serving v2 from the cache, which was served last as stable: there is no way" in show_logs.text
        monkeypatch.setattr(Store, "alias_names", read)
        store.publish(published["v3"], aliases=["stable"], by="test")
        await service.serves("v3")
    monkeypatch.setattr(Store, "alias_names", away)
    shutil.rmtree(cache / "downloaded", ignore_errors=True)  # the version that left may be on its way out as well
    assert not list(cache.glob("downloaded/*/manifest.json"))
    with pytest.raises(StoreError, match="no way to it"):
        async with running(store, cache_dir=cache):
            pass


async def test_a_store_directory_that_vanishes_is_noticed_and_not_made_again(
    store: Store, published: dict[str, Path]
) -> None:
    root = Path(store.url)
    async with running(store, poll_seconds=0.01) as service:
        root.rename(root.with_name("elsewhere"))
        info = await service.until(lambda info: info["store_error"] is not None)
        assert "is empty or gone, it had 1 versions" in info["store_error"]
        assert await service.version() == "v1"
        await service.client.put("/admin/aliases/next", json={"version": "v1"}, headers=KEY)
        await asyncio.sleep(0.05)
        assert not root.exists()
        root.with_name("elsewhere").rename(root)
        store.publish(published["v2"], aliases=["stable"], by="test")
        await service.serves("v2")
    assert root.exists()
    root.rename(root.with_name("elsewhere"))
    with pytest.raises(StoreError):
        store.renew_lease("service", ["v1"])
    assert not root.exists()


async def test_a_store_that_vanishes_while_it_is_read_is_noticed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    root, versions, vanished = Path(store.url), Store.versions, threading.Event()

    def vanish_between(store: Store) -> list[str]:
        if vanished.is_set() and root.exists():
            root.rename(root.with_name("elsewhere"))
        return versions(store)

    monkeypatch.setattr(Store, "versions", vanish_between)
    async with running(store, poll_seconds=0.01) as service:
        vanished.set()
        info = await service.until(lambda info: info["store_error"] is not None)
        assert "is empty or gone, it had 1 versions" in info["store_error"]
        assert info["aliases"]["stable"] == "v1"


async def test_an_alias_that_cannot_be_read_stops_no_other(
    store: Store, published: dict[str, Path], show_logs: pytest.LogCaptureFixture
) -> None:
    store.set_alias("next", "v1", by="test")
    async with running(store) as service:
        (Path(store.url) / "aliases" / "next.json").write_text("{")
        store.publish(published["v2"], aliases=["stable"], by="test")
        await service.serves("v2")
        response = await service.client.put("/admin/aliases/stable", json={"version": "v1"}, headers=KEY)
        assert (response.status_code, response.json()["serving"]) == (200, "v1")
        assert await service.version(version="next") == "v1"  # as it was
        assert "next" in (await service.versions())["store_error"]
        (Path(store.url) / "aliases" / "stable.json").write_text("{")
        await service.until(lambda info: "stable" in (info["store_error"] or ""))
        assert await service.version() == "v1"
    assert sum("the alias next stays as it was" in record.getMessage() for record in show_logs.records) == 1
    with pytest.raises(StoreError, match=r"stable\.json .* cannot be read"):
        async with running(store):
            pass


async def test_answers_do_not_say_where_the_store_is_and_the_log_does(
    store: Store, published: dict[str, Path], show_logs: pytest.LogCaptureFixture
) -> None:
    root = Path(store.url)
    put_broken(root, published["v2"], "bad", "truncated file")
    async with running(store) as service:
        answers = [await service.encode(version="bad")]
        store.set_alias("stable", "bad", by="test")
        await service.refuses("bad")
        answers.append(await service.client.get("/info"))
        answers.append(await service.client.post("/admin/versions/bad/load", headers=KEY))
        answers.append(await service.client.put("/admin/aliases/v1", json={"version": "v1"}, headers=KEY))
        root.rename(root.with_name("elsewhere"))
        await service.until(lambda info: info["store_error"] is not None)
        answers.append(await service.client.get("/info"))
        answers.append(await service.client.put("/admin/aliases/next", json={"version": "v1"}, headers=KEY))
    assert [answer.status_code for answer in answers] == [503, 200, 409, 409, 200, 404]
    assert "the store/versions/bad/model.safetensors has" in answers[0].text  # what is wrong, they do say
    assert "v1 is a version of the store" in answers[3].text
    for answer in answers:
        assert str(root.parent) not in answer.text
    assert str(root) in show_logs.text


def test_the_address_of_a_server_is_not_told_either() -> None:
    message = (
        "s3://bucket/models failed at read (EndpointConnectionError: Could not connect to the endpoint URL: "
        '"http://10.0.0.5:9000/bucket?list-type=2"): see that it can be reached'
    )
    assert without_places(message, Store("s3://bucket/models").places) == (
        "the store failed at read (EndpointConnectionError: Could not connect to the endpoint URL: "
        '"its server"): see that it can be reached'
    )


async def test_a_load_that_fails_sends_nobody_away(
    store: Store, published: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    store.publish(published["v2"], by="test")
    for kind in ("golden mismatch", "other architecture"):
        put_broken(Path(store.url), published["v3"], kind.split()[0], kind)
    async with running(store) as service:
        assert await service.version(version="v2") == "v2"
        for bad in ("golden", "other"):
            assert (await service.encode(version=bad)).status_code == 503
        assert (await service.versions())["resident"] == ["v1", "v2"]
        assert len(service.encoders["v2"]) == 1
        left = iter([0])  # for the first look: v2 leaves for a version that then fails, and comes back
        monkeypatch.setattr(memory, "available_bytes", lambda: next(left, 10**12))
        store.set_alias("stable", "golden", by="test")
        assert (await service.refuses("golden"))["stage"] == "golden"
        await service.until(lambda info: info["resident"] == ["v1", "v2"])
        assert len(service.encoders["v2"]) == 2


def test_of_what_others_downloaded_the_newest_stay_for_a_while(tmp_path: Path) -> None:
    ages = {"young": 1, "a": 700, "b": 800, "c": 900, "d": 1000, "old": 4000, "kept": 9000}
    for name, age in ages.items():
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (time.time() - age, time.time() - age))
    loading._delete_left(tmp_path, {tmp_path / "kept"})
    assert {path.name for path in tmp_path.iterdir()} == {"young", "a", "b", "c", "kept"}
