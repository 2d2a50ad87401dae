"""Draws the Grafana dashboard without Grafana: a real Prometheus scrapes a running service and evaluates every panel.

    python scripts/dashboard_png.py localhost:8080 dashboard.png [--seconds 120]

Needs prometheus (Debian's package) and matplotlib. Put some load on the service meanwhile, or there is nothing to see.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import matplotlib.pyplot as plt

ROOT = Path(__file__).parent.parent
DASHBOARD = ROOT / "k8s" / "overlays" / "monitoring" / "dashboard.json"
CONFIGURATION = """
global: {{scrape_interval: 1s}}
scrape_configs:
  - job_name: sparse-encoder
    static_configs: [{{targets: ["{target}"], labels: {{namespace: default, pod: "{target}"}}}}]
"""
COLUMNS = 3


@contextmanager
def prometheus(target: str) -> Iterator[httpx.Client]:
    """A client of a Prometheus that is ready and scrapes `target` every second."""
    with TemporaryDirectory(prefix="prometheus-") as directory, (Path(directory) / "log").open("w") as log:
        (Path(directory) / "prometheus.yml").write_text(CONFIGURATION.format(target=target), encoding="utf-8")
        with socket.create_server(("127.0.0.1", 0)) as free:
            address = f"127.0.0.1:{free.getsockname()[1]}"
        command = ["prometheus", "--config.file=prometheus.yml", f"--web.listen-address={address}"]
        process = subprocess.Popen([*command, "--storage.tsdb.path=data"], cwd=directory, stderr=log)
        try:
            with httpx.Client(base_url=f"http://{address}", timeout=30) as client:
                while True:
                    with suppress(httpx.TransportError):
                        if client.get("/-/ready").is_success:
                            break
                    time.sleep(0.1)
                yield client
        finally:
            process.terminate()
            process.wait()


def series(client: httpx.Client, expression: str, start: float, end: float) -> list[dict[str, Any]]:
    expression = expression.replace("$__rate_interval", "10s").replace("$namespace", ".*")
    query: dict[str, str | float] = {"query": expression, "start": start, "end": end, "step": 1}
    found: list[dict[str, Any]] = (
        client.get("/api/v1/query_range", params=query).raise_for_status().json()["data"]["result"]
    )
    return found


def legend(template: str, labels: Mapping[str, str]) -> str:
    return re.sub(r"{{\s*(\w+)\s*}}", lambda name: labels.get(name[1], ""), template)


def draw(client: httpx.Client, start: float, end: float, target: Path) -> int:
    """The number of panels that show nothing."""
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    rows = math.ceil(len(panels) / COLUMNS)
    figure, axes = plt.subplots(rows, COLUMNS, figsize=(6 * COLUMNS, 2.8 * rows), squeeze=False)
    empty = 0
    for panel, axis in zip(panels, axes.flat, strict=False):
        drawn = False
        for query in panel["targets"]:
            for one in series(client, query["expr"], start, end):
                times, values = zip(*((float(t) - start, float(v)) for t, v in one["values"]), strict=True)
                axis.plot(times, values, label=legend(query["legendFormat"], one["metric"]))
                drawn = True
        unit = panel["fieldConfig"]["defaults"]["unit"]
        axis.set_title(f"{panel['title']} [{unit}]", fontsize=9)
        axis.set_ylim(bottom=0)
        if drawn:
            axis.legend(fontsize=6)
        else:
            empty += 1
            print(f"nothing to see: {panel['title']}")
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(target, dpi=70)
    return empty


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", help="HOST:PORT of the service")
    parser.add_argument("image", type=Path, help="PNG file to write")
    parser.add_argument("--seconds", type=float, default=120)
    options = parser.parse_args()
    if not shutil.which("prometheus"):
        sys.exit("needs prometheus, Debian's package of that name")
    with prometheus(options.target) as client:
        start = time.time()
        time.sleep(options.seconds)
        return 1 if draw(client, start, time.time(), options.image) else 0


if __name__ == "__main__":
    sys.exit(main())
