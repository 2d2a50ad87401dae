"""What `torch.save` writes (`*.bin`, `*.pt`), read without torch and without running what a pickle may hold.

Such a file is a zip archive: the bytes of each tensor, and a pickle that says what they are. The pickle is read by an
unpickler that knows the names below and no other, so it can make tables of tensors and nothing else; a file that asks
for anything more is refused, as `torch.load(weights_only=True)` does.
"""

from __future__ import annotations

import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from sparse_encoder.checkpoint.directory import SourceError
from sparse_encoder.checkpoint.tensors import CONVERT, Tensor

#: By the names of torch: what safetensors calls it, and bytes of a number.
_KINDS = {
    "DoubleStorage": ("F64", 8),
    "FloatStorage": ("F32", 4),
    "HalfStorage": ("F16", 2),
    "BFloat16Storage": ("BF16", 2),
    "LongStorage": ("I64", 8),
    "IntStorage": ("I32", 4),
    "ShortStorage": ("I16", 2),
    "CharStorage": ("I8", 1),
    "ByteStorage": ("U8", 1),
    "BoolStorage": ("BOOL", 1),
}
_MOST_PICKLE_BYTES = 50_000_000  # of names and shapes, without the numbers
_MOST = 1 << 48  # of any size
_LOCAL_HEADER = 30  # bytes of a zip entry before its name


@dataclass(frozen=True, slots=True)
class _Kind:
    dtype: str
    bytes: int


@dataclass(frozen=True, slots=True)
class _Storage:
    """Numbers in the archive."""

    kind: _Kind
    key: str
    count: int


@dataclass(frozen=True, slots=True)
class _View:
    """A tensor over a storage; whole rows of it, one after the other."""

    storage: _Storage
    first: int  #: number of the storage
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Rebuild:
    """In the place of torch's functions. An object without a dictionary, so that a pickle can put nothing into it."""

    parameter: bool

    def __call__(self, *arguments: Any) -> _View:
        if self.parameter:
            if not isinstance(arguments[0], _View):
                raise pickle.UnpicklingError("a parameter that is no tensor")
            return arguments[0]
        storage, first, shape, stride = arguments[:4]
        if not isinstance(storage, _Storage) or not all(
            type(number) is int and 0 <= number < _MOST for number in (first, *shape, *stride)
        ):
            raise pickle.UnpicklingError("a tensor of no storage")
        whole = tuple(math.prod(shape[place + 1 :]) for place in range(len(shape)))
        if any(size > 1 and step != expected for size, step, expected in zip(shape, stride, whole, strict=True)):
            raise pickle.UnpicklingError("a tensor whose rows do not follow each other")
        if first + math.prod(shape) > storage.count:
            raise pickle.UnpicklingError("a tensor beyond its storage")
        return _View(storage, first, tuple(shape))


_ALLOWED: Mapping[tuple[str, str], object] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _Rebuild(parameter=False),
    ("torch._utils", "_rebuild_parameter"): _Rebuild(parameter=True),
    **{("torch", name): _Kind(*kind) for name, kind in _KINDS.items()},
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        found = _ALLOWED.get((module, name))
        if found is None:
            raise pickle.UnpicklingError(f"it asks for {module[:80]}.{name[:80]}, which is no tensor")
        return found

    def persistent_load(self, pid: Any) -> _Storage:
        what, kind, key, _device, count = pid
        if what != "storage" or not isinstance(kind, _Kind) or not isinstance(key, str) or type(count) is not int:
            raise pickle.UnpicklingError("a storage of an unknown kind")
        return _Storage(kind, key, count)


def is_torch_file(path: Path) -> bool:
    """Whether it is in the form that torch writes since 1.6."""
    return zipfile.is_zipfile(path)


def read_torch_file(path: Path) -> list[Tensor]:
    """Every tensor of the file; their numbers are not read yet.

    :raises SourceError: if it holds anything but a table of tensors, or is of another form.
    """
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            return _tensors(archive, file, path)
    # Whatever a damaged pickle or archive leads to; none of it is the code of the file.
    except (pickle.UnpicklingError, zipfile.BadZipFile, ArithmeticError, AttributeError, EOFError, KeyError) as error:
        raise _refusal(path, error) from error
    except (ImportError, IndexError, MemoryError, OSError, RecursionError, TypeError, ValueError) as error:
        raise _refusal(path, error) from error


def _refusal(path: Path, error: Exception) -> SourceError:
    return SourceError(
        f"{path} is a pickle that holds other things than tensors, or is damaged ({error}): such a file can run any "
        "code when it is read, so it is not opened further. Convert it where you trust it, with torch, in its "
        f"directory: {CONVERT}"
    )


def _tensors(archive: zipfile.ZipFile, file: BinaryIO, path: Path) -> list[Tensor]:
    entries = {entry.filename: entry for entry in archive.infolist()}
    pickled = next((name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1), None)
    if pickled is None:
        raise zipfile.BadZipFile("no data.pkl in it")
    root = pickled.removesuffix("data.pkl")
    if entries[pickled].file_size > _MOST_PICKLE_BYTES:
        raise pickle.UnpicklingError(f"{entries[pickled].file_size:,} bytes of names")
    order = f"{root}byteorder"
    if order in entries and archive.read(entries[order]) != b"little":
        raise pickle.UnpicklingError("numbers in another byte order")
    with archive.open(entries[pickled]) as stream:
        table = _Unpickler(stream).load()
    if not isinstance(table, dict) or not all(isinstance(name, str) for name in table):
        raise pickle.UnpicklingError("no table of tensors")
    starts = _starts(entries, file)
    tensors = []
    for name, view in table.items():
        if not isinstance(view, _View):
            raise pickle.UnpicklingError(f"{name[:80]} is no tensor")
        start, size = starts(f"{root}data/{view.storage.key}")
        kind = view.storage.kind
        if view.storage.count * kind.bytes > size:
            raise pickle.UnpicklingError(f"{name[:80]} has more numbers than the file holds")
        tensors.append(Tensor(path, name, kind.dtype, view.shape, start + view.first * kind.bytes))
    return tensors


def _starts(entries: Mapping[str, zipfile.ZipInfo], file: BinaryIO) -> Callable[[str], tuple[int, int]]:
    """Of an entry, where in the file its bytes begin, and how many there are."""

    def start(name: str) -> tuple[int, int]:
        entry = entries[name]
        if entry.compress_type != zipfile.ZIP_STORED:
            raise zipfile.BadZipFile(f"{name[:80]} is compressed")
        file.seek(entry.header_offset)
        header = file.read(_LOCAL_HEADER)
        if header[:4] != b"PK\x03\x04":
            raise zipfile.BadZipFile(f"{name[:80]} has no header")
        begin = entry.header_offset + _LOCAL_HEADER
        begin += int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        return begin, entry.file_size

    return start
