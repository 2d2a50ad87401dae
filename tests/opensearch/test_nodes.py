"""A cluster of three nodes, of which one after the other is killed and comes back while documents are indexed."""

from __future__ import annotations

import itertools
import socket
import threading
from collections.abc import Iterator, Sequence
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
DOCUMENTS = 20_000
BULK = 100


class Nodes:
    """Three of them; `addresses` are of those that run."""

    def __init__(self, version: str, work: Path) -> None:
        assemble(version)
        self._version, self._work = version, work
        with ExitStack() as stack:
            free = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
            self._ports = [one.getsockname()[1] for one in free]
        self._running: dict[int, Node] = {}
        with ThreadPoolExecutor() as pool:  # none of them listens before it has found another
            list(pool.map(self.start, range(3)))

    @property
    def addresses(self) -> list[str]:
        return [node.url for node in list(self._running.values())]

    def start(self, number: int) -> str:
        seeds = ", ".join(f'"127.0.0.1:{port}"' for port in self._ports)
        lines = CONFIGURATION.format(number=number, port=self._ports[number], seeds=seeds)
        work = self._work / str(number)
        work.mkdir(exist_ok=True)
        self._running[number] = Node(self._version, work, configuration=lines)
        return self._running[number].url

    def kill(self, number: int) -> None:
        self._running.pop(number).kill()

    def stop(self) -> None:
        for node in self._running.values():
            node.stop()


@contextmanager
def three(version: str, work: Path) -> Iterator[Nodes]:
    nodes = Nodes(version, work)
    try:
        yield nodes
    finally:
        nodes.stop()


class Indexer:
    """Sends bulks to one node after the other; what was not indexed goes to the next, as clients do it."""

    def __init__(self, nodes: Nodes, texts: Sequence[str]) -> None:
        self.done = 0
        self.errors: list[str] = []
        self._nodes, self._texts = nodes, texts
        self._progress = threading.Condition()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        turn = itertools.count()
        for start in range(0, len(self._texts), BULK):
            rest = list(range(start, min(start + BULK, len(self._texts))))
            while rest:
                addresses = self._nodes.addresses
                rest = self._send(addresses[next(turn) % len(addresses)], rest)
            with self._progress:
                self.done = start + BULK
                self._progress.notify_all()

    def _send(self, address: str, numbers: list[int]) -> list[int]:
        """Those that were not indexed."""
        try:
            with Cluster(address) as cluster:
                live = Live("", cluster)
                outcomes = live.bulk(INDEX, [{"text": self._texts[n], "number": n} for n in numbers], numbers)
        except OpenSearchError as error:
            self.errors.append(str(error))
            return numbers
        failed = [n for n, outcome in zip(numbers, outcomes, strict=True) if "error" in outcome]
        self.errors += [str(outcome["error"]) for outcome in outcomes if "error" in outcome]
        return failed

    def wait_for_more(self, documents: int) -> None:
        with self._progress:
            target = min(self.done + documents, len(self._texts))
            self._progress.wait_for(lambda: self.done >= target)

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def join(self) -> None:
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
    texts = [f"{SENTENCES[number % len(SENTENCES)]} {number}" for number in range(DOCUMENTS)]
    with three(version, tmp_path) as nodes, serve(tiny_artifact) as server:
        first = nodes.addresses[0]
        healthy(first, 3, "green")

        def run(command: str, address: str) -> None:
            assert main([command, "--opensearch", address, "--encoder", server.url]) == 0, capsys.readouterr().err

        run("setup", first)
        indexer = Indexer(nodes, texts)
        indexer.wait_for_more(1000)
        for which in ("another", "the manager"):
            leader = manager(nodes.addresses[0])
            victim = leader if which == "the manager" else (leader + 1) % 3
            nodes.kill(victim)
            indexer.wait_for_more(1000)
            healthy(nodes.addresses[0], 2, "yellow")
            back = nodes.start(victim)
            healthy(back, 3, "green")
            indexer.wait_for_more(1000)
            assert indexer.running, "all documents were indexed before the nodes were back: take more"
        indexer.join()
        assert indexer.errors, "no bulk met a killed node"
        expected = EncoderService(server.url).encode(texts[-200:])
        for address in nodes.addresses:
            run("check", address)
            with Cluster(address) as cluster:
                cluster.request("POST", f"/{INDEX}/_refresh")
                assert cluster.request("GET", f"/{INDEX}/_count")["count"] == DOCUMENTS
                live = Live(version, cluster)
                last = live.search(INDEX, {"range": {"number": {"gte": DOCUMENTS - 200}}}, size=200)
                assert len(last) == 200
                assert live.search(INDEX, neural("text_sparse", texts[7]))
                docs = cluster.request("POST", f"/{INDEX}/_mget", {"ids": sorted(last, key=int)})["docs"]
                assert_vectors([next(iter(vectors_of(doc["_source"]["text_sparse"]))) for doc in docs], expected)
