"""Where vectors go: files that are there whole or not at all, or an index."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from app.bulk.encoding import Encoded
from app.bulk.rows import Bad, Document
from app.opensearch.advice import explained
from app.opensearch.cluster import Cluster, RequestFailed, error_text
from app.opensearch.facts import OpenSearchError
from app.opensearch.indices import find_index
from app.opensearch.vectors import at, differing, vectors_of

BULK_BYTES = 4_000_000  #: of one request; OpenSearch takes 100 MB, and is quickest with a few
PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 20.0
LATER = (429, 500, 502, 503, 504)
SAMPLED = 100  #: documents that are compared with the index in the end


class SinkError(Exception):
    """Nothing more can be written. The message says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Item:
    """A document and the vector of each of its texts."""

    document: Document
    vectors: Mapping[str, Encoded]


class Sink(Protocol):
    """Takes parts of a run. The same part may come again after a stop, and then replaces what it was."""

    def write(self, part: str, items: Sequence[Item]) -> list[Bad]:
        """The documents that could not be kept, and why.

        :raises SinkError: if it can take nothing.
        """

    def finish(self, samples: Sequence[tuple[str, Mapping[str, Mapping[str, float]]]], documents: int) -> list[str]:
        """After the last part; what was found to be true. `samples`: ids and vectors of some that were written.

        :raises SinkError: if something is not as it was written.
        """


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A place to write to; what is there afterwards becomes `path` in one step.

    :raises SinkError: if it cannot be written.
    """
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield unfinished
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise SinkError(
            f"{path} cannot be written ({error.strerror or error}): then the same command goes on"
        ) from error


class JsonLines:
    """Lines for OpenSearch's `_bulk`: what to do, and the document with its vectors."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def write(self, part: str, items: Sequence[Item]) -> list[Bad]:
        with whole_file(self._directory / f"part-{part}.jsonl") as path, path.open("w", encoding="utf-8") as file:
            for item in items:
                for line in bulk_lines(item):
                    file.write(line + "\n")
        return []

    def finish(self, samples: Sequence[tuple[str, Mapping[str, Mapping[str, float]]]], documents: int) -> list[str]:
        return [f"POST them to /INDEX/_bulk?pipeline=_none: {self._directory}/part-*.jsonl"]


def bulk_lines(item: Item) -> tuple[str, str]:
    source: dict[str, Any] = dict(item.document.others)
    for field, encoded in item.vectors.items():
        if encoded.weights:
            source[f"{field}_sparse"] = encoded.weights
    return (
        json.dumps({"index": {"_id": item.document.id}}, ensure_ascii=False),
        json.dumps(source, ensure_ascii=False, default=str),
    )


class Parquet:
    """One file a part: `id`, `version`, and of each field `FIELD_tokens` and `FIELD_sparse`, a list of `token` and
    `weight`; then the columns of the input."""

    def __init__(self, directory: Path, version: str, fields: Sequence[str], columns: Mapping[str, str]) -> None:
        """`columns`: the others, and the type of each: string, int64, double, bool; or json for what has several."""
        import pyarrow

        self._pa = pyarrow
        self._directory, self._version, self._fields, self._columns = directory, version, fields, columns

    def write(self, part: str, items: Sequence[Item]) -> list[Bad]:
        from pyarrow.parquet import write_table

        pa = self._pa
        vector = pa.list_(pa.struct([("token", pa.string()), ("weight", pa.float32())]))
        made: dict[str, Any] = {
            "id": pa.array([item.document.id for item in items], pa.string()),
            "version": pa.array([self._version] * len(items), pa.string()),
        }
        for field in self._fields:
            found = [item.vectors.get(field) for item in items]
            made[f"{field}_tokens"] = pa.array([one.tokens if one else 0 for one in found], pa.int32())
            made[f"{field}_sparse"] = pa.array([_pairs(one) for one in found], vector)
        for name, kind in self._columns.items():
            if name not in made:
                values = [_as(kind, item.document.others.get(name)) for item in items]
                made[name] = pa.array(values, getattr(pa, TYPES[kind])())
        with whole_file(self._directory / f"part-{part}.parquet") as path:
            write_table(pa.table(made), path, compression="zstd")
        return []

    def finish(self, samples: Sequence[tuple[str, Mapping[str, Mapping[str, float]]]], documents: int) -> list[str]:
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


def _pairs(encoded: Encoded | None) -> list[dict[str, object]]:
    return [{"token": token, "weight": weight} for token, weight in encoded.weights.items()] if encoded else []


class Index:
    """An index of OpenSearch, by bulk requests past every pipeline."""

    def __init__(
        self,
        cluster: Cluster,
        name: str,
        fields: Sequence[str],
        patience_seconds: float,
        say: Callable[[str], None],
    ) -> None:
        """:raises SinkError: if the index is not there, or has no fields for the vectors."""
        self._cluster, self._name, self._say = cluster, name, say
        self._patience_seconds = patience_seconds
        try:
            index = find_index(cluster, name)
        except OpenSearchError as error:
            raise SinkError(str(error)) from error
        if index is None:
            raise SinkError(
                f"there is no index {name}: create one that has the mapping, such as by the name of an index template "
                "that `python -m app.opensearch setup` made: PUT /ko-sparse-NAME"
            )
        for field in fields:
            kind = index.fields.get(f"{field}_sparse", {}).get("type")
            if kind not in ("rank_features", "sparse_vector"):
                raise SinkError(
                    f"{name} has {'no field' if kind is None else f'the type {kind} of'} {field}_sparse: it must be "
                    "rank_features or sparse_vector, one vector a text"
                )
        self.formats = {
            "sparse_vector" if index.fields[f"{field}_sparse"]["type"] == "sparse_vector" else "word"
            for field in fields
        }
        self._refresh = index.settings.get("index.refresh_interval")
        self._had = self._count()

    def _count(self) -> int:
        self._cluster.request("POST", f"/{quote(self._name)}/_refresh")
        return int(self._cluster.request("GET", f"/{quote(self._name)}/_count")["count"])

    def write(self, part: str, items: Sequence[Item]) -> list[Bad]:
        bad: list[Bad] = []
        waiting = list(items)
        started, pause = time.monotonic(), PAUSE_SECONDS
        while waiting:
            waiting, refused, why = self._send(waiting)
            bad += refused
            if not waiting:
                break
            if time.monotonic() - started > self._patience_seconds:
                raise SinkError(
                    f"{self._name} took no more documents for {self._patience_seconds:.0f} s ({why}): nothing is lost, "
                    "the same command goes on where this stopped"
                )
            self._say(f"{len(waiting)} documents wait for OpenSearch ({why})")
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        return bad

    def _send(self, items: Sequence[Item]) -> tuple[list[Item], list[Bad], str]:
        """What must be sent again, what is refused for good, and why the first."""
        again: list[Item] = []
        bad: list[Bad] = []
        why = ""
        for some in _in_bodies(items):
            lines = "\n".join(line for item in some for line in bulk_lines(item)) + "\n"
            path = f"/{quote(self._name)}/_bulk?pipeline=_none"
            try:
                answer = self._cluster.request("POST", path, lines.encode())
            except RequestFailed as error:
                if error.status not in LATER:
                    raise SinkError(str(error)) from error
                again, why = [*again, *some], str(error)
                continue
            except OpenSearchError as error:  # no answer
                again, why = [*again, *some], str(error)
                continue
            for item, outcome in zip(some, answer["items"], strict=True):
                result = outcome["index"]
                if "error" not in result:
                    continue
                reason = explained(error_text(result["error"]))
                if result["status"] in LATER:
                    again, why = [*again, item], reason
                else:
                    bad.append(Bad(item.document.number, "", f"OpenSearch refuses it: {reason}"))
        return again, bad, why

    @contextmanager
    def without_refresh(self, directory: Path) -> Iterator[None]:
        """New documents are not made visible one by one meanwhile. What was set before is kept in `directory`, for the
        run that goes on after one that was killed."""
        path, before = f"/{quote(self._name)}/_settings", directory / "refresh_interval.json"
        if not before.exists():
            with whole_file(before) as file:
                file.write_text(json.dumps(self._refresh), encoding="utf-8")
        self._put_refresh(path, "-1")
        try:
            yield
        finally:
            try:
                self._put_refresh(path, json.loads(before.read_text(encoding="utf-8")))
                before.unlink()
            except SinkError as error:
                self._say(f"{self._name} is not refreshed by itself until this command ran to its end ({error})")

    def _put_refresh(self, path: str, interval: str | None) -> None:
        try:
            self._cluster.request("PUT", path, {"index": {"refresh_interval": interval}})
        except OpenSearchError as error:
            raise SinkError(str(error)) from error

    def finish(self, samples: Sequence[tuple[str, Mapping[str, Mapping[str, float]]]], documents: int) -> list[str]:
        try:
            has = self._count()
            if has < documents or (not self._had and has > documents):
                raise SinkError(
                    f"{self._name} has {has:,} documents, {documents:,} were written: something else deletes or writes "
                    "there; look at its log, and encode into a new index"
                )
            told = [f"{self._name} has {has:,} documents, {documents:,} of them from here"]
            for id_, vectors in samples[:SAMPLED]:
                source = (self._cluster.find(f"/{quote(self._name)}/_doc/{quote(id_, safe='')}") or {}).get("_source")
                for field, weights in vectors.items():
                    stored = vectors_of(at(source or {}, f"{field}_sparse"))
                    if weights and (len(stored) != 1 or differing(stored[0], weights)):
                        raise SinkError(
                            f"the document {id_!r} of {self._name} has another {field}_sparse than was written: "
                            "something else writes there, or the index keeps no _source"
                        )
            return [*told, f"{len(samples[:SAMPLED])} of them have the vectors that were written"]
        except OpenSearchError as error:
            raise SinkError(str(error)) from error


def _in_bodies(items: Sequence[Item]) -> Iterator[list[Item]]:
    some: list[Item] = []
    size = 0
    for item in items:
        length = sum(len(line.encode()) + 1 for line in bulk_lines(item))
        if some and size + length > BULK_BYTES:
            yield some
            some, size = [], 0
        some.append(item)
        size += length
    if some:
        yield some
