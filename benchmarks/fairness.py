"""What one client's queries feel of another client's load: latency idle, and while the other has documents in flight.

    python -m benchmarks.fairness [--seconds 15] [--rounds 3] [--texts 4096] [--characters 60]

The load is 16 requests at once, each sent again when it is answered, of as many documents as make `--texts` in flight.
Both clients have an API key of their own.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import itertools
import json
import random
import time
from collections.abc import Sequence

import httpx

from benchmarks.http import WORDS
from benchmarks.load import percentiles
from tests.app.server import running

REQUESTS = 16
PAUSE_SECONDS = 0.02  #: between two queries


def words(count: int) -> str:
    return " ".join(random.choices(WORDS, k=count))


async def queries(url: str, seconds: float) -> tuple[list[float], list[int]]:
    """Seconds of each answer, and the statuses."""
    took, statuses = [], []
    async with httpx.AsyncClient(base_url=url, headers={"Authorization": "Bearer few"}, timeout=None) as client:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            started = time.perf_counter()
            response = await client.post("/encode", json={"texts": [words(6)], "input_type": "query"})
            took.append(time.perf_counter() - started)
            statuses.append(response.status_code)
            await asyncio.sleep(PAUSE_SECONDS)
    return took, statuses


async def load(url: str, texts: int, characters: int, answered: list[int]) -> None:
    """Until cancelled."""
    async with httpx.AsyncClient(base_url=url, headers={"Authorization": "Bearer many"}, timeout=None) as client:

        async def one() -> None:
            while True:
                body = [words(characters // 3) for _ in range(texts // REQUESTS)]
                response = await client.post("/encode", json=body)
                answered.append(response.status_code)
                if response.status_code != 200:
                    await asyncio.sleep(1)

        await asyncio.gather(*(one() for _ in range(REQUESTS)))


async def metric(url: str, name: str) -> float:
    async with httpx.AsyncClient(base_url=url, timeout=None) as client:
        metrics = (await client.get("/metrics")).text
    return float(next(line.split()[1] for line in metrics.splitlines() if line.startswith(f"sparse_encoder_{name} ")))


async def in_flight(url: str) -> float:
    return await metric(url, "texts_in_flight")


async def measure(url: str, seconds: float, rounds: int, texts: int, characters: int) -> None:
    await queries(url, 3)
    for number in range(rounds):
        for loaded in (False, True):
            answered: list[int] = []
            other = asyncio.create_task(load(url, texts, characters, answered)) if loaded else None
            while loaded and await in_flight(url) < 0.9 * texts:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            seen, encoded = await in_flight(url), await metric(url, "batch_texts_sum")
            took, statuses = await queries(url, seconds)
            encoded = await metric(url, "batch_texts_sum") - encoded - len(took)
            states = sorted((status, answered.count(status)) for status in set(answered))
            if other:
                other.cancel()
                await asyncio.wait([other])
                await asyncio.sleep(2)  # what it had is dropped
            figures = percentiles(took)
            refused = sum(status != 200 for status in statuses)
            print(
                f"{number + 1}  {f'{texts} documents in flight' if loaded else 'idle':<28} {len(took):>5} queries  "
                f"p50 {figures['p50']:7.1f}  p95 {figures['p95']:7.1f}  p99 {figures['p99']:7.1f} ms  refused {refused}"
                + (f"  ({seen:.0f} in flight, {encoded / seconds:.1f} encoded/s, answers {states})" if loaded else ""),
                flush=True,
            )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fairness", description=__doc__)
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--texts", type=int, default=4096)
    parser.add_argument("--characters", type=int, default=60)
    parser.add_argument("--flags", default="[]", help="of the service, as JSON")
    options = parser.parse_args(arguments)
    keys = ",".join(f"{name}:{hashlib.sha256(name.encode()).hexdigest()}" for name in ("few", "many"))
    flags = itertools.chain(["--port", "0", "--query-cache-size", "0"], json.loads(options.flags))
    with running("-m", "app", *flags, SPARSE_ENCODER_API_KEYS=keys) as server:
        asyncio.run(measure(server.url, options.seconds, options.rounds, options.texts, options.characters))


if __name__ == "__main__":
    main()
