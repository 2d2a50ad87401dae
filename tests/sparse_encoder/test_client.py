"""The clients, against the real service."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import json
import random
import re
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.web.schemas import EncodeRequest
from sparse_encoder import client as module
from sparse_encoder.client import (
    AsyncSparseEncoderClient,
    Encoded,
    ServiceUnavailable,
    SparseEncoderClient,
    SparseEncoderError,
    retry_after,
    wait_seconds,
)
from tests.app.server import Server, running
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

    def encode(texts: Sequence[str], *, settings: dict[str, Any] | None = None, **options: Any) -> Encoded:
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
    known = set(inspect.get_annotations(module.Options))
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
    with pytest.raises(ServiceUnavailable, match=rf"given up after 2 tries.*{re.escape(url)} cannot be reached"):
        encode(["가"], settings={"url": url, "max_tries": 2})


@contextmanager
def answering(*answers: Answer) -> Iterator[tuple[str, list[bytes]]]:
    """A server that gives these answers, one a request; and the bodies that it was sent."""
    waiting, bodies = list(answers), list[bytes]()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            status, headers, document = waiting.pop(0)
            content = json.dumps(document).encode()
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http, ThreadPoolExecutor(1) as pool:
        pool.submit(http.serve_forever)
        try:
            yield f"http://127.0.0.1:{http.server_port}", bodies
        finally:
            http.shutdown()


def test_a_service_behind_a_proxy_that_restarts_is_asked_again(encode: Encode) -> None:
    good = (200, {"X-Model-Version": "v", "X-Tokens": "3"}, [{"가": 1.0}])
    with answering((502, {}, "<html>"), (503, {"Retry-After": "0"}, {}), (504, {}, ""), good) as (url, bodies):
        assert encode(["가"], settings={"url": url}) == Encoded([{"가": 1.0}], frozenset({"v"}), 3)
    assert len(set(bodies)) == 1
    assert len(bodies) == 4


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
