"""A process that uses a store, for tests that need several or kill them: `python -m ... COMMAND URL ARGUMENT...`

publish URL ARTIFACT ALIAS       publishes once
aliases URL NAME VERSION COUNT   points the alias at the version COUNT times
faults URL FOLDER KIND           publishes v2 of FOLDER into URL/1, URL/2, ...: the n-th meets a fault at its n-th step
kills URL FOLDER COUNT           kills COUNT publishers, each at a random moment
limits URL FOLDER                publishers whose writes stop in the middle, by the kernel's limit on the size of a file

The last three fork their publishers and check the store after each; they print how many of them ended badly.
"""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

from sparse_encoder.store import Store, StoreError
from tests.sparse_encoder.stores import check, make_artifact

STEPS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"}  # audit events that touch a disk
KILLED = 9
FAILED = 3
TOLERATED = 4  # a fault that did not matter: making a directory that is there already


def fork(work: Callable[[], int]) -> int:
    """Starts a process that does `work` and exits with its result; gives its id."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = work()
        except BaseException:
            sys.excepthook(*sys.exc_info())
        os._exit(code)
    return child


def wait(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class Fault:
    """What happens at the n-th step; counts from when it is armed."""

    def __init__(self, kind: str, at: int) -> None:
        self.kind, self.left, self.armed = kind, at, False

    def step(self) -> None:
        if not self.armed:
            return
        self.left -= 1
        if self.left == 0:
            if self.kind == "kill":
                os._exit(KILLED)
            raise OSError(errno.ENOSPC, "no space left on device")

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in STEPS and not (event == "open" and arguments[1] in ("r", "rb", None)):
            self.step()

    def before(self, owner: Any, name: str, applies: Callable[..., bool] = lambda *_: True) -> None:
        original = getattr(owner, name)

        def wrapped(*arguments: Any, **keywords: Any) -> Any:
            if applies(*arguments):
                self.step()
            return original(*arguments, **keywords)

        setattr(owner, name, wrapped)


def publish_with_fault(url: str, artifact: Path, kind: str, at: int) -> int:
    store = Store(url)
    store.publish(artifact / "v1", aliases=["stable"], by="test")
    fault = Fault(kind, at)
    if url.startswith("s3://"):
        import s3fs

        changes = {"put_object", "delete_object"}  # between two of them the store stays as it is
        fault.before(s3fs.S3FileSystem, "_call_s3", lambda _self, method, *_: method in changes)
    else:
        sys.addaudithook(fault.audit)
        fault.before(os, "fsync")
        fault.before(os, "sendfile")  # of shutil.copyfile
    fault.armed = True
    try:
        store.publish(artifact / "v2", aliases=["stable"], by="test")
    except StoreError as error:
        if kind == "kill" or "no space left" not in str(error):
            raise
        return FAILED
    fault.armed = False
    return TOLERATED if fault.left <= 0 else 0


def faults(url: str, folder: Path, kind: str) -> int:
    ended: list[int] = []
    while 0 not in ended:  # which had fewer steps
        n = len(ended) + 1
        ended.append(wait(fork(partial(publish_with_fault, f"{url}/{n}", folder, kind, n))))
        assert ended[-1] in ({KILLED, 0} if kind == "kill" else {FAILED, TOLERATED, 0}), ended
    complete = []
    for n, code in enumerate(ended, start=1):
        store = Store(f"{url}/{n}")
        versions = set(store.versions())
        assert {"v1"} <= versions <= {"v1", "v2"}
        check(store.url, folder / "cache" / str(n), versions)
        if code in (KILLED, FAILED):
            complete.append("v2" in versions)
        if code == FAILED and not url.startswith("s3://"):
            assert list(Path(store.url).rglob("*.partial")) == []
        store.publish(folder / "v2", aliases=["stable"], by="test")
        check(store.url, folder / "cache" / str(n), {"v1", "v2"})
        assert store.resolve("stable") == "v2"
        Store(store.url, grace_seconds=0).collect_garbage(1)
        assert list(Path(store.url).rglob("*.partial")) == []
    assert complete == sorted(complete)  # not there until its manifest is, and from then on
    assert not complete[0]
    assert complete[-1]
    return len(complete)


def publish_forever(url: str, folder: Path) -> int:
    for n in count():
        artifact = make_artifact(folder / f"v{n}", f"v{n}", weights_bytes=1_000_000)
        store = Store(url, grace_seconds=0)
        store.publish(artifact, aliases=["stable"], by="test")
        store.collect_garbage(1)
    return 0


def kills(url: str, folder: Path, times: int) -> int:
    random, store = Random(7), Store(url, grace_seconds=0)
    for n in range(times):
        artifacts = folder / str(n)
        artifacts.mkdir()
        publisher = fork(partial(publish_forever, url, artifacts))
        while not store.aliases():  # the first version
            time.sleep(0.005)
        time.sleep(random.uniform(0, 0.15))
        os.kill(publisher, signal.SIGKILL)
        assert wait(publisher) == -signal.SIGKILL
        versions = set(store.versions())
        check(url, folder, versions)
        store.publish(make_artifact(artifacts / "next", "next"), aliases=["stable"], by="test")
        store.collect_garbage(0)
        check(url, folder, {"next"})
        assert list(Path(url).rglob("*.partial")) == []
        shutil.rmtree(artifacts)
        shutil.rmtree(url)
    return times


def limits(url: str, folder: Path) -> int:
    Store(url).publish(folder / "v1", aliases=["stable"], by="test")
    sizes = [0, 10, *(path.stat().st_size - 1 for path in (folder / "v2").iterdir())]

    def publish(version: str, size: int) -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        try:
            Store(url).publish(folder / version, aliases=["stable"], by="test")
        except StoreError as error:
            return FAILED if "File too large" in str(error) else 1
        return 0

    for version, size in [("v1", 10), *(("v2", size) for size in sizes)]:  # of v1 only the alias is written again
        assert wait(fork(partial(publish, version, size))) == FAILED
        check(url, folder, {"v1"})
        assert Store(url).resolve("stable") == "v1"
        assert [path.name for path in Path(url, "versions").iterdir()] == ["v1"]
    return len(sizes)


def main(command: str, url: str, *arguments: str) -> None:
    match command, arguments:
        case "publish", (artifact, alias):
            Store(url).publish(Path(artifact), aliases=[alias], by=alias)
        case "aliases", (name, version, times):
            for _ in range(int(times)):
                Store(url).set_alias(name, version, by=version)
        case "faults", (folder, kind):
            print(faults(url, Path(folder), kind))  # noqa: T201
        case "kills", (folder, times):
            print(kills(url, Path(folder), int(times)))  # noqa: T201
        case "limits", (folder,):
            print(limits(url, Path(folder)))  # noqa: T201
        case _:
            sys.exit(f"unknown: {command} {arguments}")


if __name__ == "__main__":
    main(*sys.argv[1:])
