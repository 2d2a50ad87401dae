"""A corpus that is encoded past the service, straight into an index."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import httpx
import pytest

from app.bulk.command import main
from app.opensearch.service import EncoderService
from tests.opensearch.live import DOCUMENTS, Live, Run, Setup, assert_vectors, neural
from tests.tiny import SENTENCES

# The first test downloads OpenSearch.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.usefixtures("indices")]


@contextmanager
def now_and_then(url: str) -> Iterator[tuple[str, Counter[int]]]:
    """What forwards to `url`, but answers 503 to the first two bulk requests; its address, and what it answered."""
    answered: Counter[int] = Counter()

    class Forward(BaseHTTPRequestHandler):
        def _forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if "_bulk" in self.path and answered[503] < 2:
                status, content = 503, b'{"error": "full"}'
            else:
                headers = {"Content-Type": "application/json"}
                answer = httpx.request(self.command, url + self.path, content=body, headers=headers, timeout=60)
                status, content = answer.status_code, answer.content
            answered[status] += 1
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = _forward

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Forward)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", answered
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("engine", ["rank_features", "seismic"])
def test_an_index_gets_vectors_that_are_ready(
    live: Live,
    run: Run,
    encoder: Setup,
    service: EncoderService,
    tiny_artifact: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    engine: str,
    refused: Callable[[], None],
) -> None:
    if engine == "seismic" and not live.is_3:
        refused()  # by setup: see test_queries.py
        return
    run("setup", *encoder, "--engine", engine)
    index = "ko-sparse-b" if engine == "seismic" else "ko-sparse-a"
    live.cluster.request("PUT", f"/{index}", {"settings": {"refresh_interval": "7s"}})
    rows = [{"number": str(n), **document, "year": n} for n, document in enumerate(DOCUMENTS)]
    source = tmp_path / "a.jsonl"
    source.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    command = [
        "encode",
        str(source),
        "--id",
        "number",
        "--model",
        str(tiny_artifact),
        "--run-dir",
        str(tmp_path / "run"),
    ]
    command += ["--precision", "f32", "--threads", "1", "--cache-dir", str(tmp_path / "cache"), "--part-rows", "20"]
    with now_and_then(live.cluster.url) as (url, answered):
        code = main([*command[:2], f"{url}/{index}", *command[2:]])
    said = capsys.readouterr()
    assert code == 0, said.out + said.err
    assert answered[503] == 2
    assert "documents wait for OpenSearch" in said.out
    assert f"{index} has {len(rows)} documents, {len(rows)} of them from here" in said.out
    form = "sparse_vector" if engine == "seismic" else "word"
    assert_vectors(live.vectors(index), service.encode(SENTENCES, sparse_embedding_format=form))
    assert "0" in live.search(index, neural("text_sparse", SENTENCES[0]))
    settings = live.cluster.request("GET", f"/{index}/_settings?flat_settings=true")[index]["settings"]
    assert settings["index.refresh_interval"] == "7s"

    with source.open("a", encoding="utf-8") as file:
        file.write('\n{"number": "x", "text": "손해", "year": "no number"}\n')
    again = [*command, "--run-dir", str(tmp_path / "another")]
    code = main([*again[:2], f"{live.cluster.url}/{index}", *again[2:]])
    assert code == 3
    assert "rejected, by column: (row) 1" in capsys.readouterr().out
    (told,) = (tmp_path / "another" / "rejected").glob("*.jsonl")
    assert "OpenSearch refuses it: mapper_parsing_exception" in told.read_text(encoding="utf-8")


def test_an_index_without_a_place_for_vectors_is_refused(
    live: Live, tiny_artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    live.cluster.request("PUT", "/second-plain", {"mappings": {"properties": {"text": {"type": "text"}}}})
    (tmp_path / "a.jsonl").write_text('{"text": "손해"}\n', encoding="utf-8")
    for index, message in (
        ("second-plain", "second-plain has no field text_sparse: it must be rank_features"),
        ("second-none", "there is no index second-none: create one that has the mapping"),
    ):
        target = f"{live.cluster.url}/{index}"
        assert main(["encode", str(tmp_path / "a.jsonl"), target, "--model", str(tiny_artifact)]) == 1
        assert message in capsys.readouterr().err
