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
from sparse_encoder.fields import Fields
from sparse_encoder.layers import BertShape
from sparse_encoder.layouts import layout

#: Sums over the places of a text are made in integers: in bf16, 256 and 1 are 256. So many bits are behind the point:
#: of counts, which leaves room for 8,191 places; of sums of weights, for an average of 63 over 1,024 places; and of
#: what the table adds.
COUNT_BITS, WEIGHT_BITS, ADDED_BITS = 18, 15, 20


@dataclass(frozen=True, slots=True, kw_only=True)
class LexicalBertShape:
    bert: BertShape
    saturation: float
    length_power: float
    parts: int  #: words for which a token may speak beside its own
    related: int  #: words that the table names for each word; 0: there is no table
    related_power: float

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
            parts=config.get("parts", 0),
            related=config.get("related", 0),
            related_power=config.get("related_power", 0.0),
        )


class OwnWords:
    """The words of the texts themselves, as columns: at each position its word, its parts behind them."""

    def __init__(
        self, build: Builder, shape: LexicalBertShape, emitted_ids: NDArray[np.int32], ids: ov.Node, mask: ov.Node
    ) -> None:
        """For `ids` and `mask` [B, L].

        :raises EncoderError: if the checkpoint says of a token that it is emitted as one that cannot be.
        """
        self._build, self._shape = build, shape
        self._emitted_ids = emitted_ids
        self._silent = len(emitted_ids)  #: a column behind the last, for positions that hold no word
        self._column = np.full(build.integers("own_token").shape[0] + 1, self._silent, np.int32)
        # The last entry is never an emitted id, so -1 finds the silent column.
        self._column[emitted_ids] = np.arange(len(emitted_ids), dtype=np.int32)
        silent = scalar(self._silent, np.int32)
        words = op.select(mask, op.gather(op.constant(self._columns("own_token")), ids, index(0)), silent)
        shares = None
        if shape.parts:
            is_word = op.convert(op.not_equal(words, silent), ov.Type.f32)
            any_word = op.greater(op.reduce_max(is_word, index([1]), True), scalar(0, np.float32))
            last = op.select(mask, op.gather(op.constant(self._columns("last_token")), ids, index(0)), silent)
            words = op.select(any_word, words, last)
            shares = _behind_each_other(op.gather(op.constant(build.get("own_share")), ids, index(0)))
        self._words = words  #: [B, L]
        self.speaks = op.not_equal(words, silent)  #: [B, L], true: holds a word
        self.places, self.shares = words, shares  #: [B, L x (1 + parts)] columns, and how much of an occurrence each is
        if shape.parts:
            found = op.gather(op.constant(self._columns("part_token")), ids, index(0))
            parts = op.select(op.unsqueeze(mask, index(2)), found, silent)
            self.places = op.concat([words, _behind_each_other(parts)], 1)

    def _columns(self, name: str) -> NDArray[np.int32]:
        """The tokens of the weight `name` as columns."""
        tokens = self._build.integers(name)
        if not np.isin(tokens, np.append(self._emitted_ids, -1)).all():
            raise EncoderError(
                f"{name} of the checkpoint names tokens that its manifest says are never emitted: publish it again"
            )
        columns: NDArray[np.int32] = self._column[tokens]
        return columns

    def _by_word(self, places: ov.Node, values: ov.Node, start: int, reduction: str) -> ov.Node:
        """For each of `places` [B, n] the i32 `values` [B, n] of its column and `start`, reduced to one."""
        texts = op.gather(op.shape_of(places, "i64"), index([0]), index(0))
        columns = op.broadcast(scalar(start, np.int32), op.concat([texts, index([self._silent + 1])], 0))
        reduced = op.scatter_elements_update(columns, places, values, index(1), reduction=reduction, use_init_val=True)
        return op.gather_elements(reduced, places, 1)

    def _sums(self, places: ov.Node, values: ov.Node, bits: int) -> ov.Node:
        """For each of `places` [B, n] the sum of the `values` [B, n] of its column."""
        return _from_fixed(self._by_word(places, _to_fixed(values, bits), 0, "sum"), bits)

    def _is_first(self) -> ov.Node:
        """Whether a position is the first of its word in the text: [B, L]."""
        positions = op.range(scalar(0, np.int32), self._row_length("i32"), scalar(1, np.int32), "i32")
        own = op.broadcast(positions, op.shape_of(self._words, "i64"))
        return op.equal(self._by_word(self._words, own, np.iinfo(np.int32).max, "min"), own)

    def _row_length(self, kind: str) -> ov.Node:
        return op.gather(op.shape_of(self._words, kind), index(1), index(0))

    def _of_words(self, values: ov.Node) -> ov.Node:
        """[B, L x (1 + parts)] as [B, L]."""
        return op.slice(values, index([0]), op.unsqueeze(self._row_length("i64"), index(0)), index([1]), index([1]))

    def weights(self, states: ov.Node) -> ov.Node:
        """What the word of each place weighs, f32 [B, L x (1 + parts)]; 0 where there is none."""
        saturation, power = self._shape.saturation, self._shape.length_power
        spoken = op.convert(op.not_equal(self.places, scalar(self._silent, np.int32)), ov.Type.f32)
        if self.shares is not None:
            spoken = op.multiply(spoken, self.shares)
        counts = self._sums(self.places, spoken, COUNT_BITS)
        words = op.convert(self.speaks, ov.Type.f32)
        if self.shares is not None:
            words = self._of_words(spoken)
        lengths = op.maximum(op.reduce_sum(words, index([1]), True), scalar(1, np.float32))
        saturated = op.divide(
            op.multiply(counts, scalar(1 + saturation, np.float32)), op.add(counts, scalar(saturation, np.float32))
        )
        frequency = op.multiply(saturated, op.power(lengths, scalar(-power, np.float32)))
        importance = op.squeeze(op.sigmoid(self._build.linear("importance", states)), index([2]))
        if self._shape.parts:
            importance = op.concat([importance] * (1 + self._shape.parts), 1)
        own_weight = np.append(2 * self._build.get("own_weight")[self._emitted_ids], np.float32(0))
        own = op.gather(op.constant(own_weight), self.places, index(0))
        return op.relu(op.multiply(op.multiply(own, frequency), importance))

    def only_speaking(self, states: ov.Node) -> ov.Node:
        """`states` with a copy of one that speaks in place of each that does not, which leaves maxima as they are."""
        place = op.topk(op.convert(self.speaks, ov.Type.f32), scalar(1, np.int64), 1, "max", "none").output(1)
        speaking = op.gather(states, place, index(1), 1)  # [B, 1, hidden]
        return op.select(op.unsqueeze(self.speaks, index(2)), states, speaking)

    def add_related(self, logits: ov.Node, states: ov.Node, weights: ov.Node) -> ov.Node:
        """`logits` [B, columns] and what the table says of the own words, which have `weights`."""
        if not self._shape.related:
            return logits
        places, added = self.related(states, weights)
        flat_places, flat_added = (
            op.reshape(node, index([0, -1]), True) for node in (places, _to_fixed(added, ADDED_BITS))
        )
        nothing = op.broadcast(scalar(0, np.int32), op.shape_of(logits, "i64"))
        related = self._scattered(nothing, flat_places, flat_added, "sum", use_init_val=True)
        return op.add(logits, _from_fixed(related, ADDED_BITS))

    def related(self, states: ov.Node, weights: ov.Node) -> tuple[ov.Node, ov.Node]:
        """The columns that the word of each position brings up by the table, and what that adds to the logit of each:
        [B, L, related]. Own words have `weights`; the silent column stands where there is none."""
        own = self._of_words(weights)
        counts = op.maximum(
            self._sums(self._words, op.convert(self.speaks, ov.Type.f32), COUNT_BITS), scalar(1, np.float32)
        )
        wanted = op.squeeze(op.sigmoid(self._build.linear("relating", states)), index([2]))
        mean = op.divide(self._sums(self._words, op.multiply(own, wanted), WEIGHT_BITS), counts)
        total = op.maximum(op.reduce_sum(op.divide(own, counts), index([1]), True), scalar(1e-6, np.float32))
        share = op.unsqueeze(
            op.multiply(mean, op.power(total, scalar(-self._shape.related_power, np.float32))), index(2)
        )
        silent = [np.full((1, self._shape.related), value) for value in (self._silent, 0)]
        columns = np.concatenate([self._columns("related_token")[self._emitted_ids], silent[0]]).astype(np.int32)
        table = np.concatenate([2 * self._build.get("related_weight")[self._emitted_ids], silent[1]]).astype(np.float32)
        added = op.multiply(op.gather(op.constant(table), self._words, index(0)), share)
        # A word that is repeated adds once what its places want on average.
        first = op.unsqueeze(self._is_first(), index(2))
        places = op.select(
            first, op.gather(op.constant(columns), self._words, index(0)), scalar(self._silent, np.int32)
        )
        return places, added

    def put(self, vectors: ov.Node, weights: ov.Node) -> ov.Node:
        """`vectors` [B, columns] in which own words have their `weights`; empty for a text that holds none."""
        whole = self._scattered(vectors, self.places, weights, "max", use_init_val=False)
        any_word = op.reduce_max(op.convert(self.speaks, ov.Type.f32), index([1]), True)
        return op.multiply(whole, any_word)

    def _scattered(
        self, vectors: ov.Node, places: ov.Node, values: ov.Node, reduction: str, *, use_init_val: bool
    ) -> ov.Node:
        spare = op.slice(vectors, index([0]), index([1]), index([1]), index([1]))  # the silent column, cut off again
        updated = op.scatter_elements_update(
            op.concat([vectors, spare], 1), places, values, index(1), reduction=reduction, use_init_val=use_init_val
        )
        return op.slice(updated, index([0]), index([self._silent]), index([1]), index([1]))


def _to_fixed(values: ov.Node, bits: int) -> ov.Node:
    """`values` as i32, in units of 2^-`bits`."""
    return op.convert(op.round(op.multiply(values, scalar(1 << bits, np.float32)), "half_to_even"), ov.Type.i32)


def _from_fixed(values: ov.Node, bits: int) -> ov.Node:
    return op.multiply(op.convert(values, ov.Type.f32), scalar(1 / (1 << bits), np.float32))


def _behind_each_other(parts: ov.Node) -> ov.Node:
    """[B, L, parts] as [B, parts x L]."""
    return op.reshape(op.transpose(parts, index([0, 2, 1])), index([0, -1]), True)


def lexical_states(build: Builder, shape: LexicalBertShape, states: ov.Node, ids: ov.Node) -> ov.Node:
    """What the decoder multiplies, f32 [B, L, hidden], from the last hidden `states` and the `ids` themselves."""
    tokens = build.embedding(f"{shape.bert.embeddings}.word_embeddings.weight", ids)
    both = op.add(build.linear(shape.bert.head_dense, states), build.linear("head.skip", tokens, bias=False))
    return build.layer_norm(shape.bert.head_norm, op.gelu(both, "erf"), shape.bert.epsilon)
