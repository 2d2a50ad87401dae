"""`python -m benchmarks.against REVISION...`: latency and throughput of this checkout beside those of older commits.

All serve the model that the first of them had embedded, over HTTP, with the same environment and settings, and are
asked in turn, since the machine changes: one client that sends queries of 16 tokens, 64 such clients, and four clients
that send 4 documents of 64 tokens at a time. No text is sent twice. In brackets: the value of this checkout divided by
that of the commit, the median over the turns of what it was within a turn.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from benchmarks.figures import add_argument, write_figures
from benchmarks.http import texts
from benchmarks.load import body, closed_loop
from sparse_encoder.packed import unpack
from tests.app.server import ROOT, running_in

DOCUMENTS, DOCUMENT_TOKENS = 4, 64
CASES = ("1 client, queries: ms (p50)", "64 clients, queries: texts/s", "4 clients, documents: texts/s")


@contextmanager
def checkout(revision: str) -> Iterator[Path]:
    with TemporaryDirectory() as temporary:
        directory = Path(temporary) / "tree"
        subprocess.run(
            ["git", "worktree", "add", "--quiet", "--detach", str(directory), revision], cwd=ROOT, check=True
        )
        try:
            yield directory
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(directory)], cwd=ROOT, check=True)


def turn(url: str, seconds: float, query: Callable[[], str], document: Callable[[], str]) -> tuple[float, float, float]:
    """What `CASES` name."""

    def documents() -> bytes:
        return json.dumps({"texts": [document() for _ in range(DOCUMENTS)]}).encode()

    alone = asyncio.run(closed_loop(url, 1, seconds, lambda: body(query())))
    crowd = asyncio.run(closed_loop(url, 64, seconds, lambda: body(query())))
    batches = asyncio.run(closed_loop(url, 4, seconds, documents))
    assert all(answer.status == 200 for answer in (*alone, *crowd, *batches))
    latency = median(answer.seconds for answer in alone) * 1000
    return latency, len(crowd) / seconds, len(batches) * DOCUMENTS / seconds


def table(names: Sequence[str], turns: Sequence[Sequence[tuple[float, float, float]]]) -> str:
    """`turns[i][j]`: of turn i, code `names[j]`; the last is what the others are compared with."""
    lines = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for case, name in enumerate(CASES):
        cells = []
        for code in range(len(names)):
            value = median(seen[code][case] for seen in turns)
            ratio = median(seen[-1][case] / seen[code][case] for seen in turns)
            cells.append(f"{value:.1f}" + (f" ({ratio:.2f}x)" if code < len(names) - 1 else ""))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.against", description=__doc__)
    parser.add_argument("revision", nargs="+", help="commits, the oldest first")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--seconds", type=float, default=3, help="of each stretch")
    parser.add_argument("--rounds", type=int, default=7)
    add_argument(parser)
    options = parser.parse_args(arguments)
    with ExitStack() as stack:
        trees = [stack.enter_context(checkout(revision)) for revision in options.revision]
        model = unpack(trees[0] / "app" / "embedded", Path(stack.enter_context(TemporaryDirectory())) / "model").path
        flags = ("-m", "app", "--port=0", f"--model={model}", f"--precision={options.precision}")
        urls = [stack.enter_context(running_in(tree, *flags)).url for tree in (*trees, ROOT)]
        asked = texts(), texts(DOCUMENT_TOKENS)
        for url in urls:
            turn(url, 1, *asked)  # warms up
        turns = [[turn(url, options.seconds, *asked) for url in urls] for _ in range(options.rounds)]
    lines = table([*(f"`{revision}`" for revision in options.revision), "this"], turns)
    print(lines)
    if options.figures:
        version = json.loads((model / "manifest.json").read_text(encoding="utf-8"))["version"]
        write_figures("against", version, lines)


if __name__ == "__main__":
    main()
