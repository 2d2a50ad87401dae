"""An index as the target of a run: what writes to it, and what is looked at before and after."""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from urllib.parse import quote

from app.bulk.encoding import Format
from app.bulk.files import RunFiles, SinkError
from app.bulk.patience import LATER, Patience, Say, may_pass
from app.bulk.rows import Bad
from app.bulk.settling import Settling
from app.bulk.sinks import Item, Sample, bulk_lines
from app.bulk.sizing import BulkSize
from app.opensearch.advice import explained
from app.opensearch.cluster import Cluster, RequestFailed, error_text
from app.opensearch.connection import Connection
from app.opensearch.facts import OpenSearchError
from app.opensearch.indices import find_index
from app.opensearch.vectors import at, differing, vectors_of

REFRESH = "refresh_interval.json"
OFF = "-1"


class IndexSink:
    """Bulk requests past every pipeline."""

    def __init__(self, connection: Connection, name: str, patience_seconds: float, say: Say) -> None:
        self._connection, self._name = connection, name
        self._patience_seconds, self._say = patience_seconds, say
        self._cluster: Cluster | None = None
        self._size = BulkSize()

    def __reduce__(self) -> tuple[type[IndexSink], tuple[Connection, str, float, Say]]:
        return IndexSink, (self._connection, self._name, self._patience_seconds, self._say)

    def check(self) -> None:
        """Whether it answers is found out by writing, with patience."""

    def write(self, part: str, items: Sequence[Item]) -> list[Bad]:
        bad: list[Bad] = []
        waiting = list(items)
        patience = Patience(self._name, self._patience_seconds, self._say)
        while waiting:
            waiting, refused, why = self._send(waiting)
            bad += refused
            if waiting:
                patience.wait(f"{len(waiting)} documents wait", why)
        return bad

    def close(self) -> None:
        if self._cluster:
            self._cluster.__exit__()
            self._cluster = None

    def _send(self, items: Sequence[Item]) -> tuple[list[Item], list[Bad], str]:
        """What must be sent again, what is refused for good, and why the first."""
        cluster = self._cluster = self._cluster or self._connection.open()
        again: list[Item] = []
        bad: list[Bad] = []
        why = ""
        rest = deque(items)
        while rest:
            some, body = _next_body(rest, self._size.bytes)
            path = f"/{quote(self._name)}/_bulk?pipeline=_none"
            started = time.monotonic()
            try:
                answer = cluster.request("POST", path, body)
            except OpenSearchError as error:
                if isinstance(error, RequestFailed) and error.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
                    self._size.too_large(len(body))
                    if len(some) > 1:
                        rest.extendleft(reversed(some))
                    else:
                        bad.append(Bad(some[0].document.number, "", f"OpenSearch does not take so much: {error}"))
                    continue
                if not may_pass(error):
                    raise SinkError(str(error)) from error
                self._size.refused()
                return [*again, *some, *rest], bad, str(error)
            self._size.went(len(body), time.monotonic() - started)
            full = False
            for item, outcome in zip(some, answer["items"], strict=True):
                result = outcome["index"]
                if "error" not in result or (result["status"] == 409 and item.document.key):
                    continue  # a newer version came there meanwhile
                reason = explained(error_text(result["error"]))
                if result["status"] in LATER:
                    again, why, full = [*again, item], reason, True
                else:
                    bad.append(Bad(item.document.number, "", f"OpenSearch refuses it: {reason}"))
            if full:
                self._size.refused()
        return again, bad, why


class Index:
    """The index before, during and after the run."""

    def __init__(self, cluster: Cluster, name: str, fields: Sequence[str], say: Say) -> None:
        """:raises SinkError: if the index is not there, or has no fields for the vectors."""
        self._cluster, self._name, self._say = cluster, name, say
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
        formats = {
            "sparse_vector" if index.fields[f"{field}_sparse"]["type"] == "sparse_vector" else "word"
            for field in fields
        }
        if len(formats) > 1:
            raise SinkError(f"the fields of {name} are of two types: encode them in two runs")
        self.format: Format = "sparse_vector" if "sparse_vector" in formats else "word"
        self._had = self._count()

    def _count(self) -> int:
        self._cluster.request("POST", f"/{quote(self._name)}/_refresh")
        return int(self._cluster.request("GET", f"/{quote(self._name)}/_count")["count"])

    @contextmanager
    def without_refresh(self, files: RunFiles) -> Iterator[None]:
        """New documents are not made visible one by one meanwhile. What was set before is kept in `files`, for the run
        that goes on after one that was killed; who finds refreshes off leaves them to whoever did that."""
        path = f"/{quote(self._name)}/_settings"
        if files.read(REFRESH) is None:
            before = self._refresh_interval()
            if before == OFF:
                self._say(
                    f"{self._name} has refresh_interval {OFF} already, by another run or by hand, and keeps it: what "
                    f'is written is seen after a refresh, or PUT {path} {{"index": {{"refresh_interval": null}}}}'
                )
                yield
                return
            files.write_json(REFRESH, before)
        self._put_refresh(path, OFF)
        try:
            yield
        finally:
            try:
                if (kept := files.read(REFRESH)) is not None:  # else another process of the run has put it back
                    self._put_refresh(path, json.loads(kept))
                    files.remove(REFRESH)
            except SinkError as error:
                self._say(f"{self._name} is not refreshed by itself until this command ran to its end ({error})")

    def _refresh_interval(self) -> str | None:
        try:
            index = find_index(self._cluster, self._name)
        except OpenSearchError as error:
            raise SinkError(str(error)) from error
        return index.settings.get("index.refresh_interval") if index else None

    def _put_refresh(self, path: str, interval: str | None) -> None:
        try:
            self._cluster.request("PUT", path, {"index": {"refresh_interval": interval}})
        except OpenSearchError as error:
            raise SinkError(str(error)) from error

    def finish(self, samples: Sequence[Sample], documents: int) -> list[str]:
        try:
            has = self._count()
            if has < documents or (not self._had and has > documents):
                raise SinkError(
                    f"{self._name} has {has:,} documents, {documents:,} were written: something else deletes or writes "
                    "there; look at its log, and encode into a new index"
                )
            told = [f"{self._name} has {has:,} documents, {documents:,} of them from here"]
            same = 0
            for sample in samples:
                routing = f"?routing={quote(sample.routing, safe='')}" if sample.routing else ""
                path = f"/{quote(self._name)}/_doc/{quote(sample.id, safe='')}{routing}"
                there = self._cluster.find(path) or {}
                if sample.version is not None and there.get("_version", sys.maxsize) > sample.version:
                    continue  # a newer version, or gone: a copy does not take its place
                source = there.get("_source")
                same += 1
                for field, weights in sample.vectors.items():
                    stored = vectors_of(at(source or {}, f"{field}_sparse"))
                    if weights and (len(stored) != 1 or differing(stored[0], weights)):
                        raise SinkError(
                            f"the document {sample.id!r} of {self._name} has another {field}_sparse than was written: "
                            "something else writes there, or the index keeps no _source"
                        )
            return [*told, f"{same} of them have the vectors that were written"]
        except OpenSearchError as error:
            raise SinkError(str(error)) from error

    def settle(self, patience_seconds: float, *, merged: bool) -> Iterator[str]:
        """After `finish` and `without_refresh`: waits for its copies, and makes one segment of each if `merged`.

        :raises SinkError, OpenSearchError: if it is not to be had; the documents are there all the same.
        """
        settling = Settling(self._cluster, self._name, patience_seconds, self._say)
        yield settling.wait_for_copies()
        if merged:
            yield settling.merge()


def _next_body(rest: deque[Item], most_bytes: int) -> tuple[list[Item], bytes]:
    """Takes the first of `rest`, and what follows as far as it fits, and makes a request of them."""
    some: list[Item] = []
    lines: list[bytes] = []
    size = 0
    while rest:
        made = [line.encode() + b"\n" for line in bulk_lines(rest[0])]
        size += sum(map(len, made))
        if some and size > most_bytes:
            break
        some.append(rest.popleft())
        lines += made
    return some, b"".join(lines)
