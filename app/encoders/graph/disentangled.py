"""Attention that scores words and distances apart (He et al. 2021, arXiv:2006.03654), as transformers computes it."""

from __future__ import annotations

import math

import numpy as np
import openvino as ov  # type: ignore[import-untyped]
from numpy.typing import NDArray
from openvino import opset15 as op

from app.encoders.graph.builder import Builder, index, scalar
from sparse_encoder.layers import BertShape, Disentangled


class DistanceScores:
    """What distances add to the scores of attention; the same table of distances for all layers."""

    def __init__(
        self, build: Builder, shape: BertShape, parts: Disentangled, positions: ov.Node, mask: ov.Node
    ) -> None:
        """`positions` 0 to L-1; `mask` [B, 1, 1, L], true for a real token."""
        self._build, self._parts, self._heads, self._mask = build, parts, shape.heads, mask
        table = build.get(f"{parts.embeddings}.weight")
        if parts.norm:
            table = _normed(table, build.get(f"{parts.norm}.weight"), build.get(f"{parts.norm}.bias"), shape.epsilon)
        self._table = table  # [2 span, hidden]
        self._scale = 1 / math.sqrt(shape.hidden_size // shape.heads * parts.scores)
        distances = np.arange(1 - parts.positions, parts.positions)
        rows = np.clip(buckets(distances, parts.buckets, parts.reach) + parts.span, 0, 2 * parts.span - 1)
        distance = op.subtract(op.unsqueeze(positions, index(1)), op.unsqueeze(positions, index(0)))  # query minus key
        place = op.add(distance, scalar(parts.positions - 1, np.int32))
        by_query = op.gather(op.constant(rows.astype(np.int32)), place, index(0))  # [query, key]
        self._by_query = op.unsqueeze(by_query, index([0, 1]))
        self._by_key = op.transpose(self._by_query, index([0, 1, 3, 2]))

    @property
    def scale(self) -> ov.Node:
        """Of the scores between words."""
        return scalar(self._scale, np.float32)

    def mask(self, layer: str, query: ov.Node, key: ov.Node) -> ov.Node:
        """What is added to the scores between words, [B, heads, L, L], for `query` and `key` [B, heads, L, size]."""
        added: list[ov.Node] = []
        if self._parts.key:
            added.append(self._scores(query, f"{layer}.{self._parts.key}", self._by_query))
        if self._parts.query:
            of_keys = self._scores(key, f"{layer}.{self._parts.query}", self._by_key)  # [B, heads, key, query]
            added.append(op.transpose(of_keys, index([0, 1, 3, 2])))
        total = added[0] if len(added) == 1 else op.add(*added)
        nothing = scalar(float(np.finfo(np.float32).min), np.float32)
        return op.select(self._mask, op.multiply(total, self.scale), nothing)

    def _scores(self, words: ov.Node, linear: str, rows: ov.Node) -> ov.Node:
        """Of `words` [B, heads, L, size] with the distances that `rows` [1, 1, L, L] names."""
        table = self._table @ self._build.get(f"{linear}.weight").T + self._build.get(f"{linear}.bias")
        by_head = np.ascontiguousarray(table.reshape(len(table), self._heads, -1).transpose(1, 0, 2))[None]
        scores = op.matmul(words, op.constant(by_head.astype(np.float32)), False, True)  # [B, heads, L, 2 span]
        shape = op.shape_of(words, "i64")
        length = op.gather(shape, index([2]), index(0))
        wanted = op.concat([op.gather(shape, index([0, 1]), index(0)), length, length], 0)
        return op.gather_elements(scores, op.broadcast(rows, wanted, "bidirectional"), 3)


def buckets(distances: NDArray[np.int64], size: int, reach: int) -> NDArray[np.int64]:
    """Of each distance: small ones have a bucket each, others share one by their logarithm up to `reach`; without a
    `size` each is its own."""
    if not size:
        return distances
    middle = size // 2
    far = np.where(np.abs(distances) < middle, middle - 1, np.abs(distances))
    steps = np.log(far.astype(np.float32) / np.float32(middle)) / np.log(np.float32((reach - 1) / middle))
    shared = (np.ceil(steps * np.float32(middle - 1)).astype(np.int64) + middle) * np.sign(distances)
    found: NDArray[np.int64] = np.where(far <= middle, distances, shared)
    return found


def _normed(
    rows: NDArray[np.float32], weight: NDArray[np.float32], bias: NDArray[np.float32], epsilon: float
) -> NDArray[np.float32]:
    normed = (rows - rows.mean(1, keepdims=True)) / np.sqrt(rows.var(1, keepdims=True) + epsilon)
    made: NDArray[np.float32] = (normed * weight + bias).astype(np.float32)
    return made
