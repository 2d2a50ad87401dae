"""Clients that never rest: each answer must be 200 and equal the golden vector of the version that it names."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

import httpx

from app.versions.resident import GIVE_BACK_SECONDS
from sparse_encoder.artifact import GoldenVector, read_artifact
from sparse_encoder.store import Store
from tests.app.broken import BROKEN, put_broken
from tests.app.server import Server, running
from tests.tiny import publish

TOLERANCE = 3e-4  #: golden tolerance and five digits
ADMIN_KEY = "key"
ALLOWED_GROWTH = 1.1  #: of resident memory over twenty swaps


class Clients:
    """`count` clients, each with its share of `pins` (None: the version served)."""

    def __init__(
        self,
        url: str,
        count: int,
        pins: list[str | None],
        golden: Mapping[str, list[GoldenVector]],
        may_refuse: Container[int] = (),
    ) -> None:
        """`golden`: vectors by version; versions may come while the clients run. `may_refuse`: statuses that are no
        fault, if the answer says when to come again."""
        self.refused: Counter[int] = Counter()  #: by status
        self._may_refuse = may_refuse
        self.answered: Counter[tuple[str | None, str]] = Counter()  #: by pin and version
        self.wrong: list[str] = []
        self._url = url
        self._pins = [pin for pin, _ in zip(cycle(pins), range(count), strict=False)]
        self._golden = golden
        self._stopping = False

    async def __aenter__(self) -> Clients:
        limits = httpx.Limits(max_connections=len(self._pins))
        self._client = httpx.AsyncClient(base_url=self._url, timeout=None, limits=limits)
        self._tasks = [asyncio.create_task(self._run(number, pin)) for number, pin in enumerate(self._pins)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopping = True
        await asyncio.gather(*self._tasks)
        await self._client.aclose()

    async def _run(self, number: int, pin: str | None) -> None:
        while not self._stopping:
            number += 1
            await self._ask(number, pin)
            await asyncio.sleep(0.02)  # leaves processor time for what is tested

    async def _ask(self, number: int, pin: str | None) -> None:
        asked = next(iter(self._golden.values()))
        text, input_type = asked[number % len(asked)].text, asked[number % len(asked)].input_type
        body = {"texts": [text], "input_type": input_type, "sparse_embedding_format": "token_id", "top_k": 256}
        response = await self._client.post("/encode", json=body, params={"version": pin} if pin else {})
        if response.status_code in self._may_refuse and "retry-after" in response.headers:
            self.refused[response.status_code] += 1
            return
        if response.status_code != 200:
            self.wrong.append(f"{response.status_code} {response.text}")
            return
        version = response.headers["x-model-version"]
        (expected,) = (g for g in self._golden[version] if (g.text, g.input_type) == (text, input_type))
        (vector,) = response.json()
        weights = {int(token_id): weight for token_id, weight in vector.items()}
        golden = dict(zip(expected.ids, expected.weights, strict=True))
        worst = max(abs(weights.get(key, 0) - golden.get(key, 0)) for key in weights.keys() | golden.keys())
        if worst > TOLERANCE:
            self.wrong.append(f"{version} answered {text!r} {worst} off its golden vector")
        self.answered[pin, version] += 1


class Publisher:
    """A store with versions of the tiny model, and a service that follows it."""

    def __init__(self, directory: Path) -> None:
        self.store = Store(str(directory / "store"))
        self.golden: dict[str, list[GoldenVector]] = {}
        self.artifacts: dict[str, Path] = {}
        self._directory = directory

    def prepare(self, version: str, **variant: Any) -> None:
        """Makes an artifact; the store has it once it is published."""
        self.artifacts[version] = publish(self._directory / version, version, **variant)
        self.golden[version] = list(read_artifact(self.artifacts[version]).golden())

    @contextmanager
    def served(self, **options: object) -> Iterator[Server]:
        flags = {
            "port": 0,
            "encoder-threads": 1,
            "precision": "f32",
            "poll-seconds": 0.1,
            "admin-key": ADMIN_KEY,
            "log-level": "info",
        }
        given = {**flags, "store": self.store.url, **options}
        with running("-m", "app", *(f"--{name}={value}" for name, value in given.items())) as server:
            yield server


async def versions(url: str, condition: Callable[[Any], bool]) -> dict[str, Any]:
    """What /info says of the versions, as soon as `condition` holds."""
    async with httpx.AsyncClient(base_url=url, timeout=None) as client:
        while not condition(found := (await client.get("/info")).json()["versions"]):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        return dict(found)


def serves(version: str) -> Callable[[Any], bool]:
    return lambda info: bool(info["serving"] == version)


def refuses(version: str) -> Callable[[Any], bool]:
    return lambda info: bool(info["last_failure"]) and info["last_failure"]["version"] == version


def resident_bytes(server: Server) -> int:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


async def resident_when_freed(server: Server, bound: float) -> int:
    """Resident bytes as soon as they are at most `bound`, else after twice the time in which freed memory is given back
    to the system: what a version held is freed in a thread that ends some time after the version has left."""
    deadline = time.monotonic() + 2 * GIVE_BACK_SECONDS
    while (resident := resident_bytes(server)) > bound and time.monotonic() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    return resident


async def publish_under_load(directory: Path, seconds: float, count: int, clients: int) -> dict[str, Any]:
    """Publishes `count` versions in `seconds`, broken ones among them, to a service that `clients` use.

    Returns what was seen; `wrong` must be empty.
    """
    publisher = Publisher(directory)
    pattern: list[str | None] = [kind for broken in BROKEN for kind in (None, broken)]  # each second one is broken
    kinds = [kind for _, kind in zip(range(count), cycle(pattern), strict=False)]
    for number in range(count + 1):
        if number == 0 or kinds[number - 1] is None:
            publisher.prepare(f"v{number}", bias_shift=0.02 * number)
    publisher.store.publish(publisher.artifacts["v0"], aliases=["stable"], by="soak")
    served_after, refused = {}, {}
    with publisher.served() as server:
        async with Clients(server.url, clients, [None], publisher.golden) as load:
            while sum(load.answered.values()) < 10 * clients and not load.wrong:  # noqa: ASYNC110 - warm
                await asyncio.sleep(0.01)
            memory = [resident_bytes(server)]
            started = time.monotonic()
            for number, kind in enumerate(kinds, start=1):
                version = f"v{number}"
                published = time.monotonic()
                if kind is None:
                    await asyncio.to_thread(
                        publisher.store.publish, publisher.artifacts[version], aliases=["stable"], by="soak"
                    )
                    await versions(server.url, serves(version))
                    served_after[version] = round(time.monotonic() - published, 3)
                else:
                    put_broken(Path(publisher.store.url), publisher.artifacts["v0"], version, kind)
                    await asyncio.to_thread(publisher.store.set_alias, "stable", version, by="soak")
                    info = await versions(
                        server.url,
                        refuses(version),
                    )
                    refused[version] = {"kind": kind, **info["last_failure"]}
                memory.append(resident_bytes(server))
                await asyncio.sleep(max(0.0, started + seconds * number / count - time.monotonic()))
        info = await versions(server.url, lambda info: len(info["resident"]) == 1)
        memory.append(await resident_when_freed(server, ALLOWED_GROWTH * memory[0]))
        server.terminate()
        exit_code = server.wait()
    return {
        "wrong": load.wrong,
        "answers": {version: n for (_, version), n in sorted(load.answered.items(), key=lambda item: item[0][1])},
        "served_after_seconds": served_after,
        "refused": refused,
        "serving_at_the_end": info["serving"],
        "resident_megabytes": [round(value / 1e6, 1) for value in memory],
        "exit_code": exit_code,
    }


def table(result: Mapping[str, Any]) -> str:
    """`result` of `publish_under_load`, to be read by people."""
    times = sorted(result["served_after_seconds"].values())
    memory = result["resident_megabytes"]
    return "\n".join(
        [
            f"answers {sum(result['answers'].values())}, not 200 or wrong {len(result['wrong'])}",
            f"publish to served, {len(times)} times: median {times[len(times) // 2]:.2f} s, at most {times[-1]:.2f} s",
            f"resident memory: {memory[0]} MB at the start, {memory[-1]} MB at the end",
            *(
                f"refused {version} ({r['kind']}) at {r['stage']}: {r['reason']}"
                for version, r in result["refused"].items()
            ),
            "answers by version: " + json.dumps(result["answers"]),
        ]
    )
