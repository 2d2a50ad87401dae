"""`python -m benchmarks.beside`: what a query waits while another client sends long documents, one after the other.

    python -m benchmarks.beside [--tokens 8192] [--seconds 30] [--rounds 2] [--precision auto]

ModernBERT of 149 M, random; queries of 16 tokens by one client, none twice. The documents need not be answered within
the time: at least one is in the encoder all the while.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence

import httpx

from benchmarks import models
from benchmarks.encode import texts_of
from benchmarks.http import texts
from benchmarks.load import body, closed_loop, percentiles
from benchmarks.noise import Turns
from tests.app.server import running

WAIT_SECONDS = 600


async def documents(url: str, tokens: int, answered: list[int]) -> None:
    """Until cancelled."""
    async with httpx.AsyncClient(base_url=url, timeout=WAIT_SECONDS) as client:
        while True:
            response = await client.post("/encode", json=texts_of(tokens, 1))
            response.raise_for_status()
            answered.append(response.status_code)


async def measure(url: str, tokens: int, seconds: float, rounds: int) -> None:
    text, turns = texts(), Turns()

    async def queries() -> str:
        answers = await closed_loop(url, 1, seconds, lambda: body(text()))
        assert all(answer.status == 200 for answer in answers)
        figures = percentiles(answer.seconds for answer in answers)
        told = "  ".join(f"{name} {value:7.1f}" for name, value in figures.items())
        return f"{len(answers):>5} queries  {told} ms"

    await closed_loop(url, 1, seconds, lambda: body(text()))  # warms up: the graph for short texts is made meanwhile
    answered: list[int] = []
    for number in range(rounds):
        print(f"{number + 1}  {'alone':32}{await queries()}", flush=True)
        other = asyncio.create_task(documents(url, tokens, answered))
        await asyncio.sleep(2)  # it is in the encoder
        print(f"{number + 1}  {f'beside documents of {tokens} tokens':32}{await queries()}", flush=True)
        assert not other.done()
        other.cancel()
        await asyncio.wait([other])
        async with httpx.AsyncClient(base_url=url, timeout=WAIT_SECONDS) as client:
            await client.post("/encode", json=texts_of(600, 1))  # answered when what is running aside has ended
    print(f"{len(answered)} documents answered; {turns}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.beside", description=__doc__)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--precision", default="auto")
    options = parser.parse_args(arguments)
    flags = ["--port", "0", "--query-cache-size", "0", "--precision", options.precision]
    flags += ["--model", str(models.modernbert()), "--cache-dir", str(models.CACHE)]
    flags += ["--max-length-document", str(options.tokens), "--request-timeout-seconds", str(WAIT_SECONDS)]
    with running("-m", "app", *flags) as server:
        asyncio.run(measure(server.url, options.tokens, options.seconds, options.rounds))


if __name__ == "__main__":
    main()
