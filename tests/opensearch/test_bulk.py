"""A corpus that is encoded past the service, straight into an index."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import httpx
import pytest

from app.bulk.command import main
from app.opensearch.cluster import Cluster
from app.opensearch.service import EncoderService
from scripts.opensearch_node import Node
from tests.app.bulk.corpus import documents, write
from tests.opensearch.live import DOCUMENTS, Live, Run, Setup, assert_vectors, neural
from tests.tiny import SENTENCES

# The first test downloads OpenSearch.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


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


@pytest.mark.usefixtures("indices")
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
        code = main([*command[:2], f"{url}/{index}", *command[2:], "--merge"])
    said = capsys.readouterr()
    assert code == 0, said.out + said.err
    assert answered[503] == 2
    assert "documents wait for OpenSearch" in said.out
    assert f"{index} has {len(rows)} documents, {len(rows)} of them from here" in said.out
    assert f"{index} is merged into one segment a shard" in said.out
    (shard,) = live.cluster.request("GET", f"/{index}/_segments")["indices"][index]["shards"].values()
    assert [copy["num_search_segments"] for copy in shard] == [1]
    assert f"{index} is yellow: 1 copies of its shards are not there, for which there are too few" in said.out
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


@pytest.mark.usefixtures("indices")
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


@pytest.mark.usefixtures("indices")
def test_an_index_is_copied_with_vectors_and_versions(
    live: Live,
    run: Run,
    encoder: Setup,
    service: EncoderService,
    tiny_artifact: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And `reindex` then has nothing left to copy: it compares, and moves the alias."""
    run("setup", *encoder)
    old, new = f"{live.cluster.url}/second-old", f"{live.cluster.url}/ko-sparse-new"
    live.cluster.request("PUT", "/second-old", {"settings": {"number_of_shards": 2}})
    live.index("second-old", DOCUMENTS)
    live.index("second-old", DOCUMENTS[:3])  # which have a second version then
    live.cluster.request("PUT", "/second-old/_doc/30?routing=a&refresh=true", {"text": SENTENCES[0]})
    live.cluster.request("PUT", "/ko-sparse-new", {})
    command = ["encode", old, new, "--model", str(tiny_artifact), "--precision", "f32", "--threads", "1"]
    command += ["--run-dir", str(tmp_path / "run"), "--cache-dir", str(tmp_path / "cache"), "--part-rows", "4"]
    assert main(command) == 0, capsys.readouterr().err
    assert f"ko-sparse-new has {len(DOCUMENTS) + 1} documents" in capsys.readouterr().out
    assert_vectors(live.vectors("ko-sparse-new"), service.encode([*SENTENCES, SENTENCES[0]]))
    for path, version in (("0", 2), ("5", 1), ("30?routing=a", 1)):
        assert live.cluster.request("GET", f"/ko-sparse-new/_doc/{path}")["_version"] == version

    for receipt in list((tmp_path / "run" / "receipts").iterdir())[::2]:
        receipt.unlink()  # as after a stop
    live.cluster.request("PUT", "/ko-sparse-new/_doc/5?refresh=true", {"text": "newer", "title": "newer"})
    assert main(command) == 0, capsys.readouterr().err
    assert live.documents("ko-sparse-new")[5]["text"] == "newer"
    live.cluster.request("PUT", "/second-old/_doc/5?version=9&version_type=external&refresh=true", DOCUMENTS[5])

    live.cluster.request("POST", "/_aliases", {"actions": [{"add": {"index": "second-old", "alias": "second-help"}}]})
    said = run("reindex", "second-old", "ko-sparse-new", "--alias", "second-help")
    assert "pass 1: 1 documents copied" in said  # what changed meanwhile
    assert list(live.cluster.request("GET", "/_alias/second-help")) == ["ko-sparse-new"]

    to_files = ["encode", old, str(tmp_path / "files"), "--to", "jsonl", *command[3:7], "--threads", "1"]
    assert main([*to_files, "--cache-dir", str(tmp_path / "cache"), "--limit", "20"]) == 0, capsys.readouterr().err
    lines = [line for part in (tmp_path / "files").glob("part-*") for line in part.read_text("utf-8").splitlines()]
    assert len(lines) == 40
    assert main(["encode", f"{live.cluster.url}/second-none", str(tmp_path / "x")]) == 1
    assert "there is no index second-none: GET /_cat/indices names" in capsys.readouterr().err


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_the_node_is_killed_and_comes_back_meanwhile(tiny_artifact: Path, tmp_path: Path) -> None:
    """`BULK_SOAK_DOCUMENTS`: how many, 50,000 if it is not said."""
    count = int(os.environ.get("BULK_SOAK_DOCUMENTS", "50000"))
    source, work = write(tmp_path / "a.jsonl", documents(count)), tmp_path / "node"
    node = Node("3.6.0", work)
    port = int(node.url.rpartition(":")[2])
    try:
        with Cluster(node.url) as cluster:
            mapping = {"properties": {"text_sparse": {"type": "rank_features"}}}
            cluster.request("PUT", "/killed", {"mappings": mapping, "settings": {"number_of_replicas": 0}})
            line = [sys.executable, "-m", "app.bulk", "encode", source, f"{node.url}/killed", "--id", "id"]
            line += ["--model", tiny_artifact, "--precision", "f32", "--threads", 1, "--part-rows", 500]
            line += ["--run-dir", tmp_path / "run", "--cache-dir", tmp_path / "cache"]
            with (tmp_path / "said.txt").open("w") as out:
                run = subprocess.Popen(list(map(str, line)), stdout=out, stderr=out)
                for share in (0.3, 0.6):
                    while len(list((tmp_path / "run").glob("receipts/*.json"))) < share * count / 500:
                        assert run.poll() is None, (tmp_path / "said.txt").read_text(encoding="utf-8")
                        os.sched_yield()
                    node.kill()
                    node = Node("3.6.0", work, port)
                assert run.wait() == 0, (tmp_path / "said.txt").read_text(encoding="utf-8")
            said = (tmp_path / "said.txt").read_text(encoding="utf-8")
            assert "wait for OpenSearch" in said
            assert f"killed has {count:,} documents, {count:,} of them from here" in said
            assert re.search(r"^\d\d+ of them have the vectors that were written", said, re.MULTILINE)
    finally:
        node.stop()
