"""Any checkpoint given as `--model`, by the encoder that serves it and over HTTP."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from sentence_transformers.sparse_encoder import SparseEncoder

from app.encoders.openvino_encoder import OpenVINOEncoder
from app.main import create_app
from app.models import memory
from app.models.conversion import open_model
from app.models.loaded import ModelError, check_golden, load_model
from app.settings import Settings
from sparse_encoder.artifact import Artifact, ArtifactError, read_artifact
from sparse_encoder.checkpoint.source import Choices
from tests import foreign
from tests.tiny import dense

pytestmark = pytest.mark.slow

SHAPES: dict[str, Callable[[Path], Path]] = {
    **foreign.MASKED_LM,
    **foreign.SENTENCE_TRANSFORMERS,
    "bge_m3": foreign.bge_m3,
    "gte_new": foreign.gte_new,
}


def exact(artifact: Artifact) -> OpenVINOEncoder:
    return OpenVINOEncoder(artifact, "f32", threads=1)


def opened(model: Path, cache: Path, choices: Choices | None = None) -> Artifact:
    return open_model(str(model), cache, choices or Choices(), exact)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_gives_the_vectors_of_its_own_software(shape: str, tmp_path: Path) -> None:
    source = SHAPES[shape](tmp_path / "source")
    loaded = load_model(opened(source, tmp_path / "cache"), exact)
    check_golden(loaded)
    if shape in foreign.SENTENCE_TRANSFORMERS:
        encoder = SparseEncoder(str(source), device="cpu")
        every = loaded.manifest.vocabulary_size  # what is kept is for the service to say
        theirs: Any = encoder.encode_document(foreign.TEXTS, convert_to_sparse_tensor=False, max_active_dims=every)
        expected = theirs.numpy()
    elif shape == "bge_m3":
        expected = foreign.by_bge_m3(source, loaded.max_length("document"))
    else:
        if shape == "v1_wrapper":  # reads only with code of its own; it is this model with other names
            source = foreign.modernbert_legacy(tmp_path / "unwrapped")
        if shape == "gte_new":
            source = foreign.gte(tmp_path / "now")
        expected = foreign.by_transformers(source, loaded.max_length("document"))
    expected[:, list(loaded.manifest.never_emitted_ids)] = 0
    for text, row in zip(foreign.TEXTS, expected[:, : loaded.manifest.vocabulary_size], strict=True):
        np.testing.assert_allclose(dense(loaded.vector(text, "document"), len(row)), row, atol=1e-4)
        assert row.any()


def test_the_sizes_of_v1(tmp_path: Path) -> None:
    """With 2 of its 22 layers; `benchmarks/base_shape.py` takes all."""
    plain = foreign.base_shape(tmp_path / "plain", layers=2)
    source = foreign.wrap(Path(shutil.copytree(plain, tmp_path / "wrapped")))
    loaded = load_model(opened(source, tmp_path / "cache"), exact)
    manifest = loaded.manifest
    assert (manifest.vocabulary_size, loaded.tokenizer.pad_id) == (50_000, 49_999)
    assert manifest.max_length_document == 64  # of its tokenizer; there are positions for 16,384
    expected = foreign.by_transformers(plain, 64)
    expected[:, list(manifest.never_emitted_ids)] = 0
    for text, row in zip(foreign.TEXTS, expected, strict=True):
        np.testing.assert_allclose(dense(loaded.vector(text, "document"), len(row)), row, atol=1e-4)
        assert row.any()


@asynccontextmanager
async def serving(model: str, cache: Path, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    settings = Settings(model=model, cache_dir=cache, precision="f32", encoder_threads=1, log_level="error", **options)
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            yield client


async def test_a_checkpoint_of_others_is_served(tmp_path: Path) -> None:
    source = foreign.v1_wrapper(tmp_path / "source")
    expected = foreign.by_transformers(foreign.modernbert_legacy(tmp_path / "unwrapped"), 64)
    async with serving(str(source), tmp_path / "cache", top_k_document=1000, max_length_query=20) as client:
        info = (await client.get("/info")).json()["model"]
        assert info["architecture"] == "ModernBertForMaskedLM"
        assert (info["max_length_document"], info["max_length_query"]) == (64, 20)
        body = {"texts": foreign.TEXTS, "sparse_embedding_format": "token_id"}
        answer = (await client.post("/encode", json=body)).json()
    for vector, row in zip(answer, expected, strict=True):
        assert vector
        for token_id, weight in vector.items():
            assert weight == pytest.approx(row[int(token_id)], abs=1e-3)  # answers have 5 digits


async def test_what_sentence_transformers_says_of_texts_is_done(tmp_path: Path) -> None:
    """Prompts, the number of tokens that a vector keeps, and the length of the tokenizer."""
    source = foreign.splade_prompted(tmp_path / "source")
    encoder = SparseEncoder(str(source), device="cpu")
    async with serving(str(source), tmp_path / "cache") as client:
        for side, encode in (("document", encoder.encode_document), ("query", encoder.encode_query)):
            theirs: Any = encode([foreign.TEXTS[1]], convert_to_sparse_tensor=False)
            body = {"texts": [foreign.TEXTS[1], " "], "input_type": side, "sparse_embedding_format": "token_id"}
            vector, blank = (await client.post("/encode", json=body)).json()
            assert {int(token_id): weight for token_id, weight in vector.items()} == {
                token_id: pytest.approx(weight, abs=1e-3)
                for token_id, weight in enumerate(theirs[0].tolist())
                if weight
            }
            assert blank == {}
            assert len(vector) == 8
            (more,) = (await client.post("/encode", json={"texts": [foreign.TEXTS[1]], "top_k": 12})).json()
            assert len(more) == 12
    assert opened(foreign.splade_long(tmp_path / "long"), tmp_path / "cache").manifest.max_length_document == 600


async def test_queries_of_an_inference_free_checkpoint_have_its_fixed_weights(tmp_path: Path) -> None:
    source = foreign.routed_from_root(tmp_path / "source")
    async with serving(str(source), tmp_path / "cache") as client:
        body = {"texts": ["손해배상"], "input_type": "query", "sparse_embedding_format": "token_id"}
        (vector,) = (await client.post("/encode", json=body)).json()
    expected = SparseEncoder(str(source), device="cpu").encode_query("손해배상", convert_to_sparse_tensor=False)
    assert {int(token_id): weight for token_id, weight in vector.items()} == {
        token_id: pytest.approx(weight, rel=1e-4) for token_id, weight in enumerate(expected.tolist()) if weight
    }


def test_a_manifest_of_other_software_makes_no_artifact(tmp_path: Path) -> None:
    source = foreign.bert(tmp_path / "source")
    (source / "manifest.json").write_text('{"name": "something else"}', encoding="utf-8")
    assert opened(source, tmp_path / "cache").manifest.architecture == "BertForMaskedLM"
    for damaged in ("{", "[]", '{"format_version": 7}'):
        (source / "manifest.json").write_text(damaged, encoding="utf-8")
        with pytest.raises(ArtifactError, match=r"manifest\.json"):
            opened(source, tmp_path / "cache")


async def test_a_vocabulary_that_a_sparse_vector_field_cannot_hold_is_refused_for_that_alone(tmp_path: Path) -> None:
    source = foreign.large_vocabulary(tmp_path / "source")
    expected = foreign.by_transformers(source, 64)[0]
    body = {"texts": [foreign.TEXTS[0]], "sparse_embedding_format": "token_id", "top_k": 33_000}
    async with serving(str(source), tmp_path / "cache") as client:
        (ids,) = (await client.post("/encode", json=body)).json()
        (tei,) = (await client.post("/embed_sparse", json={"inputs": foreign.TEXTS[0]})).json()
        refused = await client.post("/encode", json={**body, "sparse_embedding_format": "sparse_vector"})
    assert max(map(int, ids)) > 32_768
    for token_id, weight in [*ids.items(), *((value["index"], value["value"]) for value in tei)]:
        assert weight == pytest.approx(expected[int(token_id)], abs=1e-3)
    assert refused.status_code == 422
    assert refused.json()["error"]["param"] == "sparse_embedding_format"
    assert "more tokens than a sparse_vector field of OpenSearch has ids (32,768)" in refused.json()["error"]["message"]


def test_it_is_converted_once_and_again_when_it_changes(tmp_path: Path) -> None:
    source, cache = foreign.bert(tmp_path / "source"), tmp_path / "cache"
    first = opened(source, cache)
    written = (first.path / "model.safetensors").stat().st_ino
    assert (opened(source, cache).path / "model.safetensors").stat().st_ino == written
    assert first.manifest.evaluation == {"golden_vectors": "by the encoder that serves it, in f32"}
    shorter = opened(source, cache, Choices(max_length_document=30))
    foreign.untied(source)
    versions = {first.manifest.version, shorter.manifest.version, opened(source, cache).manifest.version}
    assert len(versions) == 3


def test_an_artifact_is_served_as_it_is(tiny_artifact: Path, tmp_path: Path) -> None:
    assert opened(tiny_artifact, tmp_path / "cache") == read_artifact(tiny_artifact)
    assert not (tmp_path / "cache").exists()
    with pytest.raises(ModelError, match="says its own lengths: leave out --max-length-document"):
        opened(tiny_artifact, tmp_path / "cache", Choices(max_length_query=10))


def test_a_length_beyond_the_positions_is_refused(tmp_path: Path) -> None:
    source = foreign.roberta(tmp_path / "source")
    with pytest.raises(ArtifactError, match="69 tokens was asked for, the model has positions for 68: lower"):
        opened(source, tmp_path / "cache", Choices(max_length_document=69))


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ModelError, match=r"file cannot be written .*: give a directory that can be, with --cache-dir"):
        opened(foreign.bert(tmp_path / "source"), tmp_path / "file")


def test_memory_is_looked_at_before_anything_is_converted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_artifact: Path
) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 100_000)
    for model in (foreign.bert(tmp_path / "source"), tiny_artifact):
        with pytest.raises(ModelError, match="0 MB are available: raise the memory limit"):
            opened(model, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
