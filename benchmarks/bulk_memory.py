"""`python -m benchmarks.bulk_memory`: resident memory of `python -m app.bulk` over many short rows.

The rows are made: an id and the first words of a sentence of tests/tiny.py, in JSONL. The model is its tiny one, so
that the rows weigh, not the model. Memory is looked at whenever a part is done, and told at tenths of the run.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.tiny import SENTENCES, publish

PART = 5000  #: rows


def resident_megabytes(pid: int) -> float:
    found = re.search(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(encoding="ascii"), re.MULTILINE)
    return int(found[1]) / 1024 if found else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bulk_memory", description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        with (work / "rows.jsonl").open("w", encoding="utf-8") as file:
            for n in range(options.rows):
                text = " ".join(SENTENCES[n % len(SENTENCES)].split()[:2])
                file.write(json.dumps({"id": str(n), "text": text}, ensure_ascii=False) + "\n")
        line = [sys.executable, "-m", "app.bulk", "encode", str(work / "rows.jsonl"), str(work / "out"), "--id", "id"]
        line += ["--model", str(publish(work / "model")), "--precision", "f32", "--part-rows", str(PART)]
        started = time.monotonic()
        process = subprocess.Popen(line, stdout=subprocess.DEVNULL)
        parts, told = -(-options.rows // PART), 0
        print("| rows done | s | resident MB |\n|---|---|---|", flush=True)
        while process.poll() is None:
            done = len(list((work / "out").glob("receipts/*.json")))
            if done * 10 // parts > told:
                told = done * 10 // parts
                seconds, memory = time.monotonic() - started, resident_megabytes(process.pid)
                print(f"| {done * PART:,} | {seconds:.0f} | {memory:.0f} |", flush=True)
            time.sleep(0.2)
        if process.returncode:
            sys.exit(f"the command ended with {process.returncode}")
        print(json.loads((work / "out" / "summary.json").read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
