"""What encoding takes beyond the weights: for one large batch, and over a day's odd lengths.

    python -m benchmarks.memory batch                        # ours beside sentence-transformers
    python -m benchmarks.memory lengths --minutes 30 --out lengths.png

`batch`: each encoder, in a process of its own, encodes one short text and one longer (after which the weights are where
they stay, ours also those of the graph for short texts) and then 32 texts of 256 tokens. What counts is the peak during
the last beyond what was resident before it. Without `--model`: ModernBERT of 149 M, with a vocabulary of 50,000.

`lengths`: the service at its defaults, asked by four clients for texts of random lengths (queries, documents, a hundred
documents at once), no text twice; draws what is resident, and says by how much it grew in the second half.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from pathlib import Path

from benchmarks import models
from benchmarks.encode import Worker, texts_of
from benchmarks.load import Client
from benchmarks.resident import megabytes
from tests.app.server import Server, running
from tests.app.soak import resident_bytes

TEXTS, TOKENS = 32, 256
CLIENTS = 4
SECONDS_BETWEEN_LOOKS = 2
SYLLABLES = "가나다라마바사아자차카타파하손해배상치료서울지하철법원은행"


def measure(kind: str, directory: Path) -> tuple[float, float]:
    """Megabytes resident with the weights, and beyond them at the peak."""
    with Worker(kind, directory) as worker:
        for tokens in (8, 128):
            worker.seconds(texts_of(tokens, 1), 1)
        before = megabytes(worker.pid, "VmRSS")
        Path(f"/proc/{worker.pid}/clear_refs").write_text("5", encoding="ascii")  # forgets the peak so far
        worker.seconds(texts_of(TOKENS, TEXTS), TEXTS)
        return before, megabytes(worker.pid, "VmHWM") - before


def batch(options: argparse.Namespace) -> None:
    print(f"{TEXTS} texts of {TOKENS} tokens, {options.model}: megabytes with the weights, and beyond them")
    for kind in options.kinds:
        resident, beyond = measure(kind, models.MODELS[options.model]())
        print(f"{kind:>18} {resident:8.0f} {beyond:8.0f}", flush=True)


def random_body(random_: random.Random) -> bytes:
    def text(most: int) -> str:
        return "".join(
            random_.choice(SYLLABLES) + " " * (random_.random() < 0.3) for _ in range(random_.randint(1, most))
        )

    kind = random_.random()
    if kind < 0.6:
        return json.dumps({"texts": [text(30)], "input_type": "query"}).encode()
    return json.dumps({"texts": [text(800) for _ in range(1 if kind < 0.95 else random_.randint(2, 100))]}).encode()


async def over_lengths(server: Server, seconds: float, seed: int) -> list[tuple[float, float]]:
    """Seconds since the start, and megabytes resident then."""
    started = time.monotonic()
    looks: list[tuple[float, float]] = []

    async def ask(number: int) -> None:
        random_ = random.Random(f"{seed} {number}")
        async with Client(server.url) as client:
            while time.monotonic() < started + seconds:
                answer = await client.ask(random_body(random_))
                assert answer.status in (200, 413, 429, 503), answer

    async def look() -> None:
        while time.monotonic() < started + seconds:
            looks.append((time.monotonic() - started, resident_bytes(server) / 1e6))
            await asyncio.sleep(SECONDS_BETWEEN_LOOKS)

    await asyncio.gather(look(), *(ask(number) for number in range(CLIENTS)))
    return looks


def draw(looks: list[tuple[float, float]], out: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 3))
    axes.plot([seconds / 60 for seconds, _ in looks], [megabytes_ for _, megabytes_ in looks], linewidth=1)
    axes.set(xlabel="minutes of random lengths", ylabel="MB resident", ylim=(0, None))
    figure.tight_layout()
    figure.savefig(out, dpi=120)


def lengths(options: argparse.Namespace) -> None:
    with running("-m", "app", "--port", "0", *options.flags) as server:
        looks = asyncio.run(over_lengths(server, 60 * options.minutes, options.seed))
        peak = megabytes(server.process.pid, "VmHWM")
    resident = [megabytes_ for _, megabytes_ in looks]
    quarters = [max(resident[at * len(resident) // 4 : (at + 1) * len(resident) // 4]) for at in range(4)]
    print("most MB resident in each quarter:", *(f"{quarter:.0f}" for quarter in quarters))
    print(f"peak {peak:.0f} MB; the last half took {max(quarters[2:]) / max(quarters[:2]) - 1:+.1%} beside the first")
    if options.out:
        draw(looks, options.out)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.memory", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_subparsers(dest="what", required=True)
    of_batch = what.add_parser("batch")
    of_batch.add_argument("--kinds", nargs="+", default=["ours:bf16", "ours:int8", "ours:int8-static", "torch"])
    of_batch.add_argument("--model", choices=["modernbert", "bert", "xlmr"], default="modernbert")
    of_batch.set_defaults(run=batch)
    of_lengths = what.add_parser("lengths")
    of_lengths.add_argument("--minutes", type=float, default=30)
    of_lengths.add_argument("--seed", type=int, default=1)
    of_lengths.add_argument("--out", type=Path, help="PNG file for the plot")
    of_lengths.add_argument("flags", nargs="*", help="of the service, after --")
    of_lengths.set_defaults(run=lengths)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
