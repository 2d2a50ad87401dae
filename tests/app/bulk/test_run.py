"""Whole runs by the command: what comes out, what is told, and that a stop costs nothing."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.bulk import command as command_module
from app.bulk.command import main
from app.bulk.making import Job, Made, Part
from app.bulk.plan import Ids
from app.bulk.progress import Metrics, Progress
from app.bulk.run import here
from app.bulk.sinks import common_type, type_of
from app.models.conversion import open_model
from app.models.loaded import load_model
from sparse_encoder.artifact import read_artifact
from sparse_encoder.batching import by_length
from sparse_encoder.checkpoint.source import Choices
from sparse_encoder.store import Store
from tests import foreign
from tests.app.bulk.corpus import DIRTY, Command, documents, parquet, write
from tests.app.conftest import openvino
from tests.tiny import publish


def test_vectors_are_those_of_the_service_and_columns_stay(
    command: Command, tiny_artifact: Path, tmp_path: Path
) -> None:
    rows = documents()
    source = write(tmp_path / "a.jsonl", rows)
    code, said = command(source, tmp_path / "out", "--text", "title", "text", "--id", "id", "--part-rows", 15)
    assert code == 0, said
    found = parquet(tmp_path / "out")
    assert [row["id"] for row in found] == [row["id"] for row in rows]
    assert [(row["year"], row["text"], row["version"]) for row in found] == [
        (row["year"], row["text"], "tiny-v1") for row in rows
    ]
    model = load_model(read_artifact(tiny_artifact), openvino)
    for row in found:
        for field in ("title", "text"):
            vector = model.vector(row[field], "document").prune(top_k=256).to_words(model.tokenizer.vocabulary)
            stored = {pair["token"]: pair["weight"] for pair in row[f"{field}_sparse"]}
            assert stored == pytest.approx(
                {word: weight for word, weight in vector.items() if word in stored}, abs=1e-3
            )
            assert {word for word, weight in vector.items() if weight > 0.01 and "." not in word} <= stored.keys()
            assert row[f"{field}_tokens"] > 2
    assert "40 rows: 40 documents, 0 rejected" in said
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    assert (summary["documents"], summary["vectors"], summary["version"]) == (40, 80, "tiny-v1")
    assert summary["words"] == sum(len(row[f"{field}_sparse"]) for row in found for field in ("title", "text"))


def test_lines_for_bulk_requests_and_one_vector_of_several_texts(command: Command, tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", documents(3))
    code, said = command(source, tmp_path / "out", "--text", "title", "text", "--join", "--id", "id", "--to", "jsonl")
    assert code == 0, said
    (part,) = (tmp_path / "out").glob("part-*.jsonl")
    lines = [json.loads(line) for line in part.read_text(encoding="utf-8").splitlines()]
    assert [line["index"]["_id"] for line in lines[::2]] == ["d0", "d1", "d2"]
    assert all(line["title_sparse"] and "text_sparse" not in line for line in lines[1::2])
    assert [line["year"] for line in lines[1::2]] == [0, 1, 2]


def test_every_bad_row_is_told_and_counted(command: Command, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(DIRTY)
    code, said = command(tmp_path / "a.jsonl", tmp_path / "out", "--id", "id", "--part-rows", 4)
    assert code == 3
    assert "14 rows: 7 documents, 7 rejected" in said
    assert "1 documents were longer than the model reads" in said
    assert "1 documents have a text without any token" in said
    assert "rejected, by column: (row) 2, id 2, text 3" in said
    told = [
        json.loads(line)
        for part in sorted((tmp_path / "out" / "rejected").glob("*.jsonl"))
        for line in part.read_text(encoding="utf-8").splitlines()
    ]
    assert [(one["row"], one["column"]) for one in told] == [
        (6, "id"),
        (7, "id"),
        (8, "text"),
        (9, ""),
        (10, "text"),
        (11, "text"),
        (12, ""),
    ]
    assert told[0]["reason"] == "an earlier row has the id 'd3'"
    assert len({row["id"] for row in parquet(tmp_path / "out")}) == 7
    assert command(tmp_path / "a.jsonl", tmp_path / "out", "--id", "id", "--part-rows", 4, "--max-rejected", 7)[0] == 0


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_as_one_that_was_not(
    command: Command, tiny_artifact: Path, tmp_path: Path
) -> None:
    source = write(tmp_path / "a.jsonl", documents(400))
    asked = ["--id", "id", "--part-rows", "10"]
    assert command(source, tmp_path / "whole", *asked)[0] == 0
    line = [sys.executable, "-m", "app.bulk", "encode", source, tmp_path / "killed", *asked, "--model", tiny_artifact]
    line += ["--precision", "f32", "--threads", 1, "--cache-dir", tmp_path / "cache"]
    kills = 0
    while not (tmp_path / "killed" / "summary.json").exists():
        process = subprocess.Popen(list(map(str, line)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        had = len(list((tmp_path / "killed").glob("receipts/*.json")))
        while process.poll() is None and kills < 3 and len(list((tmp_path / "killed").glob("receipts/*"))) < had + 5:
            os.sched_yield()
        if kills < 3:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills == 3
    assert parquet(tmp_path / "killed") == parquet(tmp_path / "whole")
    assert not list((tmp_path / "killed").rglob("*.unfinished"))
    counts = [
        json.loads((tmp_path / name / "summary.json").read_text(encoding="utf-8")) for name in ("whole", "killed")
    ]
    assert {**counts[0], "seconds": 0} == {**counts[1], "seconds": 0}


def test_what_is_done_is_not_done_again(command: Command, tmp_path: Path) -> None:
    """Only the part whose receipt is gone is written anew."""
    source = write(tmp_path / "a.jsonl", documents(8))
    asked = (source, tmp_path / "out", "--id", "id", "--part-rows", 2)
    assert command(*asked)[0] == 0
    parts = sorted((tmp_path / "out").glob("part-*.parquet"))
    before = [part.stat().st_ino for part in parts]
    (tmp_path / "out" / "receipts" / "00000-000002.json").unlink()
    assert command(*asked)[0] == 0
    again = [part.stat().st_ino != inode for part, inode in zip(parts, before, strict=True)]
    assert again == [False, False, True, False]


def test_what_a_kill_left_of_the_first_file_is_no_other_run(command: Command, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".run.json.0f.partial").write_text("{", encoding="utf-8")
    code, said = command(write(tmp_path / "a.jsonl", documents(4)), tmp_path / "out", "--id", "id")
    assert code == 0, said
    assert not list((tmp_path / "out").glob(".*"))


def test_a_directory_belongs_to_one_run(command: Command, tmp_path: Path) -> None:
    rows = documents(4)
    source = write(tmp_path / "a.jsonl", rows)
    assert command(source, tmp_path / "out", "--id", "id")[0] == 0
    again, said = command(source, tmp_path / "out", "--id", "id")
    assert (again, "4 documents" in said) == (0, True)
    for changed, message in (
        (("--id", "id", "--text", "title"), "texts was ['text'] and is ['title']"),
        (("--id", "id", "--top-k", 9), "'top_k': 9"),
        ((), "id_column was 'id' and is None"),
    ):
        code, said = command(source, tmp_path / "out", *changed)
        assert (code, message in said) == (1, True), said
    write(source, rows[:3])
    code, said = command(source, tmp_path / "out", "--id", "id")
    assert (code, f"{source} has changed" in said) == (1, True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").touch()
    code, said = command(source, tmp_path / "other")
    assert (code, "holds letter.txt and is no run" in said) == (1, True)


def test_what_can_be_wrong_at_first_is_a_sentence(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "a.jsonl", documents(4))
    for arguments, message in (
        ((tmp_path / "none.csv", tmp_path / "o1"), "there is no such file"),
        ((source, tmp_path / "o2", "--text", "body"), "no row has a column body; there are id, title, text, year"),
        ((source, source), "cannot be used"),
        ((source, tmp_path / "o4", "--concurrency", 2), "--concurrency is of --address"),
        ((source, "http://127.0.0.1:9/nothing"), "does not answer"),
        ((source, tmp_path / "o5", "--store", "store", "--query-model", "b"), "--query-model goes with --model"),
        ((source, tmp_path / "o3", "--store", tmp_path / "store"), "stable"),
    ):
        code, said = command(*arguments)
        assert (code, "error: " in said, message in said) == (1, True, True), said

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    code, said = command(source, tmp_path / "full", "--id", "id")
    assert (code, "No space left on device" in said, "the same command goes on" in said) == (1, True, True)
    monkeypatch.undo()
    assert command(source, tmp_path / "full", "--id", "id")[0] == 0


def test_paths_of_here_are_told_whole_to_other_processes(
    tiny_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an actor of Ray has another working directory."""
    write(tmp_path / "a.jsonl", documents(4))
    Store(str(tmp_path / "store")).publish(tiny_artifact, aliases=["stable"], by="test")
    (tmp_path / "tiny").symlink_to(tiny_artifact)
    monkeypatch.chdir(tmp_path)

    def elsewhere(job: Job, parts: Iterator[Part]) -> Generator[tuple[Part, Made], None, None]:
        every = list(parts)
        monkeypatch.chdir("/")
        yield from here(job, iter(every))

    monkeypatch.setattr(command_module, "here", elsewhere)
    for model, output in (("tiny", "o1"), (None, "o2")):
        monkeypatch.chdir(tmp_path)
        of_model = ["--model", model] if model else ["--store", "store"]
        asked = ["a.jsonl", output, "--id", "id", "--cache-dir", "cache", "--threads", "1"]
        assert main(["encode", *asked, *of_model, "--precision", "f32"]) == 0
        assert len(parquet(tmp_path / output)) == 4


def test_a_run_keeps_the_version_that_its_alias_stood_for(
    tiny_artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(str(tmp_path / "store"))
    store.publish(tiny_artifact, aliases=["stable"], by="test")
    source = write(tmp_path / "a.jsonl", documents(4))
    arguments = ["encode", str(source), str(tmp_path / "out"), "--id", "id", "--store", str(tmp_path / "store")]
    arguments += ["--precision", "f32", "--threads", "1", "--cache-dir", str(tmp_path / "cache")]
    assert main(arguments) == 0
    store.publish(publish(tmp_path / "v2", "tiny-v2", bias_shift=0.1), aliases=["stable"], by="test")
    next((tmp_path / "out" / "receipts").iterdir()).unlink()  # as after a stop
    capsys.readouterr()
    assert main(arguments) == 0
    assert "by tiny-v1" in capsys.readouterr().out


def test_a_pair_of_encoders_is_the_version_that_the_service_has(command: Command, tmp_path: Path) -> None:
    pair = foreign.distilbert(tmp_path / "documents"), foreign.small(tmp_path / "queries")
    version = open_model(str(pair[0]), tmp_path / "cache", Choices(), openvino, str(pair[1])).manifest.version
    source = write(tmp_path / "a.jsonl", documents(3))
    code, said = command(source, tmp_path / "out", "--id", "id", "--model", pair[0], "--query-model", pair[1])
    assert code == 0, said
    assert {row["version"] for row in parquet(tmp_path / "out")} == {version}


def test_without_the_extra_it_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "tqdm.py").write_text("raise ModuleNotFoundError(\"No module named 'tqdm'\")", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "app.bulk", "encode", "--help"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert (done.returncode, done.stderr) == (
        1,
        "error: app.bulk needs the extra bulk (No module named 'tqdm'): pip install -e '.[bulk]'\n",
    )


def test_a_dry_run_writes_nothing(command: Command, tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", documents(10))
    code, said = command(source, tmp_path / "out", "--id", "id", "--dry-run")
    assert code == 0
    assert "of the first 10 rows" in said
    assert "a million documents:" in said
    assert not (tmp_path / "out").exists()


def test_so_many_rows_as_are_asked_for(command: Command, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / f"{name}.jsonl", documents(10))
    code, _ = command(tmp_path / "a.jsonl", tmp_path / "b.jsonl", tmp_path / "out", "--limit", 13)
    assert code == 0
    assert [row["id"] for row in parquet(tmp_path / "out")][-4:] == ["0-a-10", "1-b-1", "1-b-2", "1-b-3"]


@given(st.lists(st.integers(1, 60)), st.integers(1, 200))
def test_batches_hold_every_text_once_and_no_more_than_they_may(lengths: list[int], most: int) -> None:
    made = list(by_length(lengths, most))
    assert sorted(place for batch in made for place in batch) == list(range(len(lengths)))
    assert all(len(batch) == 1 or max(lengths[place] for place in batch) * len(batch) <= most for batch in made)


@given(st.lists(st.lists(st.sampled_from(["a", "b", "c", "손해", ""]))))
def test_doubled_ids_are_all_but_the_first(files: list[list[str]]) -> None:
    ids, seen = Ids(), set()
    doubled: dict[str, list[int]] = {}
    for place, file in enumerate(files):
        for row, id_ in enumerate(file, 1):
            ids.add(id_, place, row)
            if id_ in seen:
                doubled.setdefault(str(place), []).append(row)
            seen.add(id_)
    assert ids.doubled() == doubled


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["a"], "string"),
        ([1, 2], "int64"),
        ([1, 2.5], "double"),
        ([True], "bool"),
        ([1, "a"], "json"),
        ([{"a": 1}], "json"),
        ([2**70], "json"),
    ],
)
def test_a_column_has_one_type(values: list[object], kind: str) -> None:
    found: str | None = None
    for value in values:
        found = common_type(found, type_of(value))
    assert found == kind


def test_a_port_of_metrics_that_cannot_be_had_is_told_before_anything_is_read(command: Command, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"broken" * 99)
    with socket.create_server(("127.0.0.1", 0)) as other:
        for port in (other.getsockname()[1], 70000):
            code, said = command(tmp_path / "a.jsonl", tmp_path / "out", "--metrics-port", port)
            assert (code, f"error: --metrics-port {port} cannot be listened to (" in said) == (1, True), said
            assert not (tmp_path / "out" / "run.json").exists()


def test_metrics_are_served_while_it_runs() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
    receipt = {"rows": 4, "documents": 3, "rejected": 1, "tokens": 50, "seconds": 0.5}
    metrics = Metrics()
    with metrics.served(port), Progress(10, print, metrics) as progress:
        progress.skip(receipt)
        progress.made(receipt)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            lines = answer.read().decode().splitlines()
    assert {"sparse_encoder_bulk_rows 10.0", "sparse_encoder_bulk_done_rows_total 8.0"} <= set(lines)
    assert {"sparse_encoder_bulk_documents_total 6.0", "sparse_encoder_bulk_rejected_rows_total 2.0"} <= set(lines)
    assert {"sparse_encoder_bulk_tokens_total 100.0", "sparse_encoder_bulk_work_seconds_total 1.0"} <= set(lines)
