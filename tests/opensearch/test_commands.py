"""The commands on a real cluster: what they make, and leave."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.opensearch.cluster import RequestFailed
from tests.opensearch.live import DOCUMENTS, Live, Run, Setup, serve

# The first test downloads OpenSearch.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.usefixtures("empty")]


def test_a_second_setup_changes_nothing_and_check_passes(live: Live, run: Run, encoder: Setup) -> None:
    first = run("setup", *encoder, "--field", "title", "text")
    assert "created ingest pipeline ko-sparse" in first
    second = run("setup", *encoder, "--field", "title", "text")
    assert second.splitlines()[-1] == "nothing had to be changed"
    assert "created" not in second
    checked = run("check", *encoder).splitlines()
    assert all(line.startswith("ok: ") for line in checked)
    assert [line for line in checked if "a query on" in line] == [
        f"ok: a query on '{f}' finds it" for f in ("text", "title")
    ]
    assert live.cluster.request("GET", "/_cat/indices/ko-sparse-*?format=json") == []


def test_teardown_leaves_the_cluster_as_it_was(live: Live, run: Run, encoder: Setup) -> None:
    trusted = {"plugins.ml_commons.trusted_connector_endpoints_regex": ["^https://elsewhere/.*$"]}
    live.cluster.request("PUT", "/_cluster/settings", {"persistent": trusted})
    before = live.cluster.request("GET", "/_cluster/settings?flat_settings=true")
    run("setup", *encoder)
    run("setup", *encoder, "--name", "second")
    run("teardown")
    run("check", *encoder, "--name", "second")  # the settings that both need are still there
    run("teardown", "--name", "second")
    assert live.cluster.request("GET", "/_cluster/settings?flat_settings=true") == before
    for kind in ("connectors", "models", "model_groups"):
        found = live.cluster.request("POST", f"/_plugins/_ml/{kind}/_search", {"query": {"match_all": {}}})
        assert found["hits"]["hits"] == [], kind
    assert live.cluster.find("/_ingest/pipeline/ko-sparse") is None
    assert live.cluster.find("/_index_template/ko-sparse") is None
    assert "there is nothing" in run("teardown")
    live.cluster.request("PUT", "/_cluster/settings", {"persistent": dict.fromkeys(trusted)})


def test_teardown_refuses_while_an_index_uses_it(live: Live, run: Run, encoder: Setup) -> None:
    run("setup", *encoder)
    live.index("ko-sparse-used", [{"text": "손해배상"}])
    assert "ko-sparse-used still use the pipelines" in run("teardown", fails=True)
    live.index("ko-sparse-used", [{"text": "손해배상"}])


def test_a_changed_setup_replaces_what_differs_and_leaves_no_rest(live: Live, run: Run, encoder: Setup) -> None:
    run("setup", *encoder)
    changed = run("setup", *encoder, "--batch-size", "7").splitlines()
    assert [line for line in changed if line.startswith(("created", "replaced", "removed"))] == [
        "replaced ingest pipeline ko-sparse"
    ]
    moved = run("setup", *(option.replace("127.0.0.1", "localhost") for option in encoder))
    assert "replaced connector ko-sparse-documents" in moved
    assert "removed connector ko-sparse-documents" in moved
    found = live.cluster.request("POST", "/_plugins/_ml/connectors/_search", {"query": {"match_all": {}}})
    assert len(found["hits"]["hits"]) == 2
    run("check", *encoder)


def test_what_others_made_is_left_alone(live: Live, run: Run, encoder: Setup) -> None:
    pipeline: dict[str, Any] = {"description": "not ours", "processors": []}
    live.cluster.request("PUT", "/_ingest/pipeline/ko-sparse", pipeline)
    assert "was not made by this set-up" in run("setup", *encoder, fails=True)
    run("teardown")
    assert live.cluster.request("GET", "/_ingest/pipeline/ko-sparse") == {"ko-sparse": pipeline}
    live.cluster.request("DELETE", "/_ingest/pipeline/ko-sparse")


def test_a_dry_run_prints_requests_and_sends_none(live: Live, run: Run, encoder: Setup) -> None:
    before = live.cluster.request("GET", "/_cluster/settings?flat_settings=true")
    printed = run("setup", *encoder, "--dry-run")
    for request in (
        "PUT /_cluster/settings",
        "POST /_plugins/_ml/connectors/_create",
        "PUT /_ingest/pipeline/ko-sparse",
    ):
        assert request in printed.splitlines()
    assert '"model_id": "<id of model ko-sparse-documents>"' in printed
    assert live.cluster.request("GET", "/_cluster/settings?flat_settings=true") == before
    assert "there is nothing" in run("teardown")


def test_a_service_that_wants_a_key_gets_it_from_the_connectors(
    live: Live, run: Run, tiny_artifact: Path, tmp_path: Path
) -> None:
    keys = {"right": tmp_path / "right", "wrong": tmp_path / "wrong"}
    for name, file in keys.items():
        file.write_text(f"s3cret-{name}\n")
    entry = f"opensearch:{hashlib.sha256(b's3cret-right').hexdigest()}"
    with serve(tiny_artifact, "--port", "0", "--api-keys", entry) as server:
        encoder = ("--encoder", server.url)
        assert "wants an API key" in run("setup", *encoder, fails=True)
        assert "wants an API key" in run("setup", *encoder, "--api-key-file", str(keys["wrong"]), fails=True)
        assert "s3cret" not in run("setup", *encoder, "--api-key-file", str(keys["right"]), "--dry-run")
        run("setup", *encoder, "--api-key-file", str(keys["right"]))
        run("check", *encoder, "--api-key-file", str(keys["right"]))
        again = run("setup", *encoder, "--api-key-file", str(keys["right"]))
        assert again.splitlines()[-1] == "nothing had to be changed"


def test_a_new_key_of_the_service_is_given_to_the_connectors(
    live: Live, run: Run, tiny_artifact: Path, tmp_path: Path
) -> None:
    entries = tmp_path / "entries"
    files = [tmp_path / "old", tmp_path / "new"]
    for file in files:
        file.write_text(f"s3cret-{file.name}")
    options = [("--api-key-file", str(file)) for file in files]
    known = [f"opensearch:{hashlib.sha256(file.read_bytes()).hexdigest()}" for file in files]
    entries.write_text(known[0])
    with serve(tiny_artifact, "--port", "0", "--api-keys-file", str(entries)) as server:
        encoder = ("--encoder", server.url)
        run("setup", *encoder, *options[0])
        entries.write_text(known[1])
        headers = {"Authorization": f"Bearer {files[1].read_text()}"}
        while not httpx.get(f"{server.url}/info", headers=headers, timeout=None).is_success:
            pass  # it reads the file again
        assert "-> the service wants a key: run setup" in run("check", *encoder, *options[1], fails=True)
        assert "replaced connector ko-sparse-queries" in run("setup", *encoder, *options[1])
        run("check", *encoder, *options[1])


def test_check_says_what_is_wrong_and_what_to_do(live: Live, run: Run, tiny_artifact: Path) -> None:
    assert "no ingest pipeline" in run("check", fails=True)
    with serve(tiny_artifact) as server:
        run("setup", "--encoder", server.url)
    assert "the nodes cannot reach the service" in run("check", "--encoder", server.url, fails=True)
    (model, *_) = live.cluster.request("POST", "/_plugins/_ml/models/_search", {"query": {"match_all": {}}})["hits"][
        "hits"
    ]
    live.cluster.request("POST", f"/_plugins/_ml/models/{model['_id']}/_undeploy")
    assert "run setup again, which deploys it" in run("check", "--encoder", server.url, fails=True)
    assert f"deployed model {model['_source']['name']}" in run("setup", "--encoder", server.url)
    live.cluster.request("DELETE", "/_search/pipeline/ko-sparse")
    assert "no search pipeline of the set-up ko-sparse: run setup" in run("check", fails=True)


def test_an_error_says_what_to_do(live: Live, run: Run, encoder: Setup) -> None:
    run("setup", *encoder)
    live.index("ko-sparse-a", DOCUMENTS[:1])
    with pytest.raises(RequestFailed, match="-> a text holds"):
        live.cluster.request("PUT", "/ko-sparse-a/_doc/9", {"text": "${parameters.input}"})
