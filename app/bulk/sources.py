"""Where rows come from: files, or the shards of an index. Each is cut into the same parts at any time.

An index is read shard by shard in the order of its sequence numbers: they stay the same while a document does, unlike
the pages of a scroll and the slices of a point in time, so that a run that was stopped finds its parts again. What is
written to the index after the run began has higher ones and is not in it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import PurePosixPath
from typing import Any, Protocol
from urllib.parse import quote, urlsplit

from app.bulk.patience import Patience, Say, may_pass
from app.bulk.rows import Bad, InputError, Key, Row, find_inputs, kind_of, opened, read_rows
from app.opensearch.cluster import Cluster
from app.opensearch.facts import OpenSearchError
from app.opensearch.indices import index_of

PAGE = 500  #: documents of a search, some megabytes


class Source(Protocol):
    """A file, or a shard: rows in an order that stays."""

    @property
    def path(self) -> str:
        """As messages name it."""

    @property
    def prefix(self) -> str:
        """Of ids of rows that have none; the place of the source comes before it."""

    @property
    def count(self) -> int | None:
        """Of its rows when the run began, if some may go before they are read."""

    def rows(self) -> Generator[Row | Bad, None, None]:
        """Every row, in the order of their numbers. Close it, if it is not read to its end.

        :raises InputError: if it cannot be read.
        """

    def fingerprint(self) -> str:
        """Another one is another source.

        :raises InputError: if it cannot be read.
        """

    def parts(self, ends: Sequence[int], done: Container[int]) -> Iterator[tuple[int, list[Row | Bad]]]:
        """Number and rows of each part that is not `done`; `ends`: the number of the last row of each.

        :raises InputError: if it cannot be read, or has changed.
        """


@dataclass(frozen=True, slots=True)
class File:
    path: str
    encoding: str

    @property
    def prefix(self) -> str:
        return PurePosixPath(self.path).name.split(".")[0]

    @property
    def count(self) -> None:
        return None

    def rows(self) -> Generator[Row | Bad, None, None]:
        return read_rows(self.path, self.encoding)

    def fingerprint(self) -> str:
        return _sha256(self.path)

    def parts(self, ends: Sequence[int], done: Container[int]) -> Iterator[tuple[int, list[Row | Bad]]]:
        last = max((number for number in range(len(ends)) if number not in done), default=-1)
        start = 0
        with closing(self.rows()) as every:
            for number, end in enumerate(ends[: last + 1]):
                rows = list(islice(every, end - start))
                if len(rows) < end - start:
                    raise InputError(f"{self.path} ends at row {start + len(rows)}, it had {ends[-1]}: it has changed")
                start = end
                if number not in done:
                    yield number, rows


@dataclass(frozen=True, slots=True)
class Shard:
    """The documents of a shard."""

    cluster: Cluster
    index: str
    uuid: str
    number: int
    count: int  #: of documents when the run began
    last: int  #: sequence number of them, -1 if there are none
    left_out: Sequence[str]  #: fields that are not read
    patience_seconds: float
    say: Say

    @property
    def path(self) -> str:
        return f"{self.cluster.url}/{self.index}[{self.number}]"

    @property
    def prefix(self) -> str:
        return self.index

    def rows(self) -> Generator[Row | Bad, None, None]:
        return self._between(0, self.last + 1)

    def fingerprint(self) -> str:
        return self.uuid

    def parts(self, ends: Sequence[int], done: Container[int]) -> Iterator[tuple[int, list[Row | Bad]]]:
        start = 0
        for number, end in enumerate(ends):
            if number not in done:
                yield number, list(self._between(start, end))
            start = end

    def _between(self, start: int, end: int) -> Generator[Row | Bad, None, None]:
        """Rows numbered `start` < number <= `end`."""
        while hits := self._page(start, end):
            for hit in hits:
                start = hit["sort"][0] + 1
                yield Row(start, hit["_source"], Key(hit["_id"], hit["_version"], hit.get("_routing")))

    def _page(self, start: int, end: int) -> list[dict[str, Any]]:
        body = {
            "size": PAGE,
            "query": {"range": {"_seq_no": {"gte": start, "lt": end}}},
            "sort": [{"_seq_no": "asc"}],
            "track_total_hits": False,
            "version": True,
            "_source": {"excludes": list(self.left_out)},
        }
        patience = Patience(self.index, self.patience_seconds, self.say)
        while True:
            try:
                hits: list[dict[str, Any]] = _search(self.cluster, self.index, self.number, body)["hits"]
                return hits
            except OpenSearchError as error:
                if not may_pass(error):
                    raise InputError(f"{self.path} cannot be read: {error}") from error
                patience.wait("reading waits", str(error))


def is_index(name: str) -> bool:
    """Whether an argument is an index and not a file: an URL of HTTP that has no ending of a file."""
    return name.startswith(("http://", "https://")) and not kind_of(urlsplit(name).path)


def split_index(url: str) -> tuple[str, str]:
    """The address of the cluster, and the name of the index.

    :raises InputError: if there is a password in it, which would be kept and shown wherever the address is.
    """
    address, _, name = url.rstrip("/").rpartition("/")
    if "@" in address or "@" in urlsplit(url).netloc:
        raise InputError("the URL of an index holds a user: give --user and --password-file instead")
    return address, name


def shards_of(cluster: Cluster, name: str, texts: Sequence[str], patience_seconds: float, say: Say) -> list[Shard]:
    """Without vectors, which are of another model: neither of `texts` nor of fields that are not encoded again.

    :raises InputError: if there is no such index, or it keeps no documents.
    """
    try:
        found: dict[str, Any] = cluster.find(f"/{quote(name)}?flat_settings=true") or {}
        if not found:
            raise InputError(f"there is no index {name}: GET /_cat/indices names those that exist")
        if len(found) > 1:
            raise InputError(f"{name} is {len(found)} indices: give one of {', '.join(sorted(found))}")
        ((concrete, index),) = found.items()
        encoded = index_of(concrete, index).encoded
        if index["mappings"].get("_source", {}).get("enabled") is False:
            raise InputError(f"{name} keeps no _source, so there are no texts to read in it")
        cluster.request("POST", f"/{quote(concrete)}/_refresh")  # what was written is to be seen
        settings = index["settings"]
        extents = [_extent(cluster, concrete, number) for number in range(int(settings["index.number_of_shards"]))]
    except OpenSearchError as error:
        raise InputError(str(error)) from error
    if lost := ", ".join(sorted(set(encoded) - set(texts))):
        say(f"{name} has vectors of {lost} too, which are left out: --text names what gets new ones")
    left_out = [f"{text}_{kind}" for text in sorted({*texts, *encoded}) for kind in ("sparse", "chunks")]
    uuid = settings["index.uuid"]
    return [
        Shard(cluster, concrete, uuid, number, count, last, left_out, patience_seconds, say)
        for number, (count, last) in enumerate(extents)
    ]


def _search(cluster: Cluster, index: str, shard: int, body: Mapping[str, Any]) -> Any:
    """The hits of all of the shard or an error, whatever the cluster's time for a search."""
    path = f"/{quote(index)}/_search?preference=_shards:{shard}&search_pipeline=_none"
    return cluster.request("POST", f"{path}&allow_partial_search_results=false", body)["hits"]


def _extent(cluster: Cluster, index: str, shard: int) -> tuple[int, int]:
    """How many documents there are, and the highest sequence number of one."""
    body = {"size": 1, "sort": [{"_seq_no": "desc"}], "_source": False, "track_total_hits": True}
    hits = _search(cluster, index, shard, body)
    return int(hits["total"]["value"]), int(hits["hits"][0]["sort"][0]) if hits["hits"] else -1


def files_of(names: Sequence[str], encoding: str) -> list[File]:
    """:raises InputError: if there is none, or none that can be read."""
    return [File(path, encoding) for path in find_inputs(names)]


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    with opened(path, unpack=False) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
