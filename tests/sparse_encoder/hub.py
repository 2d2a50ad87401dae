"""A hub of one's own: the routes of the Hugging Face hub that a download needs, over directories of a folder."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_the_test"


class Hub:
    """`folder/owner/name/` is the repository owner/name; its only branch is main, its only tag v1."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = ""
        self.private: set[str] = set()  #: repositories that only TOKEN may read
        self.downloaded: list[str] = []

    def commit(self, repository: str) -> str:
        return hashlib.sha1(repository.encode()).hexdigest()

    def answer(self, path: str, token: str | None) -> tuple[int, dict[str, str], bytes | Path]:
        parts = [unquote(part) for part in urlsplit(path).path.strip("/").split("/")]
        if parts[:2] == ["api", "models"]:
            repository, rest = "/".join(parts[2:4]), parts[4:]
        else:
            repository, rest = "/".join(parts[:2]), parts[2:]
        root = self.folder / repository
        if not root.is_dir() or (repository in self.private and token != TOKEN):
            return 401, {"X-Error-Code": "RepoNotFound"}, b"{}"
        commit = self.commit(repository)
        if len(rest) > 1 and rest[1] not in ("main", "v1", commit):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        if not rest or rest[0] == "revision":
            return 200, {}, json.dumps({"id": repository, "sha": commit, "siblings": []}).encode()
        if rest[0] == "tree":
            return 200, {}, json.dumps([self._entry(root, file) for file in root.rglob("*") if file.is_file()]).encode()
        file = root.joinpath(*rest[2:])
        if rest[0] != "resolve" or not file.is_file():
            return 404, {"X-Error-Code": "EntryNotFound"}, b"{}"
        return 200, {"X-Repo-Commit": commit, "ETag": f'"{_sha256(file)}"'}, file

    def _entry(self, root: Path, file: Path) -> dict[str, Any]:
        return {
            "type": "file",
            "path": file.relative_to(root).as_posix(),
            "size": file.stat().st_size,
            "oid": _sha256(file)[:40],
        }


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@contextmanager
def running(folder: Path) -> Iterator[Hub]:
    hub = Hub(folder)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(body=True)

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def _answer(self, body: bool) -> None:
            token = (self.headers.get("authorization") or "").removeprefix("Bearer ") or None
            status, headers, content = hub.answer(self.path, token)
            if isinstance(content, Path):
                if body:
                    hub.downloaded.append(content.relative_to(folder).as_posix())
                content = content.read_bytes()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield hub
        finally:
            server.shutdown()
