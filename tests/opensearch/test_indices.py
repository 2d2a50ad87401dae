"""Indices that live while a set-up changes, and what stands in its way."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from app.opensearch.cluster import RequestFailed
from app.opensearch.service import EncoderService
from tests.opensearch.live import DOCUMENTS, Live, Run, Setup, neural

# The first test downloads OpenSearch.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.usefixtures("empty")]

ML = "/_plugins/_ml"


@pytest.fixture
def templates(live: Live) -> Iterator[None]:
    """The index template of the organisation goes after a test."""
    yield
    if live.cluster.find("/_index_template/organisation"):
        live.cluster.request("DELETE", "/_index_template/organisation")


def made(live: Live) -> list[Any]:
    """All that a set-up may make."""
    found = [
        live.cluster.request("POST", f"{ML}/{kind}/_search", {"query": {"match_all": {}}})["hits"]["hits"]
        for kind in ("connectors", "models", "model_groups")
    ]
    settings = live.cluster.request("GET", "/_cluster/settings?flat_settings=true")
    paths = ("/_ingest/pipeline", "/_search/pipeline", "/_index_template")
    return [
        sorted(hit["_id"] for hits in found for hit in hits),
        settings,
        *(live.cluster.find(path) for path in paths),
    ]


def test_a_field_is_added_to_a_live_index_and_what_it_cannot_become_is_refused(
    live: Live, run: Run, encoder: Setup
) -> None:
    run("setup", *encoder)
    live.index("ko-sparse-a", DOCUMENTS[:5])
    live.cluster.request("POST", "/_aliases", {"actions": [{"add": {"index": "ko-sparse-a", "alias": "help"}}]})
    found = live.search("help", neural("text_sparse", DOCUMENTS[1]["text"]))
    assert "added to ko-sparse-a: meta.요약, meta.요약_sparse" in run("setup", *encoder, "--field", "text", "meta.요약")
    live.index("ko-sparse-a", [*DOCUMENTS[:5], {"meta": {"요약": "손해배상"}}])
    assert "5" in live.search("help", neural("meta.요약_sparse", "손해배상"))
    before = made(live)
    refusals: dict[tuple[str, ...], str] = {
        ("--field", "text"): "meta.요약 would be encoded no longer",
        (
            "--field",
            "text",
            "meta.요약",
            "--chunks",
        ): "text_sparse is rank_features, and shall be nested of rank_features",
    }
    if live.is_3:
        refusals["--field", "text", "meta.요약", "--engine", "seismic"] = (
            "text_sparse is rank_features, and shall be sparse_vector"
        )
    for options, reason in refusals.items():
        for dry_run in ((), ("--dry-run",)):
            error = run("setup", *encoder, *options, *dry_run, fails=True)
            assert reason in error
            assert "reindex --name ko-sparse-2 ko-sparse-a ko-sparse-2-a --alias help" in error
    assert made(live) == before
    assert live.search("help", neural("text_sparse", DOCUMENTS[1]["text"])) == pytest.approx(found, rel=0.01)
    checked = run("check", *encoder)
    assert "ok: ko-sparse-a, 6 of its documents have the vectors of their texts" in checked


@contextmanager
def no_scripts(live: Live) -> Iterator[None]:
    """The cluster takes no script as long as that of the pipeline."""
    limit: dict[str, Any] = {"script.max_size_in_bytes": 100}
    live.cluster.request("PUT", "/_cluster/settings", {"persistent": limit})
    try:
        yield
    finally:
        live.cluster.request("PUT", "/_cluster/settings", {"persistent": dict.fromkeys(limit)})


def test_a_setup_that_fails_on_its_way_leaves_the_cluster_as_it_was(live: Live, run: Run, encoder: Setup) -> None:
    with no_scripts(live):
        before = made(live)
        failed = run("setup", *encoder, fails=True)
        assert "-> the set-up's ingest pipeline has two inline Painless scripts" in failed
        assert "What was done before was undone" in failed
        assert made(live) == before
    run("setup", *encoder)
    with no_scripts(live):
        before = made(live)
        moved = tuple(option.replace("127.0.0.1", "localhost") for option in encoder)
        assert "What was done before was undone" in run("setup", *moved, "--batch-size", "7", fails=True)
        assert made(live) == before
    run("check", *encoder)


@pytest.mark.usefixtures("templates")
def test_templates_of_the_organisation_stand_in_the_way_and_say_so(live: Live, run: Run, encoder: Setup) -> None:
    wide = {"index_patterns": ["ko-*"], "priority": 0, "template": {"settings": {"number_of_replicas": 0}}}
    live.cluster.request("PUT", "/_index_template/organisation", wide)
    before = made(live)
    for dry_run in ((), ("--dry-run",)):
        same = run("setup", *encoder, "--priority", "0", *dry_run, fails=True)
        assert "that have the same priority [0]" in same
        assert "-> another index template with the same priority" in same
    assert made(live) == before
    run("setup", *encoder)
    run("check", *encoder)
    live.cluster.request("PUT", "/_index_template/organisation", {**wide, "priority": 999})
    live.index("ko-sparse-a", DOCUMENTS[:1])
    wins = "the index template organisation (priority 999) wins for ko-sparse-*"
    checked = run("check", *encoder, fails=True)
    assert wins in checked
    assert "ko-sparse-a fits the pattern of ko-sparse, but has no pipeline" in checked
    assert wins in run("setup", *encoder, "--batch-size", "3", "--dry-run", fails=True)
    # As check says: the index gets pipelines, then fields, then vectors.
    live.cluster.request("DELETE", "/_index_template/organisation")
    pipelines = {"index.default_pipeline": "ko-sparse", "index.search.default_pipeline": "ko-sparse"}
    live.cluster.request("PUT", "/ko-sparse-a/_settings", pipelines)
    assert "ko-sparse-a has no field text_sparse: run setup" in run("check", *encoder, fails=True)
    assert "added to ko-sparse-a: text_sparse" in run("setup", *encoder)
    assert "1 of 1 documents have no vector of their text" in run("check", *encoder, fails=True)
    live.cluster.request("POST", "/ko-sparse-a/_update_by_query?refresh=true&conflicts=proceed")
    assert "ok: ko-sparse-a, 1 of its documents" in run("check", *encoder)


def test_an_edited_pipeline_is_found_and_not_overwritten_unasked(live: Live, run: Run, encoder: Setup) -> None:
    run("setup", *encoder)
    pipeline = live.cluster.request("GET", "/_search/pipeline/ko-sparse")["ko-sparse"]
    pipeline["request_processors"].append({"neural_sparse_two_phase_processor": {"enabled": True}})
    live.cluster.request("PUT", "/_search/pipeline/ko-sparse", pipeline)
    assert "the search pipeline ko-sparse was edited since setup made it" in run("check", *encoder, fails=True)
    assert "--overwrite" in run("setup", *encoder, fails=True)
    assert live.cluster.request("GET", "/_search/pipeline/ko-sparse")["ko-sparse"] == pipeline
    assert "replaced search pipeline ko-sparse" in run("setup", *encoder, "--overwrite")
    run("check", *encoder)


def test_a_connector_that_models_of_others_use_stays(live: Live, run: Run, encoder: Setup) -> None:
    run("setup", *encoder)
    (connector, *_) = live.cluster.request("POST", f"{ML}/connectors/_search", {"query": {"match_all": {}}})["hits"][
        "hits"
    ]
    body = {"name": "theirs", "function_name": "remote", "connector_id": connector["_id"]}
    model = live.cluster.request("POST", f"{ML}/models/_register", body)["model_id"]
    moved = run("setup", *(option.replace("127.0.0.1", "localhost") for option in encoder))
    assert f"kept connector {connector['_source']['name']} ({connector['_id']}), which the model theirs" in moved
    before = made(live)
    assert "so nothing was removed: delete that model first" in run("teardown", fails=True)
    assert made(live) == before
    live.cluster.request("DELETE", f"{ML}/models/{model}")
    assert f"connector {connector['_source']['name']}" in run("teardown")


def test_a_text_that_was_changed_past_the_pipeline_is_found(live: Live, run: Run, encoder: Setup) -> None:
    run("setup", *encoder)
    live.index("ko-sparse-a", DOCUMENTS[:3])
    update = b'{"update": {"_id": "1"}}\n{"doc": {"text": "another text"}}\n'
    assert not live.cluster.request("POST", "/ko-sparse-a/_bulk?refresh=true", update)["errors"]
    assert "1 of 3 documents have no vector of their text by the model of now (ids 1)" in run(
        "check", *encoder, fails=True
    )


SIDES = ("documents", "queries")


def test_queries_outside_the_search_pipeline_find_with_the_id_that_is_printed(
    live: Live, run: Run, encoder: Setup, service: EncoderService
) -> None:
    printed = run("setup", *encoder)
    live.index("ko-sparse-a", DOCUMENTS[:5])
    ids = json.loads(run("ids", "--json"))
    assert run("ids").splitlines() == [f"{side} {ids[side]}" for side in SIDES]
    for side in SIDES:
        assert f"{side} are encoded by the model {ids[side]}" in printed
    bare, named = (neural("text_sparse", DOCUMENTS[1]["text"]) for _ in range(2))
    named["neural_sparse"]["text_sparse"]["model_id"] = ids["queries"]
    everything: dict[str, Any] = {"match_all": {}}
    ways: dict[str, Callable[[Any], Any]] = {
        "search?search_pipeline=_none": lambda query: {"query": query},
        "search": lambda query: {"query": query, "search_pipeline": {"request_processors": []}},
        "search?": lambda query: {"query": everything, "post_filter": query},
        "search?_": lambda query: {
            "query": {"constant_score": {"filter": everything, "boost": 0}},
            "rescore": {"window_size": 10, "query": {"rescore_query": query}},
        },
    }
    if live.is_3:  # 2.x encodes no query there: "async actions are left after rewrite"
        ways["explain/1"] = lambda query: {"query": query}
    for way, body in ways.items():
        assert _found(live, f"/ko-sparse-a/_{way.removesuffix('_')}", body(named)), way
        if live.is_3:  # 2.x says that the model is missing
            assert not _found(live, f"/ko-sparse-a/_{way.removesuffix('_')}", body(bare)), way
        else:
            with pytest.raises(RequestFailed, match=r"-> .*name it in the query"):
                _found(live, f"/ko-sparse-a/_{way.removesuffix('_')}", body(bare))
    if live.is_3:  # a bare query gets the English tokens of OpenSearch's own
        (vector,) = service.encode([DOCUMENTS[1]["text"]], input_type="query")
        path = "/ko-sparse-a/_validate/query?explain=true"
        for query, ours in ((named, True), (bare, False)):
            (answer,) = live.cluster.request("POST", path, {"query": query})["explanations"]
            assert (set(re.findall(r"feature=(.+?), ", answer["explanation"])) == vector.keys()) == ours
    assert live.search("ko-sparse-a", bare) == live.search("ko-sparse-a", named) != {}
    run("setup", *encoder, "--name", "second")
    live.index("second-a", DOCUMENTS[5:7])
    assert live.search("ko-sparse-a,second-a", named) != {}
    if live.is_3:
        assert live.search("ko-sparse-a,second-a", bare) == {}, "two default pipelines are none"


def _found(live: Live, path: str, body: Any) -> bool:
    answer = live.cluster.request("POST", path, body)
    return bool(answer["matched"] if "matched" in answer else any(hit["_score"] > 0 for hit in answer["hits"]["hits"]))


def test_queries_of_every_kind_work_as_a_setup_is_by_default(live: Live, run: Run, encoder: Setup) -> None:
    """With two-phase search they fail, or a scroll returns documents twice, as its option says."""
    assert "sort, search_after, collapse" in run("setup", *encoder, "--two-phase")
    live.index("ko-sparse-a", DOCUMENTS)
    query = {"query": neural("text_sparse", "손해배상 청구")}
    with pytest.raises(RequestFailed, match="run setup without --two-phase"):
        live.cluster.request("POST", "/ko-sparse-a/_search", {**query, "sort": ["_doc"]})
    run("setup", *encoder)
    best = list(live.search("ko-sparse-a", query["query"]))
    assert len(best) > 5
    page = {**query, "size": 3, "sort": ["_score", {"_id": "asc"}]}
    paged: list[str] = []
    while hits := live.cluster.request("POST", "/ko-sparse-a/_search", page)["hits"]["hits"]:
        paged += [hit["_id"] for hit in hits]
        page["search_after"] = hits[-1]["sort"]
    assert paged == best
    collapsed = {**query, "collapse": {"field": "title.keyword"}, "size": 50}
    hits = live.cluster.request("POST", "/ko-sparse-a/_search", collapsed)["hits"]["hits"]
    assert [hit["_id"] for hit in hits] == best
    answer = live.cluster.request("POST", "/ko-sparse-a/_search?scroll=1m", {**query, "size": 3})
    scrolled: list[str] = []
    while hits := answer["hits"]["hits"]:
        scrolled += [hit["_id"] for hit in hits]
        answer = live.cluster.request("POST", "/_search/scroll", {"scroll": "1m", "scroll_id": answer["_scroll_id"]})
    assert scrolled == best
    deleted = live.cluster.request("POST", "/ko-sparse-a/_delete_by_query?refresh=true", query)
    assert deleted["deleted"] == len(best)
