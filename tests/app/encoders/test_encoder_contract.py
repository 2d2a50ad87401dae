"""What every encoder must do. A new implementation joins by one line in ENCODERS."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import PreTrainedModel

from app.encoders import openvino_encoder, torch_encoder
from app.encoders.base import Encoder, EncoderError, TokenBatch, as_f32, sparse_blocks, sparse_rows
from app.encoders.graph import splade
from app.encoders.graph.splade import Kind, build_graph
from app.encoders.openvino_encoder import OpenVINOEncoder, efficient_shape
from app.encoders.torch_encoder import TorchEncoder
from sparse_encoder.artifact import Artifact, read_artifact
from sparse_encoder.model import load_masked_lm
from sparse_encoder.tokenizer import Tokenizer
from sparse_encoder.vector import SparseVector
from sparse_encoder.weights import Weights
from tests.app.conftest import openvino
from tests.app.server import ROOT
from tests.tiny import SENTENCES, dense, reference_vector


def specialised(encoder: Encoder) -> Encoder:
    encoder.specialise()
    return encoder


ENCODERS: dict[str, Callable[[Artifact], Encoder]] = {
    "openvino": openvino,
    "openvino specialised": lambda artifact: specialised(openvino(artifact)),
    "torch": lambda artifact: TorchEncoder(artifact, "cpu", "f32"),
}
ROUNDED: dict[str, Callable[[Artifact], Encoder]] = {
    "openvino bf16": lambda artifact: OpenVINOEncoder(artifact, "bf16", threads=1),
    "openvino int8": lambda artifact: OpenVINOEncoder(artifact, "int8", threads=1),
    "openvino int8-static": lambda artifact: OpenVINOEncoder(artifact, "int8-static", 1, Path(mkdtemp())),
    "openvino bf16 specialised": lambda artifact: specialised(OpenVINOEncoder(artifact, "bf16", threads=1)),
    "torch bf16": lambda artifact: TorchEncoder(artifact, "cpu", "bf16"),
}
TOLERANCE = 1e-4
# Mixed lengths, from one token to a cut one.
TEXTS = ["손해배상", SENTENCES[0], "a", " ".join(SENTENCES), "인공지능 연구", SENTENCES[4], "7"]


@pytest.fixture(scope="module", params=["tiny_artifact", "lexical_artifact"])
def artifact(request: pytest.FixtureRequest) -> Artifact:
    return read_artifact(request.getfixturevalue(request.param))


@pytest.fixture(scope="module")
def model(artifact: Artifact) -> PreTrainedModel:
    return load_masked_lm(artifact.path)


@pytest.fixture(scope="module", params=ENCODERS)
def encoder(request: pytest.FixtureRequest, artifact: Artifact) -> Encoder:
    return ENCODERS[request.param](artifact)


@pytest.fixture
def rows(encoder: Encoder, tiny_tokenizer: Tokenizer) -> Callable[[list[str]], list[np.ndarray]]:
    """Encodes texts in one batch; each row has a weight for each token of the vocabulary."""

    def encode(texts: list[str]) -> list[np.ndarray]:
        tokenised = tiny_tokenizer.encode_batch(texts, 64)
        vectors = encoder.encode(TokenBatch.pad([text.ids for text in tokenised], tiny_tokenizer.pad_id))
        return [dense(vector, len(tiny_tokenizer.vocabulary)) for vector in vectors]

    return encode


def test_values_are_those_of_the_definition(
    rows: Callable[[list[str]], list[np.ndarray]], model: PreTrainedModel, tiny_tokenizer: Tokenizer
) -> None:
    for text, row in zip(TEXTS, rows(TEXTS), strict=True):
        expected = reference_vector(model, tiny_tokenizer, text, "document")
        assert len(expected) > 5
        np.testing.assert_allclose(row, dense(expected, len(row)), rtol=0, atol=TOLERANCE)


def test_batched_equals_single_for_mixed_lengths(rows: Callable[[list[str]], list[np.ndarray]]) -> None:
    singles = [rows([text])[0] for text in TEXTS]
    np.testing.assert_allclose(rows(TEXTS), singles, rtol=0, atol=TOLERANCE)


def test_a_batch_that_is_computed_in_parts_is_the_same(
    rows: Callable[[list[str]], list[np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = rows(TEXTS)
    monkeypatch.setattr(openvino_encoder, "MOST_POSITIONS", 150)
    np.testing.assert_allclose(rows(TEXTS), whole, rtol=0, atol=TOLERANCE)


def test_order_is_kept(rows: Callable[[list[str]], list[np.ndarray]]) -> None:
    np.testing.assert_allclose(rows(TEXTS[::-1]), rows(TEXTS)[::-1], rtol=0, atol=TOLERANCE)


def test_what_stands_in_the_padding_does_not_matter(encoder: Encoder, tiny_tokenizer: Tokenizer) -> None:
    (text,) = tiny_tokenizer.encode_batch(["손해배상 청구"], 64)
    length = len(text.ids)
    for filler in (tiny_tokenizer.pad_id, 7, len(tiny_tokenizer.vocabulary) - 1):
        ids = np.full((1, length + 30), filler, np.int32)
        ids[0, :length] = text.ids
        (padded,) = encoder.encode(TokenBatch(ids, np.array([length], np.int32)))
        (exact,) = encoder.encode(TokenBatch.pad([text.ids], tiny_tokenizer.pad_id))
        size = len(tiny_tokenizer.vocabulary)
        np.testing.assert_allclose(dense(padded, size), dense(exact, size), rtol=0, atol=TOLERANCE)


def test_vectors_are_sparse_sorted_and_without_what_must_never_be_emitted(
    encoder: Encoder, artifact: Artifact, tiny_tokenizer: Tokenizer
) -> None:
    never = set(artifact.manifest.never_emitted_ids)
    texts = tiny_tokenizer.encode_batch(TEXTS, 64)
    for vector in encoder.encode(TokenBatch.pad([text.ids for text in texts], tiny_tokenizer.pad_id)):
        checked = SparseVector.from_pairs(vector.ids, vector.weights)  # raises on anything but positive, unique
        np.testing.assert_array_equal(checked.ids, vector.ids)
        assert not never & set(vector.ids.tolist())


def test_a_vector_outlives_the_next_batch(encoder: Encoder, tiny_tokenizer: Tokenizer) -> None:
    first, second = (
        TokenBatch.pad([text.ids], tiny_tokenizer.pad_id) for text in tiny_tokenizer.encode_batch(SENTENCES[:2], 64)
    )
    (vector,) = encoder.encode(first)
    before = vector.weights.copy()
    encoder.encode(second)
    np.testing.assert_array_equal(vector.weights, before)


def test_a_text_of_the_greatest_length_is_encoded(rows: Callable[[list[str]], list[np.ndarray]]) -> None:
    assert np.count_nonzero(rows([" ".join(SENTENCES * 3)])[0])


def test_a_batch_needs_a_text_and_every_text_a_token() -> None:
    for texts in ([], [[1, 2], []]):
        with pytest.raises(ValueError, match="at least one"):
            TokenBatch.pad(texts, 0)


@pytest.mark.parametrize("name", ROUNDED)
def test_a_lower_precision_stays_within_its_rounding(
    name: str, artifact: Artifact, model: PreTrainedModel, tiny_tokenizer: Tokenizer
) -> None:
    encoder = ROUNDED[name](artifact)
    texts = tiny_tokenizer.encode_batch(TEXTS, 64)
    size = len(tiny_tokenizer.vocabulary)
    vectors = encoder.encode(TokenBatch.pad([text.ids for text in texts], tiny_tokenizer.pad_id))
    for text, vector in zip(TEXTS, vectors, strict=True):
        expected = dense(reference_vector(model, tiny_tokenizer, text, "document"), size)
        error = np.linalg.norm(dense(vector, size) - expected) / np.linalg.norm(expected)
        assert 0 < error < encoder.rounding


# Of int8-static the kept words differ too much from those of f32, in which reasons are computed.
@pytest.mark.parametrize("name", [*ENCODERS, *(name for name in ROUNDED if "static" not in name)])
def test_an_explanation_comes_to_the_weights_of_the_vector(
    name: str, artifact: Artifact, tiny_tokenizer: Tokenizer
) -> None:
    encoder = {**ENCODERS, **ROUNDED}[name](artifact)
    for text in tiny_tokenizer.encode_batch(TEXTS[:4], 64):
        (vector,) = encoder.encode(TokenBatch.pad([text.ids], tiny_tokenizer.pad_id))
        weights = np.array([reason.weight for reason in encoder.explain(text.ids, vector.ids)])
        error = np.linalg.norm(weights - vector.weights) / np.linalg.norm(vector.weights)
        assert error < (encoder.rounding or TOLERANCE)


def test_an_explanation_that_nobody_asks_for_takes_no_memory(artifact: Artifact, tiny_tokenizer: Tokenizer) -> None:
    encoder = openvino(artifact)
    (text,) = tiny_tokenizer.encode_batch([SENTENCES[0]], 64)
    (vector,) = encoder.encode(TokenBatch.pad([text.ids], tiny_tokenizer.pad_id))

    def is_loaded() -> bool:
        return encoder._reader._request is not None

    assert not is_loaded()
    before = encoder.explain(text.ids, vector.ids)
    encoder.give_back_memory()
    assert is_loaded()  # it was used since the last time
    encoder.give_back_memory()
    assert not is_loaded()
    assert encoder.explain(text.ids, vector.ids) == before


@pytest.mark.parametrize("name", [*ENCODERS, *ROUNDED])
def test_words_that_are_repeated_hundreds_of_times_are_counted(
    name: str, lexical_artifact: Path, tiny_tokenizer: Tokenizer
) -> None:
    """A sum of so many in bf16 would stop half-way: 256 and 1 are 256 there."""
    encoder = {**ENCODERS, **ROUNDED}[name](read_artifact(lexical_artifact))
    (text,) = tiny_tokenizer.encode_batch([SENTENCES[0]], 64)
    first, *words, last = text.ids
    texts = [[first, *words[:count] * (500 // count), last] for count in (1, 2, 7)]
    model = load_masked_lm(lexical_artifact)
    for ids, vector in zip(texts, encoder.encode(TokenBatch.pad(texts, tiny_tokenizer.pad_id)), strict=True):
        with torch.inference_mode():
            expected = model(input_ids=torch.tensor([ids])).logits[0].amax(0).relu().log1p().numpy()
        error = np.linalg.norm(dense(vector, len(expected)) - expected) / np.linalg.norm(expected)
        assert error < (encoder.rounding / 4 or TOLERANCE)  # less than a related word that is lost


def test_a_short_text_on_its_own_takes_a_graph_of_its_own(
    tiny_artifact: Path, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = openvino(read_artifact(tiny_artifact))
    encoder.specialise()
    encoder.specialise()  # which changes nothing
    monkeypatch.setattr(encoder, "_request", None)  # that of all other texts
    texts = tiny_tokenizer.encode_batch(["손해배상 청구", " ".join(SENTENCES)], 64)
    short, long = (TokenBatch.pad([text.ids], tiny_tokenizer.pad_id) for text in texts)
    assert len(encoder.encode(short)[0])
    for others in (long, TokenBatch.pad([texts[0].ids] * 2, tiny_tokenizer.pad_id)):
        with pytest.raises(AttributeError):
            encoder.encode(others)


@pytest.mark.parametrize(
    ("texts", "length", "shape"),
    [
        (1, 5, (1, 16)),
        (1, 16, (1, 16)),
        (1, 17, (1, 32)),
        (1, 50, (1, 50)),  # there are no more positions
        (3, 17, (3, 32)),
        (33, 16, (40, 16)),
        (40, 16, (40, 16)),
        (60, 47, (64, 48)),
        (17, 50, (18, 50)),  # the next multiple is too far
    ],
)
def test_shapes_are_filled_up_to_those_that_are_quick(texts: int, length: int, shape: tuple[int, int]) -> None:
    assert efficient_shape(texts, length, 50, 1 / 4) == shape


def test_there_are_few_shapes_and_none_is_much_larger_than_its_batch() -> None:
    batches = [(texts, length) for length in range(1, 513) for texts in range(1, 4096 // length + 1)]
    for filled in (0, 1 / 16, 1 / 4):
        shapes = {batch: efficient_shape(*batch, 512, filled) for batch in batches}
        for (texts, length), (rows, padded) in shapes.items():
            assert texts <= rows <= texts * 9 / 8 * (1 + filled) + 1
            assert length <= padded <= min(512, length + 31)
        assert len(set(shapes.values())) < 600  # of 27,685


@pytest.mark.parametrize("name", [*ENCODERS, *ROUNDED])
def test_memory_is_given_back_between_two_batches(name: str, artifact: Artifact, tiny_tokenizer: Tokenizer) -> None:
    encoder = {**ENCODERS, **ROUNDED}[name](artifact)
    batch = TokenBatch.pad([text.ids for text in tiny_tokenizer.encode_batch(TEXTS, 64)], tiny_tokenizer.pad_id)
    before = encoder.encode(batch)
    encoder.give_back_memory()
    for vector, expected in zip(encoder.encode(batch), before, strict=True):
        assert (vector.ids.tolist(), vector.weights.tolist()) == (expected.ids.tolist(), expected.weights.tolist())


PEAK = """
from pathlib import Path
from app.encoders.base import TokenBatch
from app.encoders.openvino_encoder import OpenVINOEncoder
from app.models.loaded import open_artifact
from app.models.memory import give_back_freed_memory
from benchmarks.resident import megabytes
encoder = OpenVINOEncoder(open_artifact(None), "int8", 1)
for texts, tokens in ((1, 16), (8, 512)):
    encoder.encode(TokenBatch.pad([list(range(1000, 1000 + tokens))] * texts, 0))
    print(megabytes(os.getpid(), "VmRSS"))
encoder.give_back_memory()
give_back_freed_memory()
print(megabytes(os.getpid(), "VmRSS"))
"""


@pytest.mark.slow
def test_what_a_peak_took_is_given_back() -> None:
    command = [sys.executable, "-W", "error", "-c", f"import os{PEAK}"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    before, peak, after = map(float, said.split())
    assert peak - before > 25
    assert after - before < (peak - before) / 2  # kernels that were made for it stay


def test_filled_shapes_give_the_same_vectors(
    tiny_artifact: Path, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_encoder, "TILE", 40)
    encoder = OpenVINOEncoder(read_artifact(tiny_artifact), "f32", threads=1)
    batch = TokenBatch.pad([text.ids for text in tiny_tokenizer.encode_batch(TEXTS, 64)], tiny_tokenizer.pad_id)
    plain = encoder.encode(batch)
    monkeypatch.setattr(encoder, "_filled", 1.0)
    texts, length = batch.ids.shape
    assert efficient_shape(texts, length, 64, 1.0) != (texts, length)
    size = len(tiny_tokenizer.vocabulary)
    for vector, expected in zip(encoder.encode(batch), plain, strict=True):
        np.testing.assert_allclose(dense(vector, size), dense(expected, size), rtol=0, atol=TOLERANCE)


#: Operations of torch that start nothing on a device.
VIEWS = {"view", "_unsafe_view", "reshape", "transpose", "t", "expand", "slice", "select", "as_strided", "unsqueeze"}
VIEWS |= {"permute", "split", "split_with_sizes", "alias", "detach", "empty", "empty_strided", "empty_like", "numpy_T"}
VIEWS |= {"resize_", "is_nonzero", "item", "_local_scalar_dense", "lift_fresh", "result_type", "resolve_conj", "to"}
VIEWS |= {"resolve_neg", "squeeze", "unbind", "new_empty", "flatten", "zeros", "ones", "mT", "contiguous"}


def kernels(run: Callable[[], object]) -> int:
    """That a device would be asked for, as torch's profiler counts them on a CPU."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        run()
    started = [event for event in seen.events() or [] if event.name.startswith("aten::") and not event.cpu_children]
    return sum(event.name.removeprefix("aten::") not in VIEWS for event in started)


def test_a_batch_of_many_texts_starts_as_many_kernels_as_one_of_few(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_encoder, "VOCABULARY_TILE", artifact.manifest.vocabulary_size // 7 + 1)  # as 50,000 have
    encoder = TorchEncoder(artifact, "cpu", "f32")
    random, size = np.random.default_rng(1), artifact.manifest.vocabulary_size
    batches = {
        count: TokenBatch(random.integers(5, size, (count, 20), np.int32), random.integers(9, 21, count, np.int32))
        for count in (32, 256)
    }
    counted = {count: kernels(lambda: encoder.encode(batch)) for count, batch in batches.items()}  # noqa: B023
    assert counted[32] == counted[256]
    inputs = encoder._inputs(batches[32])

    @torch.inference_mode()
    def alone() -> None:
        model = encoder._model
        (model.bert if encoder._lexical else model)(input_ids=inputs[0], attention_mask=inputs[1].long())

    beyond = counted[32] - kernels(alone)
    assert 0 < beyond <= (140 if encoder._lexical else 40), beyond


def test_nan_is_an_error_and_no_empty_vector() -> None:
    with pytest.raises(ValueError, match="NaN or infinity"):
        sparse_rows(np.array([[1.0, np.nan]], np.float32), np.arange(2, dtype=np.int32))


@pytest.mark.parametrize("bits", [32, 16])
def test_what_blocks_hold_is_what_the_whole_holds(bits: int) -> None:
    random = np.random.default_rng(2)
    weights = np.maximum(random.normal(-2, 1, (5, 700)), 0).astype(np.float32)
    weights[3], weights[4, 690] = 0, 1.5
    if bits == 16:
        weights = as_f32((weights.view(np.uint32) >> 16).astype(np.uint16))
    ids = np.arange(700, dtype=np.int32) * 3
    sums = weights[:, :640].reshape(5, 10, 64).sum(2)
    given = weights if bits == 32 else (weights.view(np.uint32) >> 16).astype(np.uint16)
    for vector, other in zip(sparse_blocks(given, sums, ids), sparse_rows(weights, ids), strict=True):
        assert (vector.ids.tolist(), vector.weights.tolist()) == (other.ids.tolist(), other.weights.tolist())
    for place in (sums[0], weights[0, 640:]):
        kept, place[1] = place[1], np.nan
        with pytest.raises(ValueError, match="NaN or infinity"):
            sparse_blocks(weights, sums, ids)
        place[1] = kept


@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_a_large_vocabulary_is_read_in_blocks(
    precision: openvino_encoder.Precision,
    artifact: Artifact,
    tiny_tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batch = TokenBatch.pad([text.ids for text in tiny_tokenizer.encode_batch(TEXTS, 64)], tiny_tokenizer.pad_id)
    whole = OpenVINOEncoder(artifact, precision, threads=1).encode(batch)
    monkeypatch.setattr(openvino_encoder, "LARGE_VOCABULARY", 100)
    monkeypatch.setattr(openvino_encoder, "sparse_rows", None)
    encoder = OpenVINOEncoder(artifact, precision, threads=1)
    encoder.specialise()
    for vector, other in zip(encoder.encode(batch), whole, strict=True):
        assert vector.ids.tolist() == other.ids.tolist()
        np.testing.assert_allclose(vector.weights, other.weights, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("make", ENCODERS.values())
def test_weights_that_hold_nan_are_refused(
    make: Callable[[Artifact], Encoder], tiny_artifact: Path, tmp_path: Path
) -> None:
    artifact = read_artifact(tiny_artifact)
    shutil.copy(tiny_artifact / "config.json", tmp_path)
    tensors = load_file(tiny_artifact / "model.safetensors")
    tensors["bert.embeddings.LayerNorm.weight"][3] = np.nan
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(EncoderError, match=r"LayerNorm\.weight holds NaN or infinity"):
        make(Artifact(tmp_path, artifact.manifest))


BERT = Kind(architecture="BertForMaskedLM", activation="log1p_relu", pooling="max")


def test_the_graph_never_holds_positions_times_vocabulary(tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splade, "VOCABULARY_TILE", 100)
    config = json.loads((tiny_artifact / "config.json").read_text(encoding="utf-8"))
    vocabulary_size = config["vocab_size"]
    with Weights(tiny_artifact) as weights:
        graph = build_graph(BERT, config, weights, np.arange(vocabulary_size, dtype=np.int32), "lossless")
    widths = {
        dimension.get_length()
        for node in graph.get_ordered_ops()
        if node.get_type_name() not in ("Constant", "Convert", "Multiply", "Reshape")  # which make the weights
        for output in node.outputs()
        if output.partial_shape.rank.get_length() == 3 and (dimension := output.partial_shape[2]).is_static
    }
    assert 100 in widths  # the tiles are there
    assert max(widths) <= max(100, config["intermediate_size"])
    assert graph.output(0).partial_shape[1].get_length() == vocabulary_size


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"hidden_act": "tan"}, "hidden_act 'tan', this software computes one of gelu"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key'"),
        ({"num_hidden_layers": 3}, r"no weight bert\.encoder\.layer\.2"),
        ({"hidden_size": None}, "lacks 'hidden_size'"),
    ],
)
def test_a_model_of_another_kind_is_refused_with_the_reason(
    tiny_artifact: Path, change: dict[str, object], reason: str
) -> None:
    config = json.loads((tiny_artifact / "config.json").read_text(encoding="utf-8")) | change
    config = {name: value for name, value in config.items() if value is not None}
    with Weights(tiny_artifact) as weights, pytest.raises(EncoderError, match=reason):
        build_graph(BERT, config, weights, np.arange(10, dtype=np.int32), "lossless")


@pytest.mark.parametrize("make", ENCODERS.values())
def test_a_directory_without_weights_is_refused(
    make: Callable[[Artifact], Encoder], tiny_artifact: Path, tmp_path: Path
) -> None:
    artifact = read_artifact(tiny_artifact)
    shutil.copy(tiny_artifact / "config.json", tmp_path)
    with pytest.raises(EncoderError, match=r"no \*\.safetensors"):
        make(Artifact(tmp_path, artifact.manifest))
