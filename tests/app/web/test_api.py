"""The routes, over ASGI, with a real model behind them."""

from __future__ import annotations

import asyncio
import gzip
import json
import tracemalloc
import unicodedata
from collections.abc import Mapping
from typing import Any

import httpx
import msgpack
import numpy as np
import pytest
from starlette.types import Message

from app.main import create_app
from app.settings import Settings
from app.web.schemas import EXAMPLES
from app.web.unpacking import unpacker_for, zstd
from sparse_encoder.artifact import Artifact
from tests.app.conftest import openvino
from tests.app.controlled import ControlledEncoder
from tests.tiny import SENTENCES

THROTTLING = {"x-amzn-errortype": "ThrottlingException", "retry-after": "1"}


async def encode(client: httpx.AsyncClient, body: object) -> list[dict[str, float]]:
    response = await client.post("/encode", content=json.dumps(body))
    assert response.status_code == 200, response.text
    vectors: list[dict[str, float]] = response.json()
    return vectors


async def refused(client: httpx.AsyncClient, status: int, body: object | bytes) -> Mapping[str, Any]:
    content = body if isinstance(body, bytes) else json.dumps(body)
    response = await client.post("/encode", content=content)
    assert response.status_code == status, response.text
    assert response.json().keys() == {"error"}
    error: Mapping[str, Any] = response.json()["error"]
    assert error.keys() == {"type", "message", "param"}
    return error


def assert_close(left: Mapping[str, float], right: Mapping[str, float]) -> None:
    keys = sorted(left.keys() | right.keys())
    np.testing.assert_allclose([left.get(k, 0) for k in keys], [right.get(k, 0) for k in keys], rtol=0, atol=2e-4)


@pytest.mark.parametrize("name", ["texts", "inputs", "input", "text_docs"])
async def test_texts_go_by_many_names(client: httpx.AsyncClient, name: str) -> None:
    expected = await encode(client, {"texts": ["손해배상", "인공지능"]})
    assert await encode(client, {name: ["손해배상", "인공지능"]}) == expected
    assert await encode(client, {name: "손해배상"}) == await encode(client, ["손해배상"])


async def test_a_bare_list_and_a_bare_string_are_documents(client: httpx.AsyncClient) -> None:
    (expected,) = await encode(client, {"texts": ["손해배상"], "input_type": "document"})
    assert await encode(client, ["손해배상"]) == [expected]
    assert await encode(client, "손해배상") == [expected]


async def test_no_texts_get_no_vectors(client: httpx.AsyncClient) -> None:
    assert await encode(client, []) == []


async def test_the_answer_has_one_vector_a_text_in_order_and_the_documented_headers(client: httpx.AsyncClient) -> None:
    texts = [SENTENCES[0], " ", "손해배상", "", SENTENCES[5]]
    response = await client.post("/encode", json={"texts": texts})
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-model-version"] == "tiny-v1"
    assert int(response.headers["x-tokens"]) > 20
    stages = [entry.strip().split(";dur=") for entry in response.headers["server-timing"].split(",")]
    assert [name for name, _ in stages] == ["tokenize", "queue", "encode", "write"]
    assert all(float(milliseconds) >= 0 for _, milliseconds in stages)
    vectors = response.json()
    assert [bool(vector) for vector in vectors] == [True, False, True, False, True]
    for text, vector in zip(texts, vectors, strict=True):
        assert_close(vector, (await encode(client, [text]))[0])


async def test_the_answer_is_ascii_and_survives_decoding_in_pieces(client: httpx.AsyncClient) -> None:
    body = (await client.post("/encode", json=SENTENCES[:15])).content
    assert body.isascii()
    pieces = [body[start : start + 7].decode("utf-8", "replace") for start in range(0, len(body), 7)]
    decoded = json.loads("".join(pieces))
    assert any("가" <= char <= "힣" for vector in decoded for token in vector for char in token)
    assert "\ufffd" not in str(decoded)
    assert decoded == await encode(client, SENTENCES[:15])


async def test_weights_descend_are_positive_and_have_five_digits_and_no_key_comes_twice(
    client: httpx.AsyncClient,
) -> None:
    body = (await client.post("/encode", json=SENTENCES[:15])).text
    for pairs in json.loads(body, object_pairs_hook=list, parse_float=str):
        weights = [float(weight) for _, weight in pairs]
        assert weights == sorted(weights, reverse=True)
        assert min(weights) > 0
        assert all(len(str(weight).lstrip("0.").replace(".", "")) <= 5 for _, weight in pairs)
        assert len({key for key, _ in pairs}) == len(pairs)


async def test_formats_in_any_case(client: httpx.AsyncClient) -> None:
    (words,) = await encode(client, {"texts": ["손해배상"]})
    for name in ("word", "WORD", "lexical", "Lexical"):
        assert await encode(client, {"texts": ["손해배상"], "sparse_embedding_format": name}) == [words]
    for name in ("token_id", "TOKEN_ID"):
        (ids,) = await encode(client, {"texts": ["손해배상"], "sparse_embedding_format": name})
        assert list(ids.values()) == list(words.values())
        assert all(key.isdigit() for key in ids)


async def test_other_forms_of_the_answer_hold_the_same(client: httpx.AsyncClient) -> None:
    texts = [SENTENCES[0], " "]
    words = await encode(client, {"texts": texts})
    ids = await encode(client, {"texts": texts, "sparse_embedding_format": "token_id"})
    full = (await client.post("/encode", json={"texts": texts, "sparse_embedding_format": "full"})).json()
    assert [{entry["word"]: entry["weight"] for entry in vector} for vector in full] == words
    assert [{str(entry["id"]): entry["weight"] for entry in vector} for vector in full] == ids
    asked = {"texts": texts, "sparse_embedding_format": "indices", "return_tokens": True}
    written = await client.post("/encode", json=asked)
    packed = await client.post("/encode", json=asked, headers={"Accept": "application/msgpack"})
    assert (written.headers["content-type"], packed.headers["content-type"]) == (
        "application/json",
        "application/msgpack",
    )
    assert len(packed.content) < len(written.content)
    for vector, small, by_id, by_word in zip(written.json(), msgpack.unpackb(packed.content), ids, words, strict=True):
        assert dict(zip(map(str, vector["indices"]), vector["values"], strict=True)) == by_id
        assert vector["tokens"] == list(by_word)
        assert {**small, "values": pytest.approx(vector["values"], abs=2e-4)} == vector
    default = await client.post("/encode", json=texts, headers={"Accept": "application/msgpack"})
    assert [list(vector) for vector in msgpack.unpackb(default.content)] == [["indices", "values"]] * 2


@pytest.mark.parametrize(
    ("fields", "accept", "param"),
    [
        ({"return_tokens": True}, "*/*", "return_tokens"),
        ({"sparse_embedding_format": "word"}, "application/msgpack", "sparse_embedding_format"),
    ],
)
async def test_forms_that_do_not_go_together_are_refused(
    client: httpx.AsyncClient, fields: dict[str, object], accept: str, param: str
) -> None:
    response = await client.post("/encode", json={"texts": ["가"], **fields}, headers={"Accept": accept})
    assert (response.status_code, response.json()["error"]["param"]) == (422, param)


async def test_a_text_that_cannot_be_encoded_costs_itself_alone(settings: Settings) -> None:
    encoders: list[ControlledEncoder] = []

    def build(artifact: Artifact) -> ControlledEncoder:
        encoders.append(ControlledEncoder(openvino(artifact)))
        return encoders[0]

    app = create_app(settings.model_copy(update={"max_characters_per_text": 2000}), build)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            tokens = (await client.post("/tokenize", json={"inputs": "손해배상 청구"})).json()[0]
            encoders[0].poison = [token["id"] for token in tokens]
            good, long = SENTENCES[0], " ".join(SENTENCES)  # more than 64 tokens
            (expected,) = await encode(client, [good])
            body = {"texts": [good, None, long, "손해배상 청구", 7, "가" * 2001, " "], "truncate": "error"}
            for on_error in ("null", None):
                response = await client.post("/encode", content=json.dumps({**body, "on_error": on_error}))
                vectors = response.json()
                assert_close(vectors[0], expected)
                assert vectors[1:] == [*[None] * 5, {}]
                assert response.headers["x-text-errors"] == "5"
            windows = await client.post("/encode", json={"texts": [good, long, None], "on_error": "null"})
            assert [bool(vector) for vector in windows.json()] == [True, True, False]
            query = {"texts": [good, None], "input_type": "query", "query_encoding": "inference_free"}
            first, second = await encode(client, {**query, "on_error": "null"})
            assert [bool(first), second] == [True, None]
            assert (await refused(client, 422, body))["message"] == "texts: expected strings only, item 1 is null"


async def test_packed_bodies_are_unpacked(client: httpx.AsyncClient) -> None:
    body = json.dumps([SENTENCES[0]]).encode()
    (expected,) = await encode(client, [SENTENCES[0]])
    packed = [
        ("gzip", gzip.compress(body)),
        ("GZIP", gzip.compress(body[:30]) + gzip.compress(body[30:])),
        ("zstd", zstd.compress(body)),
        ("zstd", zstd.compress(body[:30]) + zstd.compress(body[30:])),
        ("identity", body),
    ]
    for name, content in packed:
        response = await client.post("/encode", content=content, headers={"Content-Encoding": name})
        assert_close(response.json()[0], expected)


@pytest.mark.parametrize(
    ("name", "content", "status", "message"),
    [
        ("gzip", gzip.compress(b'["\xea\xb0\x80"]', mtime=0)[:-4], 400, "the body ends before"),
        ("zstd", zstd.compress(b'["a"]')[:-3], 400, "the body ends before"),
        ("gzip", b'["a"]', 400, "is not gzip, as its Content-Encoding says"),
        ("zstd", b'["a"]', 400, "is not zstd, as its Content-Encoding says"),
        ("br", b'["a"]', 415, "Content-Encoding is 'br'"),
        (
            "gzip, gzip",
            gzip.compress(gzip.compress(b'["a"]', mtime=0), mtime=0),
            415,
            "Content-Encoding is 'gzip, gzip'",
        ),
        ("gzip", gzip.compress(bytes(100_000_000), 1, mtime=0), 413, "more than 1000000 bytes"),
        ("zstd", zstd.compress(bytes(100_000_000)), 413, "more than 1000000 bytes"),
    ],
)
async def test_packed_bodies_that_are_wrong_or_too_much_are_refused(
    client: httpx.AsyncClient, name: str, content: bytes, status: int, message: str
) -> None:
    response = await client.post("/encode", content=content, headers={"Content-Encoding": name})
    assert response.status_code == status
    assert message in response.json()["error"]["message"]
    assert response.headers.get("accept-encoding") == ("gzip, zstd" if status == 415 else None)


def test_no_more_is_unpacked_than_was_asked_for() -> None:
    for name, packed in (("gzip", gzip.compress(bytes(100_000_000), 1)), ("zstd", zstd.compress(bytes(100_000_000)))):
        unpacker = unpacker_for(name)
        assert unpacker is not None
        tracemalloc.start()
        assert len(unpacker.unpack(packed, 1000)) == 1000
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert most < 2_000_000


async def test_what_machines_and_people_ask_first(client: httpx.AsyncClient, encoder: ControlledEncoder) -> None:
    assert (await client.get("/")).json().keys() == {"service", "version", "docs"}
    assert (await client.get("/ping")).status_code == (await client.head("/ping")).status_code == 200
    encoder.fails = True
    assert (await client.post("/encode", json=["가"])).status_code == 500
    assert (await client.get("/ping")).status_code == 503


async def test_queries_and_documents_differ_in_what_is_kept(client: httpx.AsyncClient) -> None:
    long = " ".join(SENTENCES)  # cut at 32 tokens as a query, at 64 as a document
    (document,) = await encode(client, {"texts": [long]})
    (query,) = await encode(client, {"texts": [long], "input_type": "query"})
    assert document != query
    for name, value, same in [
        ("content_type", "query", query),
        ("content_type", "passage", document),
        ("content_type", "PASSAGE", document),
        ("input_type", "passage", document),
        ("input_type", "Query", query),
    ]:
        assert await encode(client, {"texts": [long], name: value}) == [same]


async def test_a_client_that_knows_documents_only_can_ask_for_queries(client: httpx.AsyncClient) -> None:
    long = " ".join(SENTENCES)  # cut at 32 tokens as a query, at 64 as a document
    by_body = {kind: await encode(client, {"texts": [long], "input_type": kind}) for kind in ("document", "query")}
    headers = {"X-Input-Type": "Query"}
    for path, sent in (("/query/encode", {}), ("/encode?input_type=query", {}), ("/encode", headers)):
        assert (await client.post(path, json=[long], headers=sent)).json() == by_body["query"]
    assert (await client.post("/document/encode?input_type=passage", json=[long])).json() == by_body["document"]
    (tei,) = (await client.post("/query/embed_sparse", json={"inputs": long})).json()
    assert sorted(v["value"] for v in tei) == pytest.approx(sorted(by_body["query"][0].values()), abs=2e-4)


@pytest.mark.parametrize(
    ("path", "headers", "message"),
    [
        ("/query/encode?input_type=document", {}, "the path and ?input_type= name different input types"),
        ("/document/encode", {"X-Input-Type": "query"}, "the path and X-Input-Type name different input types"),
        ("/encode?input_type=both", {}, "?input_type= names the input type 'both': it is query or document"),
    ],
)
async def test_input_types_that_differ_are_refused(
    client: httpx.AsyncClient, path: str, headers: dict[str, str], message: str
) -> None:
    response = await client.post(path, json=["가"], headers=headers)
    assert (response.status_code, response.json()["error"]["param"]) == (422, "input_type")
    assert message in response.json()["error"]["message"]


async def test_top_k_and_min_weight_prune(client: httpx.AsyncClient) -> None:
    (full,) = await encode(client, {"texts": [SENTENCES[0]]})
    (top,) = await encode(client, {"texts": [SENTENCES[0]], "top_k": 3})
    assert list(top.items()) == list(full.items())[:3]
    limit = sorted(full.values())[len(full) // 2]
    (heavy,) = await encode(client, {"texts": [SENTENCES[0]], "min_weight": limit + 1e-4})
    assert 0 < len(heavy) < len(full)
    assert min(heavy.values()) > limit


async def test_inference_free_queries_need_no_encoder(client: httpx.AsyncClient, encoder: ControlledEncoder) -> None:
    body = {"texts": ["손해 배상을 손해", " "], "input_type": "query", "query_encoding": "inference_free"}
    encoder.batches.clear()
    response = await client.post("/encode", json=body)
    vector, empty = response.json()
    assert encoder.batches == []
    assert int(response.headers["x-tokens"]) > 4
    assert {"손해", "배", "상"} <= vector.keys()
    assert not any(token.startswith("##") for token in vector)
    assert empty == {}
    assert list(vector.values()) == sorted(vector.values(), reverse=True)
    lines = (await client.get("/metrics")).text.splitlines()
    assert 'sparse_encoder_active_tokens_count{input_type="query"} 2.0' in lines
    assert not any("answered_vectors_total{" in line for line in lines)  # the band is not of a table
    assert await encode(client, {**body, "query_encoding": "model"}) != [vector, {}]
    assert await encode(client, {**body, "query_encoding": "INFERENCE_FREE", "top_k": 1}) == [
        dict(list(vector.items())[:1]),
        {},
    ]


async def test_what_a_query_cannot_be_is_said(client: httpx.AsyncClient) -> None:
    error = await refused(client, 422, {"texts": ["가"], "query_encoding": "inference_free"})
    assert (error["param"], error["message"][:30]) == ("query_encoding", "query_encoding is for queries:")
    error = await refused(client, 422, {"texts": ["가"], "input_type": "query", "top_k": 257})
    assert (error["param"], error["message"][:35]) == ("top_k", "a query keeps at most 256 tokens, b")


async def test_decomposed_hangul_is_composed_hangul(client: httpx.AsyncClient) -> None:
    composed = unicodedata.normalize("NFC", SENTENCES[2])
    decomposed = unicodedata.normalize("NFD", SENTENCES[2])
    assert composed != decomposed
    assert await encode(client, [decomposed]) == await encode(client, [composed])


@pytest.mark.parametrize(
    "odd", ["\ud800", "\udc00\ud800a", "\x00", "a\x00b", "😀" * 50, "가" * 100_000, "\u202e\ufeff", "[PAD]", "##", "​"]
)
async def test_one_odd_text_never_harms_its_neighbours(client: httpx.AsyncClient, odd: str) -> None:
    (alone,) = await encode(client, ["손해배상"])
    vectors = await encode(client, ["손해배상", odd, "손해배상"])
    assert_close(vectors[0], alone)
    assert_close(vectors[2], alone)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"texts": ["a"]',
        b"texts",
        b'{"texts": [NaN]}',
        b"\xff\xfe\x00",
        b'"\xed"',
        b"[" * 100_000,
        b"1" * 5000,
    ],
)
async def test_what_is_not_json_is_a_400(client: httpx.AsyncClient, body: bytes) -> None:
    error = await refused(client, 400, body)
    assert error["type"] == "malformed_json"
    assert error["message"].startswith("the body is not JSON")


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"texts": ["a"], "foo": 1}, "foo", "unknown field 'foo'"),
        ({"input_type": "query"}, "texts", "texts, inputs, input, text_docs"),
        ({"texts": ["a", 7]}, "texts", "item 1 is a number"),
        ({"inputs": ["a", None]}, "inputs", "item 1 is null"),
        ({"texts": {"a": 1}}, "texts", "expected a list of strings or one string"),
        ({"texts": ["a"], "input": ["b"]}, None, "texts and input mean the same"),
        ({"texts": ["a"], "input_type": "query", "content_type": "query"}, None, "mean the same"),
        ({"texts": ["a"], "input_type": "both"}, "input_type", "'document', 'query' or 'passage'"),
        ({"texts": ["a"], "content_type": "both"}, "content_type", "'document', 'query' or 'passage'"),
        ({"texts": ["a"], "sparse_embedding_format": "dense"}, "sparse_embedding_format", "'lexical'"),
        ({"texts": ["a"], "top_k": 0}, "top_k", "greater than or equal to 1"),
        ({"texts": ["a"], "top_k": "many"}, "top_k", "valid integer"),
        ({"texts": ["a"], "min_weight": -1}, "min_weight", "greater than or equal to 0"),
        (7, None, "expected an object with texts, a list of strings, or a string"),
        (None, None, "expected an object"),
        (["a", ["b"]], "texts", "item 1 is an array"),
    ],
)
async def test_a_wrong_field_is_named_with_what_was_expected(
    client: httpx.AsyncClient, body: object, param: str | None, message: str
) -> None:
    error = await refused(client, 422, body)
    assert error["type"] == "invalid_field"
    assert error["param"] == param
    assert message in error["message"]


async def test_too_many_texts_are_refused(client: httpx.AsyncClient) -> None:
    assert len(await encode(client, ["a"] * 20)) == 20
    error = await refused(client, 413, ["a"] * 21)
    assert (error["type"], error["param"]) == ("too_large", "texts")
    assert "21 texts in one request, at most 20" in error["message"]


async def test_too_many_bytes_are_refused_with_and_without_a_declared_length(client: httpx.AsyncClient) -> None:
    assert "more than 1000000 bytes" in (await refused(client, 413, b" " * 1_000_001))["message"]
    sent = 0

    async def endless() -> Any:
        nonlocal sent
        while True:
            sent += 100_000
            yield b" " * 100_000

    response = await client.post("/encode", content=endless())
    assert response.status_code == 413
    assert sent <= 1_200_000


async def test_unknown_paths_and_methods_have_the_shape_of_every_error_and_nothing_redirects(
    client: httpx.AsyncClient,
) -> None:
    for method, path, status, type_ in [
        ("POST", "/encode/", 404, "not_found"),
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/encode", 405, "method_not_allowed"),
        ("DELETE", "/livez", 405, "method_not_allowed"),
    ]:
        response = await client.request(method, path)
        assert response.status_code == status
        assert response.json()["error"]["type"] == type_
        assert response.json()["error"].keys() == {"type", "message", "param"}


async def test_overload_is_a_429_that_opensearch_retries(client: httpx.AsyncClient, encoder: ControlledEncoder) -> None:
    encoder.hold()
    accepted = asyncio.create_task(client.post("/encode", json=["a"] * 20))
    await encoder.entered()
    response = await client.post("/encode", json=["a"] * 11)
    assert response.status_code == 429
    assert response.json()["error"]["type"] == "overloaded"
    assert response.headers.items() >= THROTTLING.items()
    encoder.release()
    assert (await accepted).status_code == 200


async def test_a_failing_encoder_is_a_500_without_internals_and_not_ready_until_it_works_again(
    client: httpx.AsyncClient, encoder: ControlledEncoder
) -> None:
    encoder.fails = True
    for _ in range(2):
        response = await client.post("/encode", json=["손해배상"])
        assert response.status_code == 500
        assert "secret" not in response.text
        assert response.json()["error"]["type"] == "internal_error"
    response = await client.get("/readyz")
    assert response.status_code == 503
    assert response.headers.items() >= THROTTLING.items()
    assert (await client.get("/livez")).status_code == 200
    encoder.fails = False
    assert (await client.get("/readyz")).json() == {"status": "ready", "version": "tiny-v1"}
    assert len(await encode(client, ["손해배상"])) == 1


async def test_a_bug_is_a_500_without_internals(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr("app.web.answering._write", broken)
    response = await client.post("/encode", json=["a"])
    assert response.status_code == 500
    assert response.json()["error"]["type"] == "internal_error"
    assert "secret" not in response.text


async def test_a_client_that_hangs_up_is_never_encoded(client: httpx.AsyncClient, encoder: ControlledEncoder) -> None:
    transport = client._transport
    assert isinstance(transport, httpx.ASGITransport)
    encoder.hold()
    running = asyncio.create_task(client.post("/encode", json=["a"]))
    await encoder.entered()
    hung_up = asyncio.Event()
    body: list[Message] = [{"type": "http.request", "body": '["손해배상","인공지능"]'.encode(), "more_body": False}]

    async def receive() -> Message:
        if body:
            return body.pop()
        await hung_up.wait()
        return {"type": "http.disconnect"}

    async def send(_: Message) -> None:
        pass

    scope: dict[str, Any] = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "path": "/encode",
        "raw_path": b"/encode",
        "query_string": b"",
        "headers": [],
        "state": {},
    }
    leaving = asyncio.ensure_future(transport.app(scope, receive, send))
    while "sparse_encoder_texts_in_flight 3.0" not in (await client.get("/metrics")).text:  # noqa: ASYNC110
        await asyncio.sleep(0)
    hung_up.set()
    await leaving
    encoder.release()
    assert (await running).status_code == 200
    assert len(await encode(client, ["나"])) == 1
    assert [len(batch) for batch in encoder.batches] == [1, 1]
    metrics = (await client.get("/metrics")).text
    assert "sparse_encoder_texts_in_flight 0.0" in metrics
    assert 'requests_total{path="/encode",status="499"} 1.0' in metrics


async def test_info_tells_model_limits_and_device(client: httpx.AsyncClient) -> None:
    info = (await client.get("/info")).json()
    assert info["model"]["version"] == "tiny-v1"
    assert info["model"]["max_length_query"] == 32
    assert info["device"] == "test"
    assert info["limits"]["max_texts_per_request"] == 20
    assert info["limits"]["top_k_query"] == 64


async def test_metrics_count_texts_tokens_stages_and_errors(client: httpx.AsyncClient) -> None:
    response = await client.post("/encode", json={"texts": ["손해배상", " "], "input_type": "query"})
    tokens = int(response.headers["x-tokens"])
    await refused(client, 422, {"texts": 1})
    lines = (await client.get("/metrics")).text.splitlines()
    for line in (
        'texts_total{input_type="query"} 2.0',
        *(f'stage_seconds_count{{stage="{stage}"}} 1.0' for stage in ("tokenize", "queue", "encode", "write")),
        f"batch_tokens_sum {float(tokens)}",
        f"batch_fill_sum {tokens / 128}",
        f'active_tokens_sum{{input_type="query"}} {float(len(response.json()[0]))}',
        'active_tokens_count{input_type="query"} 2.0',
        "queue_tokens 0.0",
        'request_seconds_count{path="/encode"} 2.0',
        'refusals_total{reason="invalid_field"} 1.0',
        'refusals_total{reason="overloaded"} 0.0',
        'client_texts_total{client="-"} 2.0',
        f'answered_tokens_total{{input_type="query"}} {float(len(response.json()[0]))}',
        'answered_vectors_total{input_type="query"} 2.0',
        'answered_tokens_band{bound="most",input_type="query"} 2000.0',
        "clients_in_flight 0.0",
        "largest_client_share 0.0",
        'requests_total{path="/query/encode",status="503"} 0.0',
        'request_seconds_bucket{le="120.0",path="/encode"} 2.0',  # twice the timeout
        'model{version="tiny-v1"} 1.0',
    ):
        assert f"sparse_encoder_{line}" in lines
    assert any(line.startswith("process_resident_memory_bytes ") for line in lines)
    assert not any(line.startswith("python_gc") for line in lines)  # nothing of the process-wide registry


async def test_only_texts_that_nobody_waits_for_any_more_count_as_abandoned(client: httpx.AsyncClient) -> None:
    for _ in range(2):  # the second time from the cache
        await encode(client, {"texts": ["손해배상"], "input_type": "query"})
    await refused(client, 422, {"texts": [" ".join(SENTENCES)], "truncate": "error"})
    await encode(client, ["나", " "])
    lines = (await client.get("/metrics")).text.splitlines()
    assert "sparse_encoder_query_cache_hits_total 1.0" in lines
    assert "sparse_encoder_abandoned_texts_total 0.0" in lines


async def test_the_memory_of_the_device_is_a_metric(client: httpx.AsyncClient) -> None:
    assert "sparse_encoder_device_memory_bytes 123.0" in (await client.get("/metrics")).text.splitlines()


async def test_the_queue_is_measured_in_tokens(client: httpx.AsyncClient, encoder: ControlledEncoder) -> None:
    alone = await client.post("/encode", json=["손해배상"])
    encoder.hold()
    running = asyncio.create_task(client.post("/encode", json=["a"]))
    await encoder.entered()
    waiting = asyncio.create_task(client.post("/encode", json=["손해배상"] * 3))
    wanted = f"sparse_encoder_queue_tokens {float(alone.headers['x-tokens'])}"  # the same text three times is one
    while wanted not in (await client.get("/metrics")).text.splitlines():  # noqa: ASYNC110
        await asyncio.sleep(0)
    encoder.release()
    await asyncio.gather(running, waiting)
    assert "sparse_encoder_queue_tokens 0.0" in (await client.get("/metrics")).text.splitlines()


async def test_a_text_that_must_not_be_cut_is_refused_before_it_is_encoded(
    client: httpx.AsyncClient, encoder: ControlledEncoder
) -> None:
    long = " ".join(SENTENCES)  # more than 64 tokens
    body = {"texts": ["손해배상", long, long], "truncate": "error"}
    encoder.batches.clear()
    error = await refused(client, 422, body)
    assert (error["type"], error["param"]) == ("text_too_long", "texts")
    assert "2 of the texts, first item 1, have more than the 64 tokens" in error["message"]
    assert encoder.batches == []
    assert await encode(client, {"texts": ["손해배상"], "truncate": "ERROR"}) == await encode(client, ["손해배상"])
    assert await encode(client, {"texts": [long], "truncate": "end"}) == await encode(client, [long])


async def test_long_documents_in_windows(client: httpx.AsyncClient, encoder: ControlledEncoder) -> None:
    long = " ".join(SENTENCES)
    before = await encode(client, [long])
    assert await encode(client, {"texts": [long], "long_texts": "cut"}) == before
    encoder.batches.clear()
    response = await client.post("/encode", json={"texts": ["손해배상", long], "long_texts": "WINDOWS", "top_k": 1000})
    short, whole = response.json()
    assert_close(short, (await encode(client, ["손해배상"]))[0])
    windows = [ids for batch in encoder.batches for ids in batch][:-1]
    assert int(response.headers["x-tokens"]) == sum(map(len, windows))
    (first,) = await encode(client, {"texts": [long], "top_k": 1000})
    assert len(whole) > len(first)
    assert all(whole[token] >= weight - 2e-4 for token, weight in first.items())
    body = {"texts": [long], "long_texts": "windows", "truncate": "error"}  # nothing is cut off
    assert_close((await encode(client, {**body, "top_k": 1000}))[0], whole)
    assert f"sparse_encoder_windows_total {2.0 * (len(windows) - 1)}" in (await client.get("/metrics")).text


async def test_windows_are_for_documents(client: httpx.AsyncClient) -> None:
    error = await refused(client, 422, {"texts": ["손해"], "input_type": "query", "long_texts": "windows"})
    assert error["param"] == "long_texts"
    assert "for documents" in error["message"]
    assert (await refused(client, 422, {"texts": ["손해"], "long_texts": "tiles"}))["param"] == "long_texts"


async def test_windows_can_be_the_services_default(settings: Settings) -> None:
    app = create_app(settings.model_copy(update={"long_texts": "windows", "max_windows": 2}))
    long = " ".join(SENTENCES)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            assert await encode(client, [long]) == await encode(client, {"texts": [long], "long_texts": "windows"})
            assert await encode(client, [long]) != await encode(client, {"texts": [long], "long_texts": "cut"})
            error = await refused(client, 422, {"texts": [long], "truncate": "error"})
            assert "reads in 2 windows" in error["message"]
            await encode(client, {"texts": [long], "input_type": "query"})
            limits = (await client.get("/info")).json()["limits"]
            assert (limits["long_texts"], limits["max_windows"]) == ("windows", 2)


@pytest.mark.parametrize("name", EXAMPLES)
async def test_every_example_of_the_documentation_works_when_pasted(client: httpx.AsyncClient, name: str) -> None:
    schema = (await client.get("/openapi.json")).json()
    content = schema["paths"]["/encode"]["post"]["requestBody"]["content"]["application/json"]
    value = content["examples"][name]["value"]
    texts = value if isinstance(value, list) else value["texts"]
    assert len(await encode(client, value)) == len(texts)
    assert any("가" <= char <= "힣" for char in texts[0])
    assert (await client.get("/docs")).status_code == 200


async def test_a_safe_request_id_is_kept_and_an_unsafe_one_replaced(client: httpx.AsyncClient) -> None:
    assert (await client.get("/livez", headers={"X-Request-Id": "abc-1"})).headers["x-request-id"] == "abc-1"
    answered = (await client.get("/livez", headers={"X-Request-Id": 'a"b c'})).headers["x-request-id"]
    assert len(answered) == 32
