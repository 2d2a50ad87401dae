"""LexicalBert: a BERT whose own words weigh by construction; see `sparse_encoder/modeling_lexical_bert.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import openvino as ov  # type: ignore[import-untyped]
from numpy.typing import NDArray
from openvino import opset15 as op

from app.encoders.base import EncoderError
from app.encoders.graph.builder import Builder, index, scalar
from sparse_encoder.architectures import layout
from sparse_encoder.fields import Fields
from sparse_encoder.layers import BertShape


@dataclass(frozen=True, slots=True, kw_only=True)
class LexicalBertShape:
    bert: BertShape
    saturation: float
    length_power: float

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> LexicalBertShape:
        """:raises KeyError: if `config` lacks a value.
        :raises FieldError: if a field is wrong.
        """
        shape = layout("LexicalBertForMaskedLM", Fields(config, complete=True)).layers
        assert isinstance(shape, BertShape)
        return cls(
            bert=shape,
            saturation=config["own_saturation"],
            length_power=config["own_length_power"],
        )


class OwnWords:
    """The words of the texts themselves, as columns of the vectors."""

    def __init__(self, build: Builder, emitted_ids: NDArray[np.int32], ids: ov.Node, mask: ov.Node) -> None:
        """For `ids` and `mask` [B, L].

        :raises EncoderError: if the checkpoint says of a token that it is emitted as one that cannot be.
        """
        own_token = build.integers("own_token")
        if not np.isin(own_token, np.append(emitted_ids, -1)).all():
            raise EncoderError(
                "own_token of the checkpoint names tokens that its manifest says are never emitted: publish it again"
            )
        self._silent = len(emitted_ids)  #: a column behind the last, for positions that hold no word
        columns = np.full(len(own_token) + 1, self._silent, np.int32)
        columns[emitted_ids] = np.arange(len(emitted_ids), dtype=np.int32)
        # The last entry of `columns` is never an emitted id, so -1 finds the silent column.
        found = op.gather(op.constant(columns[own_token]), ids, index(0))
        silent = scalar(self._silent, np.int32)
        self._columns = op.select(mask, found, silent)
        self.speaks = op.not_equal(self._columns, silent)  #: [B, L], true: holds a word
        self._weights = np.append(build.get("own_weight")[emitted_ids], np.float32(0))

    def weights(self, build: Builder, shape: LexicalBertShape, states: ov.Node) -> ov.Node:
        """What the word of each position weighs, f32 [B, L]; 0 where there is none."""
        same = op.equal(op.unsqueeze(self._columns, index(1)), op.unsqueeze(self._columns, index(2)))
        counts = op.reduce_sum(op.convert(same, ov.Type.f32), index([2]))
        words = op.reduce_sum(op.convert(self.speaks, ov.Type.f32), index([1]), True)
        lengths = op.maximum(words, scalar(1, np.float32))
        saturated = op.divide(
            op.multiply(counts, scalar(1 + shape.saturation, np.float32)),
            op.add(counts, scalar(shape.saturation, np.float32)),
        )
        frequency = op.multiply(saturated, op.power(lengths, scalar(-shape.length_power, np.float32)))
        importance = op.squeeze(op.sigmoid(build.linear("importance", states)), index([2]))
        own = op.gather(op.constant(2 * self._weights), self._columns, index(0))
        return op.relu(op.multiply(op.multiply(own, frequency), importance))

    def only_speaking(self, states: ov.Node) -> ov.Node:
        """`states` with a copy of one that speaks in place of each that does not, which leaves maxima as they are."""
        place = op.topk(op.convert(self.speaks, ov.Type.f32), scalar(1, np.int64), 1, "max", "none").output(1)
        speaking = op.gather(states, place, index(1), 1)  # [B, 1, hidden]
        return op.select(op.unsqueeze(self.speaks, index(2)), states, speaking)

    def put(self, vectors: ov.Node, weights: ov.Node) -> ov.Node:
        """`vectors` [B, columns] in which own words have their `weights` [B, L]; empty for a text that holds none."""
        spare = op.slice(vectors, index([0]), index([1]), index([1]), index([1]))  # cut off again below
        updated = op.scatter_elements_update(
            op.concat([vectors, spare], 1), self._columns, weights, index(1), reduction="max", use_init_val=False
        )
        whole = op.slice(updated, index([0]), index([self._silent]), index([1]), index([1]))
        any_word = op.reduce_max(op.convert(self.speaks, ov.Type.f32), index([1]), True)
        return op.multiply(whole, any_word)


def lexical_states(build: Builder, shape: LexicalBertShape, states: ov.Node, ids: ov.Node) -> ov.Node:
    """What the decoder multiplies, f32 [B, L, hidden], from the last hidden `states` and the `ids` themselves."""
    tokens = build.embedding(f"{shape.bert.embeddings}.word_embeddings.weight", ids)
    both = op.add(build.linear(shape.bert.head_dense, states), build.linear("head.skip", tokens, bias=False))
    return build.layer_norm(shape.bert.head_norm, op.gelu(both, "erf"), shape.bert.epsilon)
