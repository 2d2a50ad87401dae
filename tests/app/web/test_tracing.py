"""Traces, from a real service to a collector in another process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.main import create_app
from app.settings import Settings
from tests.app.server import ROOT, running

pytestmark = pytest.mark.slow

CALLER = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}


@contextmanager
def collector() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Its address; after the block, all spans that it was sent."""
    spans: list[dict[str, Any]] = []
    command = [sys.executable, "-W", "error", "-m", "tests.app.collector"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            yield process.stdout.readline().strip(), spans
        finally:
            process.terminate()
        spans += map(json.loads, process.stdout)


def test_a_request_and_its_stages_reach_the_collector_as_part_of_the_callers_trace(tiny_artifact: Path) -> None:
    with collector() as (address, spans):
        flags = ("--port", "0", "--model", str(tiny_artifact), "--otlp-endpoint", address)
        with running("-m", "app", *flags) as server, httpx.Client(base_url=server.url, timeout=None) as client:
            client.post("/encode", json=["비밀문서"], headers={**CALLER, "X-Request-Id": "mine"}).raise_for_status()
            client.post("/encode", json={"texts": [{"비밀문서": 1}]})
            client.get("/livez").raise_for_status()
            server.terminate()
            assert server.wait() == 0  # sends what is left
    requests = [span for span in spans if span["name"] == "POST /encode"]
    assert len(requests) == 2  # none of /livez
    answered, refused = requests
    assert answered["service"] == "sparse-encoder"
    assert (answered["trace"], answered["parent"]) == tuple(CALLER["traceparent"].split("-")[1:3])
    assert (
        answered["attributes"].items()
        >= {
            "http.response.status_code": 200,
            "sparse_encoder.request_id": "mine",
            "sparse_encoder.version": "tiny-v1",
        }.items()
    )
    assert refused["attributes"]["error.type"] == "invalid_field"
    assert refused["trace"] != answered["trace"]
    assert not refused["parent"]
    stages = [span for span in spans if span["parent"] == answered["id"]]
    assert {span["trace"] for span in stages} == {answered["trace"]}
    assert [span["name"] for span in sorted(stages, key=lambda span: span["start"])] == [
        "tokenize",
        "queue",
        "encode",
        "write",
    ]
    assert all(span["end"] <= answered["end"] for span in stages)
    entries = [entry for entry in server.entries() if entry["message"] == "request"]
    assert [entry["trace_id"] for entry in entries] == [answered["trace"], refused["trace"]]
    assert "비밀" not in str(spans)


def test_without_the_extra_the_start_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tiny_artifact: Path) -> None:
    monkeypatch.delitem(sys.modules, "app.web.tracing", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)  # as if it were not there
    with pytest.raises(SystemExit, match=r"--otlp-endpoint needs the extra otel .*pip install"):
        create_app(Settings(model=str(tiny_artifact), otlp_endpoint="http://collector:4318"))


def test_a_collector_that_is_away_costs_no_request_and_the_log_says_so(tiny_artifact: Path) -> None:
    flags = ("--port", "0", "--model", str(tiny_artifact), "--otlp-endpoint", "http://127.0.0.1:9")
    environment = {"OTEL_EXPORTER_OTLP_TIMEOUT": "1"}  # seconds that the exit waits for it
    with running("-m", "app", *flags, **environment) as server:
        assert httpx.post(f"{server.url}/encode", json=["가"], timeout=None).status_code == 200
        server.terminate()
        assert server.wait() == 0
    assert any(str(entry["logger"]).startswith("opentelemetry") for entry in server.entries())
