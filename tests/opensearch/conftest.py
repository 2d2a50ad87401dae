"""Real nodes, one at a time, the service as a process of its own, and the command line in this process."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest

from app.opensearch.__main__ import main
from app.opensearch.cluster import Cluster
from app.opensearch.service import EncoderService
from tests.app.server import Server, running
from tools.opensearch_node import VERSIONS, NodeError, assemble, missing_tools, running_node

#: Whether a machine that cannot run OpenSearch fails the tests that need it, as in CI, or leaves them out.
REQUIRED = os.environ.get("REQUIRE_OPENSEARCH") == "1"

Run = Callable[..., str]


def leave_out(reason: str) -> NoReturn:
    if REQUIRED:
        pytest.fail(f"REQUIRE_OPENSEARCH=1, but {reason}")
    pytest.skip(f"tests on a live OpenSearch are left out: {reason}")


@dataclass(frozen=True)
class Live:
    """A running cluster, with what tests ask of it."""

    version: str
    cluster: Cluster

    @property
    def is_3(self) -> bool:
        return self.version.startswith("3.")

    def bulk(self, index: str, documents: Sequence[Mapping[str, Any]], **options: object) -> list[dict[str, Any]]:
        """The outcome of indexing each document under its number: `{"status", "error"?, ...}`."""
        lines = [
            json.dumps(line)
            for number, document in enumerate(documents)
            for line in ({"index": {"_index": index, "_id": str(number)}}, document)
        ]
        query = "&".join(["refresh=true", *(f"{key}={value}" for key, value in options.items())])
        answer = self.cluster.request("POST", f"/_bulk?{query}", ("\n".join(lines) + "\n").encode())
        return [item["index"] for item in answer["items"]]

    def index(self, index: str, documents: Sequence[Mapping[str, Any]], **options: object) -> None:
        """Like `bulk`; every document must succeed."""
        assert [item.get("error") for item in self.bulk(index, documents, **options)] == [None] * len(documents)

    def documents(self, index: str) -> list[dict[str, Any]]:
        """Every document, by number."""
        hits = self.cluster.request("POST", f"/{index}/_search?search_pipeline=_none", {"size": 1000})["hits"]["hits"]
        return [hit["_source"] for hit in sorted(hits, key=lambda hit: int(hit["_id"]))]

    def search(self, index: str, query: Mapping[str, Any], **body: object) -> dict[str, float]:
        """Score by document number, best first."""
        hits = self.cluster.request("POST", f"/{index}/_search", {"query": query, "size": 50, **body})["hits"]["hits"]
        return {hit["_id"]: hit["_score"] for hit in hits}


def version_of(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session", params=VERSIONS)
def live(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    version = version_of(request)
    if reason := missing_tools([version]):
        leave_out(reason)
    try:
        assemble(version)
    except NodeError as error:
        leave_out(str(error))
    with (
        running_node(version, tmp_path_factory.mktemp("opensearch")) as node,
        Cluster(node.url) as cluster,
    ):
        yield Live(version, cluster)


@pytest.fixture(scope="session")
def server(tiny_artifact: Path) -> Iterator[Server]:
    """The service, with a tiny model."""
    with serve(tiny_artifact) as server:
        yield server


def serve(artifact: Path, *options: str) -> Any:
    command = ("-m", "app", "--model", str(artifact), "--encoder-threads", "1", "--log-level", "info")
    return running(*command, *(options or ("--port", "0")))


@pytest.fixture
def service(server: Server) -> EncoderService:
    return EncoderService(server.url)


@pytest.fixture
def run(live: Live, capsys: pytest.CaptureFixture[str]) -> Run:
    """`python -m app.opensearch` on the cluster; returns what it prints, or its error if it must fail."""

    def run(command: str, *options: str, fails: bool = False) -> str:
        code = main([command, "--opensearch", live.cluster.url, *options])
        printed = capsys.readouterr()
        assert code == int(fails), printed.out + printed.err
        return printed.err if fails else printed.out

    return run


@pytest.fixture
def empty(live: Live, run: Run) -> Iterator[None]:
    """Whatever a test makes is gone after it."""
    yield
    live.cluster.request("DELETE", "/ko-sparse-*,second-*")
    run("teardown")
    run("teardown", "--name", "second")
