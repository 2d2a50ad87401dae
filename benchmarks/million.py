"""A million texts through the client: is each answered once and in order, in constant memory, whatever restarts?

    python -m benchmarks.million [--texts 1000000] [--model DIR]

A third of the way the service is told to stop and started again; at two thirds it is killed. Without `--model` it
serves a tiny model of random weights: what is measured is the client, not the encoder. The texts come from a
generator, and each has the vector of one of `DISTINCT` texts, a number that no batch divides into: a batch that is
lost or comes twice shifts all that follow it.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.resident import megabytes
from sparse_encoder.client import SparseEncoderClient
from tests.app.server import ROOT, Server, start

DISTINCT = 997
BATCH, CONCURRENCY = 256, 4
TOP_K = 4
WARM = 0.05  #: of the texts, after which memory must not grow
TOLERANCE = 3e-4  #: of f32 in another batch, and five digits
MAKE = "import sys; from pathlib import Path; from tests.tiny import publish; publish(Path(sys.argv[1]))"


class Service:
    """On one port, whatever happens to its process."""

    def __init__(self, model: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        served = ("-m", "app", "--model", str(model), "--port", str(port), "--precision", "f32")
        self._command = (*served, "--encoder-threads", "1", "--log-level", "warning")
        self.url = f"http://127.0.0.1:{port}"
        self.ends: list[int] = []  #: exit codes
        self._server = self._start()

    def _start(self) -> Server:
        return start(*self._command)

    def restart(self, *, kill: bool) -> None:
        if kill:
            self._server.process.kill()
        else:
            self._server.terminate()
        self.ends.append(self._server.wait())
        self._server = self._start()

    def close(self) -> None:
        self._server.process.kill()
        self._server.wait()


def distinct() -> list[str]:
    """Texts whose heaviest words differ, as far as a tiny vocabulary has it."""
    return [f"{number} 손해배상 {number * 7919 % 1000} 인공지능 {number // 10}" for number in range(DISTINCT)]


def pushed(texts: int) -> Iterator[str]:
    cycle = distinct()
    return (cycle[number % DISTINCT] for number in range(texts))


def same(vector: dict[str, float], expected: dict[str, float]) -> bool:
    return vector.keys() == expected.keys() and all(abs(vector[word] - expected[word]) < TOLERANCE for word in vector)


def million(model: Path, texts: int) -> dict[str, Any]:
    """What came of it; `wrong` counts answers that are not those of their text."""
    with ExitStack() as stack:
        service = Service(model)
        stack.callback(service.close)
        settings = {"batch_size": BATCH, "concurrency": CONCURRENCY, "patience_seconds": 300.0}
        client = stack.enter_context(SparseEncoderClient(service.url, **settings))
        expected = client.encode(distinct(), top_k=TOP_K).vectors
        different = sum(not same(one, other) for one, other in zip(expected, [*expected[1:], expected[0]], strict=True))
        faults = {texts // 3: False, texts * 2 // 3: True}
        threads: list[threading.Thread] = []
        answered = wrong = 0
        warm = most = 0.0
        started = time.perf_counter()
        for vector in client.stream(pushed(texts), top_k=TOP_K):
            wrong += not same(vector, expected[answered % DISTINCT])
            answered += 1
            if answered in faults:
                kill = faults[answered]
                threads.append(threading.Thread(target=service.restart, kwargs={"kill": kill}))
                threads[-1].start()
            if answered % 1000 == 0:
                now = megabytes(os.getpid(), "VmRSS")
                warm = now if answered <= texts * WARM else warm
                most = max(most, now)
        for thread in threads:
            thread.join()
        return {
            "texts": texts,
            "answered": answered,
            "wrong": wrong,
            "neighbours_that_differ": f"{different} of {DISTINCT}",
            "exit_codes": service.ends,
            "seconds": round(time.perf_counter() - started, 1),
            "megabytes_warm": round(warm, 1),
            "megabytes_most": round(most, 1),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=1_000_000)
    parser.add_argument("--model", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="million-") as folder:
        model = options.model or Path(folder) / "tiny"
        if not options.model:  # by another process, since it takes torch
            subprocess.run([sys.executable, "-c", MAKE, str(model)], cwd=ROOT, check=True)
        print(json.dumps(million(model, options.texts), indent=2))


if __name__ == "__main__":
    main()
