"""`python -m benchmarks.start`: seconds until the service is ready, and the memory that it has then and a little later,
with the graph for short texts.

Beside it, in turn, a process that only imports what any such service imports. The first start of all is not counted: it
compiles byte code.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import httpx

from app.models.loaded import EMBEDDED
from benchmarks.figures import add_argument, write_figures
from sparse_encoder.packed import read_packed
from tests.app.server import running
from tests.app.soak import resident_bytes

#: Seconds in which that graph is made, many times over.
LATER = 4
IMPORTS = "import fastapi, uvicorn, openvino, tokenizers"


def imports() -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", IMPORTS], check=True)
    return time.perf_counter() - started


def service(flags: list[str]) -> tuple[float, float, float, bool]:
    """Seconds until /readyz says so, megabytes resident then and later, and whether torch is in the process."""
    started = time.perf_counter()
    with running("-m", "app", "--port", "0", *flags) as server:
        assert httpx.get(f"{server.url}/readyz").status_code == 200
        seconds = time.perf_counter() - started
        resident = resident_bytes(server) / 1e6
        time.sleep(LATER)
        maps = Path(f"/proc/{server.process.pid}/maps").read_text(encoding="utf-8")
        return seconds, resident, resident_bytes(server) / 1e6, "libtorch" in maps


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.start", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    add_argument(parser)
    options, flags = parser.parse_known_args()
    bare, ready = [], []
    for turn in range(options.rounds + 1):
        pair = imports(), service(flags)
        if turn:
            bare.append(pair[0])
            ready.append(pair[1])
    seconds = median(result[0] for result in ready)
    lines = [
        "| | |",
        "|---|---|",
        f"| imports alone of what any such service imports | {median(bare):.2f} s |",
        f"| service ready | {seconds:.2f} s ({seconds / median(bare):.1f}x) |",
        f"| resident then | {median(result[1] for result in ready):.0f} MB |",
        f"| a little later, with the graph for short texts | {median(result[2] for result in ready):.0f} MB |",
        f"| torch loaded | {'yes' if ready[0][3] else 'no'} |",
    ]
    print("\n".join(lines))
    if options.figures:
        write_figures("start", read_packed(EMBEDDED).manifest.version, "\n".join(lines))


if __name__ == "__main__":
    main()
