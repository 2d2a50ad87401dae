"""Ten times as many requests as one service can encode: is each answered within its deadline, or refused at once?

    python -m benchmarks.overload [--seconds 10] [--times 10] [--model DIR] [--start JSON]

First measures what the service encodes when it is just busy, then sends that many times `--times`, evenly, whether
answers come or not. The clients are one process on the same machine, so it needs a core of its own to be exact.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import re
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import httpx

START = [sys.executable, "-m", "app"]
DEADLINE_SECONDS = 5
TEXTS = [
    "전세 보증금을 돌려받지 못하면",
    "휴대폰 요금제 변경",
    "당뇨병 초기 증상과 식단",
    "자동차 사고 합의금 계산",
] * 2
NUMBERS = itertools.count()  #: in every request, so that no text comes twice

#: Seconds until the answer, by status.
Answers = dict[str, list[float]]


async def ask(client: httpx.AsyncClient, answers: Answers) -> None:
    number = next(NUMBERS)
    body = {"texts": [f"{text} {number} {index}" for index, text in enumerate(TEXTS)]}
    started = time.perf_counter()
    try:
        response = await client.post("/encode", json=body)
        key = str(response.status_code)
        if response.status_code in (429, 503) and "retry-after" not in response.headers:
            key += " without Retry-After"
    except httpx.HTTPError as error:
        key = type(error).__name__
    answers[key].append(time.perf_counter() - started)


async def capacity(client: httpx.AsyncClient, seconds: float) -> float:
    """Requests a second that eight clients get answered, each sending its next one after the last answer."""
    answers: Answers = defaultdict(list)
    started = time.perf_counter()

    async def one() -> None:
        while time.perf_counter() < started + seconds:
            await ask(client, answers)

    await asyncio.gather(*(one() for _ in range(8)))
    if not answers["200"]:
        sys.exit(
            f"not one of the requests before the overload was answered: { {k: len(v) for k, v in answers.items()} }"
        )
    return len(answers["200"]) / (time.perf_counter() - started)


async def overload(client: httpx.AsyncClient, rate: float, seconds: float) -> Answers:
    answers: Answers = defaultdict(list)
    async with asyncio.TaskGroup() as group:
        started = time.perf_counter()
        for number in range(int(rate * seconds)):
            await asyncio.sleep(max(0, started + number / rate - time.perf_counter()))
            group.create_task(ask(client, answers))
    return answers


def report(answers: Answers, rate: float) -> int:
    print(f"sent {sum(map(len, answers.values()))} requests at {rate:.0f}/s, deadline {DEADLINE_SECONDS} s")
    for status, seconds in sorted(answers.items()):
        ordered = sorted(seconds)
        half, nearly_all = (ordered[int(len(ordered) * share)] for share in (0.5, 0.99))
        print(f"{status}: {len(seconds)}; median {half:.3f} s, p99 {nearly_all:.3f} s, longest {ordered[-1]:.3f} s")
    return 0 if set(answers) <= {"200", "429", "503"} else 1


async def measure(options: argparse.Namespace) -> int:
    command = [*options.start, "--port", "0", "--request-timeout-seconds", str(DEADLINE_SECONDS)]
    command += ["--max-texts-in-flight", "256", "--max-texts-per-request", "64"]
    command += ["--model", str(options.model)] if options.model else []
    service = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    assert service.stderr
    try:
        url = None
        while not url:
            line = (await service.stderr.readline()).decode()
            if not line:
                sys.exit("the service did not start: run `python -m app` to see why")
            url = re.search(r"running on (http://[^\s\"]+)", line)
        reading = asyncio.create_task(service.stderr.read())  # so that the log never blocks it
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=url[1].split()[0], timeout=60, limits=limits) as client:
            await capacity(client, 1)
            rate = options.times * await capacity(client, options.seconds / 2)
            result = report(await overload(client, rate, options.seconds), rate)
            (await client.get("/readyz")).raise_for_status()
            print("ready afterwards")
        service.terminate()
        await service.wait()
        await reading
        return result
    finally:
        if service.returncode is None:
            service.kill()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--times", type=float, default=10)
    parser.add_argument("--model", type=Path, help="a published checkpoint; without it, the embedded one")
    parser.add_argument("--start", type=json.loads, default=START, help="the service's command, a JSON list")
    return asyncio.run(measure(parser.parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main())
