"""Real nodes, one at a time, the service as a process of its own, and the command line in this process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from app.opensearch.__main__ import main
from app.opensearch.cluster import Cluster
from app.opensearch.service import EncoderService
from scripts.opensearch_node import running_node
from scripts.opensearch_parts import VERSIONS, NodeError, assemble, missing_tools
from tests.app.server import Server
from tests.opensearch.live import Live, Run, Setup, serve
from tests.opensearch.versions_table import PROPERTY, REFUSED, VersionsTable, column_of

#: Whether a machine that cannot run OpenSearch fails the tests that need it, as in CI, or leaves them out.
REQUIRED = os.environ.get("REQUIRE_OPENSEARCH") == "1"

#: What `make test` runs on the older version as well; `make test-all` runs everything there.
OFTEN = ("test_commands.py", "test_queries.py")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--versions-table", type=Path, metavar="FILE", help="write which test ran on which OpenSearch")


def pytest_configure(config: pytest.Config) -> None:
    if target := config.getoption("--versions-table", None):
        config.pluginmanager.register(VersionsTable(target), "versions table")


@pytest.hookimpl(tryfirst=True)  # before marks are looked at
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.Function) and item.path.parent == Path(__file__).parent:
            params = item.callspec.params if hasattr(item, "callspec") else {}
            if params.get("live") == VERSIONS[0] and item.path.name not in OFTEN:
                item.add_marker(pytest.mark.soak)
            if column := column_of(item.fixturenames, params):
                item.user_properties.append((PROPERTY, column))


def leave_out(reason: str) -> NoReturn:
    if REQUIRED:
        pytest.fail(f"REQUIRE_OPENSEARCH=1, but {reason}")
    pytest.skip(f"tests on a live OpenSearch are left out: {reason}")


@pytest.fixture(scope="session", params=VERSIONS)
def live(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    version = str(request.param)
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


@pytest.fixture
def refused(request: pytest.FixtureRequest) -> Callable[[], None]:
    """Called by a test of what a version cannot do, and must refuse."""
    return lambda: request.node.user_properties.append((PROPERTY, REFUSED))


@pytest.fixture(scope="session")
def server(tiny_artifact: Path) -> Iterator[Server]:
    """The service, with a tiny model."""
    with serve(tiny_artifact) as server:
        yield server


@pytest.fixture
def service(server: Server) -> EncoderService:
    return EncoderService(server.url)


@pytest.fixture
def encoder(server: Server) -> Setup:
    return ("--encoder", server.url)


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
def indices(live: Live) -> Iterator[None]:
    """Indices go after a test. What `setup` made stays: the next one leaves alone or replaces it."""
    yield
    live.cluster.request("DELETE", "/ko-sparse-*,second-*,semantic-*")


@pytest.fixture
def empty(indices: None, run: Run) -> None:
    """Nothing is set up."""
    run("teardown")
    run("teardown", "--name", "second")
    run("teardown", "--name", "second-2")
