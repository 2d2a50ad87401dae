"""A tensor of a file, whatever the format of the file: known by its header, read when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_encoder.checkpoint.directory import SourceError

DTYPES: Mapping[str, type[np.generic]] = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}
#: For a machine with torch; `weights_only` keeps torch from running what a pickle may hold.
CONVERT = (
    'python -c "import torch; from safetensors.torch import save_file; '
    "w = torch.load('pytorch_model.bin', map_location='cpu', weights_only=True); "
    "save_file({k: v.clone().contiguous() for k, v in w.items()}, 'model.safetensors', {'format': 'pt'})\""
)


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of a file, not read yet."""

    path: Path
    name: str  #: in the file
    dtype: str
    shape: tuple[int, ...]
    offset: int  #: of its first byte in the file

    def share(self, number: int, of: int) -> Tensor:
        """Share `number` of its rows, which are dealt out in order.

        :raises SourceError: if they cannot be shared out evenly.
        """
        if not self.shape or self.shape[0] % of or self.dtype not in DTYPES:
            raise SourceError(
                f"{self.name} of {self.path.name} is {self.dtype} {list(self.shape)}, expected floats in {of} parts: "
                "use another copy of the checkpoint"
            )
        shape = (self.shape[0] // of, *self.shape[1:])
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(DTYPES[self.dtype]).itemsize
        return replace(self, shape=shape, offset=self.offset + number * size)

    def read(self) -> NDArray[np.float32]:
        """:raises SourceError: if it is of another kind than a float, or holds NaN or infinity."""
        if self.dtype not in DTYPES:
            raise SourceError(
                f"{self.name} of {self.path.name} is {self.dtype}, expected one of {', '.join(DTYPES)}: "
                "save the checkpoint in float32 or bfloat16"
            )
        count = int(np.prod(self.shape, dtype=np.int64))
        stored: NDArray[Any] = np.fromfile(self.path, DTYPES[self.dtype], count, offset=self.offset)
        if self.dtype == "BF16":  # the upper half of an f32
            stored = (stored.astype(np.uint32) << 16).view(np.float32)
        values = stored.astype(np.float32, copy=False).reshape(self.shape)
        if not np.isfinite(values).all():
            raise SourceError(
                f"{self.name} of {self.path.name} holds NaN or infinity: its training diverged; use another"
            )
        return values
