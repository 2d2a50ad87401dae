"""ModernBERT (Warner et al. 2024, arXiv:2412.13663): rotary positions, gated layers, local attention in most layers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import openvino as ov  # type: ignore[import-untyped]
from openvino import opset15 as op

from app.encoders.base import LONG_TEXT
from app.encoders.graph.builder import ACTIVATIONS, Builder, gated, index, merge_heads, scalar, split_heads
from app.encoders.graph.local import LocalBlocks
from app.encoders.graph.rotary import rotate, rotation
from sparse_encoder.layers import GLOBAL, LOCAL, ModernBertShape

#: From the products [B, L, hidden] of the query, the key and the value to the context, of the same shape.
Attention = Callable[[ov.Node, ov.Node, ov.Node], ov.Node]


def modernbert_states(
    build: Builder, shape: ModernBertShape, ids: ov.Node, positions: ov.Node, mask: ov.Node, *, blocks: bool
) -> ov.Node:
    """What the decoder multiplies, f32 [B, L, hidden], for `ids` [B, L], `positions` 0 to L-1 and `mask` [B, L].

    `blocks`: local layers compute nothing but what they see, which pays for long texts.
    """
    hidden = build.embedding(shape.words, ids)
    hidden = _norm(build, shape, shape.embedding_norm, hidden)
    attention = _attention(shape, positions, mask, blocks)
    for number, kind in enumerate(shape.kinds):
        prefix = f"{shape.layer}.{number}"
        normed = _norm(build, shape, f"{prefix}.{shape.attention_norm}", hidden) if number else hidden
        parts = build.linear_parts(f"{prefix}.{shape.attention_in}", normed, 3, bias=shape.attention_bias)
        context = attention[kind](*parts)
        attended = build.linear(f"{prefix}.{shape.attention_out}", context, bias=shape.attention_bias)
        hidden = op.add(hidden, attended)
        normed = _norm(build, shape, f"{prefix}.{shape.mlp_norm}", hidden)
        hidden = op.add(hidden, _gated(build, shape, prefix, normed))
    hidden = _norm(build, shape, shape.final_norm, hidden)
    hidden = ACTIVATIONS[shape.head_activation](build.linear(shape.head_dense, hidden, bias=shape.head_bias))
    return _norm(build, shape, shape.head_norm, hidden)


def _norm(build: Builder, shape: ModernBertShape, prefix: str, inputs: ov.Node) -> ov.Node:
    return build.layer_norm(prefix, inputs, shape.epsilon, bias=shape.norm_bias)


def _attention(shape: ModernBertShape, positions: ov.Node, mask: ov.Node, blocks: bool) -> dict[str, Attention]:
    """By the kind of a layer."""
    size = shape.hidden_size // shape.heads
    real = op.unsqueeze(mask, index([1, 2]))  # [B, 1, 1, L]
    chosen = {GLOBAL: _whole(shape, rotation(shape.theta[GLOBAL], size, positions), real)}
    if LOCAL not in shape.kinds:
        return chosen
    if blocks and 3 * shape.window <= LONG_TEXT:  # a block of keys, without which they gain nothing
        chosen[LOCAL] = LocalBlocks(mask, shape.window, shape.heads, size, shape.theta[LOCAL]).attention
        return chosen
    distance = op.abs(op.subtract(op.unsqueeze(positions, index(0)), op.unsqueeze(positions, index(1))))
    near = op.unsqueeze(op.less_equal(distance, scalar(shape.window, np.int32)), index([0, 1]))
    # Padding far behind a short text has no real token near it; seeing itself, it does not become NaN.
    itself = op.unsqueeze(op.equal(distance, scalar(0, np.int32)), index([0, 1]))
    seen = op.logical_or(op.logical_and(real, near), itself)  # [B, 1, L, L]
    chosen[LOCAL] = _whole(shape, rotation(shape.theta[LOCAL], size, positions), seen)
    return chosen


def _whole(shape: ModernBertShape, turn: tuple[ov.Node, ov.Node], mask: ov.Node) -> Attention:
    """Each query against every key; `mask`: which of these count."""
    size = shape.hidden_size // shape.heads

    def attention(*products: ov.Node) -> ov.Node:
        query, key, value = (split_heads(product, shape.heads, size) for product in products)
        context = op.scaled_dot_product_attention(rotate(query, turn, size), rotate(key, turn, size), value, mask)
        return merge_heads(context, shape.heads, size)

    return attention


def _gated(build: Builder, shape: ModernBertShape, prefix: str, hidden: ov.Node) -> ov.Node:
    inputs, gate = build.linear_parts(f"{prefix}.{shape.mlp_in}", hidden, 2, bias=shape.mlp_bias)
    product = gated(shape.activation, inputs, gate)
    return build.linear(f"{prefix}.{shape.mlp_out}", product, bias=shape.mlp_bias)
