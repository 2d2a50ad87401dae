"""Runs inside new namespaces: starts a container's command on its root, read-only, and asks it what it must answer.

unshare --mount --net --pid --fork python scripts/image_probe.py ROOT CONFIG_JSON [PROGRAM ...]

With PROGRAM, a benchmark, the container is not asked here: the program gets the container's command as `--start`.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

READY_SECONDS = 600  # the limit of a broken image, not an expectation
TEXTS = ["전세 보증금을 돌려받지 못하면", "손해배상 청구", ""]


def prepare(root: Path) -> None:
    """Loopback up; `root` read-only with the kernel's file systems, and not one place that can be written."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", "--bind", root, root], check=True)
    subprocess.run(["mount", "-t", "proc", "proc", root / "proc"], check=True)
    subprocess.run(["mount", "--rbind", "/sys", root / "sys"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "dev", root / "dev"], check=True)
    for device in ("null", "zero", "random", "urandom"):
        (root / "dev" / device).touch()
        subprocess.run(["mount", "--bind", f"/dev/{device}", root / "dev" / device], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", root / "dev"], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", root], check=True)


def command(root: Path, config: Mapping[str, Any], *arguments: str) -> list[str]:
    """`arguments` in the container: its user and environment, no capabilities, no way to gain any."""
    uid, gid = config["User"].split(":")
    rights = ["--clear-groups", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]
    user = ["setpriv", f"--reuid={uid}", f"--regid={gid}", *rights]
    return ["chroot", str(root), *user, "env", "-i", f"--chdir={config['WorkingDir']}", *config["Env"], *arguments]


def ask(path: str, body: object = None) -> tuple[int, bytes]:
    """Status and body; 0 when nobody listens."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:8080{path}", data, {"content-type": "application/json"})
    try:
        response: HTTPResponse
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
    except OSError:
        return 0, b""


def require(condition: bool, what: str) -> None:
    if not condition:
        sys.exit(f"error: {what}")


def run_with_its_command(root: Path, config: Mapping[str, Any], program: Sequence[str]) -> int:
    """Exit code of `program`, which starts the container itself."""
    start = json.dumps(command(root, config, *config["Entrypoint"], *(config.get("Cmd") or [])))
    return subprocess.run([sys.executable, *program, "--start", start], check=False).returncode


def probe(root: Path, config: Mapping[str, Any]) -> None:
    shell = ["python", "-c"]
    attempt = command(root, config, *shell, "open('/opt/written', 'w')")
    refused = subprocess.run(attempt, capture_output=True, text=True, check=False)
    require("Read-only file system" in refused.stderr, f"the root can be written: {refused.stderr}")
    started = time.monotonic()
    service = subprocess.Popen(command(root, config, *config["Entrypoint"], *(config.get("Cmd") or [])))
    try:
        while ask("/readyz")[0] != 200:
            require(service.poll() is None, f"the service ended with {service.returncode} instead of being ready")
            require(time.monotonic() - started < READY_SECONDS, f"not ready within {READY_SECONDS} s")
            time.sleep(0.05)
        print(f"ready {time.monotonic() - started:.1f} s after its start", flush=True)
        status = (root / "proc" / str(service.pid) / "status").read_text()  # of the new process namespace
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        require(fields["Uid"].split() == [config["User"].split(":")[0]] * 4, f"runs as {fields['Uid']}")
        require(int(fields["CapEff"], 16) == int(fields["CapBnd"], 16) == 0, "has capabilities")
        print(
            f"user {fields['Uid'].split()[0]}, no capabilities, resident {int(fields['VmRSS'].split()[0]) // 1024} MB"
        )
        code, answer = ask("/encode", {"texts": TEXTS, "top_k": 5})
        vectors = json.loads(answer)
        require(code == 200 and [bool(v) for v in vectors] == [True, True, False], f"/encode: {code} {answer!r}")
        print(json.dumps(dict(zip(TEXTS, vectors, strict=True)), ensure_ascii=False))
        healthcheck = config["Healthcheck"]["Test"]
        require(healthcheck[0] == "CMD", f"the health check needs a shell: {healthcheck}")
        healthy = subprocess.run(command(root, config, *healthcheck[1:]), check=False).returncode
        require(healthy == 0, f"the health check of a ready container ended with {healthy}")
        service.send_signal(signal.SIGTERM)
        code = service.wait(timeout=120)
        require(code == 0, f"after SIGTERM it ended with {code}")
        sick = subprocess.run(
            command(root, config, *healthcheck[1:]), stderr=subprocess.DEVNULL, check=False
        ).returncode
        require(sick != 0, "the health check passes when nothing runs")
        print("stopped by SIGTERM with exit code 0", flush=True)
    finally:
        service.kill()


def main() -> int:
    root, config, program = Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3:]
    prepare(root)
    if program:
        return run_with_its_command(root, config, program)
    probe(root, config)
    return 0


if __name__ == "__main__":
    sys.exit(main())
