"""Runs on a Ray cluster of three nodes: the same as in one process, whatever is killed meanwhile."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from tests.app.bulk.corpus import DIRTY, Command, documents, parquet, write

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Three nodes of one processor each, on this machine."""
    small: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 100_000_000}
    made = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
    for _ in range(2):
        made.add_node(**small)
    yield made
    made.shutdown()


@pytest.mark.parametrize("where", ["here", "cluster"])
def test_wherever_it_runs_the_same_comes_out(
    command: Command, tmp_path: Path, where: str, request: pytest.FixtureRequest
) -> None:
    on = ("--address", request.getfixturevalue("cluster").address) if where == "cluster" else ()
    (tmp_path / "dirty.jsonl").write_bytes(DIRTY)
    more = write(tmp_path / "more.jsonl", [{**row, "id": f"m{row['id']}"} for row in documents(100)])
    asked = (tmp_path / "dirty.jsonl", more, tmp_path / "out", "--id", "id", "--part-rows", 9)
    code, said = command(*asked, *on)
    assert code == 3, said
    assert "114 rows: 107 documents, 7 rejected" in said
    assert ("3 processes of 1 CPUs" in said) == (where == "cluster")
    told = [
        json.loads(line)["row"]
        for part in sorted((tmp_path / "out" / "rejected").iterdir())
        for line in part.read_text(encoding="utf-8").splitlines()
    ]
    assert told == [6, 7, 8, 9, 10, 11, 12]
    found = parquet(tmp_path / "out")
    assert command(*asked)[0] == 3  # which has nothing left to do, here or there
    assert command(tmp_path / "dirty.jsonl", more, tmp_path / "plain", "--id", "id", "--part-rows", 9)[0] == 3
    assert found == parquet(tmp_path / "plain")


def test_what_an_actor_cannot_do_is_a_sentence(command: Command, cluster: Cluster, tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", documents(4))
    on = ("--address", cluster.address)
    code, said = command(source, tmp_path / "o1", *on, "--threads", 64)
    assert (code, "no node of the cluster has 64 CPUs" in said) == (1, True), said
    code, said = command(source, tmp_path / "o2", "--id", "id", *on, "--device", "cpu", "--precision", "f16")
    assert (code, "a CPU does not compute in f16" in said) == (1, True), said


def test_an_address_where_nothing_is_is_a_sentence(command: Command, tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", documents(4))
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    for address, message in (
        (f"127.0.0.1:{port}", "no Ray cluster answers at 127.0.0.1:"),
        ("auto", "is neither local nor HOST:PORT"),
        ("ray://127.0.0.1:10001", "is neither local nor HOST:PORT"),
    ):
        code, said = command(source, tmp_path / "out", "--address", address)
        assert (code, message in said) == (1, True), said


def test_without_the_extra_it_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "ray.py").write_text("raise ModuleNotFoundError(\"No module named 'ray'\")", encoding="utf-8")
    source = write(tmp_path / "a.jsonl", documents(4))
    line = [sys.executable, "-m", "app.bulk", "encode", str(source), str(tmp_path / "out"), "--address", "local"]
    path = os.pathsep.join((str(tmp_path), os.environ.get("PYTHONPATH", "")))
    done = subprocess.run(line, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == 1
    assert "error: --address needs the extra ray (No module named 'ray'): pip install" in done.stderr


PIPELINE = """
import sys
import ray
from app.bulk import Encode, ModelChoice

ray.init(address=sys.argv[2])
ds = ray.data.from_items([{"id": n, "text": f"손해배상 청구 {n}"} for n in range(40)])
model = ModelChoice(model=sys.argv[1], precision="f32", threads=1)
ds = ds.map_batches(Encode, batch_format="pyarrow", batch_size=8, concurrency=1, fn_constructor_kwargs={"model": model})
rows = ds.take_all()
assert len(rows) == 40, len(rows)
assert all(row["text_sparse"][0]["weight"] > 0 for row in rows), rows[0]
"""


def test_encode_in_a_pipeline_of_ray_data(cluster: Cluster, tiny_artifact: Path) -> None:
    line = [sys.executable, "-c", PIPELINE, str(tiny_artifact), cluster.address]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


class Run:
    """The command in a process of its own, on the cluster."""

    def __init__(self, cluster: Cluster, source: Path, output: Path, artifact: Path, cache: Path, rows: int) -> None:
        self.cluster, self._receipts = cluster, output / "receipts"
        line = [sys.executable, "-m", "app.bulk", "encode", source, output, "--id", "id", "--part-rows", rows]
        line += ["--model", artifact, "--precision", "f32", "--cache-dir", cache, "--address", cluster.address]
        self._line = list(map(str, (*line, "--threads", 1, "--concurrency", 3)))
        self.driver = self.begin()

    def begin(self) -> subprocess.Popen[bytes]:
        self.driver = subprocess.Popen(self._line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return self.driver

    def until(self, receipts: int) -> None:
        """There are so many parts done, or the run is at its end."""
        while self.done() < receipts and self.driver.poll() is None:
            os.sched_yield()

    def done(self) -> int:
        return len(list(self._receipts.glob("*.json")))

    def kill_driver(self) -> None:
        self.driver.send_signal(signal.SIGKILL)
        self.driver.wait()
        self.begin()

    def kill_actor(self, choose: random.Random) -> None:
        if found := [pid for pid in _descendants(os.getpid()) if _title(pid).startswith("ray::Actor")]:
            os.kill(choose.choice(found), signal.SIGKILL)

    def kill_node(self) -> None:
        node = next(one for one in self.cluster.list_all_nodes() if one is not self.cluster.head_node)
        self.cluster.remove_node(node, allow_graceful=False)


def _descendants(root: int) -> set[int]:
    """Processes that `root` began, and theirs."""
    parents: dict[int, int] = {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            parents[int(process.name)] = int((process / "stat").read_text().rpartition(")")[2].split()[1])
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {root}


def _title(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


def same_as(output: Path, expected: Path) -> None:
    """Every document once, its vectors but for the last digits, which differ with what else is in a batch."""
    assert [row["id"] for row in parquet(output)] == [row["id"] for row in parquet(expected)]
    assert parquet(output) == parquet(expected)  # parts are the same, so are their batches
    assert not list(output.rglob("*.partial"))
    counts: list[dict[str, Any]] = [json.loads((path / "summary.json").read_bytes()) for path in (output, expected)]
    assert {**counts[0], "seconds": 0} == {**counts[1], "seconds": 0}


def test_a_node_and_the_driver_are_killed(
    command: Command, cluster: Cluster, tiny_artifact: Path, tmp_path: Path
) -> None:
    source = write(tmp_path / "a.jsonl", documents(1500))
    assert command(source, tmp_path / "whole", "--id", "id", "--part-rows", 15)[0] == 0
    run = Run(cluster, source, tmp_path / "killed", tiny_artifact, tmp_path / "cache", 15)
    run.until(30)
    run.kill_node()
    run.until(60)
    assert run.done() < 100, "it was quicker than its killers"
    run.kill_driver()
    assert run.driver.wait() == 0
    cluster.add_node(num_cpus=1, object_store_memory=100_000_000)
    same_as(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_ten_random_kills(command: Command, cluster: Cluster, tiny_artifact: Path, tmp_path: Path) -> None:
    choose = random.Random(24)
    source = write(tmp_path / "a.jsonl", documents(20_000))
    assert command(source, tmp_path / "whole", "--id", "id", "--part-rows", 50)[0] == 0
    run = Run(cluster, source, tmp_path / "killed", tiny_artifact, tmp_path / "cache", 50)
    for kill in range(10):
        run.until(20 + 35 * kill + choose.randrange(30))
        assert run.driver.poll() is None, "it was quicker than its killers"
        what = choose.choice(["driver", "actor", "node"])
        if what == "driver":
            run.kill_driver()
        elif what == "actor":
            run.kill_actor(choose)
        else:
            run.kill_node()
            cluster.add_node(num_cpus=1, object_store_memory=100_000_000)
    assert run.driver.wait() == 0
    same_as(tmp_path / "killed", tmp_path / "whole")
