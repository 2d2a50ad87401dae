"""`python -m benchmarks.memory`: what a large batch takes beyond the weights, ours beside sentence-transformers.

Each encoder, in a process of its own, encodes one short text and one longer (after which the weights are where they
stay, ours also those of the graph for short texts) and then 32 texts of 256 tokens, with a vocabulary of 50,000. What
counts is the peak during the last beyond what was resident before it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks import models
from benchmarks.encode import Worker, texts_of

TEXTS, TOKENS = 32, 256


def megabytes(pid: int, field: str) -> float:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024 / 1e6


def measure(kind: str, directory: Path) -> tuple[float, float]:
    """Megabytes resident with the weights, and beyond them at the peak."""
    with Worker(kind, directory) as worker:
        for tokens in (8, 128):
            worker.seconds(texts_of(tokens, 1), 1)
        before = megabytes(worker.pid, "VmRSS")
        Path(f"/proc/{worker.pid}/clear_refs").write_text("5", encoding="ascii")  # forgets the peak so far
        worker.seconds(texts_of(TOKENS, TEXTS), TEXTS)
        return before, megabytes(worker.pid, "VmHWM") - before


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--kinds", nargs="+", default=["ours:bf16", "ours:int8", "ours:int8-static", "torch"])
    options = parser.parse_args()
    print(f"{TEXTS} texts of {TOKENS} tokens, vocabulary 50,000: megabytes with the weights, and beyond them")
    for kind in options.kinds:
        resident, beyond = measure(kind, models.modernbert())
        print(f"{kind:>18} {resident:8.0f} {beyond:8.0f}", flush=True)


if __name__ == "__main__":
    main()
