"""`python -m benchmarks.long`: one long text, ours beside transformers' own forward pass, in turn; and what memory it
takes beyond that of one of 600 tokens.

    python -m benchmarks.long [--tokens 512 2048 8192] [--kinds ours:f32 transformers] [--rounds 2]

ModernBERT of 149 M, random. Each encoder runs in a process of its own and tokenises as well.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import ExitStack

from benchmarks import models
from benchmarks.encode import Worker, texts_of
from benchmarks.noise import Turns, spread
from benchmarks.products import roof
from benchmarks.resident import forget_peak, megabytes


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.long", description=__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 2048, 8192])
    parser.add_argument("--kinds", nargs="+", default=["ours:f32", "transformers"])
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args(arguments)
    turns = Turns()
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(kind, models.modernbert())) for kind in options.kinds]
        for worker in workers:
            worker.seconds(texts_of(16, 1), 1, 16)
            worker.seconds(texts_of(600, 1), 1, 600)  # the first long text makes a graph for it
        for tokens in options.tokens:
            texts, before = texts_of(tokens, 1), {}
            for worker in workers:
                forget_peak(worker.pid)
                before[worker.kind] = megabytes(worker.pid, "VmRSS")
            seconds: dict[str, list[float]] = {worker.kind: [] for worker in workers}
            for _ in range(options.rounds):
                for worker in workers:
                    seconds[worker.kind].append(turns.take(lambda: worker.seconds(texts, 1, tokens)))  # noqa: B023
            for worker in workers:
                ratio = min(seconds[options.kinds[-1]]) / min(seconds[worker.kind])
                more = megabytes(worker.pid, "VmHWM") - before[worker.kind]
                print(
                    f"1 x {tokens:<5} {worker.kind:18} {spread(seconds[worker.kind]):>32} ms {ratio:5.1f}x   "
                    f"peak {more:,.0f} MB beyond what it had",
                    flush=True,
                )
    print(f"roof of f32 {roof('f32') / 1e9:,.0f} G/s; {turns}")


if __name__ == "__main__":
    main()
