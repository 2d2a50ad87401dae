"""`python -m benchmarks.all --data DIR`: makes every figure anew that the documentation quotes.

It writes them all into `benchmarks/figures/all.json`: of each its table, version, date, machine and command, and of
those that it measured how long that took and what neighbours took meanwhile. Which figures there are, and by which
commands, they themselves say. Then bring them into the pages by `python -m scripts.figures`.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.figures import DIRECTORY
from benchmarks.noise import Ticks

ROOT = Path(__file__).parent.parent
_CAPTION = re.compile(
    r"(?P<version>[^\n]+?), (?P<date>\d{4}-\d\d-\d\d), (?P<machine>\d+ cores \(.+\)), `(?P<command>[^`]+)`\.$"
)


@dataclass(frozen=True, slots=True)
class Figure:
    """What was measured, by which command, where and when."""

    table: str
    version: str
    date: str
    machine: str
    command: str

    @classmethod
    def parse(cls, text: str) -> Figure:
        """:raises ValueError: if `text` does not end as `write_figures` ends it."""
        table, _, caption = text.strip().rpartition("\n\n")
        found = _CAPTION.fullmatch(caption)
        if not found:
            raise ValueError(f"no caption of a figure: {caption[:100]!r}; was the file written by --figures?")
        return cls(table, **found.groupdict())

    def arguments(self, data: Path) -> list[str]:
        """Of the interpreter, to measure it again; `data`: what stands for ... in its command."""
        _, *rest = shlex.split(self.command)
        return [*(str(data) if word == "..." else word for word in rest), "--figures"]


def known(before: dict[str, dict[str, object]]) -> dict[str, dict[str, object]]:
    """Every figure as it is now; with how it was measured, if it is that of `before`."""
    found = {}
    for file in sorted(DIRECTORY.glob("*.md")):
        figure = asdict(Figure.parse(file.read_text(encoding="utf-8")))
        there = before.get(file.stem, {})
        found[file.stem] = there if there.items() >= figure.items() else figure
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.all", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="directory of the retrieval sets")
    parser.add_argument("--only", nargs="+", help="names of figures")
    options = parser.parse_args(arguments)
    target = DIRECTORY / "all.json"
    measured = known(json.loads(target.read_text(encoding="utf-8")) if target.exists() else {})
    for name in options.only or sorted(measured):
        file = DIRECTORY / f"{name}.md"
        figure, before, started = Figure.parse(file.read_text(encoding="utf-8")), Ticks.now(), time.monotonic()
        print(f"{name}: {figure.command}", flush=True)
        subprocess.run([sys.executable, *figure.arguments(options.data)], cwd=ROOT, check=True)
        figure = Figure.parse(file.read_text(encoding="utf-8"))
        stolen, seconds = before.stolen_until(Ticks.now()), time.monotonic() - started
        measured[name] = {**asdict(figure), "stolen": round(stolen, 4), "seconds": round(seconds)}
        target.write_text(json.dumps(measured, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        print(f"{name}: {seconds:.0f} s, stolen by neighbours {stolen:.1%}", flush=True)


if __name__ == "__main__":
    main()
