"""Publishers that die, for test_store: a process of its own, since it forks and limits itself.

`python dying_publishers.py STORE SCRATCH {step,kill,full}`; prints how many deaths the store survived.
"""

from __future__ import annotations

import dataclasses
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from sparse_encoder.artifact import read_artifact, write_artifact  # noqa: E402
from sparse_encoder.store import Store, StoreError  # noqa: E402
from tests.sparse_encoder.test_artifact import DESCRIPTION, fill  # noqa: E402

STEP = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.copyfile", "os.scandir"}


def artifact(scratch: Path, version: str) -> Path:
    target = scratch / version
    return write_artifact(target, fill, lambda _: dataclasses.replace(DESCRIPTION, version=version))


def check(url: Path) -> None:
    """Whatever happened, a reader finds complete versions only."""
    store = Store(str(url))
    for version in store.versions():
        read_artifact(url / "versions" / version)
    for alias in store.aliases().values():
        assert alias.version in store.versions(), alias


def in_child(work: Callable[[], None]) -> int:
    """Forks, works, and gives the exit code (negative: the signal that ended it)."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except StoreError:
            os._exit(3)
        except BaseException as error:
            sys.stderr.write(f"{error!r}\n")
            os._exit(4)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def die_at_every_step(url: Path, scratch: Path) -> int:
    deaths = 0
    while True:
        source = artifact(scratch, f"step-{deaths}")
        left = deaths + 1

        def publish(source: Path = source, left: int = left) -> None:
            def count(event: str, arguments: tuple[object, ...]) -> None:
                nonlocal left
                if event in STEP:
                    left -= 1
                    if not left:
                        os._exit(9)

            sys.addaudithook(count)
            Store(str(url)).publish(source, aliases=["stable"], by="test")

        code = in_child(publish)
        check(url)
        if code == 0:
            return deaths
        assert code == 9, code
        deaths += 1


def die_at_random_moments(url: Path, scratch: Path) -> int:
    sources = [artifact(scratch, f"kill-{number}") for number in range(6)]
    delays = random.Random(7)

    def publish() -> None:
        store = Store(str(url), grace_seconds=0)
        while True:  # the same ones again and again, with garbage collection in between
            for source in sources:
                store.publish(source, aliases=["stable"], by="test")
            store.collect_garbage(0)

    for _ in range(50):
        pid = os.fork()
        if pid == 0:
            publish()
        time.sleep(delays.uniform(0.001, 0.06))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        check(url)
    return 50


def run_out_of_room(url: Path, scratch: Path) -> int:
    """Files may grow to so many bytes and no further: every write that is longer fails in its middle."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    source = artifact(scratch, "full")
    largest = max(path.stat().st_size for path in source.iterdir())
    failures = 0
    for limit in range(0, largest, 41):

        def publish(limit: int = limit) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            Store(str(url)).publish(source, aliases=["stable"], by="test")

        assert in_child(publish) == 3
        check(url)
        assert Store(str(url)).versions() == []
        failures += 1
    return failures


def main() -> None:
    url, scratch, how = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    scratch.mkdir()
    ways = {"step": die_at_every_step, "kill": die_at_random_moments, "full": run_out_of_room}
    deaths = ways[how](url, scratch)
    last = artifact(scratch, "last")
    Store(str(url)).publish(last, aliases=["stable"], by="test")
    check(url)
    assert Store(str(url)).resolve("stable") == "last"
    Store(str(url), grace_seconds=0).collect_garbage(0)
    assert [path.name for path in (url / "versions").iterdir()] == ["last"]
    print(deaths)  # noqa: T201


if __name__ == "__main__":
    main()
