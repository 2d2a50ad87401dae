"""How many operations a second these cores do at most: in products of matrices, by torch."""

from __future__ import annotations

import time

import torch

from benchmarks.noise import Turns

ROWS, INPUTS, OUTPUTS = 2048, 768, 3072
PRODUCTS = 12  #: the quickest counts


def roof(precision: str, turns: Turns | None = None) -> float:
    """Operations a second, two for each multiplication and addition; `precision`: f32, bf16 or int8."""
    kind = {"f32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}[precision]
    if kind is torch.int8:
        left, right = (torch.randint(-9, 9, shape, dtype=kind) for shape in ((ROWS, INPUTS), (INPUTS, OUTPUTS)))
    else:
        left, right = torch.randn(ROWS, INPUTS).to(kind), torch.randn(INPUTS, OUTPUTS).to(kind)

    def product() -> float:
        started = time.perf_counter()
        torch._int_mm(left, right) if kind is torch.int8 else left @ right
        return time.perf_counter() - started

    product()
    take = turns.take if turns else lambda measure: measure()
    return 2 * ROWS * INPUTS * OUTPUTS / min(take(product) for _ in range(PRODUCTS))
