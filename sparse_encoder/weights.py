"""The weights of an artifact, packed or not, read one by one when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from sparse_encoder.artifact import is_weights
from sparse_encoder.packed import INT8, SCALE, dequantise

Blocks = tuple[NDArray[np.int8], NDArray[np.float32]]


class WeightsError(Exception):
    """A weight is missing or cannot be used. The message says which, and what to do."""


class Weights(Mapping[str, NDArray[np.float32]]):
    """By the names that transformers gives them. Close it, or use it in a `with` block: it holds its files open."""

    def __init__(self, directory: Path, prefix: str = "") -> None:
        """Opens the `*.safetensors` files of `directory`, an artifact or a packed one; of two encoders in it the one
        whose files have the `prefix`.

        :raises WeightsError: if there is none, or one cannot be read.
        """
        self._stack = ExitStack()
        self._holder: dict[str, Any] = {}
        try:
            for path in sorted(directory.glob("*.safetensors")):
                if not is_weights(path.name, prefix):
                    continue
                file = self._stack.enter_context(safe_open(path, framework="numpy"))
                self._holder.update(dict.fromkeys(file.keys(), file))
        except (OSError, SafetensorError) as error:
            self.close()
            raise WeightsError(f"{path} cannot be read ({error}): copy the checkpoint again") from error
        if not self._holder:
            raise WeightsError(f"{directory} has no {prefix}*.safetensors: give the path of a complete checkpoint")
        self._names = list(dict.fromkeys(name.removesuffix(INT8).removesuffix(SCALE) for name in self._holder))

    def __enter__(self) -> Weights:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._stack.close()

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        """:raises WeightsError: if it is not float32, or holds NaN or infinity."""
        blocks = self.blocks(name)
        if blocks:
            return dequantise(*blocks)
        tensor: NDArray[Any] = self._holder[name].get_tensor(name)
        if tensor.dtype != np.float32:
            raise WeightsError(f"{name} is {tensor.dtype}, expected float32: publish the checkpoint in float32")
        if not np.isfinite(tensor).all():  # which the encoder would turn into empty vectors
            raise WeightsError(f"{name} holds NaN or infinity: the training that made it diverged; publish another")
        return tensor

    def integers(self, name: str) -> NDArray[np.int32]:
        """:raises WeightsError: if it is not int32."""
        tensor: NDArray[Any] = self._holder[name].get_tensor(name)
        if tensor.dtype != np.int32:
            raise WeightsError(f"{name} is {tensor.dtype}, expected int32: publish the checkpoint again")
        return tensor

    def blocks(self, name: str) -> Blocks | None:
        """What `quantise` gives for the matrix `name`, if it is packed; else None.

        :raises WeightsError: if a scale is NaN or infinity.
        """
        if name + INT8 not in self._holder:
            return None
        scales: NDArray[np.float32] = self._holder[name + SCALE].get_tensor(name + SCALE)
        if not np.isfinite(scales).all():
            raise WeightsError(f"{name}{SCALE} holds NaN or infinity: install the package again")
        return self._holder[name + INT8].get_tensor(name + INT8), scales

    def rows(self, name: str, ids: Sequence[int]) -> NDArray[np.float32]:
        """Of the matrix `name` these rows, without reading the others: [len(ids), columns]."""
        if name + INT8 not in self._holder:
            return self._rows(name, ids)
        scales: NDArray[np.float32] = self._rows(name + SCALE, ids)
        return dequantise(self._rows(name + INT8, ids), scales)

    def _rows(self, name: str, ids: Sequence[int]) -> NDArray[Any]:
        whole = self._holder[name].get_slice(name)
        parts = [whole[token_id : token_id + 1] for token_id in ids]
        return np.concatenate(parts) if parts else np.empty((0, whole.get_shape()[1]), np.float32)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._holder or f"{name}{INT8}" in self._holder
