"""HTTP clients that cost little, since they share the machine with the service that they load."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    seconds: float
    timing: dict[str, float]  #: the stages of `Server-Timing`, in seconds


class Client:
    """One connection that is kept open."""

    def __init__(self, url: str, path: str = "/encode") -> None:
        parts = urlsplit(url)
        self._host, self._port, self._path = parts.hostname, parts.port, path

    async def __aenter__(self) -> Client:
        self._reader, self._writer = await asyncio.open_connection(self._host, self._port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()

    async def ask(self, body: bytes) -> Answer:
        head = (
            f"POST {self._path} HTTP/1.1\r\nHost: {self._host}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        started = time.perf_counter()
        self._writer.write(head.encode() + body)
        lines = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
        await self._reader.readexactly(int(headers["content-length"]))
        seconds = time.perf_counter() - started
        return Answer(int(lines[0].split()[1]), seconds, _timing(headers.get("server-timing", "")))


def _timing(header: str) -> dict[str, float]:
    stages = (stage.split(";dur=") for stage in header.split(", ") if stage)
    return {name: float(milliseconds) / 1000 for name, milliseconds in stages}


def body(text: str) -> bytes:
    return json.dumps({"texts": [text], "input_type": "query"}).encode()


async def closed_loop(url: str, clients: int, seconds: float, next_body: Callable[[], bytes]) -> list[Answer]:
    """`clients` that each ask again as soon as they are answered, for `seconds`."""
    answers: list[Answer] = []
    end = time.perf_counter() + seconds

    async def one() -> None:
        async with Client(url) as client:
            while time.perf_counter() < end:
                answers.append(await client.ask(next_body()))

    await asyncio.gather(*(one() for _ in range(clients)))
    return answers


async def open_loop(url: str, rate: float, seconds: float, next_body: Callable[[], bytes]) -> list[Answer]:
    """`rate` requests a second, evenly, whether or not the ones before are answered; latency counts from when each
    was due."""
    answers: list[Answer] = []
    free: list[Client] = []
    started = time.perf_counter()

    async def one(due: float) -> None:
        client = free.pop() if free else await Client(url).__aenter__()
        answer = await client.ask(next_body())
        answers.append(Answer(answer.status, time.perf_counter() - due, answer.timing))
        free.append(client)

    asking = []
    for number in range(int(rate * seconds)):
        due = started + number / rate
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        asking.append(asyncio.create_task(one(due)))
    await asyncio.gather(*asking)
    for client in free:
        await client.__aexit__()
    return answers


def percentiles(seconds: Iterable[float]) -> dict[str, float]:
    """p50, p95 and p99 in milliseconds."""
    ordered = sorted(seconds)
    return {f"p{p}": 1000 * ordered[min(len(ordered) - 1, len(ordered) * p // 100)] for p in (50, 95, 99)}
