"""A process that uses a store, for tests that need several or kill them: python store_worker.py COMMAND ARGUMENT...

publish URL ARTIFACT ALIAS       publishes once
publish_forever URL FOLDER       publishes v0, v1, ... with the alias stable, and collects garbage, until killed
aliases URL NAME VERSION COUNT   points the alias at the version COUNT times
faults URL ARTIFACT KIND FOLDER  publishes into URL/1, URL/2, ...: the n-th publisher meets a fault at its n-th step
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import s3fs

from sparse_encoder.store import Store, StoreError
from tests.sparse_encoder.stores import check, make_artifact

STEPS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link"}  # audit events that touch a disk
KILLED = 9
FAILED = 3


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
        assert kind != "kill"
        assert "no space left" in str(error), error
        return FAILED
    fault.armed = False
    return 0


def faults(url: str, artifacts: Path, kind: str, folder: Path) -> None:
    ended = []
    for n in count(1):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = publish_with_fault(f"{url}/{n}", artifacts, kind, n)
            except BaseException:
                sys.excepthook(*sys.exc_info())
            os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        ended.append(code)
        if code == 0:  # it had fewer than n steps
            break
        assert code == (KILLED if kind == "kill" else FAILED), (n, code)
    complete = []
    for n in range(1, len(ended) + 1):
        store = Store(f"{url}/{n}")
        versions = set(store.versions())
        assert {"v1"} <= versions <= {"v1", "v2"}
        check(store.url, folder / str(n), versions)
        complete.append("v2" in versions)
        store.publish(artifacts / "v2", aliases=["stable"], by="test")
        check(store.url, folder / str(n), {"v1", "v2"})
        assert store.resolve("stable") == "v2"
        young = Store(store.url, grace_seconds=0)
        young.collect_garbage(1)
        left = [path for path in Path(store.url).rglob("*.partial")]
        assert left == []
    assert sorted(complete) == complete  # until its manifest is there, a version is not, and then it stays
    assert not complete[0]
    print(len(ended) - 1)


def publish_forever(url: str, folder: Path) -> None:
    for n in count():
        artifact = make_artifact(folder / f"v{n}", f"v{n}", weights_bytes=2_000_000)
        store = Store(url, grace_seconds=0 if n % 3 else 3600)
        store.publish(artifact, aliases=["stable"], by="test")
        store.collect_garbage(2)
        print(n, flush=True)


def main(command: str, url: str, *arguments: str) -> None:
    match command, arguments:
        case "publish", (artifact, alias):
            Store(url).publish(Path(artifact), aliases=[alias], by=alias)
        case "publish_forever", (folder,):
            publish_forever(url, Path(folder))
        case "aliases", (name, version, times):
            for _ in range(int(times)):
                Store(url).set_alias(name, version, by=version)
        case "faults", (artifacts, kind, folder):
            faults(url, Path(artifacts), kind, Path(folder))
        case _:
            sys.exit(f"unknown: {command} {arguments}")


if __name__ == "__main__":
    main(*sys.argv[1:])
