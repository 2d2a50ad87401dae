"""The dashboard on a real Prometheus that scrapes the real service: every panel shows something."""

from __future__ import annotations

import json
import logging
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.app.soak import Publisher
from tests.k8s.test_manifests import MONITORING, expressions, tool
from tests.tiny import SENTENCES

pytestmark = pytest.mark.slow

log = logging.getLogger(__name__)

SCRAPE = """
global: {{scrape_interval: 1s}}
scrape_configs:
  - job_name: sparse-encoder
    static_configs: [{{targets: ["{target}"], labels: {{namespace: n, pod: a}}}}]
"""


@contextmanager
def prometheus(directory: Path, target: str) -> Iterator[httpx.Client]:
    """A client of a Prometheus that scrapes `target` every second."""
    (directory / "prometheus.yml").write_text(SCRAPE.format(target=target), encoding="utf-8")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [tool("prometheus"), "--config.file=prometheus.yml", f"--web.listen-address=127.0.0.1:{port}"]
    with (directory / "log").open("w") as log:
        process = subprocess.Popen([*command, "--storage.tsdb.path=data"], cwd=directory, stderr=log)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=None) as client:
            yield client
    finally:
        process.terminate()
        process.wait()


def has_data(client: httpx.Client, expression: str) -> bool:
    """Fails if Prometheus finds the expression wrong."""
    try:
        response = client.get("/api/v1/query", params={"query": expression})
    except httpx.ConnectError:
        return False  # it does not listen yet
    if response.status_code == 503:
        return False  # it is not ready yet
    assert response.status_code == 200, f"{expression}: {response.text}"
    return bool(response.json()["data"]["result"])


def test_every_panel_shows_something(tmp_path: Path) -> None:
    dashboard = json.loads((MONITORING / "dashboard.json").read_text(encoding="utf-8"))
    waiting = {
        text.replace("$__rate_interval", "30s").replace("$namespace", ".*") for text in expressions(dashboard["panels"])
    }
    assert len(waiting) >= len(dashboard["panels"])
    publisher = Publisher(tmp_path)
    for number in (1, 2):
        publisher.prepare(f"v{number}", bias_shift=0.1 * number)
    publisher.store.publish(publisher.artifacts["v1"], aliases=["stable"], by="test")
    with publisher.served() as server, prometheus(tmp_path, urlsplit(server.url).netloc) as client:
        while not has_data(client, "sparse_encoder_swaps_total"):  # the first version must be seen before the swap
            time.sleep(0.1)
        publisher.store.publish(publisher.artifacts["v2"], aliases=["stable"], by="test")
        while waiting:  # a panel that stays empty ends at the limit of the whole test
            for input_type in ("query", "document"):
                httpx.post(f"{server.url}/encode", json={"texts": SENTENCES, "input_type": input_type}, timeout=None)
            waiting = {expression for expression in waiting if not has_data(client, expression)}
            log.warning("still empty: %s", sorted(waiting))
            time.sleep(0.2)
