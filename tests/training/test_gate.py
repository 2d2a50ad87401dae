from __future__ import annotations

from typing import Any

import pytest

from training.config import GateConfig
from training.gate import failures

ROW = {"documents": 10, "queries": 5, "active_query": 20.0, "active_document": 100.0, "sparse": {"nDCG@10": 0.5}}
REPORT = {"retrieval": {"set": ROW}, "terms": {"source_preservation": 0.99, "synonym_activation": 0.4}}


def with_row(**changed: Any) -> dict[str, Any]:
    return REPORT | {"retrieval": {"set": ROW | changed}}


def test_a_first_version_needs_no_incumbent() -> None:
    assert failures(REPORT, GateConfig(source_preservation=0.99, synonym_activation=0.4), {}) == []


@pytest.mark.parametrize(
    ("report", "gate", "sentence"),
    [
        (with_row(active_query=65.0), GateConfig(), "set: 65.0 active words a query, must be 2 to 64"),
        (with_row(active_document=3.0), GateConfig(), "set: 3.0 active words a document, must be 4 to 256"),
        (REPORT, GateConfig(source_preservation=0.995), "source_preservation is 99.0%, must be at least 99.5%"),
        (
            {"retrieval": {}},
            GateConfig(synonym_activation=0.1),
            "synonym_activation was not measured, must be at least 10.0%: the recipe has no held-out terms",
        ),
    ],
)
def test_each_gate_says_figure_and_threshold(report: dict[str, Any], gate: GateConfig, sentence: str) -> None:
    assert failures(report, gate, {}) == [sentence]


def test_no_set_may_lose_more_than_the_margin() -> None:
    gate = GateConfig(max_ndcg_drop=0.02)
    assert failures(with_row(sparse={"nDCG@10": 0.481}), gate, {"v1": REPORT}) == []
    assert failures(with_row(sparse={"nDCG@10": 0.479}), gate, {"v1": REPORT}) == [
        "set: nDCG@10 0.479, v1 has 0.500; it may lose 0.02"
    ]


def test_what_cannot_be_compared_fails() -> None:
    assert failures({"retrieval": {}}, GateConfig(), {"v1": REPORT}) == [
        "set was not measured, but v1 was measured on it"
    ]
    assert failures(with_row(queries=6), GateConfig(), {"v1": REPORT}) == [
        "set has (10, 6) documents and queries, v1 was measured on (10, 5)"
    ]
