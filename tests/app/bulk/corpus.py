"""Files to encode, and what came of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet

from tests.tiny import SENTENCES

Command = Callable[..., tuple[int, str]]  #: `python -m app.bulk encode`: its exit status and what it says


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def documents(count: int = 40) -> list[dict[str, Any]]:
    texts = [" ".join(SENTENCES[(n + k) % len(SENTENCES)] for k in range(1 + n % 3)) for n in range(count)]
    return [{"id": f"d{n}", "title": text[:6], "text": text, "year": n} for n, text in enumerate(texts)]


def parquet(directory: Path) -> list[dict[str, Any]]:
    parts = sorted(directory.glob("part-*.parquet"))
    return [row for part in parts for row in pyarrow.parquet.read_table(part).to_pylist()]


_ROWS = [
    *(json.dumps(row, ensure_ascii=False).encode() for row in documents(5)),
    b'{"id": "d3", "text": "again"}',
    b'{"id": "", "text": "no id"}',
    b'{"id": "x1", "text": 5}',
    b'{"id": "x2", "text": "\xb0\xa1"}',
    b'{"id": "x3", "text": null}',
    b'{"id": "x4"}',
    b"broken",
    '{"id": "x5", "text": "ㆍㆍ"}'.encode(),
    ('{"id": "x6", "text": "' + "손해배상 " * 200 + '"}').encode(),
]
DIRTY = b"\n".join(_ROWS)  #: 7 good rows, 7 bad ones
