"""A cluster with the security plugin, as teams run it: TLS, a role for each, models that have owners."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.bulk.command import main as bulk
from app.opensearch.__main__ import main
from app.opensearch.roles import PREDICT
from scripts.opensearch_parts import NodeError, missing_tools
from tests.app.server import Server
from tests.certificates import Pair, issue, make_authority
from tests.opensearch.conftest import leave_out
from tests.opensearch.live import neural, serve
from tests.opensearch.secured import PASSWORD, VERSION, Secured, secured_node

# The first test downloads OpenSearch.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

TEAM = "search-team"
ENDPOINTS = "plugins.ml_commons.trusted_connector_endpoints_regex"
PRIVATE = "plugins.ml_commons.connector.private_ip_enabled"
As = Callable[..., str]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Of the service's certificate; known to the nodes, and to who is told."""
    return make_authority(tmp_path_factory.mktemp("service"))


@pytest.fixture(scope="module")
def secured(authority: Pair, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    if reason := missing_tools([VERSION]):
        leave_out(reason)
    try:
        with secured_node(tmp_path_factory.mktemp("secured"), authority) as secured:
            yield secured
    except NodeError as error:
        leave_out(str(error))


@pytest.fixture(scope="module")
def server(authority: Pair, tiny_artifact: Path) -> Iterator[Server]:
    pair = issue(authority, "service")
    with served(tiny_artifact, pair) as server:
        yield server


def served(artifact: Path, pair: Pair) -> Any:
    return serve(artifact, "--port", "0", "--ssl-certfile", str(pair.certificate), "--ssl-keyfile", str(pair.key))


@pytest.fixture(scope="module", autouse=True)
def users(secured: Secured, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Two operators, who who indexes, two who search; the backend role of a team has one of each."""
    file = tmp_path_factory.mktemp("roles") / "roles.json"
    assert main(["roles", str(file), "--cluster-settings"]) == 0
    secured.apply(file)
    secured.put("roles", "mute", without(json.loads(file.read_text(encoding="utf-8"))[0]["value"], PREDICT))
    assert main(["roles", str(file), "--name", "narrow"]) == 0
    secured.apply(file)
    secured.user("emma", "mute")
    secured.user("anna", "ko-sparse-operator", "narrow-operator", backend_roles=(TEAM,))
    secured.user("otto", "ko-sparse-operator", backend_roles=(TEAM,))
    secured.user("olga", "narrow-operator")
    secured.user("ines", "ko-sparse-indexer")
    secured.user("sue", "ko-sparse-searcher", backend_roles=(TEAM,))
    secured.user("sam", "ko-sparse-searcher")


def without(role: dict[str, Any], permission: str) -> dict[str, Any]:
    kept = [one for one in role["cluster_permissions"] if one != permission]
    assert len(kept) < len(role["cluster_permissions"])
    return {**role, "cluster_permissions": kept}


@pytest.fixture
def run(
    secured: Secured, server: Server, authority: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Iterator[As]:
    """`python -m app.opensearch` as a user; returns what it prints, or its error if it must fail. Undone afterwards."""
    password = tmp_path / "password"
    password.write_text(PASSWORD)

    def run(user: str, command: str, *options: str, fails: bool = False) -> str:
        asked = [command, "--opensearch", secured.node.url, "--ca-file", str(secured.authority)]
        if command in ("setup", "check"):
            asked += ["--encoder", server.url, "--encoder-ca-file", str(authority.certificate)]
        code = main([*asked, "--user", user, "--password-file", str(password), *options])
        printed = capsys.readouterr()
        assert code == int(fails), printed.out + printed.err
        return printed.err if fails else printed.out

    yield run
    secured.admin.delete("/ko-sparse-*,narrow-*")
    run("anna", "teardown")
    run("anna", "teardown", "--name", "narrow")


def ask(secured: Secured, user: str, method: str, path: str, body: Any) -> httpx.Response:
    """As `user`; a list is the lines of a bulk."""
    content = "".join(json.dumps(line) + "\n" for line in body) if isinstance(body, list) else json.dumps(body)
    headers = {"Content-Type": "application/json"}
    with httpx.Client(verify=secured.trusting, auth=(user, PASSWORD), headers=headers, timeout=60) as client:
        return client.request(method, secured.node.url + path, content=content)


def found(secured: Secured, user: str, index: str = "ko-sparse-a") -> list[str]:
    """Ids of what a query finds; why it is refused instead, if it is."""
    answer = ask(secured, user, "POST", f"/{index}/_search", {"query": neural("text_sparse", "손해배상")})
    if answer.status_code == 403:
        return [answer.json()["error"]["reason"]]
    return [hit["_id"] for hit in answer.json()["hits"]["hits"]]


def index(secured: Secured, user: str) -> None:
    lines = [{"index": {"_index": "ko-sparse-a", "_id": "1"}}, {"text": "손해배상 청구"}]
    answer = ask(secured, user, "POST", "/_bulk?refresh=true", lines).json()
    assert answer["errors"] is False, answer


def test_each_role_can_do_its_work_and_no_other(secured: Secured, run: As) -> None:
    assert "created model ko-sparse-documents" in run("anna", "setup")
    assert run("otto", "setup").splitlines()[-1] == "nothing had to be changed"
    index(secured, "ines")
    assert found(secured, "sue") == found(secured, "sam") == ["1"]
    for operator in ("anna", "otto"):
        assert "ok: ko-sparse-a, 1 of its documents have the vectors of their texts" in run(operator, "check")
    assert set(json.loads(run("otto", "ids", "--json"))) == {"documents", "queries"}
    assert "added to ko-sparse-a: title" in run("otto", "setup", "--field", "text", "title")
    assert "pass 1: 1 documents copied" in run(
        "otto", "reindex", "ko-sparse-a", "ko-sparse-b", "--alias", "ko-sparse-c"
    )
    assert found(secured, "sue", "ko-sparse-c") == ["1"]

    for user, method, path in (
        ("sue", "PUT", "/ko-sparse-a/_doc/2"),
        ("sue", "DELETE", "/ko-sparse-a/_doc/1"),
        ("ines", "POST", "/ko-sparse-a/_search"),
        ("ines", "DELETE", "/ko-sparse-a"),
        ("anna", "PUT", "/other/_doc/1"),
        ("anna", "POST", "/.plugins-ml-model/_search"),
    ):
        assert ask(secured, user, method, path, {}).status_code == 403, (user, method, path)
    assert f"needs the cluster permission {PREDICT}" in run("emma", "check", fails=True)
    for user in ("sue", "ines"):
        assert "-> the user lacks the permission that the message names" in run(user, "setup", fails=True)

    secured.admin.delete("/ko-sparse-a,ko-sparse-b")
    assert "removed connector ko-sparse-documents" in run("otto", "teardown")
    assert "there is nothing of the set-up ko-sparse" in run("anna", "teardown")


def test_the_operator_may_do_what_a_whole_corpus_needs(
    secured: Secured, run: As, tiny_artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("otto", "setup")
    assert ask(secured, "otto", "PUT", "/ko-sparse-a", {}).is_success
    (tmp_path / "a.jsonl").write_text('{"text": "손해배상 청구"}\n{"text": "보험 계약"}\n', encoding="utf-8")
    command = ["encode", tmp_path / "a.jsonl", f"{secured.node.url}/ko-sparse-a", "--merge", "--part-rows", 1]
    command += ["--model", tiny_artifact, "--run-dir", tmp_path / "run", "--cache-dir", tmp_path / "cache"]
    command += ["--ca-file", secured.authority, "--user", "otto", "--password-file", tmp_path / "password"]
    assert bulk(list(map(str, command))) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert "ko-sparse-a is yellow: 1 copies of its shards are not there, for which there are too few data nodes" in said
    assert "ko-sparse-a is merged into one segment a shard" in said


def test_models_are_for_those_that_access_says(secured: Secured, run: As) -> None:
    refused = ["User Doesn't have privilege to perform this operation on this model"]
    run("anna", "setup", "--access", "private")
    index(secured, "anna")
    assert found(secured, "anna") == ["1"]
    assert found(secured, "sue") == found(secured, "sam") == refused
    assert "or, if another user did, let that user run it with --access public" in run("otto", "check", fails=True)
    assert "-> a user made it and keeps it from others" in run("otto", "setup", fails=True)

    restricted = ("--access", "restricted", "--backend-roles", TEAM)
    assert "changed model group ko-sparse" in run("anna", "setup", *restricted)
    assert [found(secured, user) for user in ("sue", "sam")] == [["1"], refused]
    assert run("otto", "setup", *restricted).splitlines()[-1] == "nothing had to be changed"
    run("otto", "check")
    assert "-> access is given by who made the models" in run("otto", "setup", fails=True)

    run("anna", "setup")
    assert found(secured, "sue") == found(secured, "sam") == ["1"]


@pytest.fixture
def allow(secured: Secured) -> Iterator[Callable[[bool], None]]:
    """An administrator lets the nodes call the service, or no longer; not after the test."""

    def allow(yes: bool) -> None:
        settings: dict[str, Any] = {ENDPOINTS: ["^https://127.0.0.1:.*$"], PRIVATE: True}
        values = settings if yes else dict.fromkeys(settings)
        assert secured.admin.put("/_cluster/settings", json={"persistent": values}).is_success

    yield allow
    allow(False)


def test_who_may_not_change_the_cluster_needs_not_where_it_is_right(
    secured: Secured, run: As, allow: Callable[[bool], None]
) -> None:
    narrow = ("--name", "narrow")
    failed = run("olga", "setup", *narrow, fails=True)
    assert "-> the user may not change cluster settings: somebody who may sets those that setup --dry-run" in failed
    assert f'"{PRIVATE}": true' in run("olga", "setup", *narrow, "--dry-run")
    allow(True)
    assert "unchanged cluster settings" in run("olga", "setup", *narrow)
    run("olga", "check", *narrow)
    assert "removed model narrow-queries" in run("olga", "teardown", *narrow)
    allow(False)

    # Those that another set-up changed stay as they are, whoever goes.
    run("anna", "setup")
    assert "cluster settings are as they must be" in run("olga", "setup", *narrow)
    run("olga", "teardown", *narrow)
    assert run("anna", "setup").splitlines()[-1] == "nothing had to be changed"


def test_a_certificate_that_nobody_knows_and_a_wrong_password_are_told(
    run: As, tiny_artifact: Path, tmp_path: Path
) -> None:
    strange = make_authority(tmp_path)
    with served(tiny_artifact, issue(strange, "service")) as other:
        assert "is not trusted here" in run("anna", "setup", "--encoder", other.url, fails=True)
        encoder = ("--encoder", other.url, "--encoder-ca-file", str(strange.certificate))
        run("anna", "setup", *encoder)
        assert "-> the nodes do not trust the certificate of the service" in run("anna", "check", *encoder, fails=True)
    (tmp_path / "wrong").write_text("wrong")
    wrong = run("anna", "check", "--password-file", str(tmp_path / "wrong"), fails=True)
    assert "-> give the user with --user" in wrong
