"""Swaps as an operator sees them: a real service, many clients, and a publisher that is not always right."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

from tests.app.broken import BROKEN
from tests.app.soak import ADMIN_KEY, ALLOWED_GROWTH, Clients, Publisher, publish_under_load, table

pytestmark = pytest.mark.slow


@pytest.mark.soak
@pytest.mark.timeout(300)
async def test_fifty_clients_lose_nothing_while_twenty_versions_are_published(tmp_path: Path) -> None:
    result = await publish_under_load(tmp_path, seconds=20, count=20, clients=50)
    print(table(result))  # noqa: T201
    assert result["wrong"] == []
    assert {refusal["kind"] for refusal in result["refused"].values()} == set(BROKEN)
    for refusal in result["refused"].values():
        _, _, stage, reason = BROKEN[refusal["kind"]]
        assert refusal["stage"] == stage
        assert reason in refusal["reason"]
    assert set(result["answers"]) == {"v0", *result["served_after_seconds"]}  # each came to answer
    assert result["serving_at_the_end"] == "v19"
    memory = result["resident_megabytes"]
    assert memory[-1] <= ALLOWED_GROWTH * memory[0]
    assert result["exit_code"] == 0


@pytest.mark.timeout(300)
async def test_pins_to_two_versions_and_rollbacks_under_load(tmp_path: Path) -> None:
    publisher = Publisher(tmp_path)
    for number in (1, 2):
        publisher.prepare(f"v{number}", bias_shift=0.1 * number)
        publisher.store.publish(publisher.artifacts[f"v{number}"], aliases=["stable"], by="test")
    publisher.store.set_alias("old", "v1", by="test")
    with publisher.served() as server:
        async with (
            Clients(server.url, 30, [None, "v1", "v2", "old"], publisher.golden) as load,
            httpx.AsyncClient(base_url=server.url, timeout=None) as admin,
        ):
            admin.headers["Authorization"] = f"Bearer {ADMIN_KEY}"
            for served in ("v1", "v2") * 3:
                if served == "v1":
                    response = await admin.post("/admin/rollback", json={"alias": "stable"})
                else:
                    response = await admin.put("/admin/aliases/stable", json={"version": "v2"})
                assert (response.status_code, response.json()["serving"]) == (200, served)
                before = load.answered[None, served]
                while load.answered[None, served] < before + 20 and not load.wrong:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
    assert load.wrong == []
    assert set(load.answered) == {(None, "v1"), (None, "v2"), ("v1", "v1"), ("v2", "v2"), ("old", "v1")}
