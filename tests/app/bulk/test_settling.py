"""An index after the last document."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from app.bulk import patience, settling
from tests.app.bulk.corpus import Command, documents, write
from tests.app.bulk.pretender import Pretender, health, merged, serving

HEALTH, TASK, MERGE, SEGMENTS = "/_cluster/health/new", "/_tasks/node:1", "/new/_forcemerge", "/new/_segments"
ComesTo = Callable[..., str]


@pytest.fixture
def opensearch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pretender]:
    monkeypatch.setattr(settling, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(patience, "PAUSE_SECONDS", 0.0)
    with serving() as pretender:
        pretender.add("new", [])
        yield pretender


@pytest.fixture
def comes_to(command: Command, opensearch: Pretender, tmp_path: Path) -> ComesTo:
    """What a run says whose index answers so in the end."""

    def run(scripted: dict[str, list[Any]], *options: object, code: int = 0) -> str:
        opensearch.scripted = scripted
        source = write(tmp_path / "a.jsonl", documents(6))
        asked = (source, f"{opensearch.url}/new", "--id", "id", "--run-dir", tmp_path / "run", *options)
        found, said = command(*asked)
        assert found == code, said
        assert opensearch.indices["new"].settings["index.refresh_interval"] is None  # put back before
        assert (tmp_path / "run" / "summary.json").exists()
        return said

    return run


@pytest.mark.parametrize(
    "answers",
    [
        [],
        [health("yellow", initializing=1), health("yellow", initializing=1)],
        [health("yellow", unassigned=1)],  # which does not begin to come yet
        [health("yellow", unassigned=1, delayed=1)],
        [health("yellow", replicas=2, unassigned=1, delayed=1)],  # of a node that may come back
        [health("red", unassigned=2)],
        [503, 429],
        # One copy comes, the other has no node.
        [health("yellow", replicas=2, unassigned=2), health("green", replicas=2)],
    ],
)
def test_copies_are_waited_for_while_they_may_come(comes_to: ComesTo, answers: list[Any]) -> None:
    scripted = {HEALTH: [*answers]}
    assert "new is green: all copies of its shards are there" in comes_to(scripted)
    assert scripted[HEALTH] == []


def test_copies_without_a_node_are_told(comes_to: ComesTo) -> None:
    said = comes_to({HEALTH: [health("yellow", replicas=2, unassigned=1)]})
    assert "new is yellow: 1 copies of its shards are not there, for which there are too few data nodes (2)" in said


def test_copies_are_not_waited_for_beyond_patience(comes_to: ComesTo) -> None:
    said = comes_to({HEALTH: [health("yellow", unassigned=1)] * 10_000}, "--patience", 0.01)
    assert "new is yellow: 1 copies of its shards are not there after 0 s: GET /_cluster/allocation/explain" in said


def test_missing_documents_are_an_error(comes_to: ComesTo) -> None:
    said = comes_to({HEALTH: [health("red", unassigned=2)] * 10_000}, "--patience", 0.01, code=1)
    assert "error: new is red: 2 copies of its shards are not there after 0 s" in said


def test_who_may_not_see_it_is_told(comes_to: ComesTo) -> None:
    assert "whether new has all its copies cannot be seen (GET /_cluster/health/new" in comes_to({HEALTH: [403]})


def test_segments_are_merged_when_all_copies_are_there(comes_to: ComesTo, opensearch: Pretender) -> None:
    asked: list[str] = []
    opensearch.asked = lambda method, path: asked.append(path.partition("?")[0])
    scripted = {TASK: [{"completed": False}, 503, {"completed": False}], HEALTH: [health("yellow", initializing=1)]}
    assert "new is merged into one segment a shard" in comes_to(scripted, "--merge")
    assert scripted == {TASK: [], HEALTH: []}
    assert asked[-9:] == [HEALTH, HEALTH, MERGE, *[TASK] * 4, "/new/_refresh", SEGMENTS]
    asked.clear()
    assert "merged" not in comes_to({})
    assert MERGE not in asked


@pytest.mark.parametrize(
    ("scripted", "why"),
    [
        ({TASK: [404]}, "the node that merged it has been started again"),
        ({TASK: [merged(failures=[{"reason": {"type": "io", "reason": "no space left"}}])]}, "no space left"),
        ({TASK: [{"completed": True, "error": {"type": "io", "reason": "no space left"}}]}, "no space left"),
        ({MERGE: [403]}, "POST /new/_forcemerge"),
    ],
)
def test_what_is_not_merged_is_an_error(comes_to: ComesTo, scripted: dict[str, list[Any]], why: str) -> None:
    said = comes_to(scripted, "--merge", code=1)
    assert "error: " in said
    assert why in said


def test_segments_that_are_written_meanwhile_are_told(comes_to: ComesTo) -> None:
    segments = {"indices": {"new": {"shards": {"0": [{"num_search_segments": 1}, {"num_search_segments": 3}]}}}}
    said = comes_to({SEGMENTS: [segments]}, "--merge")
    assert "new has been merged, but 1 of its 2 copies have several segments again" in said


def test_a_directory_is_not_merged(command: Command, tmp_path: Path) -> None:
    code, said = command(write(tmp_path / "a.jsonl", documents(6)), tmp_path / "out", "--merge")
    assert (code, "--merge is of an index" in said) == (1, True), said
