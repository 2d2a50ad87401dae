"""Reading, leak filter and splits; a wrong recipe or row names itself."""

import json
import lzma
from pathlib import Path

import pytest

from training.config import ConfigError, PassageSource, TermSource, load_config
from training.data import (
    DataError,
    LeakFilter,
    RetrievalData,
    clean,
    is_held_out,
    load_training_data,
    numbered_items,
    read_jsonl,
    read_pairs,
    read_terms,
)

RECIPE = Path(__file__).parents[2] / "training" / "sample" / "recipe.toml"
SAMPLE = RECIPE.parent


def test_every_row_of_the_sample_is_accounted_for() -> None:
    data = load_training_data(load_config(RECIPE, data_root=SAMPLE))
    counts = data.counts
    assert counts["terms read"] == 80
    assert sum(n for name, n in counts.items() if name.startswith("terms ") and name != "terms read") == 80
    assert counts["sample read"] == counts["sample kept"] == len(data.pairs) == 32
    held = {pair.term for pair in data.held_out}
    assert held
    assert not [side for pair in data.terms for side in (pair.term, pair.related) if is_held_out(side, 10)]


def test_the_split_does_not_depend_on_case_and_is_about_as_large_as_asked() -> None:
    assert is_held_out("AI", 10) == is_held_out("ai", 10)
    assert 70 < sum(is_held_out(f"낱말{i}", 10) for i in range(1000)) < 130


def test_a_passage_that_shares_a_stretch_with_an_evaluation_text_is_a_leak() -> None:
    text = (
        "집주인은 계약이 끝나는 날에 세입자에게 보증금을 모두 돌려주어야 하며 늦으면 그날부터 이자를 더하여 주어야 한다"
    )
    held = RetrievalData("set", ["1"], [text], ["보증금 이자"], [{"1"}])
    leak = LeakFilter([held], ["보증금 이자"])
    assert leak.leaks(f"앞에 다른 말이 있고 {text} 뒤에도 다른 말이 있다")
    assert leak.leaks("보증금  이자")
    assert not leak.leaks("보증금을 늦게 돌려주면 이자를 더하여 주어야 한다")
    assert leak.forbids("아무 말", "보증금이자")


def test_numbered_items_belong_together_by_number(tmp_path: Path) -> None:
    assert numbered_items("[1] 가 [2] 나") == {"1": "가", "2": "나"}
    assert numbered_items("번호 없음") == {"1": "번호 없음"}
    path = tmp_path / "rows.jsonl.xz"
    row = {"q": "[1] 첫째 물음 [2] 둘째 물음", "a": "[2] 둘째 답 [3] 남는 답"}
    with lzma.open(path, "wt", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
    source = PassageSource(name="n", path="", query="q", passage="a", reader="numbered")
    assert [(p.query, p.passage) for p in read_pairs(path, source, rng=None)] == [("둘째 물음", "둘째 답")]  # type: ignore[arg-type]


def test_definitions_become_queries(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    row = {"t": "정의", "x": '1. "공유 자전거"란 여러 사람이 나누어 쓰도록 거리에 둔 자전거를 말한다.'}
    path.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    source = PassageSource(name="d", path="", query="t", passage="x", reader="definitions")
    (pair,) = read_pairs(path, source, rng=None)  # type: ignore[arg-type]
    assert pair.query == "공유 자전거"
    assert pair.passage.endswith("말한다")


def test_text_is_composed_and_folded() -> None:
    assert clean("한국\n <b>말</b>  ") == "한국 말"


@pytest.mark.parametrize(
    ("content", "message"),
    [("not json\n", ":1: not JSON"), ('{"a": 1}\n[]\n', ":2: expected an object with a"), ("{}\n", ":1: expected")],
)
def test_a_bad_row_names_its_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        list(read_jsonl(path, "a"))


def test_a_bad_term_file_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "terms.tsv"
    path.write_text("term\trelated\n하나\t둘\t셋\n", encoding="utf-8")
    with pytest.raises(DataError, match=r":2: 3 columns, the header has 2"):
        list(read_terms(path, TermSource(path="")))
    path.write_text("a\tb\n", encoding="utf-8")
    with pytest.raises(DataError, match="the header lacks related, term"):
        list(read_terms(path, TermSource(path="")))
    with pytest.raises(DataError, match="no such file"):
        list(read_terms(tmp_path / "missing.tsv", TermSource(path="")))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('name = "x"\nsede = 1', "sede"),
        ('name = "x"\n[train]\nsteps = "many"', r"train\.steps"),
        ("name = ", "not valid TOML"),
        ("", "name"),
    ],
)
def test_a_wrong_recipe_is_refused_by_key(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        load_config(path)


def test_the_shipped_recipes_are_valid() -> None:
    for path in RECIPE.parents[1].rglob("*.toml"):
        assert load_config(path).name
