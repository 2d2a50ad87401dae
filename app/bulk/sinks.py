"""Where vectors go: files; see `app.bulk.index` for an index."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from app.bulk.encoding import Encoded
from app.bulk.files import RunFiles, SinkError
from app.bulk.library import vector_column
from app.bulk.rows import Bad, Document

NOTHING = Encoded({}, 0, False)  #: of a text that is not there


@dataclass(frozen=True, slots=True)
class Item:
    """A document and the vector of each of its texts."""

    document: Document
    vectors: Mapping[str, Encoded]


@dataclass(frozen=True, slots=True)
class Sample:
    """A document that was written."""

    id: str
    routing: str | None
    vectors: Mapping[str, Mapping[str, float]]
    version: int | None = None  #: of a document that was copied from an index


class Sink(Protocol):
    """Takes parts of a run; may be sent to other processes. The same part may come again, even from two processes at
    once, and then replaces what it was."""

    def check(self) -> None:
        """:raises SinkError: if this process does not reach what the others do."""

    def write(self, part: str, items: Sequence[Item]) -> list[Bad]:
        """The documents that could not be kept, and why.

        :raises SinkError: if it can take nothing.
        """

    def close(self) -> None:
        """After the last part of this process."""


class Target(Protocol):
    """What the run looks at when all parts are written."""

    def finish(self, samples: Sequence[Sample], documents: int) -> list[str]:
        """What was found to be true, of so many documents in all.

        :raises SinkError: if something is not as it was written.
        """


class Files:
    """What both kinds of files have in common."""

    def __init__(self, files: RunFiles) -> None:
        self._files = files

    def check(self) -> None:
        if "run.json" not in self._files.names():
            raise SinkError(
                f"{self._files.url} is not the directory of the run on every machine: give one that all of them mount, "
                "or an URL such as s3://BUCKET/RUN"
            )

    def close(self) -> None:
        """Nothing is open."""


class JsonLines(Files):
    """Lines for OpenSearch's `_bulk`: what to do, and the document with its vectors."""

    def write(self, part: str, items: Sequence[Item]) -> list[Bad]:
        lines = [line + "\n" for item in items for line in bulk_lines(item)]
        self._files.write(f"part-{part}.jsonl", "".join(lines).encode())
        return []

    def finish(self, samples: Sequence[Sample], documents: int) -> list[str]:
        return [f"POST them to /INDEX/_bulk?pipeline=_none: {self._files.url}/part-*.jsonl"]


def bulk_lines(item: Item) -> tuple[str, str]:
    """What comes from an index keeps its version there, and never replaces a newer one."""
    source: dict[str, Any] = dict(item.document.others)
    for field, encoded in item.vectors.items():
        if encoded.weights:
            source[f"{field}_sparse"] = encoded.weights
    action: dict[str, object] = {"_id": item.document.id}
    if key := item.document.key:
        action |= {"version": key.version, "version_type": "external_gte"}
        action |= {"routing": key.routing} if key.routing else {}
    return (
        json.dumps({"index": action}, ensure_ascii=False),
        json.dumps(source, ensure_ascii=False, default=str),
    )


class Parquet(Files):
    """One file a part: `id`, `version`, and of each field `FIELD_tokens` and `FIELD_sparse`, a list of `token` and
    `weight`; then the columns of the input."""

    def __init__(self, files: RunFiles, version: str, fields: Sequence[str], columns: Mapping[str, str]) -> None:
        """`columns`: the others, and the type of each: string, int64, double, bool; or json for what has several."""
        super().__init__(files)
        self._version, self._fields, self._columns = version, fields, columns

    def write(self, part: str, items: Sequence[Item]) -> list[Bad]:
        import pyarrow as pa
        from pyarrow.parquet import write_table

        made: dict[str, Any] = {
            "id": pa.array([item.document.id for item in items], pa.string()),
            "version": pa.array([self._version] * len(items), pa.string()),
        }
        for field in self._fields:
            found = [item.vectors.get(field, NOTHING) for item in items]
            made[f"{field}_tokens"] = pa.array([one.tokens for one in found], pa.int32())
            made[f"{field}_sparse"] = vector_column(found)
        for name, kind in self._columns.items():
            if name not in made:
                values = [_as(kind, item.document.others.get(name)) for item in items]
                made[name] = pa.array(values, getattr(pa, TYPES[kind])())
        content = io.BytesIO()
        write_table(pa.table(made), content, compression="zstd")
        self._files.write(f"part-{part}.parquet", content.getvalue())
        return []

    def finish(self, samples: Sequence[Sample], documents: int) -> list[str]:
        return []


TYPES = {"string": "string", "int64": "int64", "double": "float64", "bool": "bool_", "json": "string"}


def type_of(value: object) -> str:
    """Of a column that holds `value`."""
    if isinstance(value, str):
        return "string"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int) and abs(value) < 2**63:
        return "int64"
    return "double" if isinstance(value, float) else "json"


def common_type(one: str | None, other: str) -> str:
    """Of a column that holds values of both; None: it held none so far."""
    if one is None or one == other:
        return other
    return "double" if {one, other} == {"int64", "double"} else "json"


def _as(kind: str, value: object) -> object:
    if value is None or kind not in ("json", "double"):
        return value
    return float(value) if kind == "double" else json.dumps(value, ensure_ascii=False, default=str)  # type: ignore[arg-type]
