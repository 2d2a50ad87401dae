"""What files hold, dirty ones included."""

from __future__ import annotations

import gzip
import json
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from app.bulk.rows import Bad, Document, InputError, Key, Row, find_inputs, read_rows, to_document
from app.web.unpacking import zstd

ROWS = [{"id": "1", "text": "손해배상 청구"}, {"id": "2", "text": "임대차 해지"}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def values(path: Path, encoding: str = "utf-8") -> list[object]:
    with closing(read_rows(str(path), encoding)) as rows:
        return [row.values if isinstance(row, Row) else row for row in rows]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", LINES.encode()),
        ("a.ndjson.gz", gzip.compress(LINES.encode())),
        ("a.jsonl.zst", zstd.compress(LINES.encode())),
        ("bom.jsonl", b"\xef\xbb\xbf" + LINES.replace("\n", "\r\n\n").encode()),
        ("a.csv", "id,text\n1,손해배상 청구\n2,임대차 해지\n".encode()),
        ("excel.csv", 'id,text\r\n"1","손해배상 청구"\r\n\r\n2,임대차 해지\r\n'.encode("utf-8-sig")),
        ("a.tsv.gz", gzip.compress("id\ttext\n1\t손해배상 청구\n2\t임대차 해지\n".encode())),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # packed, the same bytes differ by the second
)
def test_rows_come_as_they_are(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert values(tmp_path / name) == ROWS


@pytest.mark.parametrize(("encoding", "name"), [("cp949", "a.csv"), ("utf-16", "a.csv"), ("utf-16", "a.jsonl")])
def test_other_encodings_are_asked_for(tmp_path: Path, encoding: str, name: str) -> None:
    content = LINES if name.endswith("jsonl") else "id,text\n1,손해배상 청구\n2,임대차 해지\n"
    (tmp_path / name).write_bytes(content.encode(encoding))
    with pytest.raises(InputError, match=f"--encoding {encoding}"):
        values(tmp_path / name)
    assert values(tmp_path / name, encoding) == ROWS


def test_parquet(tmp_path: Path) -> None:
    table = pa.table({"id": [7, 8], "text": ["손해배상", None], "tags": [["a"], []]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert values(tmp_path / "a.parquet") == [
        {"id": 7, "text": "손해배상", "tags": ["a"]},
        {"id": 8, "text": None, "tags": []},
    ]
    (tmp_path / "b.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(InputError, match=r"b\.parquet cannot be read as Parquet"):
        values(tmp_path / "b.parquet")


def test_cells_hold_lines_quotes_and_a_million_characters(tmp_path: Path) -> None:
    long = "가" * 1_000_000
    (tmp_path / "a.csv").write_text(
        f'id,text\n007,"그는 ""네""라고\n말했다, 어제"\n2024-01-01,{long}\n', encoding="utf-8"
    )
    first, second = values(tmp_path / "a.csv")
    assert first == {"id": "007", "text": '그는 "네"라고\n말했다, 어제'}
    assert second == {"id": "2024-01-01", "text": long}


def test_a_bad_line_costs_itself(tmp_path: Path) -> None:
    lines = [LINES.encode(), b'{"text": "\xb0\xa1"}\n', b"{}}\n", b"[1]\n", LINES.encode()]
    (tmp_path / "a.jsonl").write_bytes(b"".join(lines))
    found = values(tmp_path / "a.jsonl")
    assert [one for one in found if isinstance(one, dict)] == [*ROWS, *ROWS]
    assert [(one.number, one.reason.split(":")[0]) for one in found if isinstance(one, Bad)] == [
        (3, "the line is not in utf-8"),
        (4, "the line is no JSON"),
        (5, "the line is no JSON object"),
    ]


def test_a_quote_that_is_never_closed_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('id,text\n1,가\n2\n3,"나\n4,다\n', encoding="utf-8")
    found = values(tmp_path / "a.csv")
    assert found[0] == {"id": "1", "text": "가"}
    assert [(one.number, one.reason[:24]) for one in found[1:] if isinstance(one, Bad)] == [
        (2, "line 3 has 1 cells, the "),
        (3, "line 4 and what follows "),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl.gz", gzip.compress(LINES.encode() * 99)[:-20], "cannot be read to its end"),
        ("a.jsonl.gz", b"no gzip", "cannot be read to its end"),
        ("a.jsonl.zst", zstd.compress(LINES.encode() * 99)[:-3], "cannot be read to its end"),
        ("a.csv", b"", "a.csv is empty"),
        ("a.csv", b"id,text,id\n1,a,2\n", "names the column 'id' twice"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_file_that_cannot_be_used_says_why(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        values(tmp_path / name)


def test_files_are_found_by_name_directory_and_pattern(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.csv", "part/c.parquet", "part/readme.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x", encoding="utf-8")
    names = [str(tmp_path / name) for name in ("a.csv", "b.jsonl", "part/c.parquet")]
    assert find_inputs([str(tmp_path)]) == names
    assert find_inputs([f"{tmp_path}/*.jsonl", f"{tmp_path}/a.csv"]) == [names[1], names[0]]
    for asked, message in (
        ([f"{tmp_path}/none.csv"], "there is no such file"),
        ([f"{tmp_path}/part/readme.txt"], "is none of jsonl"),
        ([names[0], names[0]], "is named twice"),
        (["gopher://x/a.csv"], "cannot be opened"),
    ):
        with pytest.raises(InputError, match=message):
            find_inputs(asked)


@pytest.mark.parametrize(
    ("row", "outcome"),
    [
        ({"id": 7, "text": "가"}, "7"),
        ({"id": "007", "text": "가", "title": None}, "007"),
        ({"id": None, "text": "가"}, "the id is missing"),
        ({"id": True, "text": "가"}, "the id is True"),
        ({"id": 1.5, "text": "가"}, "the id is 1.5"),
        ({"id": "a", "text": 3}, "it is int, not a text"),
        ({"id": "a", "text": " ", "title": ""}, "there is no text"),
        ({"id": "a", "text": "\udcb0"}, "it is not in the encoding of the file"),
        ({"id": "a", "titel": "가"}, "there is no column text, but id, titel"),
    ],
)
def test_what_of_a_row_is_encoded(row: dict[str, object], outcome: str) -> None:
    found = to_document(Row(1, {"title": None, **row}), ["text", "title"], "id", "0-a")
    assert (found.id if isinstance(found, Document) else found.reason.replace("title, ", "")) == outcome


def test_a_document_of_an_index_may_lack_a_field() -> None:
    """As it may be null there; a file that lacks a column is another file than was meant."""
    key = Key("a", 1, None)
    document = to_document(Row(1, {"title": "가"}, key), ["text", "title"], None, "0-a")
    assert isinstance(document, Document)
    assert document.texts == {"title": "가"}
    bad = to_document(Row(1, {"body": "가"}, key), ["text", "title"], None, "0-a")
    assert isinstance(bad, Bad)
    assert bad.reason == "there is no text"


def test_a_row_without_an_id_has_that_of_its_place() -> None:
    document = to_document(Row(12, {"text": "가"}), ["text"], None, "0-a")
    assert isinstance(document, Document)
    assert document.id == "0-a-12"
