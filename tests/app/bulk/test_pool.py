"""What becomes of actors that are lost, without a cluster."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayError

from app.bulk import on_ray
from app.bulk.files import RunError
from app.bulk.making import Made, Part

LOST = "The actor died unexpectedly.\n\tpid: 7\nworker exit detail: out of memory"


@dataclass(eq=False)
class Answer:
    outcome: object


class Actors:
    """Each that is begun gets ready or not, and each part is made or not, as `ready` and `made` have it."""

    def __init__(self, ready: list[bool], made: list[bool]) -> None:
        self._ready, self._made = iter(ready), iter(made)
        self.begun = 0

    def remote(self, _: object) -> Any:
        self.begun += 1
        return SimpleNamespace(
            ready=SimpleNamespace(remote=lambda: self._answer(self._ready)),
            make=SimpleNamespace(remote=lambda _: self._answer(self._made)),
        )

    def _answer(self, fine: Iterator[bool]) -> Answer:
        return Answer(Made({}, []) if next(fine) else RayError(LOST))


def get(answer: Answer) -> object:
    if isinstance(answer.outcome, Exception):
        raise answer.outcome
    return answer.outcome


@pytest.fixture(autouse=True)
def ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def wait(answers: list[Answer], **_: Mapping[str, Any]) -> tuple[list[Answer], list[Answer]]:
        return answers[:1], answers[1:]

    monkeypatch.setattr(on_ray, "ray", SimpleNamespace(wait=wait, get=get))


def parts(count: int) -> Iterator[Part]:
    return iter([Part(str(n), "a.jsonl", "0-a", [], frozenset()) for n in range(count)])


def run(actors: Actors, processes: int) -> list[str]:
    return [part.name for part, _ in on_ray._Pool(actors, None, parts(3), print).run(processes)]


def test_processes_that_never_get_ready_end_the_run() -> None:
    actors = Actors([False] * 12, [])
    with pytest.raises(RunError, match=r"10 processes in a row were lost before one was ready: .* out of memory"):
        run(actors, 2)
    assert actors.begun == 11


def test_some_may_be_lost_before_they_are_ready(capsys: pytest.CaptureFixture[str]) -> None:
    before = [False] * 4
    actors = Actors([*before, True, *before, True], [False, True, True, True])
    assert run(actors, 1) == ["0", "1", "2"]
    assert actors.begun == 10
    assert capsys.readouterr().out.count("lost before it was ready") == 8
