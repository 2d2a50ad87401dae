"""BERT and the models that differ from it mostly in names: (XLM-)RoBERTa, CamemBERT, DistilBERT, ELECTRA generators."""

from __future__ import annotations

import numpy as np
import openvino as ov  # type: ignore[import-untyped]
from openvino import opset15 as op

from app.encoders.graph.builder import ACTIVATIONS, Builder, index, merge_heads, split_heads
from sparse_encoder.layers import BertShape


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
    words = build.embedding(shape.words, ids)
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
