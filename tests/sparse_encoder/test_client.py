"""The clients, against the real service."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import json
import random
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from app.web.schemas import EncodeRequest
from sparse_encoder import requests as module
from sparse_encoder.client import (
    AsyncSparseEncoderClient,
    Encoded,
    Options,
    ServiceUnavailable,
    SparseEncoderClient,
    SparseEncoderError,
)
from sparse_encoder.requests import Batches, retry_after, wait_seconds
from tests.app.server import ROOT, Server, running
from tests.tiny import SENTENCES

pytestmark = pytest.mark.slow

Encode = Callable[..., Encoded]
Answer = tuple[int, dict[str, str], object]  #: status, headers, document


@pytest.fixture(scope="module")
def server(tiny_artifact: Path) -> Iterator[Server]:
    """It takes one full batch at a time, so that two are one too many; in f32, since elsewhere a vector depends on what
    else is in its batch."""
    limits = ("--max-texts-in-flight", "8", "--max-texts-per-request", "8")
    entry = f"test:{hashlib.sha256(b'key').hexdigest()}"
    served = ("--port", "0", "--model", str(tiny_artifact), "--encoder-threads", "1", "--precision", "f32")
    with running("-m", "app", *served, "--api-keys", entry, *limits) as server:
        yield server


@pytest.fixture(params=["sync", "async"])
def encode(request: pytest.FixtureRequest, server: Server) -> Encode:
    """Encodes with a client made for it."""

    def encode(texts: Iterable[str], *, settings: dict[str, Any] | None = None, **options: Any) -> Encoded:
        given = {"url": server.url, "api_key": "key", "batch_size": 8, **(settings or {})}
        if request.param == "sync":
            with SparseEncoderClient(**given) as client:
                return client.encode(texts, **options)

        async def run() -> Encoded:
            async with AsyncSparseEncoderClient(**given) as client:
                return await client.encode(texts, **options)

        return asyncio.run(run())

    return encode


def refusals(server: Server) -> float:
    line = 'sparse_encoder_refusals_total{reason="overloaded"} '
    text = httpx.get(f"{server.url}/metrics", timeout=None).text
    return next(float(found.removeprefix(line)) for found in text.splitlines() if found.startswith(line))


def test_batches_come_back_in_order_though_the_service_was_full(server: Server, encode: Encode) -> None:
    before = refusals(server)
    texts = [f"{number} {text}" for number, text in enumerate(SENTENCES * 4)]
    encoded = encode(texts, settings={"concurrency": 8}, top_k=5)
    assert refusals(server) > before
    assert encoded.versions == {"tiny-v1"}
    assert encoded.tokens > len(texts)
    assert len(encoded.vectors) == len(texts)
    for index in (0, 7, 8, len(texts) - 1):
        (alone,) = encode([texts[index]], top_k=5).vectors
        assert encoded.vectors[index] == pytest.approx(alone, abs=2e-4)


def test_no_texts_need_no_request(encode: Encode) -> None:
    nowhere = {"url": "http://127.0.0.1:9"}
    assert encode([], settings=nowhere) == Encoded([], frozenset(), 0)


def test_the_options_reach_the_service(encode: Encode) -> None:
    (query,) = encode(["손해배상"], input_type="query", sparse_embedding_format="token_id", top_k=3).vectors
    assert len(query) == 3
    assert all(key.isdigit() for key in query)
    known = set(inspect.get_annotations(Options))
    assert known == set(EncodeRequest.model_fields) - {"texts"}


def test_a_refusal_that_would_come_again_is_an_error_at_once(encode: Encode) -> None:
    with pytest.raises(SparseEncoderError, match=r"422 .*more than the 64 tokens") as refusal:
        encode([" ".join(SENTENCES)], truncate="error")
    assert (refusal.value.status, refusal.value.type, refusal.value.param) == (422, "text_too_long", "texts")
    assert not isinstance(refusal.value, ServiceUnavailable)
    with pytest.raises(SparseEncoderError, match="401 the API key is missing or wrong"):
        encode(["가"], settings={"api_key": None})
    with pytest.raises(SparseEncoderError, match="404 there is no version"):
        encode(["가"], version="other")
    with pytest.raises(TypeError, match="put it into a list"):
        encode("가")


def test_a_service_that_is_away_is_given_up_with_its_address(encode: Encode) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(
        ServiceUnavailable, match=rf"given up after 1 tries, in the 0 s of .*{re.escape(url)} cannot be reached"
    ):
        encode(["가"], settings={"url": url, "patience_seconds": 0})


@contextmanager
def answering_by(answer: Callable[[list[str]], Answer]) -> Iterator[str]:
    """A server that answers texts as `answer` says, each request in a thread of its own."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(404, {}, b"")  # it says nothing of its limits

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status, headers, document = answer(json.loads(body)["texts"])
            self._send(status, headers, json.dumps(document).encode())

        def _send(self, status: int, headers: dict[str, str], content: bytes) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            with suppress(OSError):  # a client that was interrupted
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http, ThreadPoolExecutor(1) as pool:
        http.daemon_threads = True
        pool.submit(http.serve_forever)
        try:
            yield f"http://127.0.0.1:{http.server_port}"
        finally:
            http.shutdown()


@contextmanager
def answering(*answers: Answer) -> Iterator[tuple[str, list[list[str]]]]:
    """A server that gives these answers, one a request; and the texts that it was sent."""
    waiting, sent = list(answers), list[list[str]]()

    def answer(texts: list[str]) -> Answer:
        sent.append(texts)
        return waiting.pop(0)

    with answering_by(answer) as url:
        yield url, sent


def test_a_service_behind_a_proxy_that_restarts_is_asked_again(encode: Encode) -> None:
    good = (200, {"X-Model-Version": "v", "X-Tokens": "3"}, [{"가": 1.0}])
    with answering((502, {}, "<html>"), (503, {"Retry-After": "0"}, {}), (504, {}, ""), good) as (url, sent):
        assert encode(["가"], settings={"url": url}) == Encoded([{"가": 1.0}], frozenset({"v"}), 3)
    assert sent == [["가"]] * 4


def test_versions_that_changed_meanwhile_are_told(encode: Encode) -> None:
    answers: list[Answer] = [(200, {"X-Model-Version": version, "X-Tokens": "1"}, [{}]) for version in ("v1", "v2")]
    with answering(*answers) as (url, _):
        assert encode(["가", "나"], settings={"url": url, "batch_size": 1}).versions == {"v1", "v2"}


def test_the_wait_is_what_was_asked_for_and_some_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    random.seed(1)
    for tries in range(1, 12):
        waits = [wait_seconds(tries, 3.0) for _ in range(200)]
        most = min(module.LONGEST_WAIT_SECONDS, module.FIRST_WAIT_SECONDS * 2 ** (tries - 1))
        assert 3.0 <= min(waits) < 3.0 + most / 10
        assert 3.0 + most * 9 / 10 < max(waits) <= 3.0 + most
    assert retry_after({"retry-after": "7"}) == 7.0
    later = datetime.now(UTC) + timedelta(seconds=100)
    assert 90 < retry_after({"retry-after": format_datetime(later, usegmt=True)}) <= 100
    assert [retry_after({"retry-after": value}) for value in ("", "soon", "-1", "Wed, 21 Oct 2015 07:28:00 GMT")] == [
        0.0
    ] * 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"concurrency": 0}, "concurrency must be a whole number from 1 on, got 0"),
        ({"batch_size": 2.5}, "batch_size must be a whole number from 1 on, got 2.5"),
        ({"timeout_seconds": 0}, "timeout_seconds must be a positive number of seconds, got 0"),
        ({"patience_seconds": float("nan")}, "patience_seconds must be a positive number of seconds, got nan"),
        ({"url": "localhost:8080"}, "url must begin with http:// or https://, got 'localhost:8080'"),
    ],
)
def test_settings_that_can_mean_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    for kind in (SparseEncoderClient, AsyncSparseEncoderClient):
        with pytest.raises(ValueError, match=re.escape(message)):
            kind(**settings)


def test_a_refusal_names_the_text_among_those_of_the_caller(encode: Encode) -> None:
    texts = [*SENTENCES[:19], " ".join(SENTENCES), *SENTENCES[:3]]
    with pytest.raises(SparseEncoderError, match="first item 19, have more than the 64 tokens"):
        encode(texts, truncate="error")
    with pytest.raises(TypeError, match="expected strings only, item 10 is None: leave it out"):
        encode([*SENTENCES[:10], None])


def test_a_refusal_ends_what_waits_to_be_tried_again(encode: Encode) -> None:
    """The first batch would be asked for again for a minute; the second is refused."""
    full: Answer = (429, {"Retry-After": "50"}, {})
    refused: Answer = (422, {}, {"error": {"type": "invalid_field", "message": "item 0 is wrong", "param": "texts"}})
    by_text = {"가": full, "나": refused}
    with answering_by(lambda texts: by_text[texts[0]]) as url, pytest.raises(SparseEncoderError, match="item 1 is"):
        encode(["가", "나"], settings={"url": url, "batch_size": 1})


def test_columns_and_generators_are_taken_as_lists_are(encode: Encode) -> None:
    expected = encode(SENTENCES[:9], top_k=5).vectors
    column = np.array(SENTENCES[:9])
    for texts in (iter(SENTENCES[:9]), (text for text in SENTENCES[:9]), column, column.astype(object)):
        assert encode(texts, top_k=5).vectors == [pytest.approx(vector, abs=2e-4) for vector in expected]


def test_batches_are_cut_by_texts_and_bytes() -> None:
    batches, cut = Batches(most_texts=3, most_bytes=40), []
    for text in ["가나다", "라", '"', "마", "a" * 60, "b"]:
        if batch := batches.add(text):
            cut.append(batch)
    if rest := batches.rest():
        cut.append(rest)
    assert [(batch.first, len(batch.texts)) for batch in cut] == [(0, 3), (3, 1), (4, 1), (5, 1)]
    body = json.loads(cut[0].body({"top_k": 3}))
    assert body == {"top_k": 3, "texts": ["가나다", "라", '"']}
    assert batches.rest() is None


def test_what_is_too_much_at_once_is_sent_in_halves(encode: Encode) -> None:
    """Four texts are two at a time; a proxy between says so, not the service."""
    sizes = []

    def answer(texts: list[str]) -> Answer:
        sizes.append(len(texts))
        if len(texts) > 2:
            return 413, {}, "too large"
        return 200, {"X-Model-Version": "v", "X-Tokens": "1"}, [{text: 1.0} for text in texts]

    with answering_by(answer) as url:
        found = encode(list("가나다라마"), settings={"url": url})
    assert found.vectors == [{text: 1.0} for text in "가나다라마"]
    assert sorted(sizes) == [1, 2, 2, 3, 5]


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_stream_holds_a_few_batches_at_a_time(kind: str) -> None:
    """However many texts there are: none is read before those far ahead of it were taken."""
    read = 0

    def texts() -> Iterator[str]:
        nonlocal read
        for number in range(5000):
            read += 1
            yield str(number)

    def answer(texts: list[str]) -> Answer:
        return 200, {"X-Model-Version": "v", "X-Tokens": "1"}, [{text: 1.0} for text in texts]

    def check(number: int, vector: dict[str, float]) -> None:
        assert vector == {str(number): 1.0}
        assert read <= number + 1 + 64 * 4

    async def run(url: str) -> None:
        async with AsyncSparseEncoderClient(url, concurrency=3) as client:
            number = 0
            async for vector in client.stream(texts()):
                check(number, vector)
                number += 1

    with answering_by(answer) as url:
        if kind == "async":
            asyncio.run(run(url))
        else:
            with SparseEncoderClient(url, concurrency=3) as client:
                for number, vector in enumerate(client.stream(texts())):
                    check(number, vector)
    assert read == 5000


def test_a_restart_in_between_loses_no_text_and_doubles_none(tiny_artifact: Path) -> None:
    """The service dies under its requests, and another one takes its address a while later."""
    command = ("-m", "app", "--model", str(tiny_artifact), "--encoder-threads", "1", "--precision", "f32")
    with running(*command, "--port", "0") as first:
        port = first.url.rpartition(":")[2]
        texts = [f"{number} {text}" for number, text in enumerate(SENTENCES * 8)]
        with SparseEncoderClient(first.url, batch_size=4) as client:
            stream = client.stream(texts, top_k=5)
            vectors = [next(stream) for _ in range(20)]
            first.process.kill()
            first.wait()
            with running(*command, "--port", port):
                vectors += stream
                assert len(vectors) == len(texts)
                assert vectors == [pytest.approx(vector, abs=2e-4) for vector in client.encode(texts, top_k=5).vectors]


INTERRUPTED = """
import signal, sys
from sparse_encoder.client import SparseEncoderClient
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it in what it runs in the background
try:
    with SparseEncoderClient(sys.argv[1], timeout_seconds=600) as client:
        client.encode(["가"] * 1000)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_ctrl_c_ends_a_client_whose_service_never_answers() -> None:
    asked, never = threading.Event(), threading.Event()

    def answer(_: list[str]) -> Answer:
        asked.set()
        never.wait()
        return 503, {}, {}

    with answering_by(answer) as url:
        command = [sys.executable, "-W", "error", "-c", INTERRUPTED, url]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        asked.wait()
        process.send_signal(signal.SIGINT)
        while process.poll() is None:  # Python can lose an interrupt, in a callback say: then a person presses again
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGINT)
        never.set()
        assert process.communicate() == ("interrupted\n", "")


def test_progress_is_drawn_if_asked_for(encode: Encode, capsys: pytest.CaptureFixture[str]) -> None:
    encode(["가", "나", "다"])
    assert capsys.readouterr().err == ""
    encode(["가", "나", "다"], progress=True)
    assert "3/3" in capsys.readouterr().err


def test_info(server: Server) -> None:
    with SparseEncoderClient(server.url, api_key="key") as client:
        assert client.info()["model"]["version"] == "tiny-v1"


def test_threads_may_share_a_client(server: Server) -> None:
    with SparseEncoderClient(server.url, api_key="key") as client, ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda text: client.encode([text]).vectors, SENTENCES[:4]))
    assert [len(vectors) for vectors in found] == [1] * 4
