from __future__ import annotations

import copy
import math
from typing import Any

import pytest

from training.config import GateConfig
from training.gate import failed_gates

GATE = GateConfig(
    active_query=(5, 60),
    active_document=(20, 250),
    source_preservation=0.9,
    synonym_activation=0.3,
    everyday=0.5,
    max_ndcg_drop=0.01,
)


def evaluation() -> dict[str, Any]:
    row = {
        "documents": 1693,
        "queries": 1000,
        "sparse": {"nDCG@10": 0.42},
        "active_query": 31.0,
        "active_document": 248.0,
    }
    terms = {"source_preservation": 0.99, "synonym_activation": 0.39}
    return {"terms": terms, "everyday": {"all": 0.6}, "retrieval": {"alias": row, "law": copy.deepcopy(row)}}


def test_good_figures_pass() -> None:
    assert failed_gates(GATE, evaluation(), {}) == []
    assert failed_gates(GATE, evaluation(), {"v1": evaluation()}) == []


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("retrieval", "law", "active_query"), 0.0, "law: 0.0 active words a query, must be 5 to 60"),
        (("retrieval", "law", "active_query"), 60.1, "law: 60.1 active words a query, must be 5 to 60"),
        (("retrieval", "alias", "active_document"), 900.0, "alias: 900.0 active words a document, must be 20 to 250"),
        (("retrieval", "alias", "active_document"), math.nan, "alias: nan active words a document, must be 20 to 250"),
        (("terms", "source_preservation"), 0.5, "source preservation is 0.500, must be at least 0.900"),
        (("terms", "synonym_activation"), 0.299, "synonym activation is 0.299, must be at least 0.300"),
        (("terms", "synonym_activation"), math.nan, "synonym activation is nan, must be at least 0.300"),
        (
            ("everyday", "all"),
            0.4,
            "everyday queries with own words, three related ones and no look-alike: 0.400, must be at least 0.500",
        ),
        (
            ("retrieval", "law", "sparse", "nDCG@10"),
            0.409,
            "law: nDCG@10 is 0.409, must be at least 0.410 (v1 less 0.01)",
        ),
        (
            ("retrieval", "law", "sparse", "nDCG@10"),
            math.nan,
            "law: nDCG@10 is nan, must be at least 0.410 (v1 less 0.01)",
        ),
        (
            ("retrieval", "law", "queries"),
            100,
            "law: measured on 1,693 documents and 100 queries, v1 on 1,693 and 1,000: the figures cannot be compared",
        ),
    ],
)
def test_each_gate_fails_by_itself(path: tuple[str, ...], value: float, message: str) -> None:
    measured = evaluation()
    place = measured
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    assert failed_gates(GATE, measured, {"v1": evaluation()}) == [message]


def test_a_loss_within_the_margin_passes_and_every_incumbent_counts() -> None:
    measured, better = evaluation(), evaluation()
    measured["retrieval"]["law"]["sparse"]["nDCG@10"] = 0.411
    better["retrieval"]["law"]["sparse"]["nDCG@10"] = 0.5
    assert failed_gates(GATE, measured, {"v1": evaluation()}) == []
    (failed,) = failed_gates(GATE, measured, {"v1": evaluation(), "v2": better})
    assert "0.411, must be at least 0.490 (v2" in failed


def test_what_was_not_measured_fails() -> None:
    measured = evaluation()
    del measured["terms"], measured["everyday"], measured["retrieval"]["law"]
    assert failed_gates(GATE, measured, {"v1": evaluation()}) == [
        "source preservation was not measured, must be at least 0.900: name held-out terms",
        "synonym activation was not measured, must be at least 0.300: name held-out terms",
        "everyday words were not measured, must be at least 0.500: name a file in data.everyday",
        "law: not measured, but v1 was: measure it too",
    ]
    assert failed_gates(GateConfig(), {}, {}) == ["active words were not measured: the recipe names no retrieval set"]


def test_a_new_retrieval_set_has_no_incumbent() -> None:
    measured = evaluation()
    measured["retrieval"]["new"] = {**measured["retrieval"]["law"], "sparse": {"nDCG@10": 0.0}}
    assert failed_gates(GATE, measured, {"v1": evaluation()}) == []
