"""A cluster of three nodes, of which one after the other is killed and comes back while documents are indexed."""

from __future__ import annotations

import itertools
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from app.opensearch.__main__ import main
from app.opensearch.cluster import Cluster
from app.opensearch.facts import OpenSearchError
from app.opensearch.service import EncoderService
from app.opensearch.vectors import vectors_of
from scripts.opensearch_node import Node
from scripts.opensearch_parts import VERSIONS, assemble
from tests.opensearch.live import Live, assert_vectors, neural, serve
from tests.tiny import SENTENCES

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1500)]

CONFIGURATION = """\
node.name: node-{number}
transport.port: {port}
discovery.seed_hosts: [{seeds}]
cluster.initial_cluster_manager_nodes: [node-0, node-1, node-2]
"""
INDEX = "ko-sparse-a"
BULK = 100


class Nodes:
    """Three of them. `addresses`: of all, since clients do not know that one is gone; `living`: of those that run."""

    def __init__(self, version: str, work: Path) -> None:
        assemble(version)
        self._version, self._work = version, work
        with ExitStack() as stack:
            free = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
            self._ports = [one.getsockname()[1] for one in free]
        self._nodes: dict[int, Node] = {}
        self._killed: set[int] = set()
        with ThreadPoolExecutor() as pool:  # none of them listens before it has found another
            list(pool.map(self.start, range(3)))

    @property
    def addresses(self) -> list[str]:
        return [node.url for node in list(self._nodes.values())]

    @property
    def living(self) -> list[str]:
        return [node.url for number, node in self._nodes.items() if number not in self._killed]

    def start(self, number: int) -> str:
        seeds = ", ".join(f'"127.0.0.1:{port}"' for port in self._ports)
        lines = CONFIGURATION.format(number=number, port=self._ports[number], seeds=seeds)
        work = self._work / str(number)
        work.mkdir(exist_ok=True)
        self._nodes[number] = Node(self._version, work, configuration=lines)
        self._killed.discard(number)
        return self._nodes[number].url

    def kill(self, number: int) -> None:
        self._killed.add(number)
        self._nodes[number].kill()

    def stop(self) -> None:
        for number in self._nodes.keys() - self._killed:
            self._nodes[number].stop()


@contextmanager
def three(version: str, work: Path) -> Iterator[Nodes]:
    nodes = Nodes(version, work)
    try:
        yield nodes
    finally:
        nodes.stop()


def text(number: int) -> str:
    return f"{SENTENCES[number % len(SENTENCES)]} {number}"


class Indexer:
    """Sends bulks to one node after the other until it is stopped; what a node did not index goes to the next, as
    clients do it.
    """

    def __init__(self, nodes: Nodes) -> None:
        self.done = 0  #: documents
        self.errors: list[str] = []
        self._nodes = nodes
        self._progress = threading.Condition()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        turn = itertools.count()
        while not self._stopping.is_set():
            rest = list(range(self.done, self.done + BULK))
            while rest:
                addresses = self._nodes.addresses
                rest = self._send(addresses[next(turn) % len(addresses)], rest)
            with self._progress:
                self.done += BULK
                self._progress.notify_all()

    def _send(self, address: str, numbers: list[int]) -> list[int]:
        """Those that were not indexed."""
        try:
            with Cluster(address) as cluster:
                documents = [{"text": text(number), "number": number} for number in numbers]
                outcomes = Live("", cluster).bulk(INDEX, documents, numbers)
        except OpenSearchError as error:
            self.errors.append(str(error))
            return numbers
        self.errors += [str(outcome["error"]) for outcome in outcomes if "error" in outcome]
        return [number for number, outcome in zip(numbers, outcomes, strict=True) if "error" in outcome]

    def wait_for_more(self) -> None:
        with self._progress:
            target = self.done + 10 * BULK
            self._progress.wait_for(lambda: self.done >= target)

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()


def manager(address: str) -> int:
    with Cluster(address) as cluster:
        (found,) = cluster.request("GET", "/_cat/cluster_manager?format=json")
    return int(found["node"].removeprefix("node-"))


def healthy(address: str, nodes: int, status: str) -> None:
    """Waits for it."""
    with Cluster(address, timeout_seconds=400) as cluster:
        path = f"/_cluster/health?wait_for_nodes={nodes}&wait_for_status={status}&timeout=300s"
        assert cluster.request("GET", path)["timed_out"] is False


@pytest.mark.parametrize("version", VERSIONS)
def test_nodes_that_are_killed_and_come_back_cost_no_document(
    version: str, tiny_artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with three(version, tmp_path) as nodes, serve(tiny_artifact) as server:
        first = nodes.addresses[0]
        healthy(first, 3, "green")

        def run(command: str, address: str) -> None:
            assert main([command, "--opensearch", address, "--encoder", server.url]) == 0, capsys.readouterr().err

        run("setup", first)
        indexer = Indexer(nodes)
        try:
            indexer.wait_for_more()
            for which in ("another", "the manager"):
                leader = manager(nodes.living[0])
                victim = leader if which == "the manager" else (leader + 1) % 3
                nodes.kill(victim)
                indexer.wait_for_more()
                healthy(nodes.living[0], 2, "yellow")
                back = nodes.start(victim)
                healthy(back, 3, "green")
                indexer.wait_for_more()
        finally:
            indexer.stop()
        assert indexer.errors, "no bulk met a killed node"
        last = list(range(indexer.done - 2 * BULK, indexer.done))
        expected = EncoderService(server.url).encode([text(number) for number in last])
        run("setup", nodes.living[0])  # 2.19 may not have deployed a model again on a node that was away; check says so
        for address in nodes.addresses:
            run("check", address)
            with Cluster(address) as cluster:
                cluster.request("POST", f"/{INDEX}/_refresh")
                assert cluster.request("GET", f"/{INDEX}/_count")["count"] == indexer.done
                assert Live(version, cluster).search(INDEX, neural("text_sparse", text(7)))
                docs = cluster.request("POST", f"/{INDEX}/_mget", {"ids": list(map(str, last))})["docs"]
                assert_vectors([next(iter(vectors_of(doc["_source"]["text_sparse"]))) for doc in docs], expected)
