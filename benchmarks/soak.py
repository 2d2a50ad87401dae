"""A service under faults that a seed chooses, and whether it kept its promises.

    python -m benchmarks.soak [--minutes 60] [--seed 1] [--out report.json]

Clients ask without rest; each answer must be 200 and equal the golden vector of the version that it names, or 429 or
503 with the time to come again. Meanwhile one fault follows another: clients vanish, send no HTTP or stop half-way, a
peak comes, versions are published, good and broken ones, others are asked for by name, the store hangs, vanishes or is
damaged, files cannot be written, the process has one processor, or stands still for a while (as when a machine is
suspended, after which its clocks jump). In the end memory must be within a tenth of what it was after the first of
each, nothing be in flight, and every counter be the sum of what was sent. The store hangs when SIGTERM comes.

The clock itself is not changed: that would be the machine's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import resource
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from tests.app.broken import BROKEN, put_broken
from tests.app.server import Server
from tests.app.soak import ALLOWED_GROWTH, Clients, Publisher, refuses, resident_bytes, resident_when_freed, serves
from tests.app.soak import versions as until
from tests.tiny import SENTENCES

CLIENTS = 8
GOOD = 4  #: versions that take each other's place
CLIENT_TIMEOUT_SECONDS = 10  #: longer than the process stands still
FLAGS = {"client-timeout-seconds": CLIENT_TIMEOUT_SECONDS, "request-timeout-seconds": 20, "drain-seconds": 0}
#: Seconds that a fault lasts which does not end by itself.
LASTS = 2.0


class Faults:
    """Each is a method; what it sent is counted in `sent`."""

    def __init__(self, publisher: Publisher, server: Server, seed: int) -> None:
        self.sent: Counter[str] = Counter()
        self._publisher = publisher
        self._server = server
        self._random = random.Random(seed)
        self._root = Path(publisher.store.url)
        self._address = (urlsplit(server.url).hostname, urlsplit(server.url).port)
        self._serving = 0  #: number of the version that the alias stands for
        self._published = GOOD

    def all(self) -> dict[str, Callable[[], Awaitable[None]]]:
        found = (
            self.clients_vanish,
            self.no_http,
            self.half_a_request,
            self.peak,
            self.publish,
            self.publish_broken,
            self.ask_by_name,
            self.store_hangs,
            self.store_vanishes,
            self.alias_damaged,
            self.files_cannot_be_written,
            self.one_processor,
            self.stands_still,
        )
        return {fault.__name__: fault for fault in found}

    async def clients_vanish(self) -> None:
        """With a request that came whole, each of another text."""
        for _ in range(20):
            self.sent["vanished"] += 1
            text = f"{self.sent['vanished']} {self._random.choice(SENTENCES)}"
            body = json.dumps({"texts": [text] * self._random.randint(1, 20)}).encode()
            head = f"POST /encode HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
            with socket.create_connection(self._address) as connection:
                connection.sendall(head.encode() + body)
                await asyncio.sleep(self._random.choice((0, 0.001, 0.05)))

    async def no_http(self) -> None:
        for _ in range(5):
            assert (await self._answer_to(b"\x16\x03\x01\x02\x00\x01 this is TLS\r\n\r\n")).startswith(b"HTTP/1.1 400")
            self.sent["malformed_http"] += 1

    async def half_a_request(self) -> None:
        assert (await self._answer_to(b"POST /encode HTTP/1.1\r\nHost: a\r\n")).startswith(b"HTTP/1.1 408")
        self.sent["request_timeout"] += 1

    async def _answer_to(self, request: bytes) -> bytes:
        reader, writer = await asyncio.open_connection(*self._address)
        writer.write(request)
        answer = await reader.read()
        writer.close()
        return answer

    async def peak(self) -> None:
        """Of answers that may be refused by the same rules as those of others."""
        texts = [f"{number} {' '.join(SENTENCES)}" for number in range(200)]
        async with httpx.AsyncClient(base_url=self._server.url, timeout=None) as client:
            for response in await asyncio.gather(*(client.post("/encode", json=texts) for _ in range(3))):
                assert response.status_code in (200, 413, 429, 503), response.text
                self.sent[f"peak {response.status_code}"] += 1

    async def publish(self) -> None:
        self._serving = (self._serving + 1) % GOOD
        await asyncio.to_thread(self._publisher.store.set_alias, "stable", f"v{self._serving}", by="soak")
        await until(self._server.url, serves(f"v{self._serving}"))
        self.sent["published"] += 1

    async def publish_broken(self) -> None:
        kind, version = self._random.choice(list(BROKEN)), f"v{self._published}"
        self._published += 1
        put_broken(self._root, self._publisher.artifacts["v0"], version, kind)
        await asyncio.to_thread(self._publisher.store.set_alias, "stable", version, by="soak")
        info = await until(self._server.url, refuses(version))
        assert info["last_failure"]["stage"] == BROKEN[kind][2], info["last_failure"]
        self.sent["refused versions"] += 1
        await asyncio.to_thread(self._publisher.store.set_alias, "stable", f"v{self._serving}", by="soak")
        await until(self._server.url, lambda info: info["last_failure"] is None)

    async def ask_by_name(self) -> None:
        pins: list[str | None] = [f"v{number}" for number in range(GOOD)]
        async with Clients(self._server.url, 4, pins, self._publisher.golden, may_refuse={429, 503}) as load:
            await asyncio.sleep(LASTS)
        assert load.wrong == []
        self.sent["by name"] += load.answered.total() + load.refused.total()

    async def store_hangs(self) -> None:
        path = self._root / "aliases" / "stable.json"
        content = path.read_bytes()
        path.unlink()
        os.mkfifo(path)
        await asyncio.sleep(LASTS)
        pipe = path.rename(path.with_name("pipe"))
        path.write_bytes(content)
        while True:
            try:
                os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))  # whoever waits reads nothing
            except OSError:  # nobody waits
                break
            await asyncio.sleep(0.01)
        pipe.unlink()
        await self._store_is_well()

    async def store_vanishes(self) -> None:
        away = self._root.rename(self._root.with_name("away"))
        await until(self._server.url, lambda info: info["store_error"] is not None)
        assert not self._root.exists()
        away.rename(self._root)
        await self._store_is_well()

    async def alias_damaged(self) -> None:
        path = self._root / "aliases" / "stable.json"
        content = path.read_bytes()
        path.write_text("{")
        await until(self._server.url, lambda info: info["store_error"] is not None)
        path.write_bytes(content)
        await self._store_is_well()

    async def _store_is_well(self) -> None:
        await until(self._server.url, lambda info: info["store_error"] is None)

    async def files_cannot_be_written(self) -> None:
        limits = resource.prlimit(self._server.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(self._server.process.pid, resource.RLIMIT_FSIZE, (0, limits[1]))
        await self.publish()
        resource.prlimit(self._server.process.pid, resource.RLIMIT_FSIZE, limits)

    async def one_processor(self) -> None:
        all_of_them = os.sched_getaffinity(self._server.process.pid)
        for tasks in ({min(all_of_them)}, all_of_them):
            for thread in os.listdir(f"/proc/{self._server.process.pid}/task"):
                with suppress(ProcessLookupError):  # a thread that has ended
                    os.sched_setaffinity(int(thread), tasks)
            await asyncio.sleep(LASTS if len(tasks) == 1 else 0)

    async def stands_still(self) -> None:
        self._server.process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(LASTS)
        self._server.process.send_signal(signal.SIGCONT)


async def soak(directory: Path, seconds: float, seed: int) -> dict[str, Any]:
    """What was seen; `broken_promises` must be empty."""
    publisher = Publisher(directory)
    for number in range(GOOD):
        publisher.prepare(f"v{number}", bias_shift=0.02 * number)
        publisher.store.publish(publisher.artifacts[f"v{number}"], aliases=["stable"] if number == 0 else [], by="soak")
    random_ = random.Random(seed)
    timeline: list[tuple[float, str]] = []
    memory: list[tuple[float, float]] = []
    with publisher.served(**FLAGS) as server:
        faults = Faults(publisher, server, seed)
        fault = faults.all()
        async with Clients(server.url, CLIENTS, [None], publisher.golden, may_refuse={429, 503}) as load:
            started = time.monotonic()

            async def happen(name: str) -> None:
                timeline.append((round(time.monotonic() - started, 1), name))
                await fault[name]()
                memory.append((round(time.monotonic() - started, 1), resident_bytes(server) / 1e6))

            for name in random_.sample(list(fault), len(fault)):  # the first of each
                await happen(name)
            await until(server.url, lambda info: info["store_error"] is None)
            before = resident_bytes(server)
            while time.monotonic() < started + seconds and not load.wrong:
                await happen(random_.choice(list(fault)))
                await asyncio.sleep(random_.random())
        after = await resident_when_freed(server, ALLOWED_GROWTH * before)
        metrics = await settled(server.url)
        path = Path(publisher.store.url) / "aliases" / "stable.json"
        path.unlink()
        os.mkfifo(path)
        await asyncio.sleep(0.5)
        server.terminate()
        exit_code = await asyncio.to_thread(server.wait)
    broken = [*load.wrong, *sums(metrics, faults.sent, load)]
    if after > ALLOWED_GROWTH * before:
        broken.append(f"memory grew from {before / 1e6:.0f} to {after / 1e6:.0f} MB")
    if exit_code:
        broken.append(f"exit code {exit_code}")
    broken += [line for line in server.log if '"level": "error"' in line and '"exception"' in line]
    return {
        "seed": seed,
        "seconds": seconds,
        "faults": dict(Counter(name for _, name in timeline)),
        "answered": load.answered.total(),
        "refused": dict(load.refused),
        "sent": dict(faults.sent),
        "megabytes": [round(before / 1e6, 1), round(after / 1e6, 1)],
        "broken_promises": broken,
        "timeline": timeline,
        "memory": memory,
        "metrics": metrics,
    }


async def settled(url: str) -> dict[str, float]:
    """The metrics, once nothing is in flight any more."""
    async with httpx.AsyncClient(base_url=url, timeout=None) as client:
        while True:
            text = (await client.get("/metrics")).text
            found = re.findall(r"^sparse_encoder_(\S+) (\S+)$", text, re.MULTILINE)
            metrics = {name: float(value) for name, value in found if "_bucket" not in name and "_created" not in name}
            if metrics["texts_in_flight"] == metrics["queue_tokens"] == 0:
                return metrics
            await asyncio.sleep(0.1)


def sums(metrics: Mapping[str, float], sent: Mapping[str, int], load: Clients) -> list[str]:
    """Which counters do not add up."""

    def total(name: str, *labels: str) -> float:
        return sum(
            value
            for key, value in metrics.items()
            if key.partition("{")[0] == name and all(label in key for label in labels)
        )

    of_encode = total("requests_total", 'path="/encode"')
    seen = load.answered.total() + load.refused.total() + sent["by name"]
    seen += sum(count for kind, count in sent.items() if kind.startswith("peak"))
    failed = sum(
        value
        for key, value in metrics.items()
        if key.startswith("requests_total{") and (status := re.search(r'status="(\d+)"', key)) and int(status[1]) >= 400
    )
    checks = {
        "requests to encode": seen <= of_encode <= seen + sent["vanished"],
        "refusals": total("refusals_total") == failed,
        "no 500": total("requests_total", 'status="500"') == 0,
        "failed batches": total("failed_batches_total") == 0,
        "malformed": total("connection_refusals_total", "malformed_http") == sent["malformed_http"],
        "slow": total("connection_refusals_total", "request_timeout") == sent["request_timeout"],
        "versions refused": total("swaps_total", "refused_") == sent["refused versions"],
        "versions served": total("swaps_total", 'result="served"') == sent["published"],
        "log lines": total("dropped_log_lines_total") == 0,
    }
    return [f"{name} do not add up" for name, holds in checks.items() if not holds]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON file for the report")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        report = asyncio.run(soak(Path(directory), 60 * options.minutes, options.seed))
    for name in ("faults", "answered", "refused", "sent", "megabytes", "broken_promises"):
        print(f"{name}: {report[name]}")
    if options.out:
        options.out.write_text(json.dumps(report, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    return 1 if report["broken_promises"] else 0


if __name__ == "__main__":
    sys.exit(main())
