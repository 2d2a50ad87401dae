"""The figures that an evaluation reports, on cases small enough to count by hand."""

from __future__ import annotations

import numpy as np
import pytest

from training.pairs import TermPair
from training.report import table
from training.retrieval import measure, rank_dense
from training.stages.evaluate import measures_by_domain, term_measures, top_overlap

PAIRS = [
    TermPair("synonym", "배상", "보상", "법률"),
    TermPair("synonym", "배상", "변상", "법률"),
    TermPair("synonym", "휴대폰", "스마트폰", "IT"),
]
WORDS = {"배상": ["배상", "변상"], "휴대폰": ["휴대", "전화"]}


def top_words(texts: list[str]) -> list[list[str]]:
    return [WORDS[text] for text in texts]


def test_the_cards_measures_count_each_anchor_once() -> None:
    figures = term_measures(PAIRS, top_words)
    assert figures == {
        "terms": 2,
        "source_preservation": 1.0,
        "synonym_activation": 0.5,  # 변상; of 스마트폰 nothing
        "new_synonym_terms": 0,  # every expected synonym shares a syllable with its anchor
        "new_synonym_activation": 0.0,
    }


def test_a_domain_with_few_terms_gives_no_figure() -> None:
    assert measures_by_domain(PAIRS, top_words) == {}
    many = [TermPair("synonym", f"말{i}", "말씀", "일반") for i in range(20)]
    (row,) = measures_by_domain([*PAIRS, *many], lambda texts: [["말"]] * len(texts)).items()
    assert row[0] == "일반"
    assert row[1]["terms"] == 20


def test_overlap_is_the_share_of_the_references_words() -> None:
    assert top_overlap([["가", "나"], ["다"]], [["가", "라"], ["다"]]) == pytest.approx(0.75)
    assert top_overlap([["가"], ["나"]], [["가"], []]) == 1.0


def test_dense_vectors_are_ranked_by_their_dot_product() -> None:
    documents = np.eye(3, dtype=np.float32)
    queries = np.array([[0.1, 0.9, 0.5]], np.float32)
    (found,) = rank_dense(queries, documents)
    assert sorted(found, key=lambda place: -found[place]) == [1, 2, 0]
    assert measure([found], [{"b"}], ["a", "b", "c"])["MRR@10"] == 1.0


def test_the_table_says_what_was_measured() -> None:
    figures = {"nDCG@10": 0.5, "MRR@10": 0.4, "R@100": 0.9}
    row = {
        **{"documents": 3, "queries": 1, "sparse": figures, "bm25": figures, "dense": figures},
        **{"short": {"top_k_query": 24, "top_k_document": 128, **figures}, "inference_free": figures},
        **{"active_query": 4.0, "active_document": 9.0},
    }
    domain = {"terms": 20, "source_preservation": 1.0, "synonym_activation": 0.25}
    everyday = {"queries": 7, "own": 1.0, "two_related": 0.75, "three_related": 0.5, "no_look_alike": 0.9, "all": 0.25}
    report = {"retrieval": {"set": row}, "domains": {"법률": domain}, "reference_overlap": 0.5}
    text = table(
        {
            **report,
            "everyday": {**everyday, "domains": {"생활": everyday}},
            "empty": {"nouns": {"texts": 9, "empty": 2}},
        }
    )
    assert "nDCG@10 at 24 / 128 words" in text
    assert "| 생활 | 7 | 100% | 75% | 50% | 90% | 25% |" in text
    assert "Texts whose vector is empty: 2 of 9 nouns." in text
    assert "| 법률 | 20 | 100.0% | 25.0% |" in text
    assert "dense teacher: set 0.500." in text
    assert "50.0% are among ours" in text
