"""A value of the wrong kind anywhere in the JSON of a checkpoint is read or refused with a reason, never a crash."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sparse_encoder.artifact import ArtifactError
from sparse_encoder.checkpoint.source import read_source
from tests import foreign

pytestmark = pytest.mark.slow

ODD: list[Any] = [["a"], {"a": ["b"]}, None, "x", -1, 1.5, True, [], float("inf"), 10**30]
#: Written by libraries, and large; what is wrong in them is for `test_hostile_checkpoints`.
LEFT_OUT = {"tokenizer.json", "vocab.json", "model.safetensors.index.json"}


def variants(document: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """`document` with one value in it replaced, for each value and each odd one; and which it was."""
    if isinstance(document, dict | list):
        for key in document if isinstance(document, dict) else range(len(document)):
            for place, value in variants(document[key], f"{where}[{key!r}]"):
                changed: Any = document.copy()
                changed[key] = value
                yield place, changed
    for odd in ODD:
        yield f"{where} = {odd!r}", odd


@pytest.mark.timeout(300)
@pytest.mark.parametrize("shape", [foreign.modernbert, foreign.splade, foreign.routed])
def test_an_odd_value_is_no_traceback(shape: Callable[[Path], Path], tmp_path: Path) -> None:
    source = shape(tmp_path / "source")
    refused, seen = 0, set(LEFT_OUT)
    for file in sorted(source.rglob("*.json")):
        content = file.read_text(encoding="utf-8")
        if content in seen or file.name in seen:
            continue
        seen.add(content)
        for place, document in variants(json.loads(content)):
            file.write_text(json.dumps(document), encoding="utf-8")
            try:
                read_source(source, "model")
            except ArtifactError:
                refused += 1
            except Exception as error:
                raise AssertionError(f"{file.relative_to(source)}{place}") from error
        file.write_text(content, encoding="utf-8")
    assert refused > 50
