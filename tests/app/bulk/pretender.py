"""An OpenSearch of one node and one shard an index, as far as `app.bulk` asks one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

VECTORS = {"properties": {"text": {"type": "text"}, "text_sparse": {"type": "rank_features"}}}


@dataclass
class Document:
    """A document."""

    source: Mapping[str, Any]
    number: int  #: of its last change
    version: int


@dataclass
class Documents:
    """An index."""

    mappings: Mapping[str, Any] = field(default_factory=lambda: VECTORS)
    settings: dict[str, Any] = field(default_factory=dict)
    documents: dict[str, Document] = field(default_factory=dict)
    changes: int = 0

    def put(self, id_: str, source: Mapping[str, Any], version: int | None = None) -> bool:
        """False if a newer version is there."""
        there = self.documents.get(id_)
        if there and version is not None and version < there.version:
            return False
        self.documents[id_] = Document(source, self.changes, version or (there.version + 1 if there else 1))
        self.changes += 1
        return True

    def search(self, body: Mapping[str, Any]) -> dict[str, Any]:
        between = body.get("query", {}).get("range", {}).get("_seq_no", {})
        ((_, order),) = body["sort"][0].items()
        hits: list[dict[str, Any]] = [
            {"_id": id_, "_version": one.version, "_source": self._without(body, one.source), "sort": [one.number]}
            for id_, one in self.documents.items()
            if between.get("gte", 0) <= one.number < between.get("lt", self.changes)
        ]
        hits.sort(key=lambda hit: hit["sort"][0], reverse=order == "desc")
        return {"hits": {"total": {"value": len(hits), "relation": "eq"}, "hits": hits[: body["size"]]}}

    def _without(self, body: Mapping[str, Any], source: Mapping[str, Any]) -> dict[str, Any]:
        asked = body.get("_source")
        left_out = asked["excludes"] if isinstance(asked, dict) else []
        return {name: value for name, value in source.items() if name not in left_out}

    def bulk(self, lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
        items = []
        for action, source in zip(lines[::2], lines[1::2], strict=True):
            fine = self.put(action["index"]["_id"], source, action["index"].get("version"))
            error = {"error": {"type": "version_conflict_engine_exception", "reason": "newer"}}
            items.append({"index": {"status": 200} if fine else {"status": 409, **error}})
        return items


class Pretender:
    """Its indices, by name; `asked` is told of each request before it is answered."""

    def __init__(self) -> None:
        self.url = ""
        self.indices: dict[str, Documents] = {}
        self.most_bytes = 100_000_000  #: of a body
        self.busy = 0  #: bulk requests that are refused for now
        self.bodies: list[tuple[int, int]] = []  #: status and bytes of each bulk request
        #: What it answers to the first times that a path is asked for; an error of that status, if it is a number.
        self.scripted: dict[str, list[Any]] = {}
        self.asked: Callable[[str, str], None] = lambda method, path: None

    def add(self, name: str, documents: list[dict[str, Any]], **more: Any) -> Documents:
        index = self.indices[name] = Documents(**more)
        for document in documents:
            index.put(document["id"], document)
        return index

    def answer(self, method: str, url: str, body: bytes) -> tuple[int, Any]:
        parts, query = unquote(urlsplit(url).path).strip("/").split("/"), parse_qs(urlsplit(url).query)
        if parts == [""]:
            return 200, {"version": {"distribution": "opensearch", "number": "3.6.0"}}
        if answers := self.scripted.get(urlsplit(url).path):
            answer = answers.pop(0)
            return (answer, {"error": "scripted"}) if isinstance(answer, int) else (200, answer)
        if parts[:2] == ["_cluster", "health"]:
            return 200, health("green", replicas=0)
        if parts[0] == "_tasks":
            return 200, merged()
        index, action = self.indices.get(parts[0]), "/".join([method, *parts[1:2]])
        if index is None:
            return 404, {"error": {"type": "index_not_found_exception", "reason": parts[0]}}
        if action == "GET":
            settings = {"index.uuid": f"uuid-{parts[0]}", "index.number_of_shards": "1", **index.settings}
            return 200, {parts[0]: {"settings": settings, "mappings": index.mappings, "aliases": {}}}
        if action == "GET/_count":
            return 200, {"count": len(index.documents)}
        if action == "PUT/_settings":
            index.settings |= {f"index.{name}": value for name, value in json.loads(body)["index"].items()}
        if action == "POST/_search":
            found = index.search(json.loads(body))
            if query.get("allow_partial_search_results") != ["false"]:
                del found["hits"]["hits"][:1]  # of a shard that ran out of time
            return 200, found
        if action == "POST/_bulk":
            return 200, {"items": index.bulk([json.loads(line) for line in body.splitlines()])}
        if action == "GET/_doc":
            one = index.documents.get(parts[2])
            return (200, {"_version": one.version, "_source": one.source}) if one else (404, {"found": False})
        if action == "POST/_forcemerge":
            return 200, {"task": "node:1"}
        if action == "GET/_segments":
            return 200, {"indices": {parts[0]: {"shards": {"0": [{"num_search_segments": 1}]}}}}
        return 200, {}


def health(status: str, *, replicas: int = 1, unassigned: int = 0, initializing: int = 0, delayed: int = 0) -> Any:
    """As two data nodes tell it of an index of one shard."""
    return {
        "status": status,
        "number_of_data_nodes": 2,
        "unassigned_shards": unassigned,
        "initializing_shards": initializing,
        "delayed_unassigned_shards": delayed,
        "indices": {"new": {"number_of_shards": 1, "number_of_replicas": replicas}},
    }


def merged(**more: Any) -> Any:
    """A task that has ended."""
    shards = {"total": 1, "successful": 1, "failed": 0}
    return {"completed": True, "response": {"_shards": shards | more}}


@contextmanager
def serving() -> Iterator[Pretender]:
    pretender = Pretender()

    class Answer(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            pretender.asked(self.command, self.path)
            if len(body) > pretender.most_bytes:  # as nginx says it
                status, content = 413, b"<html><h1>413 Request Entity Too Large</h1></html>"
            elif "/_bulk" in self.path and pretender.busy:
                pretender.busy -= 1
                status, content = 503, b"{}"
            else:
                status, document = pretender.answer(self.command, self.path, body)
                content = json.dumps(document).encode()
            if "/_bulk" in self.path:
                pretender.bodies.append((status, len(body)))
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = _answer

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    thread = Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    pretender.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield pretender
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
