"""Runs from an index and into one that is written to meanwhile."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import certifi
import pytest

from app.bulk import sources
from app.bulk.index import REFRESH
from tests.app.bulk.corpus import Command, documents, parquet, write
from tests.app.bulk.pretender import Pretender, serving


@pytest.fixture
def opensearch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pretender]:
    monkeypatch.setattr(sources, "PAGE", 4)
    with serving() as pretender:
        yield pretender


def at_search(opensearch: Pretender, number: int, change: Callable[[], object]) -> None:
    """`change` comes before the search of that number is answered, from 1."""
    seen = 0

    def asked(_: str, path: str) -> None:
        nonlocal seen
        seen += "/_search" in path
        if "/_search" in path and seen == number:
            change()

    opensearch.asked = asked


def test_what_is_changed_while_it_is_read_is_in_the_run_once(
    command: Command, opensearch: Pretender, tmp_path: Path
) -> None:
    old = opensearch.add("old", documents(12))
    at_search(opensearch, 4, lambda: old.put("d1", {"id": "d1", "text": "바뀐 글"}))
    code, said = command(f"{opensearch.url}/old", tmp_path / "out", "--part-rows", 5)
    assert code == 0, said
    assert "0 rejected" in said
    assert [row["id"] for row in parquet(tmp_path / "out")] == [f"d{n}" for n in range(12) if n != 1]
    assert "1 documents were changed or deleted since the run began and are not in it" in said


def test_what_is_changed_before_it_is_read_is_counted(command: Command, opensearch: Pretender, tmp_path: Path) -> None:
    old = opensearch.add("old", documents(12))

    def change() -> None:
        for gone in ("d0", "d1", "d2", "d3", "d9"):
            del old.documents[gone]
        old.put("d10", {"id": "d10", "text": "바뀐 글"})

    at_search(opensearch, 6, change)  # the first of those that fill the parts
    code, said = command(f"{opensearch.url}/old", tmp_path / "out", "--part-rows", 3)
    assert code == 0, said
    assert "12 rows in" in said
    assert "6 rows: 6 documents, 0 rejected" in said
    assert "6 documents were changed or deleted since the run began and are not in it" in said
    assert json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))["changed"] == 6
    assert [row["id"] for row in parquet(tmp_path / "out")] == ["d4", "d5", "d6", "d7", "d8", "d11"]


def test_refreshes_that_another_run_put_off_are_left_to_it(
    command: Command, opensearch: Pretender, tmp_path: Path
) -> None:
    new, source = opensearch.add("new", []), write(tmp_path / "a.jsonl", documents(6))

    def another(method: str, path: str) -> None:
        if path == "/new/_count" and "index.refresh_interval" not in new.settings:
            new.settings["index.refresh_interval"] = "-1"

    opensearch.asked = another
    asked = (source, f"{opensearch.url}/new", "--id", "id", "--run-dir", tmp_path / "run")
    code, said = command(*asked)
    assert code == 0, said
    assert "new has refresh_interval -1 already, by another run or by hand, and keeps it" in said
    assert not (tmp_path / "run" / REFRESH).exists()
    new.settings["index.refresh_interval"] = "7s"  # as the other one does in the end
    assert command(*asked)[0] == 0
    assert new.settings["index.refresh_interval"] == "7s"


def test_refreshes_that_another_process_of_the_run_put_back_are_left(
    command: Command, opensearch: Pretender, tmp_path: Path
) -> None:
    new, source = opensearch.add("new", []), write(tmp_path / "a.jsonl", documents(6))

    def another(method: str, path: str) -> None:
        if "/_bulk" in path:
            new.settings["index.refresh_interval"] = "7s"
            (tmp_path / "run" / REFRESH).unlink()

    opensearch.asked = another
    asked = (source, f"{opensearch.url}/new", "--id", "id", "--run-dir", tmp_path / "run")
    assert command(*asked)[0] == 0
    assert new.settings["index.refresh_interval"] == "7s"


def test_no_vector_of_the_old_model_comes_along(command: Command, opensearch: Pretender, tmp_path: Path) -> None:
    texts = {name: {"type": "text"} for name in ("title", "text")}
    properties = {**texts, **{f"{name}_sparse": {"type": "rank_features"} for name in texts}}
    old = {**documents(1)[0], "title_sparse": {"a": 1.0}, "title_chunks": [{}], "text_sparse": {"a": 1.0}}
    opensearch.add("old", [old], mappings={"properties": properties})
    code, said = command(f"{opensearch.url}/old", tmp_path / "out", "--to", "jsonl")
    assert code == 0, said
    assert "old has vectors of title too, which are left out: --text names what gets new ones" in said
    (part,) = (tmp_path / "out").glob("part-*.jsonl")
    written = json.loads(part.read_text(encoding="utf-8").splitlines()[1])
    assert sorted(written) == ["id", "text", "text_sparse", "title", "year"]
    assert written["text_sparse"] != old["text_sparse"]


def test_a_newer_document_stays_and_is_no_fault(command: Command, opensearch: Pretender, tmp_path: Path) -> None:
    """Also of those that are compared in the end; what is written in the version of the copy is one."""
    opensearch.add("old", documents(6))
    new = opensearch.add("new", [])
    new.put("d1", {"text": "더 새로운 글", "text_sparse": {"글": 1.0}}, version=9)
    asked = (f"{opensearch.url}/old", f"{opensearch.url}/new", "--part-rows", 3, "--run-dir", tmp_path / "run")
    code, said = command(*asked)
    assert code == 0, said
    assert "new has 6 documents, 6 of them from here" in said
    assert "1 of them have the vectors that were written" in said
    assert new.documents["d1"].version == 9
    new.documents["d4"].source = {**new.documents["d4"].source, "text_sparse": {"글": 1.0}}
    code, said = command(*asked)
    assert (code, "the document 'd4' of new has another text_sparse than was written" in said) == (1, True), said
    del new.documents["d4"]
    new.put("another", {})
    assert command(*asked)[0] == 0


def test_certificates_of_here_are_told_by_their_whole_path(
    command: Command, opensearch: Pretender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opensearch.add("new", [])
    source = write(tmp_path / "a.jsonl", documents(3))
    (tmp_path / "ca.pem").write_bytes(Path(certifi.where()).read_bytes())
    monkeypatch.chdir(tmp_path)
    opensearch.asked = lambda method, path: monkeypatch.chdir("/") if path == "/new/_settings" else None
    code, said = command(source, f"{opensearch.url}/new", "--id", "id", "--ca-file", "ca.pem")
    assert code == 0, said
    assert (tmp_path / "new.bulk" / "summary.json").exists()


def test_a_password_in_an_url_is_refused(command: Command, opensearch: Pretender, tmp_path: Path) -> None:
    for name in ("old", "new"):
        opensearch.add(name, documents(3))
    secret = opensearch.url.replace("://", "://admin:geheim@")
    for arguments in (
        (f"{secret}/old", tmp_path / "out"),
        (f"{opensearch.url}/old", f"{secret}/new"),
        (secret, tmp_path / "out"),
        (f"{secret.replace('heim', '/heim')}/old", tmp_path / "out"),
    ):
        code, said = command(*arguments)
        assert code == 1
        assert "holds a user: give --user and --password-file instead" in said
        assert "heim" not in said


def test_requests_are_as_small_as_a_proxy_wants_them_and_what_it_never_takes_is_told(
    command: Command, opensearch: Pretender, tmp_path: Path
) -> None:
    large = {**documents(1)[0], "id": "large", "notes": "x" * 20_000}
    opensearch.add("old", [*documents(20), large])
    new = opensearch.add("new", [])
    opensearch.most_bytes = 10_000
    code, said = command(f"{opensearch.url}/old", f"{opensearch.url}/new", "--run-dir", tmp_path / "run")
    assert code == 3, said
    assert len(new.documents) == 20
    (told,) = (tmp_path / "run" / "rejected").iterdir()
    (row,) = map(json.loads, told.read_text(encoding="utf-8").splitlines())
    assert "413" in row["reason"]
    taken = [sent for status, sent in opensearch.bodies if status == 200]
    assert len(taken) > 1
    assert sum(status == 413 for status, _ in opensearch.bodies) < 10


def test_what_is_refused_for_now_is_sent_again_and_none_is_lost(
    command: Command, opensearch: Pretender, tmp_path: Path
) -> None:
    opensearch.add("old", documents(20))
    new = opensearch.add("new", [])
    opensearch.busy, opensearch.most_bytes = 2, 10_000
    code, said = command(f"{opensearch.url}/old", f"{opensearch.url}/new", "--run-dir", tmp_path / "run")
    assert code == 0, said
    assert len(new.documents) == 20
    assert [status for status, _ in opensearch.bodies].count(503) == 2
