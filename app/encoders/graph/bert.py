"""BERT and the models that differ from it mostly in names: (XLM-)RoBERTa, CamemBERT, DistilBERT, ELECTRA generators."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import openvino as ov  # type: ignore[import-untyped]
from openvino import opset15 as op

from app.encoders.graph.builder import ACTIVATIONS, Builder, index, merge_heads, split_heads


@dataclass(frozen=True, slots=True, kw_only=True)
class BertShape:
    """Sizes, from `config.json`, and the names that transformers gives the weights of the architecture."""

    hidden_size: int
    heads: int
    layers: int
    epsilon: float
    activation: str
    first_position: int = 0  #: the row of the position table that the first token gets
    embeddings: str = "bert.embeddings"
    layer: str = "bert.encoder.layer"
    query: str = "attention.self.query"
    key: str = "attention.self.key"
    value: str = "attention.self.value"
    attended: str = "attention.output.dense"
    attended_norm: str = "attention.output.LayerNorm"
    wide: str = "intermediate.dense"
    narrow: str = "output.dense"
    narrow_norm: str = "output.LayerNorm"
    project: str | None = None  #: from the size of the embeddings to that of the layers
    head_dense: str = "cls.predictions.transform.dense"
    head_norm: str = "cls.predictions.transform.LayerNorm"
    head_activation: str
    decoders: tuple[str, ...] = ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight")
    decoder_biases: tuple[str, ...] = ("cls.predictions.decoder.bias", "cls.predictions.bias")

    @classmethod
    def from_config(cls, architecture: str, config: Mapping[str, Any]) -> BertShape:
        """:raises KeyError: if `config` lacks a size."""
        if architecture == "DistilBertForMaskedLM":
            return _distilbert(config)
        sizes: dict[str, Any] = dict(
            hidden_size=config["hidden_size"],
            heads=config["num_attention_heads"],
            layers=config["num_hidden_layers"],
            epsilon=config["layer_norm_eps"],
            activation=config["hidden_act"],
            head_activation=config["hidden_act"],
        )
        if architecture == "BertForMaskedLM":
            return cls(**sizes)
        if architecture == "ElectraForMaskedLM":
            return _electra(config, sizes)
        if architecture == "LexicalBertForMaskedLM":
            return cls(
                **sizes,
                head_dense="head.dense",
                head_norm="head.LayerNorm",
                decoders=("decoder.weight",),
                decoder_biases=("decoder.bias",),
            )
        offset = config["pad_token_id"] + 1  # positions count from behind the padding's
        return cls(
            **{**sizes, "head_activation": "gelu"},
            first_position=offset,
            embeddings="roberta.embeddings",
            layer="roberta.encoder.layer",
            head_dense="lm_head.dense",
            head_norm="lm_head.layer_norm",
            decoders=("lm_head.decoder.weight", "roberta.embeddings.word_embeddings.weight"),
            decoder_biases=("lm_head.decoder.bias", "lm_head.bias"),
        )


def _electra(config: Mapping[str, Any], sizes: dict[str, Any]) -> BertShape:
    return BertShape(
        **{**sizes, "head_activation": "gelu"},
        embeddings="electra.embeddings",
        layer="electra.encoder.layer",
        project="electra.embeddings_project" if config["embedding_size"] != config["hidden_size"] else None,
        head_dense="generator_predictions.dense",
        head_norm="generator_predictions.LayerNorm",
        decoders=("generator_lm_head.weight", "electra.embeddings.word_embeddings.weight"),
        decoder_biases=("generator_lm_head.bias",),
    )


def _distilbert(config: Mapping[str, Any]) -> BertShape:
    return BertShape(
        hidden_size=config["dim"],
        heads=config["n_heads"],
        layers=config["n_layers"],
        epsilon=1e-12,
        activation=config["activation"],
        head_activation=config["activation"],
        embeddings="distilbert.embeddings",
        layer="distilbert.transformer.layer",
        query="attention.q_lin",
        key="attention.k_lin",
        value="attention.v_lin",
        attended="attention.out_lin",
        attended_norm="sa_layer_norm",
        wide="ffn.lin1",
        narrow="ffn.lin2",
        narrow_norm="output_layer_norm",
        head_dense="vocab_transform",
        head_norm="vocab_layer_norm",
        decoders=("vocab_projector.weight", "distilbert.embeddings.word_embeddings.weight"),
        decoder_biases=("vocab_projector.bias",),
    )


def bert_states(build: Builder, shape: BertShape, ids: ov.Node, positions: ov.Node, mask: ov.Node) -> ov.Node:
    """The last hidden states, f32 [B, L, hidden], for `ids` [B, L], `positions` 0 to L-1 and `mask` [B, L]."""
    hidden = _embeddings(build, shape, ids, positions)
    if shape.project:
        hidden = build.linear(shape.project, hidden)
    attention_mask = op.unsqueeze(mask, index([1, 2]))
    for layer in range(shape.layers):
        hidden = _layer(build, shape, f"{shape.layer}.{layer}", hidden, attention_mask)
    return hidden


def bert_head(build: Builder, shape: BertShape, states: ov.Node) -> ov.Node:
    """What the decoder multiplies, f32 [B, L, embedding], from the last hidden `states`."""
    hidden = ACTIVATIONS[shape.head_activation](build.linear(shape.head_dense, states))
    return build.layer_norm(shape.head_norm, hidden, shape.epsilon)


def _embeddings(build: Builder, shape: BertShape, ids: ov.Node, positions: ov.Node) -> ov.Node:
    prefix = shape.embeddings
    words = build.embedding(f"{prefix}.word_embeddings.weight", ids)
    places = build.get(f"{prefix}.position_embeddings.weight")
    if build.has(types := f"{prefix}.token_type_embeddings.weight"):
        # Every token has type 0, so its row is part of each position's.
        places = places + build.get(types)[0]
    rows = op.gather(op.constant(np.ascontiguousarray(places[shape.first_position :])), positions, index(0))
    return build.layer_norm(f"{prefix}.LayerNorm", op.add(words, rows), shape.epsilon)


def _layer(build: Builder, shape: BertShape, prefix: str, hidden: ov.Node, attention_mask: ov.Node) -> ov.Node:
    head_size = shape.hidden_size // shape.heads
    query, key, value = (
        split_heads(build.linear(f"{prefix}.{part}", hidden), shape.heads, head_size)
        for part in (shape.query, shape.key, shape.value)
    )
    context = merge_heads(op.scaled_dot_product_attention(query, key, value, attention_mask), shape.heads, head_size)
    attended = op.add(build.linear(f"{prefix}.{shape.attended}", context), hidden)
    hidden = build.layer_norm(f"{prefix}.{shape.attended_norm}", attended, shape.epsilon)
    wide = ACTIVATIONS[shape.activation](build.linear(f"{prefix}.{shape.wide}", hidden))
    narrow = op.add(build.linear(f"{prefix}.{shape.narrow}", wide), hidden)
    return build.layer_norm(f"{prefix}.{shape.narrow_norm}", narrow, shape.epsilon)
