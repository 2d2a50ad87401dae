"""`python -m benchmarks.encode`: texts a second in one process, ours beside sentence-transformers.

Optimum, by which sentence-transformers uses OpenVINO, refuses ModernBERT and the embedded model's architecture: a BERT
of ModernBERT's size stands in for them.

Every encoder runs in a process of its own and tokenises as well. For each case (texts of one length, so many at once)
they take turns, several times; medians count, and turns that neighbours disturbed are taken again. Writes a table with
ratios to the first peer, `encode.json` and `encode.png`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from app.models.loaded import EMBEDDED
from benchmarks import models, peer
from benchmarks.figures import add_argument, write_figures
from benchmarks.noise import Turns
from benchmarks.products import roof
from sparse_encoder.packed import read_packed

#: Tokens of each text, texts in a batch.
CASES = [(8, 1), (10, 1), (16, 1), (64, 1), (16, 32), (16, 128), (64, 32), (256, 8), (512, 4)]
OURS = ["ours:f32", "ours:bf16", "ours:int8", "ours:int8-static"]
PEERS = ["torch", "torch-bf16", "openvino", "openvino-int8"]
NAMES = {
    "embedded": "embedded",
    "modernbert": "ModernBERT, 149 M",
    "bert": "BERT, 152 M",
    "xlmr": "XLM-R base, 278 M",
}
ROOT = Path(__file__).parent.parent


class Worker:
    """See `benchmarks.worker`."""

    def __init__(self, kind: str, directory: Path, device: str = "cpu") -> None:
        own = kind.startswith(("ours", "transformers")) or device != "cpu"  # in this environment
        python = Path(sys.executable) if own else peer.python()
        self.kind = kind
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the worker
        self._process = subprocess.Popen(
            [python, "-P", "-W", "ignore", peer.WORKER, kind, directory, device],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT) if own else "", "HF_HUB_OFFLINE": "1"},
        )
        while self._line() != "ready":  # some libraries print as well
            pass

    @property
    def pid(self) -> int:
        return self._process.pid

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()
        self._log.close()

    def seconds(self, texts: Sequence[str], batch_size: int, most: int = 512) -> float:
        assert self._process.stdin
        self._process.stdin.write(json.dumps({"texts": texts, "batch_size": batch_size, "most": most}) + "\n")
        self._process.stdin.flush()
        return float(self._line())

    def _line(self) -> str:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            raise RuntimeError(f"the worker {self.kind} ended:\n{self._log.read()[-3000:]}")
        return line.strip()


def texts_of(tokens: int, count: int) -> list[str]:
    """`count` texts of `tokens` tokens each, [CLS] and [SEP] included: of words that are one token."""
    words = ["계약", "보험", "치료", "법원", "정보", "지역", "학교", "기업", "운동", "시장"]
    return [" ".join(words[(row + column) % 10] for column in range(tokens - 2)) for row in range(count)]


def measure(
    ours: Path, theirs: Path, kinds: Sequence[str], rounds: int, device: str, turns: Turns
) -> list[dict[str, object]]:
    """Seconds of each round of each case and encoder; one round before them warms up."""
    results = []
    with ExitStack() as stack:
        workers = [
            stack.enter_context(Worker(kind, ours if kind.startswith("ours") else theirs, device)) for kind in kinds
        ]
        for tokens, batch in CASES:
            texts = texts_of(tokens, batch)
            repeats = max(1, 512 // (tokens * batch))  # of a short case: the first after another encoder's turn is slow
            seconds: dict[str, list[float]] = {worker.kind: [] for worker in workers}
            for turn in range(rounds + 1):
                for worker in workers:
                    taken = turns.take(lambda: median(worker.seconds(texts, batch) for _ in range(repeats)))  # noqa: B023
                    if turn:
                        seconds[worker.kind].append(taken)
            results.append({"tokens": tokens, "batch": batch, "seconds": seconds})
            print(row(results[-1], kinds), flush=True)
    return results


def row(result: dict[str, object], kinds: Sequence[str]) -> str:
    seconds: dict[str, list[float]] = result["seconds"]  # type: ignore[assignment]
    first = median(seconds[next((kind for kind in kinds if not kind.startswith("ours")), kinds[0])])
    cells = [
        f"{median(seconds[kind]) * 1000:9.1f} / {min(seconds[kind]) * 1000:.1f} ({first / median(seconds[kind]):4.1f}x)"
        for kind in kinds
    ]
    return f"{result['batch']:>5} x {result['tokens']:<4}" + "".join(f"{cell:>26}" for cell in cells)


def table(measured: Mapping[str, Sequence[Mapping[str, Any]]], kinds: Sequence[str]) -> str:
    """Markdown: milliseconds by case and kind, medians, in brackets how many times as fast as the first peer."""
    first = next((kind for kind in kinds if not kind.startswith("ours")), kinds[0])
    lines = ["| milliseconds | " + " | ".join(f"`{kind}`" for kind in kinds) + " |", "|---" * (len(kinds) + 1) + "|"]
    for name, results in measured.items():
        for result in results:
            texts, tokens = result["batch"], result["tokens"]
            cells = []
            for kind in kinds:
                own, theirs = (median(result["seconds"].get(of, [0.0])) * 1000 for of in (kind, first))
                cells.append("" if not own else f"{own:.1f}" + (f" ({theirs / own:.1f}x)" if kind != first else ""))
            case = f"{NAMES.get(name, name)}: {texts} text{'s' if texts > 1 else ''} of {tokens} tokens"
            lines.append(f"| {case} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(results: Sequence[dict[str, object]], kinds: Sequence[str], title: str, target: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(11, 4.5), layout="constrained")
    width = 0.8 / len(kinds)
    for number, kind in enumerate(kinds):
        rates = [
            int(str(result["tokens"])) * int(str(result["batch"])) / median(result["seconds"][kind])  # type: ignore[index]
            for result in results
        ]
        axes.bar([index + number * width for index in range(len(results))], rates, width, label=kind)
    axes.set_xticks(
        [index + 0.4 - width / 2 for index in range(len(results))],
        [f"{result['batch']} x {result['tokens']}" for result in results],
    )
    axes.set(xlabel="texts x tokens", ylabel="tokens a second", title=title)
    axes.legend(ncols=2)
    figure.savefig(target, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.encode", description=__doc__)
    parser.add_argument("--model", choices=models.MODELS, nargs="+", default=["embedded", "modernbert", "bert"])
    parser.add_argument("--kinds", nargs="+", default=[*OURS, *PEERS], help=", ".join([*OURS, *PEERS]))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu", help="cpu, or of a GPU cuda, cuda:N or mps")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="directory for JSON and plots")
    add_argument(parser)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    measured = {}
    for name in options.model:
        directory = models.MODELS[name]()
        kinds = [kind for kind in options.kinds if name == "bert" or not kind.startswith("openvino")]
        (directory / "calibration.json").write_text(json.dumps(peer.CALIBRATION), encoding="utf-8")
        print(f"\n{name}: milliseconds of a batch, median / least (times as fast as the first that is not ours)")
        print(f"{'':12}" + "".join(f"{kind:>26}" for kind in kinds))
        ours, turns = EMBEDDED if name == "embedded" else directory, Turns()
        results = measured[name] = measure(ours, directory, kinds, options.rounds, options.device, turns)
        if options.device == "cpu":
            print(f"roof of f32 in this minute {roof('f32') / 1e9:,.0f} G/s")
        print(turns)
        (options.out / f"encode-{name}.json").write_text(json.dumps(results) + "\n", encoding="utf-8")
        plot(results, kinds, f"{name}, {os.cpu_count()} cores", options.out / f"encode-{name}.png")
    if options.figures:
        write_figures("encode", read_packed(EMBEDDED).manifest.version, table(measured, options.kinds))


if __name__ == "__main__":
    main()
