"""The service as a process of its own, for tests that need sockets, signals or a whole start."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
LISTENING = re.compile(r"running on (https?://\S+)")


class Server:
    """A running `python -m app`; its log is read as it is written, so that it never blocks on a full pipe."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.log: list[str] = []
        self._listening = threading.Event()
        self.url = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            self.log.append(line)
            if found := LISTENING.search(line):
                self.url = found[1]
                self._listening.set()
        self._listening.set()

    def wait_until_listening(self) -> None:
        self._listening.wait()
        assert self.url, "".join(self.log)

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        """The exit code; the whole log is in `log` then."""
        code = self.process.wait()
        self._reader.join()
        assert self.process.stderr
        self.process.stderr.close()
        return code

    def entries(self) -> list[dict[str, object]]:
        """The log. Fails if a line of it is not JSON."""
        return [json.loads(line) for line in self.log]


def start(*command: str, **environment: str) -> Server:
    return _start(ROOT, command, environment)


def _start(directory: Path, command: Sequence[str], environment: Mapping[str, str]) -> Server:
    return Server(
        subprocess.Popen(
            [sys.executable, "-W", "error", *command],
            cwd=directory,
            env={**os.environ, **environment},
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
    )


@contextmanager
def running(*command: str, **environment: str) -> Iterator[Server]:
    """Started and listening; killed at the end, if it is not gone by then."""
    with running_in(ROOT, *command, **environment) as server:
        yield server


@contextmanager
def running_in(checkout: Path, /, *command: str, **environment: str) -> Iterator[Server]:
    """`running` by the code of another checkout."""
    server = _start(checkout, command, environment)
    try:
        server.wait_until_listening()
        yield server
    finally:
        server.process.kill()
        server.wait()
