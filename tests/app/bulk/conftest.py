"""The command, with the tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.bulk.command import main
from tests.app.bulk.corpus import Command


@pytest.fixture
def command(tiny_artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """`python -m app.bulk encode` with the tiny model; its exit status and what it says."""

    def run(*arguments: object) -> tuple[int, str]:
        model = ("--model", tiny_artifact, "--precision", "f32", "--threads", 1, "--cache-dir", tmp_path / "cache")
        code = main(["encode", *map(str, (*model, *arguments))])
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return run
