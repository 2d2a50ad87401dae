"""Weights in safetensors files, whatever their number and float type: checked first, then read one by one as f32."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from sparse_encoder.artifact import SAFE_NAME
from sparse_encoder.checkpoint.directory import Directory, SourceError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
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


def open_weights(directory: Directory) -> dict[str, Tensor]:
    """Every tensor of the checkpoint by its name; only headers are read.

    :raises SourceError: if there are no safetensors, or a file is damaged or not what its header says.
    """
    tensors: dict[str, Tensor] = {}
    for name in _file_names(directory):
        path = directory.file(name)
        if path is None:
            raise SourceError(f"{directory.root} lacks {name}, which its {INDEX} names: download all of it again")
        for tensor in _read_header(path):
            if tensor.name in tensors:
                raise SourceError(f"{tensor.name} is in two files of {directory.root}: download the checkpoint again")
            tensors[tensor.name] = tensor
    return tensors


def _file_names(directory: Directory) -> list[str]:
    if directory.file(SINGLE):
        return [SINGLE]
    index = directory.settings(INDEX)
    if not index:
        pickles = [name for name in directory.names() if name.endswith(PICKLES)]
        if pickles:
            raise SourceError(
                f"{directory.root} has its weights in {pickles[0]} only, a pickle, which can run any code when it is "
                f"read: it is not opened. Convert it where you trust it, with torch, in its directory: {CONVERT}"
            )
        raise SourceError(f"{directory.root} has no {SINGLE}: give the directory of a checkpoint with its weights")
    shards = index.get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise SourceError(f"{directory.root / INDEX} has no weight_map: download it again")
    names = sorted(set(shards.values()))
    for name in names:
        if not SAFE_NAME.fullmatch(name) or not name.endswith(".safetensors"):
            raise SourceError(f"{directory.root / INDEX} names {name!r}, no plain safetensors file: do not trust it")
    return names


def _read_header(path: Path) -> list[Tensor]:
    try:
        # Refuses headers that claim other bytes than the file has, before anything is taken into memory.
        with safe_open(path, framework="numpy"):
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        with path.open("rb") as file:
            start = file.read(2)
        if start in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04"):
            raise SourceError(
                f"{path} is a pickle with another name, which can run any code when it is read: it is not opened. "
                f"Name it pytorch_model.bin and convert it where you trust it, with torch, in its directory: {CONVERT}"
            ) from error
        raise SourceError(
            f"{path} is truncated or no safetensors file ({error}; {path.stat().st_size:,} bytes): download it again"
        ) from error
    return [
        Tensor(path, name, entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])
        for name, entry in header.items()
        if name != "__metadata__"
    ]
