"""ModernBERT (Warner et al. 2024, arXiv:2412.13663): rotary positions, gated layers, local attention in most layers."""

from __future__ import annotations

import numpy as np
import openvino as ov  # type: ignore[import-untyped]
from openvino import opset15 as op

from app.encoders.graph.builder import ACTIVATIONS, Builder, index, merge_heads, scalar, split_heads
from app.encoders.graph.rotary import rotate, rotation
from sparse_encoder.layers import GLOBAL, LOCAL, ModernBertShape


def modernbert_states(
    build: Builder, shape: ModernBertShape, ids: ov.Node, positions: ov.Node, mask: ov.Node
) -> ov.Node:
    """What the decoder multiplies, f32 [B, L, hidden], for `ids` [B, L], `positions` 0 to L-1 and `mask` [B, L]."""
    hidden = build.embedding(shape.words, ids)
    hidden = _norm(build, shape, shape.embedding_norm, hidden)
    size = shape.hidden_size // shape.heads
    rotations = {kind: rotation(shape.theta[kind], size, positions) for kind in set(shape.kinds)}
    masks = _attention_masks(shape, positions, mask)
    for number, kind in enumerate(shape.kinds):
        prefix = f"{shape.layer}.{number}"
        normed = _norm(build, shape, f"{prefix}.{shape.attention_norm}", hidden) if number else hidden
        hidden = op.add(hidden, _attention(build, shape, prefix, normed, rotations[kind], masks[kind]))
        normed = _norm(build, shape, f"{prefix}.{shape.mlp_norm}", hidden)
        hidden = op.add(hidden, _gated(build, shape, prefix, normed))
    hidden = _norm(build, shape, shape.final_norm, hidden)
    hidden = ACTIVATIONS[shape.head_activation](build.linear(shape.head_dense, hidden, bias=shape.head_bias))
    return _norm(build, shape, shape.head_norm, hidden)


def _norm(build: Builder, shape: ModernBertShape, prefix: str, inputs: ov.Node) -> ov.Node:
    return build.layer_norm(prefix, inputs, shape.epsilon, bias=shape.norm_bias)


def _attention_masks(shape: ModernBertShape, positions: ov.Node, mask: ov.Node) -> dict[str, ov.Node]:
    """Which keys each query sees: [B, 1, 1, L] for global layers, [B, 1, L, L] for local ones."""
    real = op.unsqueeze(mask, index([1, 2]))
    distance = op.abs(op.subtract(op.unsqueeze(positions, index(0)), op.unsqueeze(positions, index(1))))
    near = op.unsqueeze(op.less_equal(distance, scalar(shape.window, np.int32)), index([0, 1]))
    # Padding far behind a short text has no real token near it; seeing itself, it does not become NaN.
    itself = op.unsqueeze(op.equal(distance, scalar(0, np.int32)), index([0, 1]))
    return {GLOBAL: real, LOCAL: op.logical_or(op.logical_and(real, near), itself)}


def _attention(
    build: Builder,
    shape: ModernBertShape,
    prefix: str,
    hidden: ov.Node,
    turn: tuple[ov.Node, ov.Node],
    mask: ov.Node,
) -> ov.Node:
    size = shape.hidden_size // shape.heads
    parts = build.linear_parts(f"{prefix}.{shape.attention_in}", hidden, 3, bias=shape.attention_bias)
    query, key, value = (split_heads(part, shape.heads, size) for part in parts)
    context = op.scaled_dot_product_attention(rotate(query, turn, size), rotate(key, turn, size), value, mask)
    return build.linear(
        f"{prefix}.{shape.attention_out}", merge_heads(context, shape.heads, size), bias=shape.attention_bias
    )


def _gated(build: Builder, shape: ModernBertShape, prefix: str, hidden: ov.Node) -> ov.Node:
    inputs, gate = build.linear_parts(f"{prefix}.{shape.mlp_in}", hidden, 2, bias=shape.mlp_bias)
    product = op.multiply(ACTIVATIONS[shape.activation](inputs), gate)
    return build.linear(f"{prefix}.{shape.mlp_out}", product, bias=shape.mlp_bias)
