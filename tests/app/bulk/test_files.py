"""The directory of a run, here and in an object store."""

from __future__ import annotations

import io
import pickle
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet
import pytest

from app.bulk.files import LOCK, RunError, RunFiles, SinkError
from app.bulk.plan import Manifest, Wanted, prepare
from app.bulk.rows import Bad, Row
from app.bulk.sources import File
from tests.app.bulk.corpus import Command, documents, write
from tests.sparse_encoder.stores import s3_bucket


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with s3_bucket() as url:
        yield url


@pytest.fixture(params=["local", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "run") if request.param == "local" else f"{request.getfixturevalue('s3')}/files"


def test_files_are_written_read_and_listed_by_any_process(url: str) -> None:
    files = RunFiles(url)
    with files.locked():
        assert set(files.names()) <= {LOCK}
        assert (files.names("receipts"), files.read("run.json")) == ([], None)
        files.write_json("run.json", {"ko": "가"})
        other = pickle.loads(pickle.dumps(files))
        other.write("receipts/1.json", b"1")
        other.write("receipts/1.json", b"2")
        files.write("receipts/.1.json.0f.partial", b"of one that died")
        files.clear()
        assert files.names("receipts") == ["1.json"]
        assert {"receipts", "run.json"} <= set(files.names())
        assert (files.read_json("run.json"), files.read("receipts/1.json")) == ({"ko": "가"}, b"2")
        files.remove("receipts/1.json")
        assert files.read("receipts/1.json") is None


def test_a_directory_has_one_process_at_a_time(tmp_path: Path) -> None:
    with (
        RunFiles(str(tmp_path / "run")).locked(),
        pytest.raises(RunError, match="another process works on"),
        RunFiles(str(tmp_path / "run")).locked(),
    ):
        pass


def test_what_cannot_be_reached_is_a_sentence(s3: str, tmp_path: Path) -> None:
    with pytest.raises(SinkError, match=r"s3://none/run/a cannot be written \(.*the same command goes on"):
        RunFiles("s3://none/run").write("a", b"")
    with pytest.raises(SinkError, match="cannot be written"):
        RunFiles(str(tmp_path / "not" / "made")).write("a", b"")


def test_a_run_from_and_to_an_object_store(command: Command, s3: str, tmp_path: Path) -> None:
    local = write(tmp_path / "a.jsonl", documents(20))
    RunFiles(f"{s3}/in").write("a.jsonl", local.read_bytes())
    asked = (f"{s3}/in/*.jsonl", f"{s3}/out", "--id", "id", "--part-rows", 8)
    code, said = command(*asked)
    assert code == 0, said
    files = RunFiles(f"{s3}/out")
    parts = [name for name in files.names() if name.startswith("part-")]
    assert len(parts) == 3
    assert command(local, tmp_path / "out", "--id", "id", "--part-rows", 8)[0] == 0
    for name in parts:
        content = files.read(name)
        assert content
        table = pyarrow.parquet.read_table(io.BytesIO(content))
        assert table.equals(pyarrow.parquet.read_table(tmp_path / "out" / name))
    files.remove("receipts/00000-000001.json")
    files.remove(parts[1])
    assert command(*asked)[0] == 0
    assert parts == [name for name in files.names() if name.startswith("part-")]


def test_of_two_that_begin_one_run_at_once_both_have_the_parts_of_the_first(url: str, tmp_path: Path) -> None:
    """As two do in an object store, which has no lock, of an index that is written to between them."""
    path = write(tmp_path / "a.jsonl", documents(6))
    files, first = RunFiles(f"{url}/twice"), File(str(path), "utf-8")
    (tmp_path / "run" / "twice").mkdir(parents=True)
    begun: list[Manifest] = []

    @dataclass(frozen=True)
    class Changing:
        """Another one scans it while it is scanned, and finds more in it."""

        path: str = first.path
        prefix: str = first.prefix
        count: None = None

        def rows(self) -> Generator[Row | Bad, None, None]:
            begun.append(prepare(files, wanted("text"), [first], print))
            yield Row(1, {"text": "손해", "title": "손해"})

        def fingerprint(self) -> str:
            return first.fingerprint()

        parts = first.parts

    assert prepare(files, wanted("text"), [Changing()], print) == begun[0]
    files.remove("run.json")
    with pytest.raises(RunError, match=r"texts was \['text'\] and is \['title'\]"):
        prepare(files, wanted("title"), [Changing()], print)


def wanted(text: str) -> Wanted:
    return Wanted(
        texts=[text],
        joined=False,
        id_column=None,
        version="v",
        vectors={},
        target="parquet",
        encoding="utf-8",
        limit=None,
        part_rows=2,
    )
