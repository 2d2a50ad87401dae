"""Local attention as such: blocks of queries see their own block of keys and the ones on both sides of it.

Time and memory grow with the length of a text instead of its square: no mask of [L, L] exists either. For short texts
attention over the whole text is quicker, since three blocks are more than they have.
"""

from __future__ import annotations

import numpy as np
import openvino as ov  # type: ignore[import-untyped]
from openvino import opset15 as op

from app.encoders.graph.builder import index, merge_heads, scalar, split_heads
from app.encoders.graph.rotary import rotate, rotation


class LocalBlocks:
    """Attention of layers whose queries see `window` positions to each side; a block has as many positions."""

    def __init__(self, mask: ov.Node, window: int, heads: int, head_size: int, theta: float) -> None:
        """`mask` [B, L], true for a real token. `theta`: the base of the rotation."""
        self._window, self._heads, self._head_size = window, heads, head_size
        length = op.gather(op.shape_of(mask, "i32"), index(1), index(0))
        last = op.subtract(length, scalar(1, np.int32))
        blocks = op.divide(op.add(length, scalar(window - 1, np.int32)), scalar(window, np.int32))
        number = op.range(scalar(0, np.int32), blocks, scalar(1, np.int32), "i32")
        starts = op.unsqueeze(op.multiply(number, scalar(window, np.int32)), index(1))  # [N, 1]
        queries = op.add(starts, op.constant(np.arange(window, dtype=np.int32)[None]))  # [N, W]
        keys = op.add(starts, op.constant(np.arange(-window, 2 * window, dtype=np.int32)[None]))  # [N, 3W]
        # What lies outside of the text is read from its edges, and masked.
        nearest = op.maximum(op.minimum(keys, last), scalar(0, np.int32))
        self._query_rows = op.reshape(op.minimum(queries, last), index([-1]), False)
        self._key_rows = op.reshape(nearest, index([-1]), False)
        self._mask = self._visible(op.gather(mask, self._key_rows, index(1)), op.equal(keys, nearest))
        # A score depends on the distance of two positions, so that they may be counted within their blocks.
        self._query_turn = _turn(theta, head_size, window, 2 * window)
        self._key_turn = _turn(theta, head_size, 0, 3 * window)

    def _visible(self, real: ov.Node, inside: ov.Node) -> ov.Node:
        """Which keys each query sees, [B * N, 1, W, 3W]: `real` [B, N * 3W] and `inside` [N, 3W] ones that are near."""
        keys = 3 * self._window
        seen = op.logical_and(op.reshape(real, index([0, -1, keys]), True), op.unsqueeze(inside, index(0)))
        distance = np.abs(np.arange(keys) - self._window - np.arange(self._window)[:, None])[None, None]
        near = op.logical_and(op.reshape(seen, index([-1, 1, 1, keys]), False), op.constant(distance <= self._window))
        # Padding far behind a short text has no real token near it; seeing itself, it does not become NaN.
        return op.logical_or(near, op.constant(distance == 0))

    def attention(self, query: ov.Node, key: ov.Node, value: ov.Node) -> ov.Node:
        """The context, f32 [B, L, hidden], of the products `query`, `key` and `value`, which have the same shape."""
        queries = rotate(self._in_blocks(query, self._query_rows, self._window), self._query_turn, self._head_size)
        keys = rotate(self._in_blocks(key, self._key_rows, 3 * self._window), self._key_turn, self._head_size)
        values = self._in_blocks(value, self._key_rows, 3 * self._window)
        context = op.scaled_dot_product_attention(queries, keys, values, self._mask)
        merged = merge_heads(context, self._heads, self._head_size)  # [B * N, W, hidden]
        texts, length = (op.gather(op.shape_of(query, "i64"), index([axis]), index(0)) for axis in (0, 1))
        hidden = index([self._heads * self._head_size])
        rows = op.reshape(merged, op.concat([texts, index([-1]), hidden], 0), False)
        return op.slice(rows, index([0]), length, index([1]), index([1]))

    def _in_blocks(self, product: ov.Node, rows: ov.Node, size: int) -> ov.Node:
        """The `rows` of `product` [B, L, hidden] as [B * N, heads, size, head size]."""
        hidden = self._heads * self._head_size
        blocks = op.reshape(op.gather(product, rows, index(1)), index([-1, size, hidden]), False)
        return split_heads(blocks, self._heads, self._head_size)


def _turn(theta: float, head_size: int, start: int, stop: int) -> tuple[ov.Node, ov.Node]:
    return rotation(theta, head_size, op.constant(np.arange(start, stop, dtype=np.int32)))
