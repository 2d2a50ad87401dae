"""The whole graph: token ids in, the weight of every emitted token out.

The logits of all positions over the whole vocabulary, [B, L, V], never exist: the head runs over tiles of the
vocabulary, and each tile is reduced over the positions before the next one starts.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import openvino as ov  # type: ignore[import-untyped]
from numpy.typing import NDArray
from openvino import opset15 as op

from app.encoders.base import EncoderError
from app.encoders.graph.bert import bert_head, bert_states
from app.encoders.graph.builder import Builder, Int8, index, scalar
from app.encoders.graph.lexical_bert import LexicalBertShape, OwnWords, lexical_states
from app.encoders.graph.modernbert import modernbert_states
from sparse_encoder.architectures import Architecture
from sparse_encoder.artifact import Activation, Pooling
from sparse_encoder.fields import FieldError, Fields
from sparse_encoder.layers import BertShape, ModernBertShape
from sparse_encoder.layouts import layout
from sparse_encoder.weights import Weights

#: Rows of the output matrix in one tile: large enough to be as fast as one product, small enough to stay in the cache.
VOCABULARY_TILE = 1024
#: The names of the products with its tiles start with this.
HEAD = "head-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What a graph computes, from a manifest."""

    architecture: Architecture
    activation: Activation
    pooling: Pooling


def build_graph(
    kind: Kind,
    config: Mapping[str, Any],
    weights: Weights,
    emitted_ids: NDArray[np.int32],
    int8: Int8,
    *,
    blocks: bool = False,
) -> ov.Model:
    """Inputs `ids` i32 [B, L] and `lengths` i32 [B]; output f32 [B, len(emitted_ids)], column j for emitted_ids[j].

    Where the head weighs own tokens, the output is f32 [B, L]: what the token of each position weighs.

    `config` is the checkpoint's `config.json`. `blocks`: for long texts, see `modernbert_states`.

    :raises EncoderError: if the model is of a kind that this graph does not compute, or a weight is missing.
    :raises WeightsError: if a weight cannot be used.
    """
    shape = shape_of(kind.architecture, config)
    build = Builder(weights, int8)
    ids, lengths, positions, mask = inputs()
    if isinstance(shape, LexicalBertShape):
        if (kind.activation, kind.pooling) != ("log1p_relu", "max"):
            raise EncoderError(
                f"a LexicalBert has log1p_relu and max, its manifest says {kind.activation}, {kind.pooling}"
            )
        vectors = _lexical_bert(build, shape, kind, emitted_ids, ids, positions, mask)
    elif shape.own_weight:
        if (kind.activation, kind.pooling) != ("relu", "max"):
            raise EncoderError(
                f"a head that weighs own tokens has relu and max, its manifest says {kind.activation}, {kind.pooling}"
            )
        states = bert_states(build, shape, ids, positions, mask)
        vectors = op.squeeze(op.relu(build.linear(shape.own_weight, states)), index([2]))
    else:
        states = head_states(build, shape, ids, positions, mask, blocks=blocks)
        # The first position is never padding. Its copy in place of every padded one leaves each maximum as it is.
        first = op.gather(states, index([0]), index(1))
        decoder, bias = _decoder(build, shape, emitted_ids)
        if kind.pooling == "max":
            states = op.select(op.unsqueeze(mask, index(2)), states, first)
            vectors = _max_head(states, decoder, bias, kind.activation)
        else:
            vectors = _sum_head(states, mask, decoder, bias, kind.activation)
    return ov.Model([op.result(vectors)], [ids, lengths], "splade")


def inputs() -> tuple[ov.Node, ov.Node, ov.Node, ov.Node]:
    """Parameters `ids` [B, L] and `lengths` [B]; positions 0 to L-1, and a mask [B, L], true for a real token."""
    ids = op.parameter([-1, -1], ov.Type.i32, name="ids")
    lengths = op.parameter([-1], ov.Type.i32, name="lengths")
    row_length = op.gather(op.shape_of(ids, "i32"), index(1), index(0))
    positions = op.range(scalar(0, np.int32), row_length, scalar(1, np.int32), "i32")
    return ids, lengths, positions, op.less(op.unsqueeze(positions, index(0)), op.unsqueeze(lengths, index(1)))


def head_states(
    build: Builder,
    shape: BertShape | ModernBertShape,
    ids: ov.Node,
    positions: ov.Node,
    mask: ov.Node,
    *,
    blocks: bool,
) -> ov.Node:
    """What the decoder multiplies, f32 [B, L, hidden], of a model with nothing but a head over the vocabulary."""
    if isinstance(shape, BertShape):
        return bert_head(build, shape, bert_states(build, shape, ids, positions, mask))
    return modernbert_states(build, shape, ids, positions, mask, blocks=blocks)


def _lexical_bert(
    build: Builder,
    shape: LexicalBertShape,
    kind: Kind,
    emitted_ids: NDArray[np.int32],
    ids: ov.Node,
    positions: ov.Node,
    mask: ov.Node,
) -> ov.Node:
    states = bert_states(build, shape.bert, ids, positions, mask)
    own = OwnWords(build, shape, emitted_ids, ids, mask)
    weights = own.weights(states)
    spoken = own.only_speaking(lexical_states(build, shape, states, ids))
    logits = _lexical_logits(build, shape.bert, emitted_ids, spoken)
    return own.put(_activate(own.add_related(logits, states, weights), kind.activation), weights)


def _lexical_logits(build: Builder, shape: BertShape, emitted_ids: NDArray[np.int32], states: ov.Node) -> ov.Node:
    """The head's logits [B, columns]; a word whose row is zero has its bias and costs no product."""
    has_row = build.has_values(first_of(build, shape.decoders))[emitted_ids]
    if has_row.all():
        return _max_logits(states, *_decoder(build, shape, emitted_ids))
    head = _max_logits(states, *_decoder(build, shape, emitted_ids[has_row]))
    bias = build.get(first_of(build, shape.decoder_biases))[emitted_ids[~has_row]]
    texts = op.gather(op.shape_of(head, "i64"), index([0]), index(0))
    constant = op.broadcast(op.constant(bias), op.concat([texts, index([len(bias)])], 0))
    column = np.empty(len(emitted_ids), np.int32)
    column[np.concatenate([np.flatnonzero(has_row), np.flatnonzero(~has_row)])] = np.arange(len(emitted_ids))
    return op.gather(op.concat([head, constant], 1), op.constant(column), index(1))


def _decoder(
    build: Builder, shape: BertShape | ModernBertShape, emitted_ids: NDArray[np.int32]
) -> tuple[list[ov.Node], NDArray[np.float32]]:
    """The rows of the emitted ids, in tiles, and their bias."""
    tiles = [emitted_ids[start : start + VOCABULARY_TILE] for start in range(0, len(emitted_ids), VOCABULARY_TILE)]
    rows = list(build.tiles(first_of(build, shape.decoders), tiles))
    return rows, build.get(first_of(build, shape.decoder_biases))[emitted_ids]


def shape_of(architecture: Architecture, config: Mapping[str, Any]) -> BertShape | LexicalBertShape | ModernBertShape:
    try:
        if architecture == "LexicalBertForMaskedLM":
            return LexicalBertShape.from_config(config)
        return layout(architecture, Fields(config, complete=True)).layers
    except KeyError as error:
        raise EncoderError(f"config.json lacks {error}: publish the checkpoint again with its full config") from error
    except FieldError as error:
        raise EncoderError(str(error)) from error


def _max_head(
    hidden: ov.Node, decoder: Sequence[ov.Node], bias: NDArray[np.float32], activation: Activation
) -> ov.Node:
    return _activate(_max_logits(hidden, decoder, bias), activation)  # which is monotone, so it may follow the maximum


def _max_logits(hidden: ov.Node, decoder: Sequence[ov.Node], bias: NDArray[np.float32]) -> ov.Node:
    return op.concat([op.reduce_max(logits, index([1])) for logits in _logits(hidden, decoder, bias)], 1)


def _sum_head(
    hidden: ov.Node, mask: ov.Node, decoder: Sequence[ov.Node], bias: NDArray[np.float32], activation: Activation
) -> ov.Node:
    real = op.convert(op.unsqueeze(mask, index(2)), ov.Type.f32)
    sums = [
        op.reduce_sum(op.multiply(_activate(logits, activation), real), index([1]))
        for logits in _logits(hidden, decoder, bias)
    ]
    return op.concat(sums, 1)


def _logits(hidden: ov.Node, decoder: Sequence[ov.Node], bias: NDArray[np.float32]) -> Iterator[ov.Node]:
    """[B, L, tile] for each tile of the vocabulary. The bias makes each product f32, as what follows it is."""
    start = 0
    for rows in decoder:
        stop = start + rows.get_output_shape(0)[0]
        product = op.matmul(hidden, rows, False, True, name=f"{HEAD}{start}")
        yield op.add(product, op.constant(bias[None, None, start:stop]))
        start = stop


def _activate(logits: ov.Node, activation: Activation) -> ov.Node:
    weights = op.relu(logits)
    for _ in range(activation.count("log1p")):
        weights = op.log(op.add(weights, scalar(1, np.float32)))
    return weights


def first_of(weights: Container[object], names: Sequence[str]) -> str:
    """Of a weight that has several names: one that is tied to another is not in the file a second time."""
    return next((name for name in names if name in weights), names[0])


def with_bf16_output(graph: ov.Model) -> ov.Model:
    """`graph` with its output in bf16: else OpenVINO computes all that follows the last product in f32, which for the
    maxima over the positions takes longer than the products that they are of."""
    (result,) = graph.get_results()
    output = op.result(op.convert(result.input_value(0), ov.Type.bf16))
    return ov.Model([output], graph.get_parameters(), "splade")


def with_sums(graph: ov.Model, block: int) -> ov.Model:
    """`graph` with a second output, [B, columns // block]: sums of its output over blocks of columns, from which can be
    told where there is anything, and whether all is finite; of a maximum NaN would be lost."""
    (result,) = graph.get_results()
    vectors = result.input_value(0)
    blocks = vectors.get_partial_shape()[1].get_length() // block
    whole = op.slice(vectors, index([0]), index([blocks * block]), index([1]), index([1]))
    sums = op.reduce_sum(op.reshape(whole, index([0, blocks, block]), True), index([2]))
    return ov.Model([result, op.result(sums)], graph.get_parameters(), "splade")
