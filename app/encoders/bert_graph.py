"""A BERT masked language model as an OpenVINO graph that ends in the SPLADE weights of each text.

The logits of all positions over the whole vocabulary, [B, L, V], never exist: the head runs over tiles of the
vocabulary, and each tile is reduced to its maximum over the positions before the next one starts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import openvino as ov  # type: ignore[import-untyped]
from numpy.typing import NDArray
from openvino import opset13 as op

from app.encoders.base import EncoderError

Weights = Mapping[str, NDArray[np.float32]]

#: Rows of the output matrix in one tile: large enough to be as fast as one product, small enough to stay in the cache.
VOCABULARY_TILE = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class BertConfig:
    """What a `config.json` of transformers says about the shape of the model."""

    hidden_size: int
    num_attention_heads: int
    num_hidden_layers: int
    layer_norm_eps: float
    max_position_embeddings: int

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> BertConfig:
        """:raises EncoderError: if the model is of a kind that this graph does not compute."""
        expected = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute"}
        for name, value in expected.items():
            if config.get(name, value) != value:
                raise EncoderError(
                    f"config.json has {name} {config[name]!r}, this encoder computes only {value!r}: "
                    "publish a checkpoint of that kind"
                )
        try:
            return cls(**{name: config[name] for name in cls.__dataclass_fields__})
        except KeyError as error:
            raise EncoderError(
                f"config.json lacks {error}: publish the checkpoint again with its full config"
            ) from error


def build_graph(config: BertConfig, weights: Weights, emitted_ids: NDArray[np.int32]) -> ov.Model:
    """Inputs `ids` i32 [B, L] and `lengths` i32 [B]; output f32 [B, len(emitted_ids)], column j for emitted_ids[j].

    :raises EncoderError: if a weight is missing.
    """
    ids = op.parameter([-1, -1], ov.Type.i32, name="ids")
    lengths = op.parameter([-1], ov.Type.i32, name="lengths")
    builder = _Builder(config, weights)
    row_length = op.gather(op.shape_of(ids, "i32"), _index(1), _index(0))
    positions = op.range(_scalar(0, np.int32), row_length, _scalar(1, np.int32), "i32")
    mask = op.less(op.unsqueeze(positions, _index(0)), op.unsqueeze(lengths, _index(1)))  # [B, L], true: a real token
    hidden = builder.embeddings(ids, positions)
    attention_mask = op.unsqueeze(mask, _index([1, 2]))
    for layer in range(config.num_hidden_layers):
        hidden = builder.layer(f"bert.encoder.layer.{layer}", hidden, attention_mask)
    result = op.result(builder.splade_head(hidden, mask, emitted_ids))
    return ov.Model([result], [ids, lengths], "splade")


class _Builder:
    """Parts of the graph, by the names that transformers gives the weights."""

    def __init__(self, config: BertConfig, weights: Weights) -> None:
        self._config = config
        self._weights = weights

    def embeddings(self, ids: ov.Node, positions: ov.Node) -> ov.Node:
        prefix = "bert.embeddings"
        words = op.gather(self._constant(f"{prefix}.word_embeddings.weight"), ids, _index(0))
        # Every token has type 0, so its row is part of each position's.
        places = (
            self._get(f"{prefix}.position_embeddings.weight") + self._get(f"{prefix}.token_type_embeddings.weight")[0]
        )
        return self._layer_norm(
            f"{prefix}.LayerNorm", op.add(words, op.gather(op.constant(places), positions, _index(0)))
        )

    def layer(self, prefix: str, hidden: ov.Node, attention_mask: ov.Node) -> ov.Node:
        query, key, value = (
            self._heads(self._linear(f"{prefix}.attention.self.{part}", hidden)) for part in ("query", "key", "value")
        )
        context = op.scaled_dot_product_attention(query, key, value, attention_mask)
        merged = op.reshape(op.transpose(context, _index([0, 2, 1, 3])), _index([0, 0, self._config.hidden_size]), True)
        attended = op.add(self._linear(f"{prefix}.attention.output.dense", merged), hidden)
        hidden = self._layer_norm(f"{prefix}.attention.output.LayerNorm", attended)
        wide = op.gelu(self._linear(f"{prefix}.intermediate.dense", hidden), "erf")
        return self._layer_norm(
            f"{prefix}.output.LayerNorm", op.add(self._linear(f"{prefix}.output.dense", wide), hidden)
        )

    def splade_head(self, hidden: ov.Node, mask: ov.Node, emitted_ids: NDArray[np.int32]) -> ov.Node:
        prefix = "cls.predictions"
        hidden = op.gelu(self._linear(f"{prefix}.transform.dense", hidden), "erf")
        hidden = self._layer_norm(f"{prefix}.transform.LayerNorm", hidden)
        # The first position is never padding. Its copy in place of every padded one leaves each maximum as it is.
        first = op.gather(hidden, _index([0]), _index(1))
        hidden = op.select(op.unsqueeze(mask, _index(2)), hidden, first)
        tied = "bert.embeddings.word_embeddings.weight"
        rows = self._get(f"{prefix}.decoder.weight" if f"{prefix}.decoder.weight" in self._weights else tied)
        bias = self._get(f"{prefix}.decoder.bias" if f"{prefix}.decoder.bias" in self._weights else f"{prefix}.bias")
        maxima = [
            op.reduce_max(op.matmul(hidden, op.constant(rows[tile]), False, True), _index([1]))
            for tile in _tiles(emitted_ids)
        ]
        # The bias is the same at every position, and log1p(relu()) is monotone: both may follow the maximum.
        logits = op.add(op.concat(maxima, 1), op.constant(bias[emitted_ids]))
        return op.log(op.add(op.relu(logits), _scalar(1, np.float32)))

    def _linear(self, prefix: str, inputs: ov.Node) -> ov.Node:
        product = op.matmul(inputs, self._constant(f"{prefix}.weight"), False, True)
        return op.add(product, self._constant(f"{prefix}.bias"))

    def _layer_norm(self, prefix: str, inputs: ov.Node) -> ov.Node:
        normed = op.mvn(inputs, _index([-1]), True, self._config.layer_norm_eps, "inside_sqrt")
        return op.add(op.multiply(normed, self._constant(f"{prefix}.weight")), self._constant(f"{prefix}.bias"))

    def _heads(self, hidden: ov.Node) -> ov.Node:
        """[B, L, hidden] as [B, heads, L, hidden / heads]."""
        heads = self._config.num_attention_heads
        split = op.reshape(hidden, _index([0, 0, heads, self._config.hidden_size // heads]), True)
        return op.transpose(split, _index([0, 2, 1, 3]))

    def _constant(self, name: str) -> ov.Node:
        return op.constant(self._get(name))

    def _get(self, name: str) -> NDArray[np.float32]:
        try:
            return self._weights[name]
        except KeyError:
            raise EncoderError(f"the checkpoint has no weight {name}: publish it again as a BertForMaskedLM") from None


def _tiles(emitted_ids: NDArray[np.int32]) -> Iterator[NDArray[np.int32]]:
    for start in range(0, len(emitted_ids), VOCABULARY_TILE):
        yield emitted_ids[start : start + VOCABULARY_TILE]


def _index(value: int | list[int]) -> ov.Node:
    return op.constant(np.array(value, np.int64))


def _scalar(value: int, dtype: type[np.generic]) -> ov.Node:
    return op.constant(np.array(value, dtype))
