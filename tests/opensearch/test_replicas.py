"""Two instances of the service behind nginx, as the guide configures it, and a cluster that indexes through them."""

from __future__ import annotations

import re
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from app.opensearch.service import EncoderService
from tests.app.server import ROOT
from tests.k8s.test_manifests import tool
from tests.opensearch.live import Live, Run, assert_vectors, encode_requests, serve
from tests.tiny import SENTENCES

# The first test downloads OpenSearch.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.usefixtures("indices")]

PAGE = ROOT / "docs/serving/deploy.md"
MAIN = """\
daemon off;
user root;
pid nginx.pid;
error_log stderr;
events {{}}
http {{
access_log off;
{guide}
}}
"""


@contextmanager
def behind_nginx(directory: Path, *instances: str) -> Iterator[str]:
    """The address of `instances` together, by the configuration that the guide shows."""
    found = re.search(r"^```nginx\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert found
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    guide = found[1].replace("listen 8080;", f"listen 127.0.0.1:{port};")
    for place, instance in zip(("127.0.0.1:8081", "127.0.0.1:8082"), instances, strict=True):
        assert guide.count(place) == 1
        guide = guide.replace(place, instance.removeprefix("http://"))
    (directory / "nginx.conf").write_text(MAIN.format(guide=guide), encoding="utf-8")
    with (directory / "nginx.log").open("w") as log:
        process = subprocess.Popen([tool("nginx"), "-p", str(directory), "-c", "nginx.conf"], stderr=log)
    try:
        url = f"http://127.0.0.1:{port}"
        while not answers(url):
            assert process.poll() is None, (directory / "nginx.log").read_text(encoding="utf-8")
        yield url
    finally:
        process.terminate()
        process.wait()


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=None).is_success
    except httpx.ConnectError:
        return False


def test_an_instance_killed_during_a_bulk_costs_no_document(
    live: Live, run: Run, tiny_artifact: Path, tmp_path: Path
) -> None:
    texts = [f"{SENTENCES[number % len(SENTENCES)]} {number}" for number in range(2000)]
    with (
        serve(tiny_artifact) as first,
        serve(tiny_artifact) as second,
        behind_nginx(tmp_path, first.url, second.url) as url,
        ThreadPoolExecutor(1) as pool,
    ):
        run("setup", "--encoder", url)
        bulk = pool.submit(live.bulk, "ko-sparse-a", [{"text": text} for text in texts])
        while encode_requests(EncoderService(first.url)) < 5:
            assert not bulk.done()
        first.process.kill()
        assert not bulk.done()
        assert [outcome for outcome in bulk.result() if "error" in outcome] == []
        other = EncoderService(second.url)
        expected = [vector for start in (0, 1000) for vector in other.encode(texts[start : start + 1000])]
    assert_vectors(live.vectors("ko-sparse-a"), expected)
    assert "upstream prematurely closed connection" in (tmp_path / "nginx.log").read_text(encoding="utf-8")
