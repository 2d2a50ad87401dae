"""`python -m benchmarks.http`: latency and throughput of the service, beside what a user would have instead.

One client: the time a query takes over HTTP, what of it is not the encoder's, and the same for a bare FastAPI route
that echoes an answer; and SparseEncoder of sentence-transformers, called in its own process without HTTP. Many clients:
texts a second against the best batch in one process, and the percentiles; then steady rates below what it can do. No
text is sent twice, so that nothing is answered from memory. Writes a table, `http-MODEL.json` and `http-MODEL.png`.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from app.models.loaded import EMBEDDED
from benchmarks import models
from benchmarks.encode import NAMES, Worker
from benchmarks.figures import add_argument, write_figures
from benchmarks.load import Answer, body, closed_loop, open_loop, percentiles
from sparse_encoder.packed import read_packed
from tests.app.server import running

#: Each is one token of the embedded vocabulary.
WORDS = (
    "계약",
    "보험",
    "치료",
    "법원",
    "정보",
    "지역",
    "학교",
    "기업",
    "운동",
    "시장",
    "국가",
    "사회",
    "문화",
    "경제",
    "교육",
    "환경",
)
TOKENS = 16
CLIENTS = (1, 4, 16, 64, 256)
SHARES_OF_CAPACITY = (0.5, 0.8)


def texts(tokens: int = TOKENS) -> Callable[[], str]:
    """Ever new texts of so many tokens, [CLS] and [SEP] included."""
    chosen = random.Random(1)
    return lambda: " ".join(chosen.choices(WORDS, k=tokens - 2))


async def measure(url: str, echo_url: str, in_process: float, seconds: float, rounds: int) -> dict[str, Any]:
    text = texts()

    def next_body() -> bytes:
        return body(text())

    await closed_loop(url, 1, seconds, next_body)  # warms up: the graph for short texts is made while it serves
    ours: list[Answer] = []
    echoed: list[Answer] = []
    for _ in range(rounds):  # in turn, since the machine changes
        ours += await closed_loop(url, 1, seconds, next_body)
        echoed += await closed_loop(echo_url, 1, seconds, next_body)
    many = {}
    for clients in CLIENTS:
        asking = time.process_time()
        answers = await closed_loop(url, clients, seconds * 2, next_body)
        asking = time.process_time() - asking
        assert all(answer.status == 200 for answer in answers)
        many[clients] = {
            "texts_per_second": len(answers) / (seconds * 2),
            "asking": asking / (seconds * 2 * (os.cpu_count() or 1)),  # share of the processors that the clients take
            **percentiles(a.seconds for a in answers),
        }
    capacity = max(result["texts_per_second"] for result in many.values())
    steady = {}
    for share in SHARES_OF_CAPACITY:
        answers = await open_loop(url, share * capacity, seconds * 2, next_body)
        steady[share] = {"rate": share * capacity, **percentiles(answer.seconds for answer in answers)}
    return {
        "query_ms": median(answer.seconds for answer in ours) * 1000,
        "overhead_ms": median(answer.seconds - answer.timing["encode"] for answer in ours) * 1000,
        "echo_ms": median(answer.seconds for answer in echoed) * 1000,
        "in_process_texts_per_second": in_process,
        "closed": many,
        "open": steady,
    }


def best_batch(ours: Worker, rounds: int) -> float:
    """Texts a second of the best batch in one process, tokenised as well."""
    text, rates = texts(), []
    for batch in (8, 32, 64, 128):
        sent = [text() for _ in range(batch)]
        ours.seconds(sent, batch)
        rates.append(batch / median(ours.seconds(sent, batch) for _ in range(rounds)))
    return max(rates)


def peer_query(peer: Worker, rounds: int) -> float:
    """Milliseconds of one query in its own process, without HTTP."""
    text = texts()
    return median(peer.seconds([text()], 1) for _ in range(5 * rounds)) * 1000


def table(result: dict[str, Any]) -> str:
    lines = [
        f"one query of {TOKENS} tokens over HTTP   {result['query_ms']:8.2f} ms",
        f"SparseEncoder in its own process    {result['peer_ms']:8.2f} ms   "
        f"{result['peer_ms'] / result['query_ms']:.1f}x",
        f"over HTTP, without the encoder      {result['overhead_ms']:8.2f} ms",
        f"bare FastAPI echo                   {result['echo_ms']:8.2f} ms   "
        f"{result['overhead_ms'] / result['echo_ms']:.2f}x",
        f"best batch in process               {result['in_process_texts_per_second']:8.0f} texts/s",
    ]
    for clients, many in result["closed"].items():
        share = many["texts_per_second"] / result["in_process_texts_per_second"]
        left = share / (1 - many["asking"])
        lines.append(
            f"{clients:>4} clients {many['texts_per_second']:8.0f} texts/s ({share:.0%}, {left:.0%} of what is left) "
            f"  p50 {many['p50']:7.1f}   "
            f"p95 {many['p95']:7.1f}   p99 {many['p99']:7.1f} ms   p99/p50 {many['p99'] / many['p50']:.1f}"
        )
    for share, steady in result["open"].items():
        lines.append(
            f"{share:.0%} of that, steadily: {steady['rate']:.0f}/s   p50 {steady['p50']:7.1f}   "
            f"p95 {steady['p95']:7.1f}   p99 {steady['p99']:7.1f} ms"
        )
    return "\n".join(lines)


def markdown(results: Sequence[Mapping[str, Any]]) -> str:
    """A column for each model and precision."""
    crowds = [result["closed"][CLIENTS[-1]] for result in results]
    rows: list[list[str]] = [
        ["", *(f"{NAMES[result['model']]}, `{result['precision']}`" for result in results)],
        ["---"] * (len(results) + 1),
        [
            "one client, p50 (SparseEncoder in its own process)",
            *(f"{r['query_ms']:.1f} ms ({r['peer_ms']:.1f}, {r['peer_ms'] / r['query_ms']:.1f}x)" for r in results),
        ],
        ["of that not the encoder's", *(f"{result['overhead_ms']:.2f} ms" for result in results)],
        ["a bare FastAPI route that echoes the answer", *(f"{result['echo_ms']:.2f} ms" for result in results)],
        [f"{CLIENTS[-1]} clients: texts a second", *(f"{crowd['texts_per_second']:.0f}" for crowd in crowds)],
        [
            "share of the best batch in process",
            *(
                f"{crowd['texts_per_second'] / result['in_process_texts_per_second']:.0%}"
                for crowd, result in zip(crowds, results, strict=True)
            ),
        ],
        [
            "of what the clients leave of the processors",
            *(
                f"{crowd['texts_per_second'] / result['in_process_texts_per_second'] / (1 - crowd['asking']):.0%}"
                for crowd, result in zip(crowds, results, strict=True)
            ),
        ],
        ["their p99 / p50", *(f"{crowd['p99'] / crowd['p50']:.1f}" for crowd in crowds)],
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def plot(result: dict[str, Any], title: str, target: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (rates, latencies) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    clients = list(result["closed"])
    rates.plot(clients, [many["texts_per_second"] for many in result["closed"].values()], "o-", label="over HTTP")
    rates.axhline(result["in_process_texts_per_second"], color="gray", ls="--", label="best batch in process")
    rates.set(xscale="log", ylim=0, xlabel="clients", ylabel="texts a second", title=title)
    rates.legend()
    for name in ("p50", "p95", "p99"):
        latencies.plot(clients, [many[name] for many in result["closed"].values()], "o-", label=name)
    latencies.set(xscale="log", yscale="log", xlabel="clients", ylabel="milliseconds", title="latency")
    latencies.legend()
    figure.savefig(target, dpi=120)


def run(name: str, precision: str, seconds: float, rounds: int) -> dict[str, Any]:
    directory = models.MODELS[name]()
    flags = ["--port", "0", "--precision", precision]
    if name != "embedded":
        flags += ["--model", str(directory), "--cache-dir", str(models.CACHE)]
    ours = EMBEDDED if name == "embedded" else directory
    with Worker(f"ours:{precision}", ours) as worker:
        in_process = best_batch(worker, rounds)
    with Worker("torch", directory) as worker:
        peer_ms = peer_query(worker, rounds)
    with running("-m", "app", *flags) as service:
        answer = httpx.post(f"{service.url}/encode", json={"texts": [texts()()], "input_type": "query"}).json()
        with running("-m", "benchmarks.echo", json.dumps(answer)) as echo:
            result = asyncio.run(measure(service.url, echo.url, in_process, seconds, rounds))
    return {"model": name, "precision": precision, "peer_ms": peer_ms, **result}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.http", description=__doc__)
    parser.add_argument("--model", choices=["embedded", "modernbert", "bert"], nargs="+", default=["embedded"])
    parser.add_argument("--precision", nargs="+", default=["auto"])
    parser.add_argument("--seconds", type=float, default=4, help="of each stretch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="directory for JSON and plots")
    add_argument(parser)
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    results = []
    for name, precision in itertools.product(options.model, options.precision):
        result = run(name, precision, options.seconds, options.rounds)
        results.append(result)
        print(f"\n{name}, {precision}\n{table(result)}", flush=True)
        target = options.out / f"http-{name}-{precision}"
        target.with_suffix(".json").write_text(json.dumps(result) + "\n", encoding="utf-8")
        plot(result, f"{name}, {precision}", target.with_suffix(".png"))
    if options.figures:
        write_figures("http", read_packed(EMBEDDED).manifest.version, markdown(results))


if __name__ == "__main__":
    main()
