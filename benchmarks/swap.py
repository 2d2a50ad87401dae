"""`python -m benchmarks.swap`: what a swap costs the queries that run meanwhile.

A real service is asked queries at random moments, at a fixed rate, whether or not it answered the ones before. Calm
stretches take turns with stretches in which its alias moves to and fro between two versions of one model, without a
pause. Latency counts from the moment a query was due. Writes a table, `swap.json` and `swap.png`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from app.models.loaded import EMBEDDED
from sparse_encoder.artifact import MANIFEST, read_artifact
from sparse_encoder.packed import unpack
from sparse_encoder.store import Store
from tests.app.server import Server, running
from tests.app.soak import resident_bytes, serves, versions

QUERIES = [
    "손해배상",
    "당뇨병 치료 방법",
    "부동산 임대차 계약 해지",
    "전세 보증금을 돌려받지 못하면 어떻게 하나",
    "회사가 퇴직금을 늦게 주면 이자를 받을 수 있나",
]


@dataclass(frozen=True)
class Query:
    """One query of the load; seconds since the start."""

    due: float
    seconds: float
    status: int
    version: str


class Load:
    """Queries at `rate` a second on average, with the gaps of a Poisson process."""

    def __init__(self, url: str, rate: float, started: float) -> None:
        self.done: list[Query] = []
        self._client = httpx.AsyncClient(base_url=url, timeout=None, limits=httpx.Limits(max_connections=None))
        self._rate = rate
        self._started = started
        self._random = random.Random(1)

    async def run(self, seconds: float) -> None:
        """For `seconds`, and until the last one is answered."""
        end = time.perf_counter() + seconds
        due = time.perf_counter()
        asking: list[asyncio.Task[None]] = []
        while (due := due + self._random.expovariate(self._rate)) < end:
            await asyncio.sleep(due - time.perf_counter())
            asking.append(asyncio.create_task(self._ask(due)))
        await asyncio.gather(*asking)

    async def _ask(self, due: float) -> None:
        body = {"texts": [self._random.choice(QUERIES)], "input_type": "query"}
        response = await self._client.post("/encode", json=body)
        taken = time.perf_counter() - due
        version = response.headers.get("x-model-version", "")
        self.done.append(Query(due - self._started, taken, response.status_code, version))


async def swap_to_and_fro(url: str, store: Store, seconds: float, started: float) -> list[tuple[float, float]]:
    """Moves the alias whenever the last move has come to be served; returns when each swap began and was served."""
    windows = []
    serving = (await versions(url, lambda _: True))["serving"]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        serving = {"a": "b", "b": "a"}[serving]
        begun = time.perf_counter() - started
        await asyncio.to_thread(store.set_alias, "stable", serving, by="benchmark")
        await versions(url, serves(serving))
        windows.append((begun, time.perf_counter() - started))
    return windows


async def measure(server: Server, store: Store, rate: float, rounds: int, seconds: float) -> dict[str, Any]:
    started = time.perf_counter()
    load = Load(server.url, rate, started)
    await load.run(2)  # warm
    load.done.clear()
    calm: list[Query] = []
    swapping: list[Query] = []
    windows: list[tuple[float, float]] = []
    memory: list[int] = []
    for _ in range(rounds):
        await load.run(seconds)
        calm += load.done
        load.done.clear()
        memory.append(resident_bytes(server))
        found, _ = await asyncio.gather(swap_to_and_fro(server.url, store, seconds, started), load.run(seconds))
        windows += found
        swapping += [q for q in load.done if any(begun <= q.due <= served for begun, served in found)]
        load.done.clear()
    await load.run(2)
    memory.append(resident_bytes(server))
    return {
        "rate_per_second": rate,
        "swaps": len(windows),
        "swap_seconds_median": float(np.median([served - begun for begun, served in windows])),
        "not_200": sum(query.status != 200 for query in calm + swapping),
        "calm": _percentiles(calm),
        "swapping": _percentiles(swapping),
        "p99_ratio": _percentiles(swapping)["p99_ms"] / _percentiles(calm)["p99_ms"],
        "resident_megabytes": [round(value / 1e6) for value in memory],
        "windows": windows,
        "queries": [
            [round(q.due, 4), round(q.seconds * 1000, 2)] for q in sorted(calm + swapping, key=lambda q: q.due)
        ],
    }


def _percentiles(queries: list[Query]) -> dict[str, float]:
    milliseconds = np.array([query.seconds * 1000 for query in queries])
    values = np.percentile(milliseconds, [50, 90, 99, 100])
    return {
        "queries": len(queries),
        **dict(zip(("p50_ms", "p90_ms", "p99_ms", "max_ms"), map(float, values), strict=True)),
    }


def table(result: dict[str, Any]) -> str:
    rows = [f"{'':10}{'queries':>9}{'p50 ms':>9}{'p90 ms':>9}{'p99 ms':>9}{'max ms':>9}"]
    for name in ("calm", "swapping"):
        figures = result[name]
        rows.append(
            f"{name:10}{figures['queries']:>9.0f}"
            + "".join(f"{figures[key]:>9.1f}" for key in ("p50_ms", "p90_ms", "p99_ms", "max_ms"))
        )
    rows.append(
        f"p99 ratio {result['p99_ratio']:.2f}; {result['swaps']} swaps, median {result['swap_seconds_median']:.1f} s; "
        f"{result['not_200']} answers not 200; resident MB after each calm stretch {result['resident_megabytes']}"
    )
    return "\n".join(rows)


def plot(result: dict[str, Any], path: Path) -> None:
    import matplotlib  # not part of serving

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(10, 4), layout="constrained")
    due, milliseconds = zip(*result["queries"], strict=True)
    axes.scatter(due, milliseconds, s=6, label="a query")
    for number, (begun, served) in enumerate(result["windows"]):
        axes.axvspan(begun, served, alpha=0.2, color="tab:orange", lw=0, label="swap" if not number else None)
    axes.set(xlabel="seconds", ylabel="latency (ms)", yscale="log", title=f"p99 ratio {result['p99_ratio']:.2f}")
    axes.legend(loc="upper right")
    figure.savefig(path, dpi=120)


def _rename(directory: Path, version: str) -> None:
    manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    (directory / MANIFEST).unlink()  # a link
    (directory / MANIFEST).write_text(json.dumps({**manifest, "version": version}), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.swap", description=__doc__)
    parser.add_argument("--model", type=Path, help="directory of an artifact; without it, the embedded model")
    parser.add_argument("--rate", type=float, default=10, help="queries a second")
    parser.add_argument("--rounds", type=int, default=3, help="of a calm stretch and one with swaps")
    parser.add_argument("--seconds", type=float, default=30, help="of each stretch")
    parser.add_argument("--threads", type=int, default=0, help="of the encoder")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="directory for JSON and plot")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        model = options.model or unpack(EMBEDDED, Path(directory) / "model").path
        artifact = read_artifact(model)
        store = Store(str(Path(directory) / "store"))
        for version in ("a", "b"):
            copy = Path(directory) / version
            shutil.copytree(artifact.path, copy)
            _rename(copy, version)
            store.publish(copy, aliases=["stable"], by="benchmark")
        flags = {"port": 0, "store": store.url, "poll-seconds": 0.1, "encoder-threads": options.threads}
        with running("-m", "app", *(f"--{name}={value}" for name, value in flags.items())) as server:
            result = asyncio.run(measure(server, store, options.rate, options.rounds, options.seconds))
    result = {"model": artifact.manifest.version, "cores": os.cpu_count(), "threads": options.threads, **result}
    print(table(result))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "swap.json").write_text(json.dumps(result) + "\n", encoding="utf-8")
    plot(result, options.out / "swap.png")


if __name__ == "__main__":
    main()
