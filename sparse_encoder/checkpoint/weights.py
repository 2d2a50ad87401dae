"""The weights of a checkpoint, whatever the number and form of its files: checked first, then read as f32."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

from sparse_encoder.artifact import SAFE_NAME
from sparse_encoder.checkpoint.directory import Directory, SourceError
from sparse_encoder.checkpoint.tensors import CONVERT, Tensor
from sparse_encoder.checkpoint.torch_file import is_torch_file, read_torch_file

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
TORCH_SINGLE, TORCH_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def open_weights(directory: Directory) -> dict[str, Tensor]:
    """Every tensor of the checkpoint by its name; only headers are read.

    :raises SourceError: if there are none, or a file is damaged or not what its header says.
    """
    tensors: dict[str, Tensor] = {}
    for name in _file_names(directory):
        path = directory.file(name)
        if path is None:
            raise SourceError(f"{directory.root} lacks {name}, which its index names: download all of it again")
        for tensor in read_file(path):
            if tensor.name in tensors:
                raise SourceError(f"{tensor.name} is in two files of {directory.root}: download the checkpoint again")
            tensors[tensor.name] = tensor
    return tensors


def read_file(path: Path) -> list[Tensor]:
    """Every tensor of one file.

    :raises SourceError: if it is damaged, or holds other things.
    """
    if path.suffix in PICKLES and is_torch_file(path):
        return read_torch_file(path)
    return _read_header(path)


def _file_names(directory: Directory) -> list[str]:
    """safetensors, where there are any: what is there besides is the same in an older form."""
    for single, index, ending in ((SINGLE, INDEX, ".safetensors"), (TORCH_SINGLE, TORCH_INDEX, ".bin")):
        if directory.file(single):
            return [single]
        if document := directory.settings(index):
            shards = document.get("weight_map")
            if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
                raise SourceError(f"{directory.root / index} has no weight_map: download it again")
            names = sorted(set(shards.values()))
            for name in names:
                if not SAFE_NAME.fullmatch(name) or not name.endswith(ending):
                    raise SourceError(
                        f"{directory.root / index} names {name!r}, no plain *{ending} file: do not trust it"
                    )
            return names
    names = directory.names()
    if any(name.startswith("adapter_model.") for name in names):
        raise SourceError(
            f"{directory.root} holds an adapter, which changes another model and is none by itself: merge both "
            "(PeftModel.from_pretrained(...).merge_and_unload().save_pretrained(DIRECTORY)) and give that directory"
        )
    if any(name.endswith(".onnx") or name == "onnx" for name in names):
        raise SourceError(
            f"{directory.root} has its weights in ONNX only, a graph whose weights have lost their names: give the "
            "checkpoint that it was exported from"
        )
    raise SourceError(f"{directory.root} has no {SINGLE}: give the directory of a checkpoint with its weights")


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
                f"{path} is a pickle of another form or name than {TORCH_SINGLE} of torch 1.6 and newer, which can run "
                f"any code when it is read: it is not opened. Name it {TORCH_SINGLE} and convert it where you trust "
                f"it, with torch, in its directory: {CONVERT}"
            ) from error
        raise SourceError(
            f"{path} is truncated or no safetensors file ({error}; {path.stat().st_size:,} bytes): download it again"
        ) from error
    return [
        Tensor(path, name, entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])
        for name, entry in header.items()
        if name != "__metadata__"
    ]
