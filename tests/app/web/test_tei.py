"""What clients of text-embeddings-inference expect, by Hugging Face's own client over a real socket."""

from __future__ import annotations

import json
import tomllib
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import tokenizers
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.inference._providers import get_provider_helper

from app import __version__
from tests.app.controlled import ControlledEncoder
from tests.app.server import ROOT, Server, running
from tests.tiny import SENTENCES

LONG = " ".join(SENTENCES)  # more than the 64 tokens of a document


@pytest.fixture(scope="module")
def server(tiny_artifact: Path) -> Iterator[Server]:
    with running("-m", "app", "--port", "0", "--model", str(tiny_artifact), "--encoder-threads", "1") as server:
        yield server


class SparseClient(InferenceClient):
    """Their client makes a dense array of what `feature_extraction` gets; here its answer is kept as it comes."""

    def embed_sparse(self, inputs: str | list[str], **parameters: Any) -> Any:
        url = f"{self.model}/embed_sparse"
        helper = get_provider_helper("hf-inference", task="feature-extraction", model=url)
        request = helper.prepare_request(
            inputs=inputs, parameters=parameters, headers=self.headers, model=url, api_key=self.token
        )
        return json.loads(self._inner_post(request))


@pytest.fixture(scope="module")
def hub(server: Server) -> SparseClient:
    return SparseClient(server.url, provider="hf-inference")


def test_the_same_vectors_as_encode(server: Server, hub: SparseClient) -> None:
    texts = ["손해배상", " ", SENTENCES[0]]
    body = {"texts": texts, "sparse_embedding_format": "token_id"}
    expected = httpx.post(f"{server.url}/encode", json=body, timeout=None).json()
    found = hub.embed_sparse(texts)
    assert [{str(v["index"]): v["value"] for v in vector} for vector in found] == [
        pytest.approx(vector, abs=2e-4) for vector in expected
    ]
    assert all(vector == sorted(vector, key=lambda value: value["index"]) for vector in found)


def test_one_text_is_a_list_of_one(hub: SparseClient) -> None:
    (alone,) = hub.embed_sparse("손해배상")
    (in_a_list,) = hub.embed_sparse(["손해배상"])
    assert alone == in_a_list
    assert alone[0].keys() == {"index", "value"}


def test_prompts_tell_queries_from_documents(server: Server, hub: SparseClient) -> None:
    (query,) = hub.embed_sparse(LONG, prompt_name="query")
    (document,) = hub.embed_sparse(LONG, prompt_name="document")
    assert document == hub.embed_sparse(LONG)[0]
    assert query != document


def test_tokens_are_those_of_the_tokenizer(server: Server, tiny_artifact: Path) -> None:
    backend = tokenizers.Tokenizer.from_file(str(tiny_artifact / "tokenizer.json"))
    texts = [SENTENCES[0], "", unicodedata.normalize("NFD", "손해배상 😀 abc")]
    for special in (True, False):
        body = {"inputs": texts, "add_special_tokens": special}
        response = httpx.post(f"{server.url}/tokenize", json=body, timeout=None)
        for text, tokens in zip(texts, response.json(), strict=True):
            encoding = backend.encode(text, add_special_tokens=special)
            assert [token["id"] for token in tokens] == encoding.ids
            for token, vocabulary_s in zip(tokens, encoding.tokens, strict=True):
                if token["special"]:
                    assert (token["text"], token["start"], token["stop"]) == (vocabulary_s, None, None)
                else:
                    composed = unicodedata.normalize("NFC", text)
                    assert token["text"] == composed[token["start"] : token["stop"]] != ""
        assert int(response.headers["x-tokens"]) == sum(map(len, response.json()))
    assert httpx.post(f"{server.url}/tokenize", json={"inputs": [1]}, timeout=None).json().keys() == {
        "error",
        "error_type",
    }


def test_an_answer_says_what_was_computed(server: Server) -> None:
    texts = ["손해배상", SENTENCES[0]]
    answered = httpx.post(f"{server.url}/embed_sparse", json={"inputs": texts}, timeout=None)
    tokens = httpx.post(f"{server.url}/tokenize", json={"inputs": texts}, timeout=None)
    assert answered.headers["x-compute-tokens"] == tokens.headers["x-tokens"]
    assert answered.headers["x-compute-characters"] == str(sum(map(len, texts)))


def test_a_base_address_makes_a_client_of_queries(server: Server, hub: SparseClient) -> None:
    """For clients that send no prompt name."""
    queries = SparseClient(f"{server.url}/query", provider="hf-inference")
    assert queries.embed_sparse(LONG) == hub.embed_sparse(LONG, prompt_name="query")
    assert SparseClient(f"{server.url}/document", provider="hf-inference").embed_sparse(LONG) == hub.embed_sparse(LONG)
    with pytest.raises(HfHubHTTPError, match="the body and the path name different input types"):
        queries.embed_sparse(LONG, prompt_name="document")


def test_a_text_that_is_too_long_is_cut_unless_that_is_refused(hub: SparseClient) -> None:
    assert hub.embed_sparse([LONG]) == hub.embed_sparse([LONG], truncate=True)
    with pytest.raises(HfHubHTTPError, match="more than the 64 tokens that the model reads") as refusal:
        hub.embed_sparse([LONG], truncate=False)
    assert refusal.value.response.status_code == 413
    assert refusal.value.response.json()["error_type"] == "Validation"


@pytest.mark.parametrize(
    ("body", "status", "error_type"),
    [
        (b"{", 400, "Validation"),
        (b'{"inputs": []}', 400, "Empty"),
        (b"{}", 422, "Validation"),
        (b'{"inputs": [1]}', 422, "Validation"),
        (b'{"inputs": ["a"], "truncation_direction": "left"}', 422, "Validation"),
        (json.dumps({"inputs": ["a"] * 1025}).encode(), 413, "Validation"),
    ],
)
def test_errors_have_their_shape(server: Server, body: bytes, status: int, error_type: str) -> None:
    response = httpx.post(f"{server.url}/embed_sparse", content=body, timeout=None)
    assert (response.status_code, response.json()["error_type"]) == (status, error_type)
    assert response.json().keys() == {"error", "error_type"}
    assert response.json()["error"]


async def test_overload_and_failure_have_their_shape(client: httpx.AsyncClient, encoder: ControlledEncoder) -> None:
    encoder.fails = True
    failed = await client.post("/embed_sparse", json={"inputs": ["a"]})
    assert (failed.status_code, failed.json()["error_type"]) == (424, "Backend")
    unhealthy = await client.get("/health")
    assert (unhealthy.status_code, unhealthy.json()["error_type"]) == (503, "Unhealthy")
    encoder.fails = False
    assert (await client.get("/health")).status_code == 200


def test_health_and_info(hub: SparseClient) -> None:
    assert hub.health_check() is True
    info = hub.get_endpoint_info()
    assert info["model_id"] == info["model"]["version"] == "tiny-v1"
    assert info["model_type"] == {"embedding": {"pooling": "splade"}}
    assert info["max_client_batch_size"] == info["limits"]["max_texts_per_request"] == 1024
    assert info["max_input_length"] == 64
    assert info["model_dtype"] in {"float32", "bfloat16", "int8"}  # as the processor is good at
    assert info["auto_truncate"] is True
    assert info["version"] == __version__
    assert info.keys() >= {
        "model_sha",
        "max_concurrent_requests",
        "max_batch_tokens",
        "max_batch_requests",
        "tokenization_workers",
        "sha",
        "docker_label",
    }


def test_the_version_is_that_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert __version__ == project["version"]
