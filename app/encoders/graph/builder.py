"""Layers that the architectures share, as OpenVINO operations on the weights of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import openvino as ov  # type: ignore[import-untyped]
from numpy.typing import NDArray
from openvino import opset15 as op

from app.encoders.base import EncoderError
from sparse_encoder.packed import BLOCK, dequantise, quantise
from sparse_encoder.weights import Blocks, Weights

#: How matrices are held: as int8 with a scale for each block of columns, those where that loses nothing, or all.
Int8 = Literal["lossless", "all"]

#: By the names that a `config.json` of transformers uses.
ACTIVATIONS = {
    "gelu": lambda node: op.gelu(node, "erf"),
    "gelu_new": lambda node: op.gelu(node, "tanh"),
    "gelu_fast": lambda node: op.gelu(node, "tanh"),
    "gelu_pytorch_tanh": lambda node: op.gelu(node, "tanh"),
    "relu": op.relu,
    "silu": op.swish,
    "swish": op.swish,
}


class Builder:
    """Makes nodes; the weights are read by name.

    :raises EncoderError: from every method, if the checkpoint has no such weight.
    """

    def __init__(self, weights: Weights, int8: Int8) -> None:
        self._weights = weights
        self._int8 = int8
        self._rounded = True  #: every matrix so far is one that `quantise` gives back

    def __contains__(self, name: object) -> bool:
        return name in self._weights

    def get(self, name: str) -> NDArray[np.float32]:
        self._require(name)
        return self._weights[name]

    def integers(self, name: str) -> NDArray[np.int32]:
        self._require(name)
        return self._weights.integers(name)

    def matrix(self, name: str) -> ov.Node:
        """The weight `name`, [rows, columns], as a constant."""
        (whole,) = self.tiles(name)
        return whole

    def tiles(self, name: str, tiles: Sequence[NDArray[np.int32]] | None = None) -> Iterator[ov.Node]:
        """A constant for the rows of `name` that each of `tiles` lists; without `tiles`, one for all rows."""
        self._require(name)
        blocks = self._blocks(name)
        every: Sequence[NDArray[np.int32] | slice] = [slice(None)] if tiles is None else tiles
        if blocks is None:
            rows = self._weights[name]
            yield from (op.constant(rows[tile]) for tile in every)
        else:
            values, scales = blocks
            yield from (_decompressed(values[tile], scales[tile]) for tile in every)

    def has_values(self, name: str) -> NDArray[np.bool_]:
        """Of each row of the matrix `name`, whether it holds anything but zeros."""
        self._require(name)
        blocks = self._weights.blocks(name)
        matrix: NDArray[Any] = blocks[0] if blocks else self._weights[name]
        return np.asarray(matrix.any(axis=1))

    def embedding(self, name: str, ids: ov.Node) -> ov.Node:
        """Rows of the matrix `name` for `ids`, whatever their shape: [..., columns]."""
        return op.gather(self.matrix(name), ids, index(0))

    def linear(self, prefix: str, inputs: ov.Node, *, bias: bool = True) -> ov.Node:
        product = op.matmul(inputs, self.matrix(f"{prefix}.weight"), False, True)
        return op.add(product, op.constant(self.get(f"{prefix}.bias"))) if bias else product

    def linear_parts(self, prefix: str, inputs: ov.Node, parts: int, *, bias: bool) -> list[ov.Node]:
        """The outputs of a linear layer in `parts` equal shares, each a product of its own: a split costs a copy."""
        rows = self.get(f"{prefix}.weight").shape[0]
        shares = np.split(np.arange(rows, dtype=np.int32), parts)
        products = [op.matmul(inputs, tile, False, True) for tile in self.tiles(f"{prefix}.weight", shares)]
        if not bias:
            return products
        values = self.get(f"{prefix}.bias")
        return [op.add(product, op.constant(values[share])) for product, share in zip(products, shares, strict=True)]

    def layer_norm(self, prefix: str, inputs: ov.Node, epsilon: float, *, bias: bool = True) -> ov.Node:
        normed = op.mvn(inputs, index([-1]), True, epsilon, "inside_sqrt")
        scaled = op.multiply(normed, op.constant(self.get(f"{prefix}.weight")))
        return op.add(scaled, op.constant(self.get(f"{prefix}.bias"))) if bias else scaled

    def _blocks(self, name: str) -> Blocks | None:
        """What the graph holds instead of the matrix `name`; None for the matrix itself."""
        if blocks := self._weights.blocks(name):
            return blocks
        if self._int8 == "all":
            return quantise(self._weights[name])
        if not self._rounded:
            return None
        matrix = self._weights[name]
        blocks = quantise(matrix)
        # A checkpoint is rounded as a whole when it is published, or not at all: the first matrix tells.
        self._rounded = bool((dequantise(*blocks) == matrix).all())
        return blocks if self._rounded else None

    def _require(self, name: str) -> None:
        if name not in self._weights:
            raise EncoderError(
                f"the checkpoint has no weight {name}, which its config.json asks for: publish or convert it again"
            )


def _decompressed(values: NDArray[np.int8], scales: NDArray[np.float32]) -> ov.Node:
    """The pattern by which OpenVINO knows compressed weights: it never makes the whole f32 matrix."""
    rows, columns = values.shape
    if columns % BLOCK:
        return op.constant(dequantise(values, scales))
    blocks = op.convert(op.constant(values.reshape(rows, columns // BLOCK, BLOCK)), ov.Type.f32)
    return op.reshape(op.multiply(blocks, op.constant(scales[:, :, None])), index([rows, columns]), False)


def gated(activation: str, inputs: ov.Node, gate: ov.Node) -> ov.Node:
    """The activation of `inputs` times `gate`, products both.

    In bf16 with AMX, OpenVINO (2026.4) would make one operation of these and of the product that follows (`LLMMLP`): it
    takes an eighth more time than they do, has another formula for gelu, and divides by half of the threads, so that
    with one thread the process dies. What stands between keeps them apart, and changes no number; a sum with 0 would
    be taken away.
    """
    return op.multiply(ACTIVATIONS[activation](op.add(inputs, scalar(1e-30, np.float32))), gate)


def split_heads(hidden: ov.Node, heads: int, head_size: int) -> ov.Node:
    """[B, L, heads * head_size] as [B, heads, L, head_size]."""
    return op.transpose(op.reshape(hidden, index([0, 0, heads, head_size]), True), index([0, 2, 1, 3]))


def merge_heads(context: ov.Node, heads: int, head_size: int) -> ov.Node:
    """The inverse of `split_heads`."""
    return op.reshape(op.transpose(context, index([0, 2, 1, 3])), index([0, 0, heads * head_size]), True)


def index(value: int | Sequence[int]) -> ov.Node:
    return op.constant(np.array(value, np.int64))


def scalar(value: float, dtype: type[np.generic]) -> ov.Node:
    return op.constant(np.array(value, dtype))
