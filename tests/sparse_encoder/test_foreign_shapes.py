"""Every shape of checkpoint, converted, gives the vectors that its own software gives."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import transformers
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from sentence_transformers.sparse_encoder import SparseEncoder

from sparse_encoder.artifact import Artifact, InputType, read_artifact
from sparse_encoder.checkpoint.convert import convert
from sparse_encoder.checkpoint.reference import REFERENCE, Reference
from sparse_encoder.checkpoint.source import Choices, Source, read_source
from sparse_encoder.query_tokens import QueryTokens
from sparse_encoder.vector import SparseVector
from tests import foreign
from tests.tiny import SPECIAL_TOKENS


def converted(source: Path, target: Path, choices: Choices | None = None) -> tuple[Source, Artifact]:
    read = read_source(source, source.name, choices or Choices())
    return read, read_artifact(convert(read, target, REFERENCE))


def check_same(artifact: Artifact, theirs: NDArray[np.float32], input_type: InputType = "document") -> None:
    """`theirs`: [texts, vocabulary], by the checkpoint's own software, which may emit special tokens."""
    reference, never = Reference(artifact), list(artifact.manifest.never_emitted_ids)
    theirs = theirs[:, : artifact.manifest.vocabulary_size].copy()
    theirs[:, never] = 0
    for text, expected in zip(foreign.TEXTS, theirs, strict=True):
        ours = dense(reference.vector(text, input_type), len(expected))
        np.testing.assert_allclose(ours, expected, atol=1e-4)
        assert 10 < np.count_nonzero(expected) < len(expected)


def dense(vector: SparseVector, size: int) -> NDArray[np.float32]:
    row = np.zeros(size, np.float32)
    row[vector.ids] = vector.weights
    return row


@pytest.mark.parametrize("shape", foreign.MASKED_LM)
def test_masked_language_models(shape: str, tmp_path: Path) -> None:
    source = foreign.MASKED_LM[shape](tmp_path / "source")
    read, artifact = converted(source, tmp_path / "artifact")
    if shape == "v1_wrapper":  # reads only with code of its own; it is this model with other names
        source = foreign.modernbert_legacy(tmp_path / "unwrapped")
    check_same(artifact, foreign.by_transformers(source, read.max_length_document))
    assert artifact.manifest.architecture == transformers.AutoConfig.from_pretrained(source).architectures[0]
    assert (artifact.manifest.activation, artifact.manifest.pooling) == ("log1p_relu", "max")


#: One with prompts cuts its vectors, too: `tests/app/models/test_conversion.py`.
@pytest.mark.parametrize("shape", [shape for shape in foreign.SENTENCE_TRANSFORMERS if shape != "splade_prompted"])
def test_sentence_transformers(shape: str, tmp_path: Path) -> None:
    source = foreign.SENTENCE_TRANSFORMERS[shape](tmp_path / "source")
    _, artifact = converted(source, tmp_path / "artifact")
    encoder = SparseEncoder(str(source), device="cpu")
    theirs = encoder.encode_document(foreign.TEXTS, convert_to_sparse_tensor=False)
    check_same(artifact, theirs.numpy())
    manifest = artifact.manifest
    assert manifest.pooling == ("sum" if shape == "splade_sum" else "max")
    double = shape == "splade_double" or shape.startswith("routed")
    assert manifest.activation == ("log1p_log1p_relu" if double else "log1p_relu")
    assert manifest.max_length_document == {"splade_short": 12, "splade_long": 600}.get(shape, 64)


@pytest.mark.parametrize("shape", foreign.INFERENCE_FREE)
def test_fixed_weights_of_queries(shape: str, tmp_path: Path) -> None:
    source = foreign.INFERENCE_FREE[shape](tmp_path / "source")
    read, artifact = converted(source, tmp_path / "artifact")
    size = artifact.manifest.vocabulary_size
    tokens = QueryTokens.read(artifact.path, size)
    assert tokens is not None
    assert tokens.default
    weights = foreign.static_weights(size)
    tokenizer = Reference(artifact).tokenizer
    for text in foreign.TEXTS[:-1]:  # of the last, theirs reads two tokens more: it counts no special ones
        (tokenised,) = tokenizer.encode_batch([text], 64)
        if shape.startswith("routed"):
            encoder = SparseEncoder(str(source), device="cpu")
            expected = encoder.encode_query(text, convert_to_sparse_tensor=False).numpy()
        else:
            expected = np.zeros(size, np.float32)
            expected[tokenised.ids] = weights[tokenised.ids]
        expected[list(read.never_emitted_ids)] = 0
        np.testing.assert_allclose(dense(tokens.vector(tokenised.ids), size), expected, rtol=1e-4)
        assert expected.any()


def test_special_tokens_are_those_of_the_tokenizer_and_closed_in_the_weights(tmp_path: Path) -> None:
    """config.json of this shape names other ids, as v1 does."""
    source = foreign.v1_wrapper(tmp_path / "source")
    read, artifact = converted(source, tmp_path / "artifact")
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    names = [str(read.tokenizer.backend.id_to_token(token_id)) for token_id in read.never_emitted_ids]
    assert sorted(names) == sorted(SPECIAL_TOKENS)
    assert (config["cls_token_id"], config["sep_token_id"]) != (
        read.tokenizer.backend.token_to_id("[CLS]"),
        read.tokenizer.backend.token_to_id("[SEP]"),
    )
    assert read.tokenizer.pad_id == artifact.manifest.vocabulary_size - 1
    alone = foreign.by_transformers(artifact.path, 64)
    assert not alone[:, list(read.never_emitted_ids)].any()
    check_same(artifact, alone)


def test_ids_of_the_config_count_if_the_tokenizer_knows_no_special_token(tmp_path: Path) -> None:
    source = foreign.bert(tmp_path / "source")
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config |= {"cls_token_id": 2, "sep_token_id": 3, "mask_token_id": 10**6, "eos_token_id": None}
    (source / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tokenizer = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    (source / "tokenizer.json").write_text(json.dumps({**tokenizer, "added_tokens": []}), encoding="utf-8")
    (source / "tokenizer_config.json").unlink()
    assert read_source(source, "x").never_emitted_ids == (0, 2, 3)


def test_the_user_has_the_last_word(tmp_path: Path) -> None:
    source = foreign.bert(tmp_path / "source")
    choices = Choices(max_length_document=30, max_length_query=9, activation="log1p_log1p_relu", pooling="sum")
    read, artifact = converted(source, tmp_path / "artifact", choices)
    manifest = artifact.manifest
    assert (manifest.max_length_document, manifest.max_length_query) == (30, 9)
    assert (manifest.activation, manifest.pooling) == ("log1p_log1p_relu", "sum")
    assert read.version != read_source(source, source.name).version


def test_the_version_names_the_content_and_not_the_place(tmp_path: Path) -> None:
    one, two = foreign.bert(tmp_path / "a" / "model"), foreign.bert(tmp_path / "b" / "model")
    versions = {read_source(path, path.name).version for path in (one, two)}
    assert len(versions) == 1
    weights = load_file(two / "model.safetensors")
    weights["cls.predictions.bias"][9] += 1
    save_file(weights, two / "model.safetensors")
    assert read_source(two, two.name).version not in versions


def test_an_own_output_matrix_stays_one(tmp_path: Path) -> None:
    _, own = converted(foreign.untied(tmp_path / "untied"), tmp_path / "one")
    _, shared = converted(foreign.legacy(tmp_path / "legacy"), tmp_path / "two")
    assert "cls.predictions.decoder.weight" in load_file(own.path / "model.safetensors")
    assert "cls.predictions.decoder.weight" not in load_file(shared.path / "model.safetensors")


def test_what_comes_with_a_checkpoint_is_kept_and_its_code_is_not(tmp_path: Path) -> None:
    source = foreign.v1_wrapper(tmp_path / "source")
    (source / "README.md").write_text("the card of v1", encoding="utf-8")
    (source / "modeling_splade.py").write_text("raise SystemExit", encoding="utf-8")
    _, artifact = converted(source, tmp_path / "artifact")
    assert (artifact.path / "SOURCE_README.md").read_text(encoding="utf-8") == "the card of v1"
    assert "modeling_splade.py" not in artifact.manifest.files
    assert "auto_map" not in (artifact.path / "config.json").read_text(encoding="utf-8")
    assert artifact.manifest.evaluation == {"golden_vectors": REFERENCE.name}
