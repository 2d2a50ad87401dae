"""`POST /explain`, over ASGI: what it says is what `/encode` answers, and it keeps to the same rules."""

from __future__ import annotations

import asyncio
import unicodedata
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from app.engine import explaining
from app.settings import Settings
from app.web.explain import MOST_TEXTS
from app.web.schemas import EXPLAIN_EXAMPLES
from sparse_encoder.artifact import Manifest
from sparse_encoder.query_tokens import QueryTokens, RelatedWords
from tests.app.controlled import ControlledEncoder
from tests.app.web.test_access import bearer, entry, serving
from tests.tiny import SENTENCES


async def explained(client: httpx.AsyncClient, body: object, **options: Any) -> dict[str, Any]:
    response = await client.post("/explain", json=body, **options)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    assert response.headers["x-model-version"] == answer["version"]
    return answer


def weights(explanation: dict[str, Any]) -> dict[str, float]:
    return {word["word"]: word["weight"] for word in explanation["words"]}


@pytest.fixture(params=["tiny_artifact", "lexical_artifact"])
async def service(request: pytest.FixtureRequest, settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(
        settings, model=str(request.getfixturevalue(request.param)), max_windows=3, precision="f32"
    ) as client:
        yield client


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"input_type": "query"},
        {"input_type": "query", "query_encoding": "inference_free"},
        {"top_k": 5},
        {"min_weight": 0.5},
        {"long_texts": "windows"},
    ],
    ids=str,
)
async def test_the_words_are_those_of_encode_and_each_has_its_reasons(
    service: httpx.AsyncClient, options: dict[str, Any]
) -> None:
    texts = ["손해배상 청구", SENTENCES[0], " ".join(SENTENCES), " "]
    encoded = (await service.post("/encode", json={"texts": texts, **options})).json()
    answer = await explained(service, {"texts": texts, **options})
    assert [weights(explanation) for explanation in answer["texts"]] == encoded
    assert (answer["query"], answer["scores"]) == (None, None)
    for text, explanation in zip(texts, answer["texts"], strict=True):
        assert explanation["largest_difference"] < 1e-4
        for word in explanation["words"]:
            shares = [part["share"] for part in word["tokens"]]
            assert sum(shares) == pytest.approx(1, abs=1e-3) or not shares
            if word["own"]:
                silent = {explanation["tokens"][part["token"]]["silent"] for part in word["tokens"]}
                assert silent <= {None, "special"}  # the parts of the tiny model are drawn for every token
        for token in explanation["tokens"]:
            if token["start"] is None:
                assert token["silent"] == "special"
            elif token["token"] != "[UNK]":
                assert text[token["start"] : token["stop"]].lower() == token["token"].removeprefix("##")
    long = answer["texts"][2]
    windows = {0, 1, 2} if "long_texts" in options else {0}
    assert {token["window"] for token in long["tokens"]} == windows
    if "top_k" not in options and "min_weight" not in options:
        brought = {long["tokens"][part["token"]]["window"] for word in long["words"] for part in word["tokens"]}
        assert brought == windows
    read = max(token["stop"] for token in long["tokens"] if token["stop"])
    assert long["cut"] == {"start": read, "stop": len(texts[2])}


async def test_places_are_those_of_the_text_as_it_was_sent(service: httpx.AsyncClient) -> None:
    composed, decomposed = ({"texts": [unicodedata.normalize(form, SENTENCES[0])]} for form in ("NFC", "NFD"))
    (one,), (other,) = [(await explained(service, body))["texts"] for body in (composed, decomposed)]
    assert weights(one) == weights(other)
    for left, right in zip(one["tokens"], other["tokens"], strict=True):
        if left["start"] is not None:
            piece = decomposed["texts"][0][right["start"] : right["stop"]]
            assert unicodedata.normalize("NFC", piece) == composed["texts"][0][left["start"] : left["stop"]]


async def test_what_a_prompt_adds_has_no_place_in_the_text(
    service: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Manifest, "prompted", lambda manifest, text, input_type: f"청구 {text}")
    (explanation,) = (await explained(service, {"texts": [SENTENCES[0]]}))["texts"]
    assert [weights(explanation)] == (await service.post("/encode", json=[SENTENCES[0]])).json()
    first, added, *others = explanation["tokens"]
    assert (first["start"], added["start"], added["token"]) == (None, None, "청구")
    for token in others:
        if token["start"] is not None and token["token"] != "[UNK]":
            assert SENTENCES[0][token["start"] : token["stop"]].lower() == token["token"].removeprefix("##")
    assert any(token["start"] == 0 for token in others)


async def test_what_is_left_out_is_said(client: httpx.AsyncClient) -> None:
    (whole,), (few,) = [
        (await explained(client, {"texts": [SENTENCES[0]], **bound}))["texts"]
        for bound in ({"top_k": 999}, {"top_k": 3})
    ]
    assert (whole["left_out"]["pruned"], whole["left_out"]["pruned_words"], len(few["words"])) == ([], 0, 3)
    gone = {word["word"]: word["weight"] for word in few["left_out"]["pruned"]}
    assert weights(few) | gone == weights(whole) | {
        word["word"]: word["weight"] for word in whole["left_out"]["unwritable"]
    }
    assert few["left_out"]["pruned_words"] == len(gone)
    assert any(token["silent"] == "never_emitted" for token in few["tokens"])


async def test_a_query_scores_its_documents(service: httpx.AsyncClient) -> None:
    query, texts = "당뇨병 치료", SENTENCES[:4]
    asked = (await service.post("/encode", json={"texts": [query], "input_type": "query", "top_k": 30})).json()[0]
    stored = (await service.post("/encode", json={"texts": texts})).json()
    answer = await explained(service, {"query": query, "texts": texts, "query_top_k": 30, "rounding": "none"})
    assert weights(answer["query"]) == asked
    assert [weights(explanation) for explanation in answer["texts"]] == stored
    for vector, score in zip(stored, answer["scores"], strict=True):
        adds = {word: asked[word] * vector[word] for word in asked.keys() & vector.keys()}
        assert {word["word"]: word["adds"] for word in score["words"]} == pytest.approx(adds, rel=1e-4)
        assert score["score"] == pytest.approx(sum(adds.values()), rel=1e-4)
    for rounding in ("rank_features", "sparse_vector"):
        rounded = await explained(service, {"query": query, "texts": texts, "query_top_k": 30, "rounding": rounding})
        for exact, score in zip(answer["scores"], rounded["scores"], strict=True):
            assert score["score"] != exact["score"] or not exact["score"]


async def test_the_query_may_be_encoded_without_the_model(
    client: httpx.AsyncClient, encoder: ControlledEncoder
) -> None:
    body = {"texts": ["손해배상"], "input_type": "query", "query_encoding": "inference_free"}
    expected = (await client.post("/encode", json=body)).json()[0]
    answer = await explained(client, {"query": "손해배상", "texts": ["청구"], "query_encoding": "inference_free"})
    assert weights(answer["query"]) == expected
    assert all(word["own"] for word in answer["query"]["words"])


def test_a_query_by_a_table_of_related_words_is_explained_as_it_is_encoded(lexical_artifact: Path) -> None:
    from app.encoders.explaining import read_query, reasons
    from sparse_encoder.lexical_tables import LexicalTables
    from sparse_encoder.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_file(lexical_artifact / "tokenizer.json")
    plain = QueryTokens.read(lexical_artifact, len(tokenizer.vocabulary))
    assert plain is not None
    weights = plain.weights.copy()
    tables = LexicalTables.read(lexical_artifact)
    weights[weights == 0] = 1
    table = QueryTokens(False, plain.emitted_as, weights, RelatedWords(1.5, 3.0, tables))
    brought = 0
    for text in (*SENTENCES[:8], "손해배상 청구 손해배상", "7", "a"):
        (tokenised,) = tokenizer.encode_batch([text], 64)
        vector = table.vector(tokenised.ids)
        found = reasons(read_query(table, tokenised.ids), None, vector.ids, "relu", "max")
        assert [reason.weight for reason in found] == pytest.approx(vector.weights.tolist(), rel=1e-5)
        brought += sum(bool(reason.related) for reason in found)
        assert all(reason.own or reason.related for reason in found)
    assert brought > 20


async def test_an_explanation_holds_up_nobody_who_wants_vectors(
    client: httpx.AsyncClient, encoder: ControlledEncoder
) -> None:
    encoder.may_explain.clear()
    waiting = asyncio.create_task(explained(client, {"texts": ["손해배상"]}))
    await asyncio.to_thread(encoder.explaining.wait)
    assert (await client.post("/encode", json=["청구"])).status_code == 200
    assert not waiting.done()
    encoder.may_explain.set()
    assert (await waiting)["texts"][0]["words"]


async def test_more_explanations_than_people_wait_for_are_refused(
    client: httpx.AsyncClient, encoder: ControlledEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explaining, "MOST_WAITING", 2)
    encoder.may_explain.clear()
    waiting = asyncio.create_task(explained(client, {"texts": ["손해배상", "청구"]}))
    await asyncio.to_thread(encoder.explaining.wait)
    refused = await client.post("/explain", json={"texts": ["인공지능"]})
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert refused.json()["error"]["type"] == "overloaded"
    encoder.may_explain.set()
    assert len((await waiting)["texts"]) == 2
    assert (await client.post("/explain", json={"texts": ["인공지능"]})).status_code == 200


async def test_texts_in_flight_are_counted_while_they_are_explained(
    client: httpx.AsyncClient, encoder: ControlledEncoder
) -> None:
    encoder.may_explain.clear()
    waiting = asyncio.create_task(explained(client, {"texts": ["손해배상"] * 15}))
    await asyncio.to_thread(encoder.explaining.wait)
    assert (await client.post("/encode", json=["청구"] * 16)).status_code == 429  # of the 30 of the settings
    encoder.may_explain.set()
    await waiting
    assert (await client.post("/encode", json=["청구"] * 16)).status_code == 200


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"texts": ["가"] * 21}, 413, "texts"),
        ({"texts": ["가"], "query": "나", "input_type": "query"}, 422, "input_type"),
        ({"texts": ["가"], "query": ""}, 422, "query"),
        ({"texts": ["가"], "top_k": 0}, 422, "top_k"),
        ({"texts": ["가"], "rounding": "bytes"}, 422, "rounding"),
        ({"texts": ["가"], "sparse_embedding_format": "word"}, 422, "sparse_embedding_format"),
        ({"texts": ["가"], "version": "other"}, 404, "version"),
        ({"texts": [" ".join(SENTENCES)], "truncate": "error"}, 422, "texts"),
        ({"texts": ["가"], "query": " ".join(SENTENCES), "truncate": "error"}, 422, "texts"),
        ({"texts": ["가"], "input_type": "query", "top_k": 257}, 422, "top_k"),
        ({"texts": [5]}, 422, "texts"),
        ({}, 422, "texts"),
    ],
    ids=str,
)
async def test_what_is_wrong_is_refused_as_by_encode(
    client: httpx.AsyncClient, body: dict[str, Any], status: int, param: str
) -> None:
    response = await client.post("/explain", json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (status, param)
    if "query" not in body and "rounding" not in body and "sparse_embedding_format" not in body:
        same = await client.post("/encode", json=body)
        assert (same.status_code, same.json()) == (response.status_code, response.json())


async def test_more_texts_than_a_person_reads_are_refused(settings: Settings) -> None:
    async with serving(settings, max_texts_per_request=100, max_texts_in_flight=100) as client:
        response = await client.post("/explain", json={"texts": ["가"] * MOST_TEXTS, "query": "나"})
        assert (response.status_code, response.json()["error"]["type"]) == (413, "too_large")
        assert f"at most {MOST_TEXTS}" in response.json()["error"]["message"]


async def test_a_text_that_cannot_be_encoded_may_cost_itself_alone(client: httpx.AsyncClient) -> None:
    body = {"texts": ["손해배상", 5, " ".join(SENTENCES)], "truncate": "error", "on_error": None, "query": "청구"}
    answer = await explained(client, body)
    assert [explanation is None for explanation in answer["texts"]] == [False, True, True]
    assert [score is None for score in answer["scores"]] == [False, True, True]


async def test_a_failure_says_nothing_of_itself(client: httpx.AsyncClient, encoder: ControlledEncoder) -> None:
    encoder.fails = True
    response = await client.post("/explain", json={"texts": ["손해배상"]})
    assert (response.status_code, "secret" in response.text) == (500, False)


async def test_a_key_is_asked_for(settings: Settings) -> None:
    async with serving(settings, api_keys=SecretStr(entry("search", "right"))) as client:
        assert (await client.post("/explain", json={"texts": ["가"]})).status_code == 401
        assert (await client.post("/explain", json={"texts": ["가"]}, headers=bearer("right"))).status_code == 200


async def test_memory_that_is_short_is_left_to_those_who_want_vectors(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explaining, "available_bytes", lambda: 1000)
    response = await client.post("/explain", json={"texts": ["손해배상"]})
    assert response.status_code == 503
    assert "memory is too short to explain" in response.json()["error"]["message"]
    assert (await client.post("/encode", json=["손해배상"])).status_code == 200


@pytest.mark.parametrize("name", EXPLAIN_EXAMPLES)
async def test_every_example_works_when_pasted(client: httpx.AsyncClient, name: str) -> None:
    schema = (await client.get("/openapi.json")).json()
    content = schema["paths"]["/explain"]["post"]["requestBody"]["content"]["application/json"]
    answer = await explained(client, content["examples"][name]["value"])
    assert all("words" in explanation for explanation in answer["texts"])
