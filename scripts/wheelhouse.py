"""Everything that the service needs from a package index, in one directory, for a network that has none.

    python -m scripts.wheelhouse DIRECTORY [--machine x86_64|aarch64] [--python-version 3.11] [--extras "opensearch s3"]

The wheel of the service is made from the last commit, the others are downloaded, each checked against the hashes of
this repository. There, with the Python named:

    python -m venv env
    env/bin/pip install --no-index --find-links DIRECTORY --require-hashes -r DIRECTORY/requirements.txt
    env/bin/python -m app

If it is for this machine and this Python, that is done here as well, and the service must encode. Needs git.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parent.parent
#: The C library 2.x that OpenVINO's wheels need: of RHEL 8 and Debian 10, and on ARM of Ubuntu 22.04 and Debian 12.
GLIBC = {"x86_64": 28, "aarch64": 35}
OLDEST_GLIBC = 17
READY_SECONDS = 120  # the limit of a service that does not start, not an expectation
TEXTS = ["손해배상", ""]


class WheelhouseError(Exception):
    """It cannot be made, or does not work. The message says why."""


def run(*command: str | Path, cwd: Path = ROOT, env: Mapping[str, str] | None = None) -> str:
    """What it wrote to standard output; what else it said is shown only if it fails."""
    parts = [str(part) for part in command]
    done = subprocess.run(parts, capture_output=True, text=True, check=False, cwd=cwd, env=env)
    if done.returncode:
        raise WheelhouseError(f"{' '.join(parts[:5])} ... ended with {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout


def hashed_pins(text: str) -> dict[str, str]:
    """The lines of each package in a file of hashes, by its normalised name, without its marker."""
    pins: dict[str, str] = {}
    for block in re.findall(r"^\w.*(?:\n +--hash.*)+", text, re.MULTILINE):
        first, *hashes = block.splitlines()
        pin = first.rstrip("\\").partition(";")[0].strip()
        pins[normalised(pin.partition("==")[0])] = " \\\n".join([pin, *(line.rstrip("\\ ") for line in hashes)])
    return pins


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def needed(machine: str, python_version: str, extras: Iterable[str]) -> list[str]:
    """The names of the packages of that machine and Python, without the service itself."""
    known = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    if unknown := set(extras) - set(known):
        raise WheelhouseError(f"there is no extra {', '.join(sorted(unknown))}: pyproject.toml has {', '.join(known)}")
    chosen = [part for extra in extras for part in ("--extra", extra)]
    target = ("--python-platform", f"{machine}-manylinux_2_{GLIBC[machine]}", "--python-version", python_version)
    uv = (Path(sys.executable).with_name("uv"), "pip", "compile", "--quiet", "--no-header", "--no-annotate")
    out = run(*uv, "--constraint", "constraints.txt", *target, *chosen, "pyproject.toml")
    return [line.partition("==")[0] for line in out.splitlines()]


def download(directory: Path, names: Iterable[str], machine: str, python_version: str) -> None:
    """The wheels of `names`, in the versions and with the hashes of this repository."""
    pins: dict[str, str] = {}
    for file in sorted((ROOT / "hashes").glob("*.txt")):
        pins |= hashed_pins(file.read_text(encoding="utf-8"))
    if missing := [name for name in names if normalised(name) not in pins]:
        raise WheelhouseError(f"hashes/ has none of {', '.join(missing)}: run `make lock`")
    with TemporaryDirectory() as temporary:
        wanted = Path(temporary) / "wanted.txt"
        wanted.write_text("\n".join(pins[normalised(name)] for name in names), encoding="utf-8")
        minors = range(GLIBC[machine], OLDEST_GLIBC - 1, -1)
        platforms = [f"--platform=manylinux_2_{minor}_{machine}" for minor in minors]
        flags = ("--quiet", "--no-deps", "--only-binary=:all:", "--require-hashes")
        target = (*platforms, f"--platform=manylinux2014_{machine}", f"--python-version={python_version}")
        pip = (sys.executable, "-m", "pip", "download")
        run(*pip, *flags, *target, f"--dest={directory}", f"--requirement={wanted}")


def build_own_wheel(directory: Path) -> None:
    """From the last commit, with its time, so that it is the same bytes each time."""
    seconds = run("git", "log", "-1", "--format=%ct").strip()
    with TemporaryDirectory() as temporary:
        archive, source = Path(temporary) / "source.tar", Path(temporary) / "source"
        run("git", "archive", "--output", archive, "HEAD")
        shutil.unpack_archive(archive, source, filter="data")
        pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation")
        run(*pip, "--wheel-dir", directory, source, env={**os.environ, "SOURCE_DATE_EPOCH": seconds})


def requirements(directory: Path) -> str:
    """A line for each wheel, with its version and hash."""
    lines = []
    for wheel in sorted(directory.glob("*.whl")):
        name, version = wheel.name.split("-")[:2]
        lines.append(f"{name}=={version} --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}")
    return "\n".join(lines) + "\n"


def make(directory: Path, machine: str, python_version: str, extras: Sequence[str]) -> None:
    if run("git", "status", "--porcelain").strip():
        print(
            "the working tree has changes that are not in the last commit, of which the wheel is made", file=sys.stderr
        )
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    build_own_wheel(directory)
    download(directory, needed(machine, python_version, extras), machine, python_version)
    (directory / "requirements.txt").write_text(requirements(directory), encoding="utf-8")
    wheels = list(directory.glob("*.whl"))
    megabytes = sum(wheel.stat().st_size for wheel in wheels) / 1e6
    target = f"Python {python_version} on Linux {machine} with glibc 2.{GLIBC[machine]} or newer"
    print(f"{directory}: {len(wheels)} wheels, {megabytes:.0f} MB, for {target}")


def try_it(directory: Path) -> None:
    """Installs it into an environment of its own, asks no index, and lets the service encode."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "SPARSE_", "PYTHON"))}
    environment["PIP_CONFIG_FILE"] = os.devnull
    with TemporaryDirectory() as temporary:
        python = Path(temporary) / "env" / "bin" / "python"
        run(sys.executable, "-m", "venv", python.parent.parent)
        flags = ("--quiet", "--no-index", "--find-links", directory, "--require-hashes", "--requirement")
        run(python, "-m", "pip", "install", *flags, directory / "requirements.txt", env=environment)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        command = [str(python), "-m", "app", "--port", str(port), "--drain-seconds", "0"]
        with (Path(temporary) / "log").open("w+") as log:
            service = subprocess.Popen(command, cwd=temporary, env=environment, stderr=log)
            try:
                vectors = _encode(f"http://127.0.0.1:{port}", service)
            except WheelhouseError as error:
                log.seek(0)
                raise WheelhouseError(f"{error}:\n{log.read()[-2000:]}") from None
            finally:
                service.send_signal(signal.SIGTERM)
                service.wait()
        if not vectors[0] or vectors[1]:
            raise WheelhouseError(f"the service answers {vectors} to {TEXTS}")
        print(f"installed from it without an index, and started: {TEXTS[0]} has {len(vectors[0])} words")


def _encode(url: str, service: subprocess.Popen[bytes]) -> list[dict[str, float]]:
    body = json.dumps({"texts": TEXTS}).encode()
    request = urllib.request.Request(f"{url}/encode", body, {"content-type": "application/json"})
    started = time.monotonic()
    while service.poll() is None and time.monotonic() - started < READY_SECONDS:
        try:
            with urllib.request.urlopen(request, timeout=READY_SECONDS) as response:
                vectors: list[dict[str, float]] = json.loads(response.read())
                return vectors
        except urllib.error.HTTPError as error:
            raise WheelhouseError(f"the service answers {error.code}: {error.read()!r}") from None
        except OSError:  # it does not listen yet
            time.sleep(0.1)
    raise WheelhouseError(f"the service ended with {service.poll()} instead of answering")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="made anew")
    parser.add_argument("--machine", choices=tuple(GLIBC), default="x86_64")
    parser.add_argument("--python-version", default="3.11")
    parser.add_argument("--extras", default="", help="of pyproject.toml, separated by spaces")
    options = parser.parse_args(arguments)
    directory = options.directory.absolute()
    try:
        make(directory, options.machine, options.python_version, options.extras.split())
        here = platform.machine(), "{}.{}".format(*sys.version_info[:2])
        if (options.machine, options.python_version) == here:
            try_it(directory)
        else:
            print(f"not tried: this is Python {here[1]} on {here[0]}")
    except WheelhouseError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
