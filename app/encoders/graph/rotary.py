"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import openvino as ov  # type: ignore[import-untyped]
from openvino import opset15 as op

from app.encoders.graph.builder import index, scalar


def rotation(theta: float, size: int, positions: ov.Node, divisors: Sequence[float] = ()) -> tuple[ov.Node, ov.Node]:
    """Cosines and sines of each of `positions`, [1, 1, L, size]; `size`: of a head; `divisors`: of each frequency."""
    frequencies = 1.0 / theta ** (np.arange(0, size, 2, dtype=np.float32) / size)
    if divisors:
        frequencies = frequencies / np.array(divisors, np.float32)
    angles = op.multiply(
        op.unsqueeze(op.convert(positions, ov.Type.f32), index(1)),
        op.constant(np.concatenate([frequencies, frequencies])[None].astype(np.float32)),
    )
    angles = op.unsqueeze(angles, index([0, 1]))
    return op.cos(angles), op.sin(angles)


def rotate(heads: ov.Node, by: tuple[ov.Node, ov.Node], size: int) -> ov.Node:
    """`heads` [B, heads, L, size]. Written as OpenVINO's own pattern, which it fuses into one operation."""
    cosines, sines = by
    first, second = (
        op.slice(heads, index([start]), index([start + size // 2]), index([1]), index([3])) for start in (0, size // 2)
    )
    turned = op.concat([op.multiply(second, scalar(-1.0, np.float32)), first], -1)
    return op.add(op.multiply(heads, cosines), op.multiply(turned, sines))
