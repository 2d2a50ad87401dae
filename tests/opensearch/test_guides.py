"""The quick start, run as it stands: the service with its own model, a real node, the lines of the page."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.app.server import ROOT, Server, running
from tests.opensearch.live import Live, Run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

_BLOCK = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)
PAGES = ("quickstart.md", "ko/quickstart.md")


@pytest.fixture(scope="module")
def embedded() -> Iterator[Server]:
    with running("-m", "app", "--port", "0", "--encoder-threads", "1") as server:
        yield server


def answers(page: Path, live: Live, service: str) -> list[str]:
    """What each block of the page prints, but for those that start a node or the service, which run already."""
    printed = []
    for block in _BLOCK.findall(page.read_text(encoding="utf-8")):
        if block.startswith("make "):
            continue
        script = block.replace("localhost:8080", service.removeprefix("http://"))
        script = script.replace("localhost:9200", live.cluster.url.removeprefix("http://"))
        script = re.sub(
            r"\.venv/bin/python (-m app\.opensearch \w+)",
            rf"{sys.executable} \1 --opensearch {live.cluster.url}",
            script,
        )
        script = re.sub(r"(app\.opensearch (?:setup|explain).*)", rf"\1 --encoder {service}", script)
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
        printed.append(done.stdout)
    return printed


@pytest.mark.parametrize("page", PAGES)
def test_the_quick_start_finds_what_it_says(live: Live, empty: None, run: Run, embedded: Server, page: str) -> None:
    encoded, _, bulk, search, why = answers(ROOT / "docs" / page, live, embedded.url)
    assert {"손해", "배상"} <= set(json.loads(encoded)[0])
    assert json.loads(bulk)["errors"] is False
    hits = json.loads(search)["hits"]["hits"]
    assert [hit["_source"]["title"] for hit in hits][:1] == ["스마트폰 수리"]
    live.cluster.request("DELETE", "/ko-sparse-help")
    run("teardown")
    assert "by OpenSearch" in why
    assert "휴대폰" in why
