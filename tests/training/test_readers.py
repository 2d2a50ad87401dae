"""Files as people have them: other encodings, damage, odd rows. Each is read right, or refused with file and line."""

from __future__ import annotations

import gzip
import json
import lzma
from pathlib import Path

import pytest

from training.config import load_config
from training.data import load_training_data
from training.readers import BadRows, DataError, read_jsonl, read_lines, read_rows

ROWS = [{"a": f"낱말 {i}", "b": "손해배상을 청구할 수 있다"} for i in range(50)]
TSV = "a\tb\n" + "".join("\t".join(row.values()) + "\n" for row in ROWS)


def rows(path: Path, allowed: int = 0) -> tuple[list[dict[str, str]], BadRows]:
    bad = BadRows(allowed)
    return [row for _, row in read_rows(path, ["a", "b"], bad)], bad


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp949"])
@pytest.mark.parametrize("name", ["r.tsv", "r.csv", "r.jsonl", "r.tsv.gz", "r.tsv.xz"])
def test_encodings_are_told_by_the_bytes(tmp_path: Path, encoding: str, name: str) -> None:
    text = TSV.replace("\t", ",") if ".csv" in name else TSV
    if ".jsonl" in name:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
    content = text.encode(encoding)
    content = gzip.compress(content) if ".gz" in name else lzma.compress(content) if ".xz" in name else content
    (tmp_path / name).write_bytes(content)
    assert rows(tmp_path / name)[0] == ROWS


def test_a_big_endian_utf_16_file_is_read_by_its_mark(tmp_path: Path) -> None:
    (tmp_path / "r.tsv").write_bytes(b"\xfe\xff" + TSV.encode("utf-16-be"))
    assert rows(tmp_path / "r.tsv")[0] == ROWS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("r.tsv", TSV.encode("utf-16-le"), r"r\.tsv: holds zero bytes: no text, or UTF-16 without a mark"),
        ("r.tsv", b"a\tb\n" + b"\xff\xfe\xfd\x80" * 30, r"r\.tsv: neither UTF-8 nor CP949"),
        ("r.tsv", TSV.encode("utf-16")[:-1], r"r\.tsv: cut off or damaged after line \d+"),
        ("r.tsv", gzip.compress(TSV.encode(), mtime=0), r"r\.tsv: no text but a gzip file"),
        ("r.jsonl", b"PK\x03\x04 and so on", r"r\.jsonl: no text but a zip file"),
        ("r.tsv.gz", TSV.encode(), r"r\.tsv\.gz: cut off or damaged after line 0"),
        ("r.tsv.xz", TSV.encode(), r"r\.tsv\.xz: cut off or damaged after line 0"),
        ("r.tsv.gz", gzip.compress(TSV.encode(), mtime=0)[:-20], r"r\.tsv\.gz: cut off or damaged after line \d+"),
        ("r.tsv.xz", lzma.compress(TSV.encode())[:-20], r"r\.tsv\.xz: cut off or damaged after line \d+"),
        ("r.tsv.gz", b"\x1f\x8b\x08\x00" + b"\x00" * 6 + b"\xff" * 50, r"r\.tsv\.gz: cut off or damaged"),
    ],
    ids=str,
)
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        rows(tmp_path / name)


def test_what_was_read_of_a_truncated_archive_is_not_taken_for_all_of_it(tmp_path: Path) -> None:
    many = "".join(f"{i}번째 줄, {i * 7919 % 1000}\n" for i in range(200_000)).encode()
    (tmp_path / "t.txt.gz").write_bytes(gzip.compress(many)[:-100])
    lines: list[str] = []
    with pytest.raises(DataError, match="get the file again") as error:
        lines.extend(read_lines(tmp_path / "t.txt.gz"))
    assert len(lines) > 1000
    assert f"after line {len(lines)} " in str(error.value)


def test_one_bad_byte_is_the_fault_of_its_row(tmp_path: Path) -> None:
    content = TSV.encode().replace("낱말 7\t".encode(), b"\xeb\x82\t")
    (tmp_path / "r.tsv").write_bytes(content)
    kept, bad = rows(tmp_path / "r.tsv", allowed=1)
    assert kept == [row for row in ROWS if row["a"] != "낱말 7"]
    assert bad.counts.total() == 1
    with pytest.raises(DataError, match=r":9: a holds bytes or escapes that are no text"):
        rows(tmp_path / "r.tsv")


def test_half_a_character_in_json_is_the_fault_of_its_row(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text('{"a": "\\ud800 x", "b": "y"}\n{"a": "\\ud83d\\ude00", "b": "z"}\n', encoding="utf-8")
    kept, bad = rows(path, allowed=1)
    assert kept == [{"a": "\U0001f600", "b": "z"}]
    assert bad.counts == {str(path): 1}
    with pytest.raises(DataError, match=r":1: holds bytes or escapes"):
        list(read_jsonl(path, "a"))


def test_json_that_the_parser_gives_up_on_is_the_fault_of_its_row(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(f'{"[" * 200_000}\n{{"a": {"9" * 5000}}}\n{{"a": "x", "b": "y"}}\n', encoding="utf-8")
    kept, bad = rows(path, allowed=2)
    assert kept == [{"a": "x", "b": "y"}]
    assert bad.counts.total() == 2


@pytest.mark.parametrize("name", ["r.tsv", "r.csv"])
def test_a_cell_may_be_long(tmp_path: Path, name: str) -> None:
    between = "\t" if name == "r.tsv" else ","
    (tmp_path / name).write_text(f"a{between}b\n낱말{between}{'가' * 200_000}\n", encoding="utf-8")
    ((row,), _) = rows(tmp_path / name)
    assert len(row["b"]) == 200_000


def test_a_quotation_mark_that_is_not_closed_is_the_fault_of_its_row(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text('a,b\n"x,y\n' + "가" * 10_000_001 + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"r\.csv:\d+: field larger than field limit .* quotation mark is not closed"):
        rows(tmp_path / "r.csv")


def test_blank_lines_are_left_out_and_counted(tmp_path: Path) -> None:
    for name, text in (("r.tsv", f"{TSV}\n\n"), ("r.jsonl", '\n{"a": "x", "b": "y"}\n  \n')):
        (tmp_path / name).write_text(text, encoding="utf-8")
        kept, bad = rows(tmp_path / name)
        assert kept
        assert bad.blank_lines == {str(tmp_path / name): 2}


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text("a,b,a,,\n1,2,3,,\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"r\.csv:1: the header has 'a' more than once"):
        rows(tmp_path / "r.csv")


def test_scores_and_short_texts(tmp_path: Path) -> None:
    """A score that is no number is a bad row; weak, silent and blank ones are counted; single syllables are taken."""
    (tmp_path / "t.tsv").write_text(
        "term\trelated\tscore\n차\t자동차\t0.9\n배\t선박\t\n낮음\t약함\t0.1\n영점\t무점\t0\nㅡ\t...\t0.9\n"
        "무\t없음\tnan\n끝\t종료\tinf\n\n",
        encoding="utf-8",
    )
    (tmp_path / "p.jsonl").write_text('{"q": "차", "p": "바퀴로 간다"}\n{"q": "?", "p": "짧다"}\n', encoding="utf-8")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        'name = "x"\n[data]\nmax_bad_rows = 2\nheld_out_percent = 0\n'
        '[[data.terms]]\npath = "t.tsv"\nmin_score = 0.5\n'
        '[[data.passages]]\nname = "p"\npath = "p.jsonl"\nquery = "q"\npassage = "p"\n',
        encoding="utf-8",
    )
    data = load_training_data(load_config(recipe, data_root=tmp_path))
    assert {(pair.term, pair.related) for pair in data.terms} == {("차", "자동차"), ("배", "선박")}
    assert [(pair.query, pair.passage) for pair in data.pairs] == [("차", "바퀴로 간다")]
    counts = data.counts
    assert (counts["t.tsv bad rows"], counts["t.tsv blank lines"], counts["t below min_score"]) == (2, 1, 2)
    assert counts["t read"] == sum(n for name, n in counts.items() if name.startswith("t ") and name != "t read") == 5
    assert counts["p too short"] == 1
