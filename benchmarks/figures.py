"""What a benchmark measured, as the documentation quotes it: a table; of which model, when and where."""

from __future__ import annotations

import argparse
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

DIRECTORY = Path(__file__).parent / "figures"


def add_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--figures",
        action="store_true",
        help="write the table to benchmarks/figures, from where `python -m scripts.figures` brings it into the pages",
    )


def processor() -> str:
    """Its name, and what it multiplies matrices with."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    values = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = values.get("flags", "").split()
    units = [name for flag, name in (("amx_tile", "AMX"), ("avx512f", "AVX-512"), ("avx2", "AVX2")) if flag in flags]
    return f"{values.get('model name', 'unknown processor')} with {units[0] if units else 'neither AVX-512 nor AVX2'}"


def command() -> str:
    """As it was called, without where files lie."""
    kept: list[str] = []
    arguments = iter(sys.argv[1:])
    for argument in arguments:
        if argument in ("--data", "--out"):
            next(arguments)
            kept += [argument, "..."] if argument == "--data" else []
        elif argument != "--figures":
            kept.append(argument)
    module = Path(sys.argv[0]).stem
    return " ".join(["python -m", f"benchmarks.{module}", *kept])


def caption(version: str) -> str:
    cores = len(os.sched_getaffinity(0))
    return f"{version}, {datetime.now(UTC):%Y-%m-%d}, {cores} cores ({processor()}), `{command()}`."


def write_figures(name: str, version: str, table: str) -> Path:
    """`figures/NAME.md` beside this file. `version`: of the model."""
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    target = DIRECTORY / f"{name}.md"
    target.write_text(f"{table.strip()}\n\n{caption(version)}\n", encoding="utf-8")
    return target
