"""Reading, leak filter and splits; a wrong recipe or row names itself."""

import gzip
import json
import logging
import lzma
import random
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from training.config import ConfigError, PassageSource, TermSource, TripletSource, load_config
from training.data import LeakFilter, RetrievalData, is_held_out, load_training_data, with_negatives
from training.pairs import (
    TermPair,
    Triplet,
    clean,
    numbered_items,
    other_names,
    read_pairs,
    read_terms,
    read_triplets,
    short_names,
    without,
)
from training.readers import BadRows, DataError, read_jsonl, read_rows

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


def test_the_split_does_not_depend_on_case_or_spaces_and_is_about_as_large_as_asked() -> None:
    assert is_held_out("AI", 10) == is_held_out("ai", 10)
    assert is_held_out("손해 배상", 10) == is_held_out("손해배상", 10)
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


def test_a_short_name_asks_for_the_clause_that_it_stands_for() -> None:
    text = (
        "① 시장은 빈집을 고쳐 쓰려는 사람에게 그 비용의 일부(이하 “수리비”라 한다)를 줄 수 있다.\n"
        '② 수리비를 받으려는 사람은 신청서(이하 "신청서"라 한다)를 내야 한다.'
    )
    # The second name stands in its own clause, so asking for it teaches nothing.
    assert list(short_names(text)) == [("수리비", "시장은 빈집을 고쳐 쓰려는 사람에게 그 비용의 일부")]


def test_other_names_ask_for_a_passage_without_the_sentences_that_hold_them(tmp_path: Path) -> None:
    assert without("전화기", "손전화는 휴대용 전화기이다. 주머니에 들어간다.") == "주머니에 들어간다."
    path = tmp_path / "rows.jsonl"
    row = {"title": "손전화", "text": "손전화는 휴대 전화이다. 주머니에 들어간다."}
    path.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    source = PassageSource(name="n", path="", query="title", passage="text", other_names=("aliases.tsv",))
    names = other_names([TermPair("related", "휴대 전화", "손전화"), TermPair("related", "손전화", "모바일")])
    assert [(p.query, p.passage) for p in read_pairs(path, source, names, random.Random(0), BadRows())] == [
        ("휴대 전화", "주머니에 들어간다."),
        ("모바일", "손전화는 휴대 전화이다. 주머니에 들어간다."),
    ]


def test_other_names_leave_the_terms_of_the_test_split_out(tmp_path: Path) -> None:
    held = next(f"낱말{i}" for i in range(100) if is_held_out(f"낱말{i}", 10))
    kept = next(f"낱말{i}" for i in range(100) if not is_held_out(f"낱말{i}", 10))
    rows = [{"title": "제목", "text": "아주 긴 설명이 여기에 있다고 하자."}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (tmp_path / "names.tsv").write_text(f"term\trelated\n{held}\t제목\n{kept}\t제목\n", encoding="utf-8")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        'name = "x"\n[[data.passages]]\nname = "n"\npath = "rows.jsonl"\nquery = "title"\npassage = "text"\n'
        'other_names = ["names.tsv"]\n',
        encoding="utf-8",
    )
    data = load_training_data(load_config(recipe, data_root=tmp_path))
    assert [pair.query for pair in data.pairs] == [kept]


def test_numbered_items_belong_together_by_number(tmp_path: Path) -> None:
    assert numbered_items("[1] 가 [2] 나") == {"1": "가", "2": "나"}
    assert numbered_items("번호 없음") == {"1": "번호 없음"}
    path = tmp_path / "rows.jsonl.xz"
    row = {"q": "[1] 첫째 물음 [2] 둘째 물음", "a": "[2] 둘째 답 [3] 남는 답"}
    with lzma.open(path, "wt", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
    source = PassageSource(name="n", path="", query="q", passage="a", reader="numbered")
    assert [(p.query, p.passage) for p in read_pairs(path, source, {}, random.Random(0), BadRows())] == [
        ("둘째 물음", "둘째 답")
    ]


def test_definitions_become_queries(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    row = {"t": "정의", "x": '1. "공유 자전거"란 여러 사람이 나누어 쓰도록 거리에 둔 자전거를 말한다.'}
    path.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    source = PassageSource(name="d", path="", query="t", passage="x", reader="definitions")
    (pair,) = read_pairs(path, source, {}, random.Random(0), BadRows())
    assert pair.query == "공유 자전거"
    assert pair.passage.endswith("말한다")


def test_text_is_composed_and_folded() -> None:
    assert clean("한국\n <b>말</b>  ") == "한국 말"


@pytest.mark.parametrize(
    ("content", "message"),
    [("not json\n", ":1: not JSON"), ('{"a": 1}\n[]\n', ":2: expected an object, found"), ("{}\n", ":1: expected")],
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
        list(read_terms(path, TermSource(path=""), BadRows()))
    path.write_text("a\tb\n", encoding="utf-8")
    with pytest.raises(DataError, match="the header lacks related, term"):
        list(read_terms(path, TermSource(path=""), BadRows()))
    with pytest.raises(DataError, match="no such file"):
        list(read_terms(tmp_path / "missing.tsv", TermSource(path=""), BadRows()))


PRETRAINED = 'name = "x"\n[model]\nstart = "pretrained"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('name = "x"\nsede = 1', "sede"),
        ('name = "x"\n[train]\nsteps = "many"', r"train\.steps"),
        ("name = ", "not valid TOML"),
        ("", "name"),
        (
            f"{PRETRAINED}[vocabulary]\nextend = true",
            r"recipe\.toml: Value error, vocabulary\.extend: leave it out[^(]*$",
        ),
        (f"{PRETRAINED}skip = true", r'model\.skip: leave it out where model\.start is "pretrained"$'),
        ('name = "x"\n[model]\ne5_path = ""', r"model\.e5_path: name the teacher's file"),
        ('name = "x"\n[train]\nbatch = 0', r"train\.batch: Input should be greater than or equal to 2"),
        ('name = "x"\n[train]\nsteps = -5', r"train\.steps: Input should be greater than 0"),
        ('name = "x"\n[train]\nlearning_rate = nan', r"train\.learning_rate: Input should be a finite number"),
        ('name = "x"\n[train]\nactive_band = [10, 3]', r"train\.active_band: Value error, the lower end comes first"),
        ('name = "x"\n[train]\nsave_steps = 0', r"train\.save_steps"),
        ('name = "x"\n[align]\nsteps = -1', r"align\.steps"),
        ('name = "x"\n[publish.gate]\nactive_query = [64, 2]', r"publish\.gate\.active_query.* lower end"),
        ('name = "x"\n[publish]\nmax_length_query = 2', r"publish\.max_length_query"),
        ('name = "x"\n[data]\nheld_out_percent = 100', r"data\.held_out_percent"),
        ('name = "x"\n[model]\nstart = "fresh"\nheads = 7', r"model\.hidden_size 384: no multiple of heads, 7"),
        ('name = "x"\n[mining]\nskip = 30', r"mining\.skip 30: leaves none"),
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


ROWS = [{"a": "하나", "b": "첫째"}, {"a": '큰 "따옴표"', "b": "둘째"}, {"a": "셋", "b": "셋째"}]


def write(path: Path) -> Path:
    """ROWS in the form that the name of ``path`` says."""
    kind = path.name.partition(".")[2]
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    elif kind == "":
        datasets.Dataset.from_list(ROWS).save_to_disk(str(path))
    else:
        lines = [json.dumps(row, ensure_ascii=False) for row in ROWS]
        if kind.startswith("tsv"):
            lines = ["a\tb", *("\t".join(row.values()) for row in ROWS)]
        elif kind.startswith("csv"):
            lines = ["a,b", *(",".join('"' + cell.replace('"', '""') + '"' for cell in row.values()) for row in ROWS)]
        content = "".join(f"{line}\n" for line in lines).encode()
        pack = lzma.compress if kind.endswith("xz") else gzip.compress if kind.endswith("gz") else bytes
        path.write_bytes(pack(content))
    return path


@pytest.mark.parametrize("name", ["r.jsonl", "r.jsonl.gz", "r.tsv", "r.tsv.xz", "r.csv", "r.parquet", "saved"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    assert [row for _, row in read_rows(write(tmp_path / name), ["a", "b"], BadRows())] == ROWS


@pytest.mark.parametrize("name", ["r.tsv", "r.csv", "r.parquet", "saved"])
def test_a_column_that_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="c; found"):
        list(read_rows(write(tmp_path / name), ["a", "c"], BadRows()))


def test_what_is_no_data_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"known are \.jsonl"):
        list(read_rows(tmp_path / "r.pickle", ["a"], BadRows()))
    (tmp_path / "r.parquet").write_bytes(b"PAR1 and nothing more")
    with pytest.raises(DataError, match="not a readable Parquet file"):
        list(read_rows(tmp_path / "r.parquet", ["a"], BadRows()))


def test_bad_rows_are_logged_and_counted_and_too_many_stop(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": "x"}\nnot json\n{"b": 1}\n{"a": 5}\n{"a": "y"}\n', encoding="utf-8")
    bad = BadRows(allowed=3)
    with caplog.at_level(logging.WARNING):
        assert [row["a"] for _, row in read_rows(path, ["a"], bad)] == ["x", "y"]
    assert bad.counts == {str(path): 3}
    assert [f"{path}:{line}: " in record.getMessage() for line, record in zip((2, 3, 4), caplog.records, strict=True)]
    with pytest.raises(DataError, match=r":4: a must be text, found 5 \(3 bad rows, data.max_bad_rows is 2\)"):
        list(read_rows(path, ["a"], BadRows(allowed=2)))


def test_bad_rows_stand_in_the_counts_and_repeated_rows_are_used_once(tmp_path: Path) -> None:
    rows = (SAMPLE / "passages.jsonl").read_text(encoding="utf-8")
    (tmp_path / "passages.jsonl").write_text(rows + rows.splitlines()[0] + "\n[]\n", encoding="utf-8")
    for name in ("terms.tsv", "retrieval"):
        (tmp_path / name).symlink_to(SAMPLE / name)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE.read_text().replace("[data]", "[data]\nmax_bad_rows = 1\nvalidation_pairs = 5"), "utf-8")
    data = load_training_data(load_config(recipe, data_root=tmp_path))
    assert data.counts["passages.jsonl bad rows"] == 1
    assert (data.counts["sample read"], data.counts["sample repeated"], data.counts["sample kept"]) == (33, 1, 32)
    assert (len(data.pairs), len(data.validation)) == (27, 5)
    assert not {pair.passage for pair in data.pairs} & {pair.passage for pair in data.validation}


def test_triplets_are_read_and_get_negatives_that_look_like_the_anchor(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    path.write_text("x\ty\tz\n당뇨\t당뇨병\t분뇨\n\t둘\t셋\n", encoding="utf-8")
    bad = BadRows(allowed=1)
    source = TripletSource(path="", anchor="x", positive="y", negative="z")
    assert list(read_triplets(path, source, bad)) == [Triplet("당뇨", "당뇨병", "분뇨")]
    assert bad.counts == {str(path): 1}
    rows = [Triplet("당뇨", "당뇨병", ""), Triplet("분뇨", "오물", ""), Triplet("하늘", "창공", "")]
    first, second, third = (row.negative for row in with_negatives(rows, random.Random(0)))
    assert first == "분뇨"
    assert second in {"당뇨", "당뇨병"}
    assert third == ""
