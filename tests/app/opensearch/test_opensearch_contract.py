"""The bytes of real answers, against what OpenSearch's HTTP client and inference processors make of them.

Nothing here imitates OpenSearch: each test states one thing that 2.19 or 3.x was seen to need, so that a break fails
in seconds. `tests/opensearch` asks real nodes.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

import pytest
import uvicorn

from app.encoders.base import Encoder, TokenBatch
from app.main import create_app
from app.settings import Settings
from sparse_encoder.artifact import Artifact
from sparse_encoder.vector import SMALLEST_WEIGHT, SparseVector
from tests.app.conftest import openvino
from tests.app.controlled import ControlledEncoder
from tests.app.server import running
from tests.tiny import SENTENCES

pytestmark = pytest.mark.slow

LONG = [" ".join(SENTENCES[start:]) for start in range(20)]
MAX_TOKEN_ID = 32_767
MAX_CLAUSES = 1024  # in one search
MAX_QUERY_WEIGHT = 64


@dataclass(frozen=True)
class Answer:
    status: int
    headers: http.client.HTTPMessage  #: names in any case
    body: bytes

    def __post_init__(self) -> None:
        """What holds for every answer of `/encode`, whatever its status."""
        assert self.body.isascii()
        assert self.headers["content-type"] == "application/json"
        assert self.headers["content-length"] == str(len(self.body))
        for absent in ("transfer-encoding", "content-encoding", "location"):
            assert self.headers[absent] is None

    def json(self) -> object:
        """As its strictest reader sees it: no key twice, no NaN."""

        def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
            assert len(dict(pairs)) == len(pairs)
            return dict(pairs)

        def refuse(constant: str) -> NoReturn:
            raise AssertionError(constant)

        return json.loads(self.body, object_pairs_hook=unique, parse_constant=refuse)

    def vectors(self, texts: int) -> list[dict[str, float]]:
        """One map for each text; keys and weights are what a `rank_features` field takes, also for the second time."""
        assert self.status == 200
        vectors = self.json()
        assert isinstance(vectors, list)
        assert len(vectors) == texts
        for vector in vectors:
            for key, weight in vector.items():
                assert key.strip()
                assert "." not in key
                assert isinstance(weight, int | float)
                assert weight >= SMALLEST_WEIGHT
        return vectors


class Connection:
    """One TCP connection that stays open from request to request, as the client's pool keeps it."""

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        assert address.hostname
        assert address.port
        self._socket = socket.create_connection((address.hostname, address.port))

    def post(self, body: object, path: str = "/encode", *, method: str = "POST", headers: str = "") -> Answer:
        """`body` is sent as it is if it is bytes, else as JSON in raw UTF-8, as OpenSearch writes it."""
        content = body if isinstance(body, bytes) else json.dumps(body, ensure_ascii=False).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: service\r\nContent-Type: application/json\r\n{headers}"
        self._socket.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        response = http.client.HTTPResponse(self._socket)
        response.begin()
        assert response.version == 11
        return Answer(response.status, response.headers, response.read())

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(scope="module")
def url(tiny_artifact: Path) -> Iterator[str]:
    flags = ("--port", "0", "--model", str(tiny_artifact), "--encoder-threads", "1", "--max-texts-per-request", "50")
    with running("-m", "app", *flags, "--max-body-bytes", "1000000", "--precision", "f32") as server:
        yield server.url


@pytest.fixture
def connection(url: str) -> Iterator[Connection]:
    connection = Connection(url)
    yield connection
    connection.close()


@pytest.mark.parametrize(
    "body",
    [
        ["손해배상 청구", "인공지능"],
        {"texts": ["손해배상 청구", "인공지능"], "sparse_embedding_format": "WORD", "input_type": "document"},
        {"texts": ["손해배상 청구", "인공지능"], "sparse_embedding_format": "word", "input_type": "query"},
        {"texts": ["손해배상 청구", "인공지능"], "content_type": "passage"},
        {"texts": ["손해배상 청구", "인공지능"], "content_type": "query", "query_encoding": "inference_free"},
        {"text_docs": ["손해배상 청구", "인공지능"]},
        {"input": ["손해배상 청구", "인공지능"]},
        json.dumps({"texts": ["손해배상 청구", "인공지능"]}).encode(),
    ],
)
def test_each_body_of_a_connector_gets_a_bare_array_of_one_map_for_each_text(
    connection: Connection, body: object
) -> None:
    first, second = connection.post(body).vectors(2)
    assert first
    assert second
    assert first != second


@pytest.mark.parametrize("name", ["token_id", "sparse_vector"])
def test_a_sparse_vector_field_gets_ids_that_it_can_hold(connection: Connection, name: str) -> None:
    for side in ({"input_type": "document"}, {"input_type": "query", "query_encoding": "inference_free"}):
        words = connection.post({"texts": SENTENCES, **side}).vectors(len(SENTENCES))
        ids = connection.post({"texts": SENTENCES, "sparse_embedding_format": name, **side}).vectors(len(SENTENCES))
        for by_id, by_word in zip(ids, words, strict=True):  # other batches round otherwise
            assert list(by_id.values()) == pytest.approx(list(by_word.values()), abs=2e-4)
        for key in {key for vector in ids for key in vector}:
            assert str(int(key)) == key
            assert 0 <= int(key) <= MAX_TOKEN_ID


def test_a_long_hangul_answer_is_whole_wherever_it_is_cut(connection: Connection) -> None:
    """OpenSearch decodes each network read by itself and puts the results together."""

    def damaged(body: bytes) -> int:
        pieces = ((body[:cut].decode("utf-8", "replace"), body[cut:].decode("utf-8", "replace")) for cut in cuts)
        return sum("\ufffd" in before + after for before, after in pieces)

    answer = connection.post(LONG)
    vectors = answer.vectors(len(LONG))
    cuts = range(len(answer.body))
    assert len(answer.body) > 10_000
    assert any("가" <= character <= "힣" for vector in vectors for key in vector for character in key)
    assert damaged(answer.body) == 0
    assert damaged(json.dumps(vectors, ensure_ascii=False).encode()) > 1000  # so a cut does harm raw Hangul


def test_a_blank_or_odd_text_keeps_its_place_and_harms_no_neighbour(connection: Connection) -> None:
    odd = ["", " \n", "${parameters.x}", '"\\', "\x00", "<&>", "😀", "3.5", "...", "[PAD]"]
    (alone,) = connection.post(["손해배상"]).vectors(1)
    vectors = connection.post([text for item in odd for text in (item, "손해배상")]).vectors(2 * len(odd))
    assert vectors[1::2] == [pytest.approx(alone, abs=2e-4)] * len(odd)
    assert vectors[0] == vectors[2] == {}


def test_a_query_stays_far_below_the_clauses_of_a_search(connection: Connection) -> None:
    query = {"texts": [" ".join(SENTENCES)], "input_type": "query", "min_weight": 0}
    for asked in ({}, {"top_k": 256}, {"query_encoding": "inference_free", "top_k": 256}):
        (vector,) = connection.post({**query, **asked}).vectors(1)
        assert 0 < len(vector) <= MAX_CLAUSES / 4
    refused = connection.post({**query, "top_k": MAX_CLAUSES})
    assert (refused.status, refused.json()["error"]["param"]) == (422, "top_k")  # type: ignore[index]


def test_a_connection_stays_open_and_answers_are_never_compressed(connection: Connection) -> None:
    answers = [connection.post(["손해배상"], headers=accepts) for accepts in ("", "Accept-Encoding: gzip, br\r\n")]
    assert answers[0].body == answers[1].body
    assert [answer.headers["connection"] for answer in answers] == [None, None]


@pytest.mark.parametrize(
    ("status", "type_", "path", "body"),
    [
        (400, "malformed_json", "/encode", b'{"texts": ["'),
        (400, "malformed_json", "/encode", '["손해"]'.encode("euc-kr")),
        (404, "not_found", "/encode/", ["a"]),  # a redirect would not be followed
        (404, "not_found", "/%EA%B0%80", ["a"]),
        (413, "too_large", "/encode", ["a"] * 51),
        (413, "too_large", "/encode", {"texts": ["a" * 1_000_001], "truncate": "error"}),
        (422, "invalid_field", "/encode", {"texts": ["a", None]}),
        (422, "invalid_field", "/encode", {"texts": ["a"], "한글": 1}),
        (422, "invalid_field", "/encode", {"texts": ["a"], "sparse_embedding_format": "DENSE"}),
    ],
)
def test_what_a_retry_would_not_mend_says_why_and_is_not_retried(
    connection: Connection, status: int, type_: str, path: str, body: object
) -> None:
    answer = connection.post(body, path)
    assert answer.status == status
    assert_error(answer, type_)
    assert answer.headers["x-amzn-errortype"] is None


def test_another_method_is_a_405(connection: Connection) -> None:
    assert_error(connection.post(b"", method="GET"), "method_not_allowed")


def assert_error(answer: Answer, type_: str) -> None:
    """The body goes to the user of OpenSearch as it is, after "Error from remote service: "."""
    document = answer.json()
    assert isinstance(document, dict)
    assert document.keys() == {"error"}
    assert document["error"].keys() == {"type", "message", "param"}
    assert document["error"]["type"] == type_
    assert len(document["error"]["message"]) > 20


class ScaledEncoder(ControlledEncoder):
    """Its weights can be multiplied."""

    factor = 1.0

    def encode(self, batch: TokenBatch, *, aside: bool = False) -> list[SparseVector]:
        vectors = super().encode(batch, aside=aside)
        return [SparseVector.from_pairs(vector.ids, vector.weights * self.factor) for vector in vectors]


@asynccontextmanager
async def served(settings: Settings) -> AsyncIterator[tuple[str, ScaledEncoder]]:
    """The address of the service on a real socket, and its encoder in the hands of the test."""
    made: list[ScaledEncoder] = []

    def build(artifact: Artifact) -> Encoder:
        made.append(ScaledEncoder(openvino(artifact)))
        return made[0]

    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(create_app(settings, build), log_config=None, access_log=False))
    running = asyncio.create_task(server.serve([listening]))
    while not server.started:  # noqa: ASYNC110
        await asyncio.sleep(0)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", made[0]
    finally:
        made[0].release()  # else the server would wait for what a failed test left held
        server.should_exit = True
        await running


def post_once(url: str, body: object) -> Answer:
    connection = Connection(url)
    try:
        return connection.post(body)
    finally:
        connection.close()


def assert_retried(answer: Answer, status: int, type_: str) -> None:
    """OpenSearch before 3.8 retries only what says that it was throttled."""
    assert answer.status == status
    assert_error(answer, type_)
    assert answer.headers["x-amzn-errortype"].startswith("ThrottlingException")
    assert int(answer.headers["retry-after"]) >= 1


async def test_overload_is_retried_and_a_failure_says_no_more_than_it_must(settings: Settings) -> None:
    async with served(settings) as (url, encoder):
        encoder.hold()
        accepted = asyncio.create_task(asyncio.to_thread(post_once, url, ["가"] * 20))
        await encoder.entered()
        assert_retried(await asyncio.to_thread(post_once, url, ["가"] * 11), 429, "overloaded")
        encoder.release()
        (await accepted).vectors(20)
        encoder.fails = True
        failed = await asyncio.to_thread(post_once, url, ["가"])
        assert failed.status == 500
        assert_error(failed, "internal_error")
        assert b"secret" not in failed.body


async def test_what_takes_too_long_is_retried(settings: Settings) -> None:
    impatient = settings.model_copy(update={"request_timeout_seconds": 1e-9})
    async with served(impatient) as (url, _):
        assert_retried(await asyncio.to_thread(post_once, url, ["가"]), 503, "unavailable")


async def test_query_weights_end_at_64_and_document_weights_do_not(settings: Settings) -> None:
    async with served(settings) as (url, encoder):
        encoder.factor = 1000.0
        for side, capped in (("query", True), ("document", False)):
            body = {"texts": [SENTENCES[0]], "input_type": side}
            (vector,) = (await asyncio.to_thread(post_once, url, body)).vectors(1)
            assert (max(vector.values()) <= MAX_QUERY_WEIGHT) == capped
