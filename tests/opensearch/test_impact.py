"""What a set-up means for an index that exists, decided without a cluster."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from app.opensearch.cluster import error_text
from app.opensearch.impact import Index, flat, impact, matches, next_name, sample_name, way_out
from app.opensearch.ingest import ingest_pipeline
from app.opensearch.vectors import at, differing, vectors_of

TEXT = {"type": "text", "analyzer": "cjk"}
FEATURES = {"type": "rank_features"}
VECTOR = {"type": "sparse_vector", "method": {"name": "seismic"}}
CHUNKS = {"type": "nested", "properties": {"sparse_encoding": FEATURES}}
USED = {"index.default_pipeline": "ko-sparse", "index.search.default_pipeline": "ko-sparse"}


def index(fields: Mapping[str, Any], settings: Mapping[str, str] = USED, **rest: Any) -> Index:
    return Index("ko-sparse-a", settings, fields, **{"meta": {}, **rest})


@pytest.mark.parametrize(
    ("there", "wanted", "obstacle"),
    [
        (FEATURES, VECTOR, "text_sparse is rank_features, and shall be sparse_vector"),
        (FEATURES, CHUNKS, "text_sparse is rank_features, and shall be nested of rank_features"),
        (TEXT, FEATURES, "text_sparse is text, and shall be rank_features"),
    ],
)
def test_a_vector_of_another_kind_cannot_be_changed_in_place(there: Any, wanted: Any, obstacle: str) -> None:
    found = impact(index({"text": TEXT, "text_sparse": there}), {"text": TEXT, "text_sparse": wanted}, {})
    assert list(found.obstacles) == [obstacle]


def test_what_is_missing_is_added_and_what_is_searched_is_not_forgotten() -> None:
    live = index({"text": {"type": "keyword"}, "text_sparse": FEATURES})
    more = {"text": TEXT, "text_sparse": FEATURES, "meta.title": TEXT, "meta.title_sparse": FEATURES}
    found = impact(live, more, USED)
    assert found.fields == {"meta.title": TEXT, "meta.title_sparse": FEATURES}
    assert not found.obstacles, "another analyzer of a text is no harm"
    (obstacle,) = impact(live, {"title": TEXT, "title_sparse": FEATURES}, {}).obstacles
    assert obstacle.startswith("text would be encoded no longer")
    (obstacle,) = impact(index({"title.ko": TEXT}), {"title": TEXT, "title_sparse": FEATURES}, {}).obstacles
    assert obstacle == "title is an object, and shall be a field"
    assert "index.sparse" in impact(index({}), {"t": TEXT, "t_sparse": VECTOR}, {"index.sparse": "true"}).obstacles[0]
    sparse = index({}, {**USED, "index.sparse": "true"})
    assert not impact(sparse, {"t": TEXT, "t_sparse": VECTOR}, {"index.sparse": "true"}).obstacles


def test_mappings_are_read_by_whole_names() -> None:
    properties = {"meta": {"properties": {"title": TEXT}}, "n": CHUNKS, "o": {"type": "object"}}
    assert flat(properties) == {"meta.title": TEXT, "n": CHUNKS}


def test_patterns_and_names() -> None:
    assert matches("ko-*", "ko-a")
    assert not matches("ko-*", "a-ko-b")
    assert not matches("a.c", "abc")
    assert sample_name("*-ko-*") == "sample-ko-sample"
    assert [next_name(name) for name in ("ko-sparse", "ko-sparse-2", "ko-9")] == ["ko-sparse-2", "ko-sparse-3", "ko-10"]


def test_the_way_out_names_the_alias_and_a_new_index_of_the_next_setup() -> None:
    setup, copy = way_out("ko-sparse", index({}, aliases=frozenset({"help"})))
    assert "setup --name ko-sparse-2" in setup
    assert copy.endswith("reindex --name ko-sparse-2 ko-sparse-a ko-sparse-2-a --alias help")


def test_vectors_of_documents() -> None:
    assert vectors_of([{"가": 1.0}]) == vectors_of({"가": 1.0}) == vectors_of([{"sparse_encoding": {"가": 1.0}}])
    assert vectors_of([]) == vectors_of({}) == vectors_of(None) == []
    assert at({"a": {"b": 1}}, "a.b") == at({"a.b": 1}, "a.b") == 1
    assert at({"a": ["b"]}, "a.b") is None
    assert not differing({"가": 1.0, "나": 0.001}, {"가": 1.01})
    assert not differing({"가": 1.0, "나": 0.1}, {"가": 1.0})  # as the rounding of bf16 may move it
    assert differing({"가": 1.0, "나": 0.2}, {"가": 1.0})
    assert differing({"가": 1.0}, {"나": 1.0})
    assert differing({"가": 1.0}, {})


def test_an_error_of_all_shards_says_what_they_said() -> None:
    reason = {"type": "query_shard_exception", "reason": "only works on [rank_features] fields"}
    error = {"type": "search", "reason": "all shards failed", "failed_shards": [{"reason": reason}]}
    assert error_text(error).endswith("caused by query_shard_exception: only works on [rank_features] fields")
    assert error_text({"type": "x", "reason": "all shards failed", "root_cause": [reason]}).count("only works") == 1
    assert "None" not in error_text({"type": "x", "reason": "y", "caused_by": {"type": "z", "reason": None}})


def test_the_pipeline_is_json_and_its_scripts_are_the_same_for_all_setups() -> None:
    """OpenSearch compiles a script once, and few a minute."""
    one = ingest_pipeline(["text"], "id", batch_size=1, most_characters=9, arrays=True)
    other = ingest_pipeline(
        ["제목", "b"], "id", batch_size=1, most_characters=9, arrays=False, html=True, tokens_of_a_chunk=512
    )

    def sources(pipeline: Mapping[str, Any]) -> list[str]:
        return [p["script"]["source"] for p in json.loads(json.dumps(pipeline))["processors"] if "script" in p]

    assert set(sources(one)) < set(sources(other))
