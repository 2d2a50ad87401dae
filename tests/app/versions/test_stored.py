"""The service in this process, following a real store: swaps, refusals, pins, outages, and the admin routes."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import re
import time
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from app.encoders.base import Encoder
from app.encoders.openvino_encoder import OpenVINOEncoder
from app.main import create_app
from app.models import memory
from app.models.loaded import ModelError
from app.settings import Settings
from sparse_encoder.artifact import Artifact
from sparse_encoder.store import Store
from tests.app.broken import BROKEN, copy, put_broken
from tests.app.conftest import openvino
from tests.app.controlled import ControlledEncoder

pytestmark = pytest.mark.slow

POLL = 0.02
KEY = {"Authorization": "Bearer key"}
QUERY = {"texts": ["손해배상"], "input_type": "query"}


class Running:
    """A client of the service, and its encoders by version, in the order they were loaded."""

    client: httpx.AsyncClient

    def __init__(self) -> None:
        self.encoders: dict[str, list[ControlledEncoder]] = {}
        self.hold_next = False

    def build(self, artifact: Artifact) -> ControlledEncoder:
        made = ControlledEncoder(openvino(artifact))
        if self.hold_next:
            made.hold()
        self.encoders.setdefault(artifact.manifest.version, []).append(made)
        return made

    async def encode(self, **fields: object) -> httpx.Response:
        return await self.client.post("/encode", json={**QUERY, **fields})

    async def version(self, **fields: object) -> str:
        response = await self.encode(**fields)
        assert response.status_code == 200, response.text
        return str(response.headers["x-model-version"])

    async def versions(self) -> dict[str, Any]:
        info: dict[str, Any] = (await self.client.get("/info")).json()["versions"]
        return info

    async def until(self, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Returns what /info says of the versions as soon as `condition` holds."""
        while not condition(info := await self.versions()):  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        return info

    async def serves(self, version: str) -> None:
        await self.until(lambda info: info["serving"] == version)

    async def refuses(self, version: str) -> dict[str, str]:
        info = await self.until(lambda info: bool(info["last_failure"]) and info["last_failure"]["version"] == version)
        failure: dict[str, str] = info["last_failure"]
        return failure

    async def metric(self, name: str) -> float:
        lines = (await self.client.get("/metrics")).text.splitlines()
        return next((float(line.split()[-1]) for line in lines if line.startswith(f"sparse_encoder_{name}")), 0.0)


@asynccontextmanager
async def running(
    store: Store | None, build: Callable[[Artifact], Encoder] | None = None, /, **options: Any
) -> AsyncIterator[Running]:
    settings = Settings(
        **{
            "store": store.url if store else None,
            "poll_seconds": POLL,
            "encoder_threads": 1,
            "max_batch_tokens": 128,
            "query_cache_size": 0,  # the tests send one query again and again, and count what the encoder gets
            "admin_key": SecretStr("key"),
            "log_level": "error",
            **options,
        }
    )
    service = Running()
    app = create_app(settings, build or service.build)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as service.client,
    ):
        try:
            yield service
        finally:
            for encoder in (encoder for made in service.encoders.values() for encoder in made):
                encoder.release()


async def test_a_version_published_under_the_alias_comes_to_be_served_and_the_old_one_leaves(
    store: Store, published: dict[str, Path]
) -> None:
    async with running(store) as service:
        before = (await service.encode()).json()
        assert await service.version() == "v1"
        store.publish(published["v2"], aliases=["stable"], by="test")
        await service.serves("v2")
        assert await service.version() == "v2"
        assert (await service.encode()).json() != before
        info = await service.versions()
        assert info["resident"] == ["v2"]
        assert info["aliases"] == {"stable": "v2"}
        assert info["last_failure"] is None
        assert (await service.client.get("/readyz")).json() == {"status": "ready", "version": "v2"}
        metrics = (await service.client.get("/metrics")).text
        for line in ('model{version="v2"} 1.0', 'resident{version="v2"} 1.0', 'swaps_total{result="served"} 1.0'):
            assert f"sparse_encoder_{line}" in metrics
        assert 'version="v1"' not in metrics
        for stage in ("fetch", "vocabulary", "memory", "load", "golden", "canary"):
            assert f'sparse_encoder_swap_stage_seconds_count{{stage="{stage}"}}' in metrics


async def test_a_request_is_answered_by_the_version_of_its_admission(store: Store, published: dict[str, Path]) -> None:
    async with running(store) as service:
        expected = (await service.encode()).json()
        service.encoders["v1"][0].hold()
        waiting = asyncio.create_task(service.encode())
        await service.encoders["v1"][0].entered()
        queued = asyncio.create_task(service.encode())
        await asyncio.sleep(0)
        while await service.metric("texts_in_flight") != 2:  # noqa: ASYNC110
            await asyncio.sleep(0)
        store.publish(published["v2"], aliases=["stable"], by="test")
        await service.serves("v2")
        assert sorted((await service.versions())["resident"]) == ["v1", "v2"]  # held by its requests
        service.encoders["v1"][0].release()
        for response in (await waiting, await queued):
            assert (response.headers["x-model-version"], response.json()) == ("v1", expected)
        assert (await service.versions())["resident"] == ["v2"]


@pytest.mark.parametrize("kind", BROKEN)
async def test_each_kind_of_broken_version_is_refused_for_its_own_reason(
    store: Store, published: dict[str, Path], kind: str, show_logs: pytest.LogCaptureFixture
) -> None:
    _, _, stage, reason = BROKEN[kind]
    async with running(store) as service:
        put_broken(Path(store.url), published["v2"], "bad", kind)
        store.set_alias("stable", "bad", by="test")
        failure = await service.refuses("bad")
        assert failure["stage"] == stage
        assert reason in failure["reason"]
        assert await service.version() == "v1"
        assert (await service.client.get("/readyz")).status_code == 200
        assert (await service.versions())["resident"] == ["v1"]
        assert await service.metric(f'swaps_total{{result="refused_{stage}"}}') == 1
        assert await service.metric(f'refused_version{{stage="{stage}",version="bad"}}') == 1
    (logged,) = [r for r in show_logs.records if r.levelno == logging.ERROR and "is not served" in r.getMessage()]
    assert logged.getMessage().startswith("bad is not served: ")
    assert reason in logged.getMessage()


@pytest.fixture
def no_collector() -> Iterator[None]:
    """What refers to itself stays, and so shows; with the collector it stays for as long as that pleases."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("kind", BROKEN)
async def test_a_model_that_was_refused_or_replaced_after_that_is_freed_at_once(
    store: Store, published: dict[str, Path], kind: str
) -> None:
    alive: weakref.WeakSet[OpenVINOEncoder] = weakref.WeakSet()

    class Watched(OpenVINOEncoder):
        def __init__(self, artifact: Artifact) -> None:
            alive.add(self)  # whether or not it can be made
            super().__init__(artifact, "f32", threads=1)

    async with running(store, Watched) as service:
        put_broken(Path(store.url), published["v2"], "bad", kind)
        store.set_alias("stable", "bad", by="test")
        await service.refuses("bad")
        store.publish(published["v3"], aliases=["stable"], by="test")
        await service.serves("v3")
        while len(alive) > 1:  # noqa: ASYNC110 - a thread frees them
            await asyncio.sleep(0.005)


@pytest.mark.parametrize(
    ("version", "options", "stage", "reason"),
    [
        ("worse", {}, "canary", "of the 10 heaviest words of the golden texts of v1 are among its own, less than 30%"),
        ("talkative", {"canary_max_active_tokens": 300}, "canary", "active tokens on average, outside of 2 to 300"),
        ("v2", {"canary_min_active_tokens": 100}, "canary", "outside of 100 to 2000"),
    ],
)
async def test_a_canary_that_looks_wrong_is_refused(
    store: Store, published: dict[str, Path], version: str, options: dict[str, float], stage: str, reason: str
) -> None:
    if "canary_min_active_tokens" in options:
        store.publish(published["talkative"], aliases=["stable"], by="test")
    async with running(store, **options) as service:
        store.publish(published[version], aliases=["stable"], by="test")
        failure = await service.refuses(version)
        assert failure["stage"] == stage
        assert reason in failure["reason"]


async def test_without_memory_for_a_second_model_the_first_stays(
    store: Store, published: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(store) as service:
        monkeypatch.setattr(memory, "available_bytes", lambda: 1_500_000)
        store.publish(published["v2"], aliases=["stable"], by="test")
        failure = await service.refuses("v2")
        assert failure["stage"] == "memory"
        assert "loading it takes up to 2 MB, 2 MB are available" in failure["reason"]
        assert await service.version() == "v1"


async def test_idle_requested_versions_make_room_before_a_swap_is_refused_for_memory(
    store: Store, published: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    store.publish(published["v2"], by="test")
    store.publish(published["v3"], by="test")
    async with running(store) as service:
        assert await service.version(version="v2") == "v2"
        left = iter([0])
        monkeypatch.setattr(memory, "available_bytes", lambda: next(left, 10**12))
        store.set_alias("stable", "v3", by="test")
        await service.serves("v3")
        assert (await service.versions())["resident"] == ["v3"]


async def test_what_was_refused_is_tried_again_only_when_the_alias_is_set_anew_or_an_admin_asks(
    store: Store, published: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(store) as service:
        monkeypatch.setattr(memory, "available_bytes", lambda: 0)
        store.publish(published["v2"], aliases=["stable"], by="test")
        await service.refuses("v2")
        refusals = 'swaps_total{result="refused_memory"}'
        polls: list[Store] = []
        versions = Store.versions

        def counted(self: Store) -> list[str]:
            polls.append(self)
            return versions(self)

        monkeypatch.setattr(Store, "versions", counted)
        while len(polls) < 4:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        assert await service.metric(refusals) == 1
        response = await service.client.post("/admin/versions/v2/load", headers=KEY)
        assert response.status_code == 409
        assert "stable stands for v2, which is refused: loading it takes" in response.json()["error"]["message"]
        assert await service.metric(refusals) == 2
        store.set_alias("stable", "v2", by="test", note="again")
        while await service.metric(refusals) != 3:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        monkeypatch.undo()
        response = await service.client.post("/admin/versions/v2/load", headers=KEY)
        assert (response.status_code, response.json()["serving"]) == (200, "v2")
        assert response.json()["last_failure"] is None
        assert "sparse_encoder_refused_version{" not in (await service.client.get("/metrics")).text


async def test_a_newer_version_published_while_one_is_loaded_wins(store: Store, published: dict[str, Path]) -> None:
    async with running(store) as service:
        service.hold_next = True
        store.publish(published["v2"], aliases=["stable"], by="test")
        while "v2" not in service.encoders:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        service.hold_next = False
        store.publish(published["v3"], aliases=["stable"], by="test")
        await service.until(lambda info: info["aliases"]["stable"] == "v3")
        service.encoders["v2"][0].release()
        await service.serves("v3")
        assert await service.metric('swaps_total{result="superseded"}') == 1
        assert await service.metric('swaps_total{result="served"}') == 1


async def test_a_store_that_is_away_is_told_once_and_followed_again_when_it_is_back(
    store: Store, published: dict[str, Path], show_logs: pytest.LogCaptureFixture
) -> None:
    root = Path(store.url)
    async with running(store) as service:
        (root / "aliases").rename(root / "away")
        (root / "aliases").symlink_to("aliases")  # a loop, which no system call can follow
        await service.until(lambda info: info["store_error"] is not None)
        while await service.metric("store_failed_polls_total") < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        assert await service.version() == "v1"
        (root / "aliases").unlink()
        (root / "away").rename(root / "aliases")
        store.publish(published["v2"], aliases=["stable"], by="test")
        await service.serves("v2")
        assert (await service.versions())["store_error"] is None
    messages = [record.getMessage() for record in show_logs.records]
    assert sum("cannot be read" in message for message in messages) == 1
    assert sum("can be read again" in message for message in messages) == 1


async def test_the_start_falls_back_to_the_newest_earlier_version_that_works(
    store: Store, published: dict[str, Path], show_logs: pytest.LogCaptureFixture
) -> None:
    store.publish(published["v2"], aliases=["stable"], by="test")
    for version, kind in (("bad1", "golden mismatch"), ("bad2", "truncated file")):
        put_broken(Path(store.url), published["v3"], version, kind)
        store.set_alias("stable", version, by="test")
    async with running(store) as service:
        assert await service.version() == "v2"
        assert (await service.versions())["last_failure"]["version"] == "bad1"
        refused = re.findall("^sparse_encoder_refused_version.*", (await service.client.get("/metrics")).text, re.M)
        assert refused == ['sparse_encoder_refused_version{stage="fetch",version="bad2"} 1.0']  # not of those before
        await asyncio.sleep(5 * POLL)
        assert len(service.encoders["v2"]) == 1
        store.publish(published["v4"], aliases=["stable"], by="test")
        await service.serves("v4")
    assert "stable stands for bad2, which cannot be served: serving v2" in show_logs.text


async def test_if_no_version_works_the_start_is_refused_with_the_reason_of_each(
    tmp_path: Path, published: dict[str, Path]
) -> None:
    store = Store(str(tmp_path / "store"))
    for version, kind in (("bad1", "golden mismatch"), ("bad2", "truncated file")):
        put_broken(Path(store.url), published["v3"], version, kind)
        store.set_alias("stable", version, by="test")
    with pytest.raises(ModelError, match=r"(?s)bad2 .*bytes instead of.*bad1 .*does not reproduce"):
        async with running(store):
            pass
    with pytest.raises(ModelError, match=r"no alias 'live' \(it has stable\)"):
        async with running(store, alias="live"):
            pass


async def test_a_version_or_alias_can_be_asked_for_in_three_ways(store: Store, published: dict[str, Path]) -> None:
    store.publish(published["v2"], aliases=["next"], by="test")
    async with running(store) as service:
        body = (await service.encode(version="v2")).json()
        for name in ("v2", "next"):
            for response in (
                await service.encode(version=name),
                await service.client.post("/encode", json=QUERY, params={"version": name}),
                await service.client.post("/encode", json=QUERY, headers={"X-Model-Version": name}),
            ):
                assert (response.headers["x-model-version"], response.json()) == ("v2", body)
        assert len(service.encoders["v2"]) == 1  # loaded once
        assert await service.version() == "v1"
        assert await service.version(version="stable") == "v1"
        response = await service.client.post("/encode", json={**QUERY, "version": "v1"}, params={"version": "v2"})
        assert (response.status_code, response.json()["error"]["param"]) == (422, "version")


async def test_an_unknown_version_is_a_404_that_names_those_that_exist(store: Store) -> None:
    async with running(store) as service:
        response = await service.encode(version="v9")
        assert response.status_code == 404
        assert response.json()["error"] == {
            "type": "unknown_version",
            "message": "there is no version or alias 'v9'; versions: v1; aliases: stable",
            "param": "version",
        }


async def test_the_least_recently_used_version_leaves_for_one_that_is_asked_for(
    store: Store, published: dict[str, Path]
) -> None:
    for version in ("v2", "v3", "v4"):
        store.publish(published[version], by="test")
    async with running(store, max_resident_versions=3) as service:
        for version in ("v2", "v3", "v2", "v4"):
            assert await service.version(version=version) == version
        assert (await service.versions())["resident"] == ["v1", "v2", "v4"]
        assert await service.version(version="v3") == "v3"
        assert (await service.versions())["resident"] == ["v1", "v4", "v3"]


async def test_if_no_version_can_leave_the_answer_is_a_503_that_says_so(
    store: Store, published: dict[str, Path]
) -> None:
    store.publish(published["v2"], by="test")
    store.publish(published["v3"], by="test")
    async with running(store) as service:
        await service.version(version="v2")
        service.encoders["v2"][0].hold()
        busy = asyncio.create_task(service.encode(version="v2"))
        await service.encoders["v2"][0].entered()
        response = await service.encode(version="v3")
        assert response.status_code == 503
        assert response.headers["retry-after"] == "1"
        assert "v3 is not in memory and none of v1, v2 can leave now" in response.json()["error"]["message"]
        service.encoders["v2"][0].release()
        assert (await busy).headers["x-model-version"] == "v2"
        assert await service.version(version="v3") == "v3"


async def test_a_version_loads_on_after_the_request_for_it_timed_out(store: Store, published: dict[str, Path]) -> None:
    store.publish(published["v2"], by="test")
    async with running(store, request_timeout_seconds=2) as service:
        service.hold_next = True
        response = await service.encode(version="v2")
        assert response.status_code == 503
        assert "v2 was not loaded within 2 s" in response.json()["error"]["message"]
        while "v2" not in service.encoders:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        service.hold_next = False
        service.encoders["v2"][0].release()
        await service.until(lambda info: "v2" in info["resident"])
        assert await service.version(version="v2") == "v2"
        assert len(service.encoders["v2"]) == 1


async def test_a_broken_version_is_not_loaded_for_every_request_that_asks(
    store: Store, published: dict[str, Path]
) -> None:
    put_broken(Path(store.url), published["v2"], "bad", "golden mismatch")
    async with running(store) as service:
        for _ in range(2):
            response = await service.encode(version="bad")
            assert response.status_code == 503
            assert "bad is refused at golden" in response.json()["error"]["message"]
        assert len(service.encoders["bad"]) == 1
        response = await service.client.post("/admin/versions/bad/load", headers=KEY)
        assert response.status_code == 409
        assert len(service.encoders["bad"]) == 2


async def test_a_version_that_requests_ask_for_stays_when_another_comes_to_be_served(
    store: Store, published: dict[str, Path]
) -> None:
    async with running(store) as service:
        assert await service.version(version="v1") == "v1"
        store.publish(published["v2"], aliases=["stable"], by="test")
        await service.serves("v2")
        assert await service.version(version="v1") == "v1"
        assert len(service.encoders["v1"]) == 1


async def test_a_requested_version_comes_to_be_served_without_being_loaded_again_but_not_unchecked(
    store: Store, published: dict[str, Path], tmp_path: Path
) -> None:
    store.publish(published["v2"], by="test")
    store.publish(published["worse"], by="test")
    async with running(store, max_resident_versions=3) as service:
        await service.version(version="v2")
        await service.version(version="worse")
        store.set_alias("stable", "worse", by="test")
        assert (await service.refuses("worse"))["stage"] == "canary"
        store.set_alias("stable", "v2", by="test")
        await service.serves("v2")
        assert len(service.encoders["v2"]) == 1


async def test_another_vocabulary_is_served_if_that_is_allowed_and_its_answers_have_its_words(
    store: Store, published: dict[str, Path], tmp_path: Path
) -> None:
    def rename(directory: Path) -> None:
        text = (directory / "tokenizer.json").read_text(encoding="utf-8")
        (directory / "tokenizer.json").write_text(text.replace(f'"{word}"', '"새말"'), encoding="utf-8")

    word = "##q"  # no golden text holds it, which would be tokenised differently then
    everything = {"input_type": "document", "top_k": 5000}
    store.publish(published["talkative"], aliases=["stable"], by="test")
    async with running(store, allow_vocabulary_change=True) as service:
        (before,) = (await service.encode(**everything)).json()
        assert word in before
        store.publish(copy(published["talkative"], tmp_path / "other", "other", rename), by="test")
        service.encoders["talkative"][0].hold()
        admitted = asyncio.create_task(service.encode(**everything))
        await service.encoders["talkative"][0].entered()
        store.set_alias("stable", "other", by="test")
        await service.serves("other")
        service.encoders["talkative"][0].release()
        assert (await admitted).json() == [before]  # with the words of its own version
        (after,) = (await service.encode(**everything)).json()
        assert after == {"새말" if key == word else key: weight for key, weight in before.items()}


async def test_aliases_are_set_and_rolled_back_by_an_admin_who_waits_for_the_outcome(
    store: Store, published: dict[str, Path]
) -> None:
    store.publish(published["v2"], by="test")
    store.publish(published["worse"], by="test")
    async with running(store, poll_seconds=1000) as service:
        client = service.client
        client.headers.update(KEY)
        response = await client.put("/admin/aliases/stable", json={"version": "v2"})
        assert (response.status_code, response.json()["serving"]) == (200, "v2")
        response = await client.put("/admin/aliases/stable", json={"version": "worse"})
        assert response.status_code == 409
        message = response.json()["error"]["message"]
        assert message.startswith("stable stands for worse, which is refused: only ")
        assert message.endswith("v2 is still served")
        assert len(service.encoders["worse"]) == 1  # by the poll, not once more by the route
        response = await client.post("/admin/rollback", json={"alias": "stable"})
        assert (response.status_code, response.json()["serving"]) == (200, "v2")
        response = await client.put("/admin/aliases/canary", json={"version": "v1"})
        assert response.json()["aliases"] == {"canary": "v1", "stable": "v2"}
        response = await client.put("/admin/aliases/next", json={"version": "canary"})  # what another stands for
        assert response.json()["aliases"] == {"canary": "v1", "next": "v1", "stable": "v2"}
        response = await client.post("/admin/versions/canary/load")
        assert response.json()["resident"] == ["v2", "v1"]
        assert store.aliases()["canary"].by.endswith(tuple("0123456789"))  # the process


async def test_the_way_back_needs_no_likeness_to_the_version_one_leaves(
    store: Store, published: dict[str, Path]
) -> None:
    store.publish(published["worse"], aliases=["stable"], by="test")
    async with running(store) as service:
        assert await service.version() == "worse"
        response = await service.client.post("/admin/rollback", json={"alias": "stable"}, headers=KEY)
        assert (response.status_code, response.json()["serving"]) == (200, "v1")
        store.set_alias("stable", "worse", by="test")  # forward again is no way back
        assert (await service.refuses("worse"))["stage"] == "canary"


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "message"),
    [
        ("POST", "/admin/versions/v9/load", None, 404, "no version or alias 'v9'; versions: v1; aliases: stable"),
        ("PUT", "/admin/aliases/stable", {"version": "v9"}, 404, "no version or alias 'v9'"),
        ("PUT", "/admin/aliases/a%20b", {"version": "v1"}, 422, "'a b' must be letters, digits"),
        ("PUT", "/admin/aliases/stable", {"versoin": "v1"}, 422, "version: Field required"),
        ("PUT", "/admin/aliases/stable", b"{", 400, "not JSON"),
        ("PUT", "/admin/aliases/v1", {"version": "v1"}, 409, "v1 is a version of"),
        ("POST", "/admin/rollback", {"alias": "stable"}, 409, "no earlier version left"),
        ("POST", "/admin/rollback", {"alias": "a b"}, 422, "'a b' must be letters, digits"),
        ("POST", "/admin/rollback", {"alias": "none"}, 404, "no version or alias 'none'"),
    ],
)
async def test_what_an_admin_cannot_do_is_said(
    store: Store, method: str, path: str, body: Any, status: int, message: str
) -> None:
    async with running(store) as service:
        content = body if isinstance(body, bytes) else json.dumps(body)
        headers = {**KEY, "content-type": "application/json"}
        response = await service.client.request(method, path, headers=headers, content=content)
        assert response.status_code == status, response.text
        assert message in response.json()["error"]["message"]
        assert response.json()["error"].keys() == {"type", "message", "param"}


async def unread() -> AsyncGenerator[bytes, None]:
    """A body that nobody may ask for."""
    yield b""
    raise AssertionError("the body was read before the key was checked")


async def test_the_admin_routes_need_the_key_and_a_store(store: Store, tiny_artifact: Path) -> None:
    async with running(store) as service:
        for given in (b"", b"Bearer wrong", "Bearer kéy".encode(), b"key"):
            response = await service.client.post("/admin/versions/v1/load", headers={b"Authorization": given})
            assert (response.status_code, response.json()["error"]["type"]) == (401, "unauthorized")
            body = unread()
            response = await service.client.put(
                "/admin/aliases/stable", content=body, headers={b"Authorization": given}
            )
            assert response.status_code == 401
            await body.aclose()
        response = await service.client.put("/admin/aliases/stable", content=b" " * 9_000_000, headers=KEY)
        assert response.status_code == 413
    async with running(store, admin_key=None) as service:
        response = await service.client.post("/admin/versions/v1/load", headers=KEY)
        assert response.status_code == 403
        assert "SPARSE_ENCODER_ADMIN_KEY" in response.json()["error"]["message"]
    async with running(None, model=str(tiny_artifact)) as service:
        response = await service.client.post("/admin/versions/v1/load", headers=KEY)
        assert (response.status_code, response.json()["error"]["type"]) == (409, "refused")
        assert (await service.versions()) == {"serving": "tiny-v1"}
        assert await service.version(version="tiny-v1") == "tiny-v1"
        assert (await service.encode(version="v1")).status_code == 404


async def test_the_service_says_in_the_store_what_it_holds_until_it_stops(
    store: Store, published: dict[str, Path]
) -> None:
    store.publish(published["v2"], by="test")
    async with running(store) as service:
        await service.version(version="v2")
        while list(store.leases().values()) != [["v1", "v2"]]:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    assert store.leases() == {}


async def test_a_store_that_cannot_be_written_is_told_once_and_followed(
    store: Store, published: dict[str, Path], show_logs: pytest.LogCaptureFixture
) -> None:
    (Path(store.url) / "leases").symlink_to("/proc")  # not by mode: root may write everywhere else
    async with running(store) as service:
        store.publish(published["v2"], aliases=["stable"], by="test")
        await service.serves("v2")
        await asyncio.sleep(5 * POLL)
    messages = [record.getMessage() for record in show_logs.records]
    assert sum("cannot say in the store what it serves" in message for message in messages) == 1


async def test_a_remote_store_is_downloaded_once_and_cleaned_up(tmp_path: Path, published: dict[str, Path]) -> None:
    store = Store("memory://models-of-test-stored")
    store.publish(published["v1"], aliases=["stable"], by="test")
    cache = tmp_path / "cache"
    async with running(store, cache_dir=cache) as service:
        assert [path.name.split("-")[0] for path in (cache / "downloaded").iterdir()] == ["v1"]
        store.publish(published["v2"], aliases=["stable"], by="test")
        await service.serves("v2")
        while [path.name.split("-")[0] for path in (cache / "downloaded").iterdir()] != ["v2"]:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        assert await service.version() == "v2"


async def test_what_an_earlier_process_downloaded_is_deleted_once_it_is_old(
    tmp_path: Path, published: dict[str, Path]
) -> None:
    store = Store("memory://left-behind-of-test-stored")
    store.publish(published["v1"], aliases=["stable"], by="test")
    cache = tmp_path / "cache"
    async with running(store, cache_dir=cache):
        (kept,) = (cache / "downloaded").iterdir()
    for name in ("v0-abandoned", "young-abandoned", ".v0-half.partial"):
        (cache / "downloaded" / name).mkdir()
        (cache / "downloaded" / name / "manifest.json").write_text("{}")
    (cache / "converted" / "other").mkdir(parents=True)
    long_ago = time.time() - 2 * 3600
    for path in (kept, cache / "downloaded" / "v0-abandoned", cache / "downloaded" / ".v0-half.partial"):
        os.utime(path, (long_ago, long_ago))
    async with running(store, cache_dir=cache) as service:
        assert await service.version() == "v1"
        assert {path.name for path in (cache / "downloaded").iterdir()} == {kept.name, "young-abandoned"}
    assert (cache / "converted" / "other").is_dir()


async def test_a_version_just_loaded_is_used_before_it_can_leave_for_another(
    store: Store, published: dict[str, Path]
) -> None:
    for version in ("v2", "v3", "v4"):
        store.publish(published[version], by="test")
    async with running(store) as service:
        responses = await asyncio.gather(*(service.encode(version=version) for version in ("v2", "v3", "v4") * 3))
        for version, response in zip(("v2", "v3", "v4") * 3, responses, strict=True):
            if response.status_code == 200:
                assert response.headers["x-model-version"] == version
            else:
                assert (response.status_code, "can leave now" in response.text) == (503, True), response.text
        assert [response.status_code for response in responses[::3]] == [200] * 3
