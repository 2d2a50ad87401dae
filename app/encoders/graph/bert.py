"""BERT and models near it: (XLM-)RoBERTa, CamemBERT, DistilBERT and ELECTRA generators by other names, MPNet with a
bias of attention by distance, GTE with rotary positions and gated layers, DeBERTa with scores of distances."""

from __future__ import annotations

import math

import numpy as np
import openvino as ov  # type: ignore[import-untyped]
from numpy.typing import NDArray
from openvino import opset15 as op

from app.encoders.graph.builder import ACTIVATIONS, Builder, gated, index, merge_heads, scalar, split_heads
from app.encoders.graph.disentangled import DistanceScores
from app.encoders.graph.rotary import rotate, rotation
from sparse_encoder.layers import RELATIVE_BUCKETS, RELATIVE_REACH, BertShape


def bert_states(build: Builder, shape: BertShape, ids: ov.Node, positions: ov.Node, mask: ov.Node) -> ov.Node:
    """The last hidden states, f32 [B, L, hidden], for `ids` [B, L], `positions` 0 to L-1 and `mask` [B, L]."""
    hidden = _embeddings(build, shape, ids, positions)
    if shape.project:
        hidden = build.linear(shape.project, hidden)
    attention_mask = op.unsqueeze(mask, index([1, 2]))
    if shape.relative_bias:
        attention_mask = _relative_mask(build, shape, positions, attention_mask)
    turn = None
    if shape.rotation:
        size = shape.hidden_size // shape.heads
        turn = rotation(shape.rotation.theta, size, positions, shape.rotation.divisors)
    apart = None
    if shape.disentangled:
        apart = DistanceScores(build, shape, shape.disentangled, positions, attention_mask)
    for layer in range(shape.layers):
        hidden = _layer(build, shape, f"{shape.layer}.{layer}", hidden, apart or attention_mask, turn)
    return hidden


def bert_head(build: Builder, shape: BertShape, states: ov.Node) -> ov.Node:
    """What the decoder multiplies, f32 [B, L, embedding], from the last hidden `states`."""
    hidden = ACTIVATIONS[shape.head_activation](build.linear(shape.head_dense, states))
    return build.layer_norm(shape.head_norm, hidden, shape.epsilon)


def _embeddings(build: Builder, shape: BertShape, ids: ov.Node, positions: ov.Node) -> ov.Node:
    prefix = shape.embeddings
    words = build.embedding(shape.words, ids)
    types = f"{prefix}.token_type_embeddings.weight"  # every token has type 0
    if not shape.positions:
        words = op.add(words, op.constant(build.get(types)[0])) if types in build else words
        return build.layer_norm(f"{prefix}.LayerNorm", words, shape.epsilon)
    places = build.get(f"{prefix}.position_embeddings.weight")
    if types in build:
        places = places + build.get(types)[0]
    rows = op.gather(op.constant(np.ascontiguousarray(places[shape.first_position :])), positions, index(0))
    return build.layer_norm(f"{prefix}.LayerNorm", op.add(words, rows), shape.epsilon)


def _relative_mask(build: Builder, shape: BertShape, positions: ov.Node, mask: ov.Node) -> ov.Node:
    """What is added to the scores, [B, heads, L, L]: a bias by the distance from query to key, or nothing is seen."""
    table = build.get(f"{shape.relative_bias}.weight")
    by_distance = table[relative_buckets(np.arange(1 - shape.positions, shape.positions))]  # [2P - 1, heads]
    distance = op.subtract(op.unsqueeze(positions, index(0)), op.unsqueeze(positions, index(1)))  # key minus query
    row = op.add(distance, scalar(shape.positions - 1, np.int32))
    bias = op.unsqueeze(op.transpose(op.gather(op.constant(by_distance), row, index(0)), index([2, 0, 1])), index(0))
    return op.select(mask, bias, scalar(float(np.finfo(np.float32).min), np.float32))


def relative_buckets(distances: NDArray[np.int64]) -> NDArray[np.int64]:
    """Of each distance: small ones have a bucket each, others share one by their logarithm; half are for each side."""
    side = RELATIVE_BUCKETS // 2
    exact = side // 2
    far = np.maximum(np.abs(distances), exact).astype(np.float32)
    steps = np.log(far / exact) / np.float32(math.log(RELATIVE_REACH / exact)) * (side - exact)
    near = np.abs(distances) < exact
    bucket = np.where(near, np.abs(distances), np.minimum(exact + steps.astype(np.int64), side - 1))
    buckets: NDArray[np.int64] = bucket + side * (distances > 0)
    return buckets


def _layer(
    build: Builder,
    shape: BertShape,
    prefix: str,
    hidden: ov.Node,
    mask: ov.Node | DistanceScores,
    turn: tuple[ov.Node, ov.Node] | None,
) -> ov.Node:
    head_size = shape.hidden_size // shape.heads
    query, key, value = (
        split_heads(build.linear(f"{prefix}.{part}", hidden), shape.heads, head_size)
        for part in (shape.query, shape.key, shape.value)
    )
    if turn:
        query, key = (rotate(part, turn, head_size) for part in (query, key))
    if isinstance(mask, DistanceScores):
        context = op.scaled_dot_product_attention(query, key, value, mask.mask(prefix, query, key), mask.scale)
    else:
        context = op.scaled_dot_product_attention(query, key, value, mask)
    context = merge_heads(context, shape.heads, head_size)
    attended = op.add(build.linear(f"{prefix}.{shape.attended}", context), hidden)
    hidden = build.layer_norm(f"{prefix}.{shape.attended_norm}", attended, shape.epsilon)
    if shape.gate:
        inputs, gate = (build.linear(f"{prefix}.{part}", hidden, bias=False) for part in (shape.gate, shape.wide))
        wide = gated(shape.activation, inputs, gate)
    else:
        wide = ACTIVATIONS[shape.activation](build.linear(f"{prefix}.{shape.wide}", hidden))
    narrow = op.add(build.linear(f"{prefix}.{shape.narrow}", wide), hidden)
    return build.layer_norm(f"{prefix}.{shape.narrow_norm}", narrow, shape.epsilon)
