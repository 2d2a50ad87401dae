"""Everyday words: the figures by hand, the package's own queries, and that nothing asked for is trained on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.training.commands import RECIPE, ROOT
from training.config import Config, DataConfig, load_config
from training.data import LeakFilter, load_training_data
from training.everyday import EverydayQuery, Shown, by_domain, everyday_figures, load_everyday
from training.readers import DataError

QUERY = EverydayQuery(
    "강아지 미용",
    (frozenset({"강아지", "강아지들"}), frozenset({"미용"})),
    frozenset({"애견", "털", "고양이"}),
    frozenset({"강남"}),
    "생활",
)
GOOD = ["강아지", "##미용", "애견", "털", "고양이", "목욕"]


def test_each_share_by_hand() -> None:
    halved = ["강아지", "미", "애견", "털", "강남", *(f"말{i}" for i in range(30)), "고양이"]
    figures = everyday_figures([QUERY, QUERY], [Shown(GOOD), Shown(halved)])
    assert figures == {
        "queries": 2,
        "own": 0.5,
        "two_related": 1.0,
        "three_related": 0.5,  # 고양이 is too far down
        "no_look_alike": 0.5,
        "all": 0.5,
    }


def test_a_look_alike_shares_a_syllable_and_no_table_names_it() -> None:
    words = ["강아지", "미용", "강남", "미용실", "애견", "멍멍이"]
    shown = Shown(words, frozenset({"강아지", "미용", "멍멍이"}), frozenset({"미용실", "애견"}))
    assert everyday_figures([QUERY], [shown])["look_alike_rate"] == pytest.approx(1 / 3)  # 강남 of 강남, 미용실, 애견
    assert "look_alike_rate" not in everyday_figures([QUERY], [Shown(words)])


def test_domains_are_measured_apart() -> None:
    other = replace(QUERY, domain="법률")
    rows = by_domain([QUERY, other, QUERY], [Shown(GOOD), Shown([]), Shown(GOOD)])
    assert {name: (row["queries"], row["all"]) for name, row in rows.items()} == {"생활": (2, 1.0), "법률": (1, 0.0)}


def test_the_package_brings_queries_of_every_domain() -> None:
    queries = load_everyday(Config(name="x"))
    assert len({row.query for row in queries}) == len(queries) >= 100
    domains = [row.domain for row in queries]
    assert len(set(domains)) == 14
    assert min(map(domains.count, domains)) >= 5
    for row in queries:
        assert len(row.related) >= 5
        assert not row.own_words & row.related
        assert not (row.own_words | row.related) & row.noise


def test_what_is_asked_for_is_no_training_pair(tmp_path: Path) -> None:
    rows = [("커피", "카페"), ("원두", "커피"), ("커피", "믹스"), ("강아지", "애견")]
    lines = ["term\trelated", *("\t".join(row) for row in rows)]
    (tmp_path / "terms.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    data = {"root": str(tmp_path), "terms": ({"path": "terms.tsv"},), "held_out_percent": 0}
    found = load_training_data(Config(name="x", data=DataConfig.model_validate(data)))
    assert {(pair.term, pair.related) for pair in found.terms} == set(rows[2:])
    assert found.counts["terms everyday"] == 2
    everything = load_training_data(Config(name="x", data=DataConfig.model_validate({**data, "everyday": ()})))
    assert len(everything.terms) == 4


def test_the_sample_trains_on_none_of_them() -> None:
    config = load_config(ROOT / RECIPE, data_root=ROOT / "training" / "sample")
    leak = LeakFilter([], [], load_everyday(config))
    data = load_training_data(config)
    assert not [pair for pair in data.terms if leak.asks(pair.term, pair.related)]


@pytest.mark.parametrize(
    "row",
    [
        {"query": "커피", "own": ["커피"], "related": [], "noise": []},
        {"query": "커피", "own": [], "related": [], "noise": []},
        {"query": "커피", "own": [["커피"]], "related": "카페", "noise": []},
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, row: object) -> None:
    (tmp_path / "words.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    data = DataConfig(root=str(tmp_path), everyday=("words.jsonl",))
    with pytest.raises(DataError, match=r"words\.jsonl: row 1: own must be lists of words"):
        load_everyday(Config(name="x", data=data))


@pytest.mark.timeout(300)
@pytest.mark.slow
def test_the_report_of_a_run_holds_the_figures(run: Path) -> None:
    report = json.loads((run / "evaluation" / "report.json").read_text())
    assert report["everyday"]["queries"] == len(load_everyday(Config(name="x")))
    assert len(report["everyday"]["domains"]) == 14
    assert report["empty"]["titles"]["texts"] > 0
    assert report["retrieval"]["sample"]["short"]["top_k_document"] == 128
    assert "look-alike" in (run / "evaluation" / "report.md").read_text()
