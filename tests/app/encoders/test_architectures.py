"""Every architecture by every encoder: random weights, saved by transformers, against its own forward pass."""

from __future__ import annotations

import json
import math
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from transformers.models.deberta_v2.modeling_deberta_v2 import build_relative_position

from app.encoders import openvino_encoder
from app.encoders.base import Encoder, EncoderError, TokenBatch
from app.encoders.explaining import Reason
from app.encoders.graph.disentangled import buckets
from app.encoders.graph.splade import Kind, build_graph
from app.encoders.openvino_encoder import OpenVINOEncoder, has_bfloat16
from app.encoders.torch_encoder import TorchEncoder
from sparse_encoder import modeling_lexical_bert
from sparse_encoder.architectures import ARCHITECTURES, Architecture
from sparse_encoder.artifact import Activation, Artifact, Pooling, read_manifest
from sparse_encoder.model import SpladeModel
from sparse_encoder.own_weights import OwnWeights
from sparse_encoder.vector import SparseVector
from sparse_encoder.weights import Weights
from tests import lexical
from tests.app.server import ROOT
from tests.tiny import dense

VOCABULARY, HIDDEN, LONGEST, PAD = 500, 64, 180, 1
NEVER = (0, 7, 250)
BERT_SIZES: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": LONGEST + 2,
}


class Trained:
    """The definition that training uses, as far as it is an encoder."""

    def __init__(self, artifact: Artifact) -> None:
        manifest = artifact.manifest
        if (manifest.activation, manifest.pooling) != ("log1p_relu", "max"):
            pytest.skip("training knows log1p_relu and max only, and heads over the vocabulary")
        self._model = SpladeModel.from_pretrained(artifact.path, list(manifest.never_emitted_ids))

    def encode(self, batch: TokenBatch) -> list[SparseVector]:
        """Beside a row of padding, which must do no harm."""
        mask = torch.arange(batch.ids.shape[1]) < torch.tensor([*batch.lengths, 0])[:, None]
        ids = torch.cat([torch.from_numpy(batch.ids).long(), torch.full((1, batch.ids.shape[1]), PAD)])
        with torch.inference_mode():
            *vectors, padding = self._model(ids, mask.long()).numpy()
        assert not self._model.lexical or not padding.any()
        return [SparseVector.from_dense(vector) for vector in vectors]


class Aside:
    """As long texts are computed."""

    def __init__(self, artifact: Artifact) -> None:
        self._encoder = OpenVINOEncoder(artifact, "f32", threads=1)

    def encode(self, batch: TokenBatch) -> list[SparseVector]:
        return self._encoder.encode(batch, aside=True)


ENCODERS: dict[str, Callable[[Artifact], Encoder | Trained | Aside]] = {
    "openvino": lambda artifact: OpenVINOEncoder(artifact, "f32", threads=1),
    "openvino aside": Aside,
    "torch": lambda artifact: TorchEncoder(artifact, "cpu", "f32"),
    "training": Trained,
}


@dataclass(frozen=True)
class Case:
    architecture: Architecture
    config: str
    sizes: dict[str, Any] = field(default_factory=lambda: BERT_SIZES)
    activation: Activation = "log1p_relu"
    pooling: Pooling = "max"

    def __str__(self) -> str:
        told = ("tie_word_embeddings", "parts", "related", "pos_att_type", "position_buckets")
        sizes = " ".join(f"{name} {self.sizes[name]}" for name in told if name in self.sizes)
        return f"{self.architecture} {self.activation} {self.pooling} {sizes}"


MODERNBERT: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "local_attention": 16,  # so that most of a text lies outside of it
    "pad_token_id": PAD,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "cls_token_id": 2,
    "sep_token_id": 3,
}
DISTILBERT = {"dim": HIDDEN, "n_layers": 2, "n_heads": 4, "hidden_dim": 96, "max_position_embeddings": LONGEST}
#: As DeBERTa v3 has it; many distances share a bucket.
DEBERTA = BERT_SIZES | {
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_buckets": 16,
    "max_relative_positions": -1,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "position_biased_input": False,
}
ROPE = {"rope_type": "default", "rope_theta": 20_000.0}
#: As the conversion of the model type `new` writes it.
SCALED_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 500.0,
    **{name: [8 ** (number / 8) for number in range(1, 9)] for name in ("short_factor", "long_factor")},
    "attention_factor": 1.0,
    "factor": 1.0,
    "original_max_position_embeddings": LONGEST + 2,
}
CASES = [
    Case("BertForMaskedLM", "BertConfig"),
    Case("BertForMaskedLM", "BertConfig", BERT_SIZES | {"tie_word_embeddings": False, "hidden_act": "gelu_new"}),
    Case("BertForMaskedLM", "BertConfig", activation="log1p_log1p_relu"),
    Case("BertForMaskedLM", "BertConfig", pooling="sum"),
    Case("RobertaForMaskedLM", "RobertaConfig"),
    Case("XLMRobertaForMaskedLM", "XLMRobertaConfig"),
    Case("XLMRobertaForMaskedLM", "XLMRobertaConfig", activation="relu"),
    Case("XLMRobertaModel", "XLMRobertaConfig", activation="relu"),
    Case("CamembertForMaskedLM", "CamembertConfig"),
    Case("DebertaV2ForMaskedLM", "DebertaV2Config", DEBERTA),
    Case("DebertaV2ForMaskedLM", "DebertaV2Config", DEBERTA | {"share_att_key": False, "pos_att_type": ["c2p"]}),
    Case(
        "DebertaV2ForMaskedLM",
        "DebertaV2Config",
        DEBERTA
        | {"share_att_key": False, "pos_att_type": ["p2c"], "position_biased_input": True, "norm_rel_ebd": "none"},
        pooling="sum",
    ),
    Case(
        "DebertaV2ForMaskedLM",
        "DebertaV2Config",
        DEBERTA | {"position_buckets": -1, "max_relative_positions": 24, "type_vocab_size": 2},
    ),
    Case("DistilBertForMaskedLM", "DistilBertConfig", DISTILBERT),
    Case("ElectraForMaskedLM", "ElectraConfig", BERT_SIZES | {"embedding_size": 32}),
    Case("ElectraForMaskedLM", "ElectraConfig", BERT_SIZES | {"embedding_size": HIDDEN}),
    Case("MPNetForMaskedLM", "MPNetConfig"),
    Case("GteForMaskedLM", "GteConfig", BERT_SIZES | {"rope_parameters": ROPE}),
    Case("GteForMaskedLM", "GteConfig", BERT_SIZES | {"rope_parameters": SCALED_ROPE, "type_vocab_size": 0}),
    Case("LexicalBertForMaskedLM", "LexicalBertConfig"),
    Case("LexicalBertForMaskedLM", "LexicalBertConfig", BERT_SIZES | {"parts": 2}),
    Case("LexicalBertForMaskedLM", "LexicalBertConfig", BERT_SIZES | {"related": 6}),
    Case("LexicalBertForMaskedLM", "LexicalBertConfig", BERT_SIZES | {"parts": 1, "related": 6, "related_power": 1.0}),
    Case("ModernBertForMaskedLM", "ModernBertConfig", MODERNBERT),
    Case("ModernBertForMaskedLM", "ModernBertConfig", MODERNBERT, pooling="sum", activation="log1p_log1p_relu"),
    Case(
        "ModernBertForMaskedLM",
        "ModernBertConfig",
        MODERNBERT | {"attention_bias": True, "mlp_bias": True, "norm_bias": True, "classifier_bias": True},
    ),
]


def test_the_table_names_each_architecture_and_each_has_a_case() -> None:
    assert set(ARCHITECTURES) == set(get_args(Architecture)) == {case.architecture for case in CASES}


@pytest.mark.parametrize(("size", "reach"), [(256, 512), (16, 182), (0, 24)])
def test_distances_share_the_buckets_that_transformers_gives_them(size: int, reach: int) -> None:
    """Those of DeBERTa v3 among them, at every distance that a text can have."""
    words = torch.empty(1, 1, 512, 1)
    theirs = build_relative_position(words, words, bucket_size=size, max_position=reach)[0].numpy()
    ours = buckets(np.arange(-511, 512), size, reach)
    for query in (0, 100, 511):
        np.testing.assert_array_equal(ours[511 + query - np.arange(512)], theirs[query])


@pytest.fixture(scope="module", params=CASES, ids=str)
def saved(
    request: pytest.FixtureRequest, tiny_artifact: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Artifact, Any]:
    """An artifact of the case, and the torch model that it was saved from."""
    case: Case = request.param
    torch.manual_seed(5)
    home = modeling_lexical_bert if case.architecture == "LexicalBertForMaskedLM" else transformers
    kind: Any = OwnWeights if case.architecture == "XLMRobertaModel" else getattr(home, case.architecture)
    model: Any = kind(getattr(home, case.config)(vocab_size=VOCABULARY, **{"pad_token_id": PAD, **case.sizes})).eval()
    if home is modeling_lexical_bert:
        # Every third token is silent, and some are emitted as another one.
        words = [-1 if {i, i - i % 2} & set(NEVER) else i - i % 2 for i in range(VOCABULARY)]
        own = [-1 if i % 3 == 0 else word for i, word in enumerate(words)]
        lexical.fill_tables(model, own, [word if i % 2 else -1 for i, word in enumerate(words)])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:  # biases and norms start as 0 and 1, which would hide that one is left out
                parameter += 0.1 * torch.randn_like(parameter)
            elif "embeddings" not in name:
                parameter *= 3
    directory = tmp_path_factory.mktemp("model")
    model.save_pretrained(directory)
    if case.architecture == "GteForMaskedLM":  # which transformers saves by the names of an older form
        weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        del weights["lm_head.decoder.weight"]  # tied
        save_file(weights, directory / "model.safetensors", {"format": "pt"})
    manifest = replace(
        read_manifest(tiny_artifact),
        architecture=case.architecture,
        activation=case.activation,
        pooling=case.pooling,
        vocabulary_size=VOCABULARY,
        never_emitted_ids=NEVER,
    )
    return Artifact(directory, manifest), model


def reference(artifact: Artifact, model: Any, ids: list[int]) -> NDArray[np.float32]:
    pooled: NDArray[np.float32]
    with torch.inference_mode():
        answer = model(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)))
    if isinstance(model, OwnWeights):  # the formula of BGE-M3, a position after the other
        pooled = np.zeros(VOCABULARY, np.float32)
        for token, weight in zip(ids, answer[0].tolist(), strict=True):
            pooled[token] = max(pooled[token], weight)
        pooled[list(artifact.manifest.never_emitted_ids)] = 0
        return pooled
    logits = answer.logits[0]
    weights = torch.relu(logits)
    if artifact.manifest.activation != "relu":
        weights = torch.log1p(weights)
    if artifact.manifest.activation == "log1p_log1p_relu":
        weights = torch.log1p(weights)
    pooled = (weights.amax(0) if artifact.manifest.pooling == "max" else weights.sum(0)).numpy()
    pooled[list(artifact.manifest.never_emitted_ids)] = 0
    return pooled


@pytest.mark.parametrize("name", ENCODERS)
def test_vectors_are_those_of_transformers(name: str, saved: tuple[Artifact, Any]) -> None:
    artifact, model = saved
    encoder = ENCODERS[name](artifact)
    random = np.random.default_rng(3)
    texts = [[2, *random.integers(10, VOCABULARY, length).tolist(), 3] for length in (1, 5, 40, LONGEST - 2)]
    # Words that are repeated; no word, with a last resort where the checkpoint has one, and without.
    texts += [[2, *[11, 14] * 40, 11, 3], [2, 12, 15, 12, 21, 3], [2, 12, 12, 3]]
    for number, (text, vector) in enumerate(zip(texts, encoder.encode(TokenBatch.pad(texts, PAD)), strict=True)):
        expected = reference(artifact, model, text)
        few = 0 if artifact.manifest.architecture == "XLMRobertaModel" else 10
        assert np.count_nonzero(expected) > few or number > 4 or len(text) < 5
        np.testing.assert_allclose(dense(vector, VOCABULARY), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not has_bfloat16(), reason="this CPU does not compute in bf16")
def test_no_layer_becomes_the_one_operation_that_one_thread_cannot_run(saved: tuple[Artifact, Any]) -> None:
    """Of OpenVINO, with AMX: see `builder.gated`. With one thread the process would die, and no test fail."""
    artifact, model = saved
    encoder = OpenVINOEncoder(artifact, "bf16", threads=2)
    graph = encoder._request.get_compiled_model().get_runtime_model()
    assert "LLMMLP" not in {node.get_rt_info()["layerType"].astype(str) for node in graph.get_ops()}
    text = [2, *range(10, 40), 3]
    (vector,) = encoder.encode(TokenBatch.pad([text], PAD))
    expected = reference(artifact, model, text)
    np.testing.assert_allclose(dense(vector, VOCABULARY), expected, rtol=0, atol=0.1 * expected.max())


@pytest.mark.parametrize("name", ["openvino", "torch"])
def test_every_weight_is_explained_by_the_positions_that_brought_it(name: str, saved: tuple[Artifact, Any]) -> None:
    artifact, model = saved
    encoder = cast(Encoder, ENCODERS[name](artifact))
    random = np.random.default_rng(4)
    texts = [[2, *random.integers(10, VOCABULARY, length).tolist(), 3] for length in (5, 40)]
    texts += [[2, *[11, 14] * 6, 11, 3], [2, 12, 15, 12, 21, 3], [2, 12, 12, 3]]
    for text in texts:
        (vector,) = encoder.encode(TokenBatch.pad([text], PAD))
        found = encoder.explain(text, vector.ids)
        np.testing.assert_allclose([reason.weight for reason in found], vector.weights, rtol=1e-4, atol=1e-4)
        for reason in found:
            if reason.at is not None or reason.related:
                assert sum(share for _, share in reason.shares) == pytest.approx(1, abs=1e-5) or len(text) > 16
            else:
                assert not reason.shares  # the bias alone brought it
        explained(artifact, model, text, dict(zip(vector.ids.tolist(), found, strict=True)))
    assert encoder.explain(texts[0], np.empty(0, np.int32)) == []


@torch.inference_mode()
def explained(artifact: Artifact, model: Any, text: list[int], found: dict[int, Reason]) -> None:
    """Whether the reasons of the words are those of the torch `model`, computed in another way."""
    ids, mask = torch.tensor([text]), torch.ones(1, len(text))
    if isinstance(model, OwnWeights):
        weights = model(ids, mask)[0].numpy()
        for word, reason in found.items():
            there = np.array(text) == word
            assert (reason.own, reason.at) == (True, int((weights * there).argmax()))
            assert {at for at, _ in reason.shares} == set(np.flatnonzero(there).tolist())
    elif artifact.manifest.architecture == "LexicalBertForMaskedLM":
        explained_lexical(model, text, found)
    else:
        logits = model(ids, attention_mask=mask).logits[0].numpy()
        for word, reason in found.items():
            assert reason.own == (word in text)
            if reason.at is None:  # the padding token, whose row is zero where it is tied
                assert word == PAD
                assert reason.head == pytest.approx(logits[0, word], abs=1e-3)
                continue
            assert reason.head == pytest.approx(logits[reason.at, word], abs=1e-3)
            assert reason.head == pytest.approx(logits[:, word].max(), abs=1e-3)
            if artifact.manifest.pooling == "sum":
                parts = np.log1p(np.maximum(logits[:, word], 0))
                parts = np.log1p(parts) if artifact.manifest.activation == "log1p_log1p_relu" else parts
                shares = dict(reason.shares)
                assert shares == pytest.approx({at: parts[at] / parts.sum() for at in shares}, abs=1e-3)
                assert min(shares.values()) >= np.sort(parts)[::-1][len(shares) - 1] / parts.sum() - 1e-3


def explained_lexical(model: Any, text: list[int], found: dict[int, Reason]) -> None:
    ids = torch.tensor([text])
    own = model.own_words(ids, torch.ones(1, len(text)))
    places = own.tokens[0].numpy().reshape(-1, len(text))
    speaks = places[0] >= 0
    hidden = model.bert(input_ids=ids)[0]
    logits = model.decoder(model.head_states(hidden, ids))[0].numpy()
    tokens, added = torch.empty(1, 0), torch.empty(1, 0)
    if model.config.related:
        tokens, added = model.related_words(hidden, own, model.own_weights(hidden, own))
    for word, reason in found.items():
        assert reason.own == (word in places)
        if reason.own:
            counts = np.where(places == word, own.shares[0].numpy().reshape(places.shape), 0).sum(0)
            expected = {at: count / counts.sum() for at, count in enumerate(counts) if count}
            assert dict(reason.shares) == pytest.approx(expected, abs=1e-5)
            continue
        assert reason.head == pytest.approx(logits[speaks, word].max(), abs=1e-3)
        assert (reason.at is None) == (not model.decoder.weight[word].any())
        assert reason.at is None or speaks[reason.at]
        assert reason.at is None or logits[reason.at, word] == pytest.approx(reason.head, abs=1e-3)
        adds = float(added[0][tokens[0] == word].sum())
        assert sum(value for _, value in reason.related) == pytest.approx(adds, abs=1e-3)
        assert all(word in model.related_token[by] and by in places[0] for by, _ in reason.related)


@pytest.fixture(scope="module")
def modern(tiny_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Random weights of the shape of ModernBERT."""
    torch.manual_seed(5)
    directory = tmp_path_factory.mktemp("modern")
    configs: Any = transformers  # whose configs are typed too narrowly for the sizes in a dict
    config = configs.ModernBertConfig(vocab_size=VOCABULARY, **MODERNBERT)
    transformers.ModernBertForMaskedLM(config).save_pretrained(directory)
    manifest = replace(
        read_manifest(tiny_artifact),
        architecture="ModernBertForMaskedLM",
        vocabulary_size=VOCABULARY,
        never_emitted_ids=NEVER,
    )
    return Artifact(directory, manifest)


def test_nothing_in_the_graph_for_long_texts_grows_with_the_square_of_their_length(modern: Artifact) -> None:
    kind = Kind(architecture="ModernBertForMaskedLM", activation="log1p_relu", pooling="max")
    config = json.loads((modern.path / "config.json").read_text(encoding="utf-8"))
    length, squares = 1237, {}
    for blocks in (False, True):
        with Weights(modern.path) as weights:
            graph = build_graph(kind, config, weights, np.arange(VOCABULARY, dtype=np.int32), "lossless", blocks=blocks)
        ids, lengths = graph.inputs
        graph.reshape({ids: [1, length], lengths: [1]})
        shapes = [output.get_shape() for node in graph.get_ordered_ops() for output in node.outputs()]
        squares[blocks] = sum(math.prod(shape) >= length * length / 2 for shape in shapes)
    assert squares[False] > 0
    assert squares[True] == 0


def test_long_texts_are_computed_in_blocks_and_short_ones_meanwhile(
    modern: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = OpenVINOEncoder(modern, "f32", threads=1)
    random = np.random.default_rng(6)
    texts = [random.integers(10, VOCABULARY, length).tolist() for length in (97, 333, 8, 200)]
    batch, short = TokenBatch.pad(texts, PAD), TokenBatch.pad(texts[2:3], PAD)
    expected = encoder.encode(batch)
    monkeypatch.setattr(openvino_encoder, "LONG_TEXT", 300)

    def is_made() -> bool:
        return encoder._long._request is not None

    assert not is_made()  # nobody needed it yet
    with encoder._long.held():  # as by a text that takes a minute
        assert len(encoder.encode(short)[0])
        encoder.give_back_memory()
    monkeypatch.setattr(encoder, "_request", None)  # that of short texts
    for vector, other in zip(encoder.encode(batch), expected, strict=True):
        np.testing.assert_allclose(dense(vector, VOCABULARY), dense(other, VOCABULARY), rtol=0, atol=1e-4)
    encoder._long.give_back()
    assert is_made()  # it was used since the last time
    encoder._long.give_back()
    assert not is_made()


AGAIN = """
import pickle, sys
import numpy as np
from app.encoders.base import TokenBatch
from app.encoders.openvino_encoder import OpenVINOEncoder, has_bfloat16
with open(sys.argv[1], "rb") as file:
    artifact = pickle.load(file)
batch = TokenBatch.pad(np.random.default_rng(0).integers(10, 40, (40, 48)).tolist(), 0)
encoder = OpenVINOEncoder(artifact, "f32", threads=1)
before = encoder.encode(batch)
for _ in range(4):
    encoder.give_back_memory()
    for vector, expected in zip(encoder.encode(batch), before, strict=True):
        assert (vector.ids.tolist(), vector.weights.tolist()) == (expected.ids.tolist(), expected.weights.tolist())
"""


@pytest.mark.slow
def test_after_memory_was_given_back_the_same_shape_is_computed_in_memory_of_its_own(
    modern: Artifact, tmp_path: Path
) -> None:
    """In a process of its own, since it dies if it is not."""
    (tmp_path / "artifact").write_bytes(pickle.dumps(modern))
    command = [sys.executable, "-W", "error", "-c", AGAIN, str(tmp_path / "artifact")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_blocks_are_left_where_they_would_compute_more_than_the_whole(modern: Artifact) -> None:
    kind = Kind(architecture="ModernBertForMaskedLM", activation="log1p_relu", pooling="max")
    config = json.loads((modern.path / "config.json").read_text(encoding="utf-8"))
    nodes = {}
    for blocks in (False, True):
        with Weights(modern.path) as weights:
            wide = {**config, "local_attention": 8192}
            graph = build_graph(kind, wide, weights, np.arange(VOCABULARY, dtype=np.int32), "lossless", blocks=blocks)
        nodes[blocks] = [node.get_type_name() for node in graph.get_ordered_ops()]
    assert nodes[True] == nodes[False]


@pytest.mark.parametrize("what", ["other weights", "no files", "no memory"])
def test_where_the_graph_for_long_texts_cannot_be_made_they_are_computed_as_short_ones(
    what: str, modern: Artifact, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = shutil.copytree(modern.path, tmp_path / "model")
    encoder = OpenVINOEncoder(Artifact(files, modern.manifest), "f32", threads=1, is_room=lambda _: what != "no memory")
    batch = TokenBatch.pad([[*range(10, 90)]], PAD)
    expected = encoder.encode(batch)[0]
    if what == "no files":
        shutil.rmtree(files)
    elif what == "other weights":
        weights = load_file(files / "model.safetensors")
        save_file({name: weight.flip(0).contiguous() for name, weight in weights.items()}, files / "model.safetensors")
    for _ in range(2):
        encoder.prepare_aside()
        (vector,) = encoder.encode(batch, aside=True)
        assert (vector.ids.tolist(), vector.weights.tolist()) == (expected.ids.tolist(), expected.weights.tolist())
    said = {"other weights": "are others now", "no files": "cannot be read any more", "no memory": "no memory for"}
    assert [said[what] in record.getMessage() for record in caplog.records] == [True]


def lexical_bert(directory: Path, tiny_artifact: Path, own_token: list[int]) -> Artifact:
    """A LexicalBert whose tokens are emitted as `own_token` says."""
    torch.manual_seed(5)
    config = modeling_lexical_bert.LexicalBertConfig(vocab_size=VOCABULARY, pad_token_id=PAD, **BERT_SIZES)
    model = modeling_lexical_bert.LexicalBertForMaskedLM(config)
    model.own_token.copy_(torch.tensor(own_token))
    model.save_pretrained(directory)
    manifest = replace(
        read_manifest(tiny_artifact),
        architecture="LexicalBertForMaskedLM",
        vocabulary_size=VOCABULARY,
        never_emitted_ids=NEVER,
    )
    return Artifact(directory, manifest)


@pytest.mark.parametrize("name", ENCODERS)
def test_a_text_without_a_word_is_empty_beside_others(name: str, tiny_artifact: Path, tmp_path: Path) -> None:
    own_token = [-1 if token < 20 else token for token in range(VOCABULARY)]
    own_token[250] = -1
    encoder = ENCODERS[name](lexical_bert(tmp_path, tiny_artifact, own_token))
    batch = TokenBatch.pad([[2, 5, 6, 3], [2, 5, 30, 31, 30, 3]], PAD)
    silent, spoken = encoder.encode(batch)
    assert len(silent) == 0
    assert {30, 31} <= set(spoken.ids.tolist())
    ours = dict(zip(spoken.ids.tolist(), spoken.weights.tolist(), strict=True))
    assert ours[30] > ours[31]  # which stands there once


def test_a_token_that_is_emitted_as_one_that_cannot_be_is_refused(tiny_artifact: Path, tmp_path: Path) -> None:
    artifact = lexical_bert(tmp_path, tiny_artifact, list(range(VOCABULARY)))
    with pytest.raises(EncoderError, match="own_token of the checkpoint names tokens"):
        OpenVINOEncoder(artifact, "f32", threads=1)
