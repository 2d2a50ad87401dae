"""Two replicas behind nginx, restarted one after the other under load: is every request answered?

    python -m benchmarks.rolling_restart [--clients 64] [--restarts 2] [--model DIR] [--start JSON]

Needs root, nginx and unshare: everything runs in a network namespace of its own. nginx is told to leave out a replica
as soon as its /readyz says no, which load balancers find out by themselves, and passes no request on to the other one:
it must not hide an answer that was lost. Its clients connect anew for each request, because nginx, when it is told
something, hangs up on idle ones.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx

START = [sys.executable, "-m", "app"]
PORTS = (8081, 8082)
FRONT = "http://127.0.0.1:8080"
TEXTS = ["전세 보증금을 돌려받지 못하면", "휴대폰 요금제 변경"]
NUMBERS = itertools.count()  #: in every text, so that none comes twice
INSIDE = "--inside-the-namespace"
NGINX = """
daemon off; worker_processes 1; pid {directory}/pid; error_log {directory}/error.log; user root;
events {{ worker_connections 1024; }}
http {{
    access_log off; keepalive_timeout 0;
    client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy; fastcgi_temp_path {directory}/f;
    uwsgi_temp_path {directory}/u; scgi_temp_path {directory}/s;
    upstream replicas {{ {servers} keepalive 64; }}
    server {{
        listen 127.0.0.1:8080;
        location / {{
            proxy_pass http://replicas;
            proxy_http_version 1.1;
            proxy_next_upstream off;
            proxy_set_header Connection "";
            proxy_read_timeout 120s;
        }}
    }}
}}
"""


@dataclass
class Load:
    """What the clients saw."""

    statuses: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    over: asyncio.Event = field(default_factory=asyncio.Event)

    async def client(self) -> None:
        async with httpx.AsyncClient(base_url=FRONT, timeout=120) as client:
            while not self.over.is_set():
                texts = [f"{text} {next(NUMBERS)}" for text in TEXTS]
                started = time.perf_counter()
                try:
                    response = await client.post("/encode", json={"texts": texts, "input_type": "query"})
                    whole = response.status_code == 200 and len(response.json()) == len(TEXTS)
                    self.statuses["200" if whole else f"{response.status_code} {response.text[:80]}"] += 1
                except (httpx.HTTPError, ValueError) as error:
                    self.statuses[repr(error)] += 1
                self.seconds.append(time.perf_counter() - started)


class Replica:
    """One process of the service, which keeps its port over restarts."""

    def __init__(self, port: int, start: list[str], options: list[str], log: Path) -> None:
        self.port, self._start, self._options, self._log = port, start, options, log
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Returns when it is ready."""
        command = [*self._start, "--port", str(self.port), "--drain-seconds", "3", *self._options]
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(*command, stderr=log)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", timeout=60) as client:
            while True:
                with suppress(httpx.TransportError):
                    if (await client.get("/readyz")).status_code == 200:
                        return
                if self._process.returncode is not None:
                    sys.exit(f"a replica did not start: {self._log.read_text()[-2000:]}")
                await asyncio.sleep(0.1)

    def terminate(self) -> None:
        if self._process and self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)

    async def not_ready(self) -> None:
        """Returns when its /readyz says no."""
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", timeout=60) as client:
            while (await client.get("/readyz")).status_code == 200:  # noqa: ASYNC110 - a poll will do
                await asyncio.sleep(0.05)

    async def stopped(self) -> None:
        """The exit must be clean."""
        if self._process and await self._process.wait():
            sys.exit(f"a replica ended with {self._process.returncode}: {self._log.read_text()[-2000:]}")

    def kill(self) -> None:
        if self._process and self._process.returncode is None:
            self._process.kill()


async def measure(options: argparse.Namespace, directory: Path) -> Load:
    service = ["--encoder-threads", "1", *(["--model", str(options.model)] if options.model else [])]
    replicas = [Replica(port, options.start, service, directory / f"{port}.log") for port in PORTS]

    def balance(ports: Sequence[int]) -> None:
        servers = " ".join(f"server 127.0.0.1:{port};" for port in ports)
        (directory / "nginx.conf").write_text(NGINX.format(directory=directory, servers=servers), encoding="utf-8")
        if nginx:
            nginx.send_signal(signal.SIGHUP)

    nginx = None
    balance(PORTS)
    load = Load()
    try:
        for replica in replicas:
            await replica.start()
        nginx = await asyncio.create_subprocess_exec("nginx", "-c", str(directory / "nginx.conf"))
        async with httpx.AsyncClient(base_url=FRONT, timeout=60) as client:
            while True:  # until nginx listens
                with suppress(httpx.TransportError):
                    (await client.get("/livez")).raise_for_status()
                    break
                await asyncio.sleep(0.05)
        async with asyncio.TaskGroup() as group:
            for _ in range(options.clients):
                group.create_task(load.client())
            for _ in range(options.restarts):
                for replica in replicas:
                    answered = len(load.seconds)  # and wait until both replicas are under load again
                    while len(load.seconds) < answered + 2 * options.clients:  # noqa: ASYNC110 - a poll will do
                        await asyncio.sleep(0.05)
                    replica.terminate()
                    await replica.not_ready()
                    balance([port for port in PORTS if port != replica.port])
                    await replica.stopped()
                    await replica.start()
                    balance(PORTS)
                    print(f"replica {replica.port} restarted, {len(load.seconds)} requests so far", flush=True)
            load.over.set()
        for replica in replicas:
            replica.terminate()
            await replica.stopped()
    finally:
        for replica in replicas:
            replica.kill()
        if nginx and nginx.returncode is None:
            nginx.terminate()
            await nginx.wait()
    return load


def report(load: Load, clients: int) -> int:
    seconds = sorted(load.seconds)
    half, nearly_all = (seconds[int(len(seconds) * share)] for share in (0.5, 0.99))
    print(f"{len(seconds)} requests of {clients} clients: {dict(load.statuses)}")
    print(f"median {half:.3f} s, p99 {nearly_all:.3f} s, longest {seconds[-1]:.3f} s")
    return 0 if set(load.statuses) == {"200"} else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--restarts", type=int, default=2, help="of each replica")
    parser.add_argument("--model", type=Path, help="a published checkpoint; without it, the embedded one")
    parser.add_argument("--start", type=json.loads, default=START, help="the service's command, a JSON list")
    if INSIDE not in sys.argv:
        parser.parse_args()
        missing = [name for name in ("nginx", "unshare", "ip") if not shutil.which(name)]
        if missing or os.geteuid() != 0:
            sys.exit(f"needs root, nginx, unshare and ip; missing: {', '.join(missing) or 'root'}")
        namespace = ["unshare", "--net", "--pid", "--mount-proc", "--fork", "--kill-child"]
        return subprocess.call([*namespace, sys.executable, "-m", "benchmarks.rolling_restart", *sys.argv[1:], INSIDE])
    sys.argv.remove(INSIDE)
    options = parser.parse_args()
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with TemporaryDirectory(prefix="rolling-restart-") as directory:
        return report(asyncio.run(measure(options, Path(directory))), options.clients)


if __name__ == "__main__":
    sys.exit(main())
