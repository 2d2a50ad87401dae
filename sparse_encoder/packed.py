"""An artifact at about a quarter of its size, without loss: how a checkpoint ships inside the package.

Publishing rounds each matrix to blocks of `int8 x scale` (`quantise`, `dequantise`), so `model.safetensors` holds
float32 numbers that `pack` can store as int8 and `unpack` can give back bit for bit. The scale of a block has
at most 17 significant bits and an int8 has 7, so their product fits the 24 bits of a float32: every multiplication and
division here is exact, on any machine.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from sparse_encoder.artifact import (
    MANIFEST,
    Artifact,
    ArtifactError,
    ArtifactExistsError,
    file_record,
    new_directory,
    read_artifact,
    read_manifest,
)

HEADER_SUFFIX = ".header"  # <weights file>.header: the start of that file, up to the first tensor's bytes
INT8, SCALE = ":int8", ":scale"  # a packed matrix is two tensors: <name>:int8 and <name>:scale
BLOCK = 64  #: columns of a row that share a scale: parts of a row differ in size, and a common one costs the small ones
LARGEST_INT8 = 127
SMALLEST_SCALE = 2.0**-100  # far below any weight that matters, far above where float32 loses bits


def quantise(matrix: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Rounds `matrix` [rows, columns] to int8 [rows, columns] and a scale for each block [rows, ceil(columns / BLOCK)].

    The scale is the block's largest magnitude / 127, rounded up to 17 significant bits; for a block of zeros it is 0.

    :raises ValueError: if `matrix` holds NaN or infinity.
    """
    if not np.isfinite(matrix).all():
        raise ValueError("the matrix holds NaN or infinity: the training run that made it diverged")
    largest = np.maximum.reduceat(np.abs(matrix), np.arange(0, matrix.shape[1], BLOCK), axis=1)
    mantissa, exponent = np.frexp(largest.astype(np.float64) / LARGEST_INT8)
    scales = np.ldexp(np.ceil(np.ldexp(mantissa, 17)), exponent - 17).astype(np.float32)
    scales[scales < SMALLEST_SCALE] = 0
    divisors = np.where(scales > 0, scales, np.inf).astype(np.float32)  # so that blocks of zeros stay zeros
    return np.rint(matrix / _by_column(divisors, matrix.shape[1])).astype(np.int8), scales


def dequantise(quantised: NDArray[np.int8], scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """The float32 matrix [rows, columns] that int8 [rows, columns] and scales [rows, blocks] stand for, exactly."""
    return quantised.astype(np.float32) * _by_column(scales, quantised.shape[1])


def _by_column(scales: NDArray[np.float32], columns: int) -> NDArray[np.float32]:
    return np.repeat(scales, BLOCK, axis=1)[:, :columns]


def pack(artifact: Path, out: Path, max_file_bytes: int = 44_000_000) -> Path:
    """Writes the artifact at `artifact` as the new packed directory `out`, no file above `max_file_bytes`.

    :raises ArtifactError: if `artifact` is not valid or a file cannot be made small enough.
    """
    manifest = read_artifact(artifact).manifest
    if manifest.query_encoder:
        raise ArtifactError(f"{artifact} holds two encoders, which cannot be packed: serve it as it is")
    with new_directory(out) as directory:
        for name in (*manifest.files, MANIFEST):
            if name in manifest.weight_files:
                (directory / (name + HEADER_SUFFIX)).write_bytes(_read_header(artifact / name))
            else:
                shutil.copyfile(artifact / name, directory / name)
        tensors = (tensor for name in manifest.weight_files for tensor in _packed_tensors(artifact / name))
        for number, shard in enumerate(_shards(tensors, max_file_bytes), start=1):
            save_file(shard, directory / f"packed-{number:05}.safetensors")
        for file in directory.iterdir():
            if file.stat().st_size > max_file_bytes:
                raise ArtifactError(f"{file.name} would exceed {max_file_bytes} bytes: raise max_file_bytes")
    return out


def unpack(packed: Path, out: Path) -> Artifact:
    """The artifact that was packed into `packed`, byte for byte, at `out`; written unless it is there already.

    Any number of processes may do this at once: the first to finish makes `out`, the others use it.

    :raises ArtifactError: if `packed` is damaged, or something else is at `out`.
    """
    manifest = read_manifest(packed)
    with suppress(ArtifactExistsError), new_directory(out) as directory:
        try:
            for name in (*manifest.files, MANIFEST):
                if name in manifest.weight_files:
                    _write_weights(packed, directory / name)
                else:
                    shutil.copyfile(packed / name, directory / name)
        except (OSError, LookupError, ValueError, SafetensorError) as error:
            raise ArtifactError(
                f"{packed} could not be unpacked into {out} ({error!r}): "
                "make sure that there is room on the disk, or install the package again"
            ) from error
        read_artifact(directory)
    artifact = read_artifact(out)
    if artifact.manifest != manifest:
        raise ArtifactError(
            f"{out} holds model {artifact.manifest.version}, not {manifest.version}: delete it, or choose another path"
        )
    return artifact


def read_packed(packed: Path) -> Artifact:
    """The packed artifact at `packed`, to be read as it is by `Weights`.

    Its files are checked against the manifest, but for the weights, whose hash only `unpack` can see: who encodes with
    them compares golden vectors.

    :raises ArtifactError: if a file is missing or changed.
    """
    manifest = read_manifest(packed)
    for name in manifest.files.keys() - set(manifest.weight_files):
        if not (packed / name).is_file() or file_record(packed / name) != manifest.files[name]:
            raise ArtifactError(f"{packed / name} is missing or was changed: install the package again")
    return Artifact(packed, manifest)


def _packed_tensors(weights: Path) -> Iterator[tuple[str, NDArray[Any]]]:
    with safe_open(weights, framework="numpy") as file:
        for name in file.keys():  # noqa: SIM118 - not a dict
            tensor = file.get_tensor(name)
            if tensor.ndim == 2 and tensor.dtype == np.float32 and tensor.size:
                quantised, scales = quantise(tensor)
                if dequantise(quantised, scales).tobytes() == tensor.tobytes():
                    yield name + INT8, quantised
                    yield name + SCALE, scales
                    continue
            yield name, tensor


def _shards(tensors: Iterator[tuple[str, NDArray[Any]]], max_bytes: int) -> Iterator[dict[str, NDArray[Any]]]:
    shard: dict[str, NDArray[Any]] = {}
    size = 0
    for name, tensor in tensors:
        needed = tensor.nbytes + len(name) + 200  # and its entry in the header
        if shard and size + needed > max_bytes:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor
        size += needed
    yield shard


def _read_header(weights: Path) -> bytes:
    with weights.open("rb") as file:
        length = file.read(8)
        return length + file.read(int.from_bytes(length, "little"))


def _write_weights(packed: Path, weights: Path) -> None:
    """Header first, then each tensor's bytes where the header puts them."""
    header = (packed / (weights.name + HEADER_SUFFIX)).read_bytes()
    entries = {name: entry for name, entry in json.loads(header[8:]).items() if name != "__metadata__"}
    with ExitStack() as stack, weights.open("wb") as out:
        shards = [stack.enter_context(safe_open(path, framework="numpy")) for path in sorted(packed.glob("packed-*"))]
        holder = {name: shard for shard in shards for name in shard.keys()}  # noqa: SIM118 - not a dict
        out.write(header)
        for name, entry in entries.items():
            if name in holder:
                tensor = holder[name].get_tensor(name)
            else:
                tensor = dequantise(
                    holder[name + INT8].get_tensor(name + INT8), holder[name + SCALE].get_tensor(name + SCALE)
                )
            out.seek(len(header) + entry["data_offsets"][0])
            out.write(np.ascontiguousarray(tensor).data)
