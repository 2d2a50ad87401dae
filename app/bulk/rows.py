"""Rows of files: JSONL, CSV and Parquet, packed or not, here or behind a URL; and what is wrong with one.

A row that cannot be used is told, never skipped: `Bad` says where and why. What is wrong with a whole file is an
`InputError`.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import fsspec

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

KINDS = ("jsonl", "ndjson", "json", "csv", "tsv", "parquet")
PACKED = ("gz", "zst", "zstd")
SAMPLE = 200  #: lines, of which half are in the encoding that is asked for
BROKEN = "\udc80", "\udcff"  #: what bytes become that are in no encoding
csv.field_size_limit(2**31 - 1)


class InputError(Exception):
    """The input cannot be read at all. The message says what was wrong with what, and what to do."""


@dataclass(frozen=True, slots=True)
class Key:
    """What an index knows a document by."""

    id: str
    version: int
    routing: str | None


@dataclass(frozen=True, slots=True)
class Row:
    """A row as it came."""

    number: int  #: in its file, from 1; a header is none. In an index its sequence number and 1
    values: Mapping[str, Any]
    key: Key | None = None  #: of a document of an index


@dataclass(frozen=True, slots=True)
class Bad:
    """A row that cannot be used."""

    number: int
    column: str  #: "" for the whole row
    reason: str


@dataclass(frozen=True, slots=True)
class Document:
    """What is encoded of a row."""

    number: int
    id: str
    texts: Mapping[str, str]  #: by field; those that are there
    others: Mapping[str, Any]  #: every column of the row
    key: Key | None = None  #: with the id of the document that it is copied from


def find_inputs(names: Sequence[str]) -> list[str]:
    """The files that `names` stand for (files, directories, patterns, URLs), in order.

    :raises InputError: if there is none, or none that can be read.
    """
    found: list[str] = []
    for name in names:
        try:
            filesystem, path = fsspec.core.url_to_fs(name, use_listings_cache=False)
            if filesystem.isdir(path):
                listed = [one for one in filesystem.find(path) if kind_of(one)]
            else:
                listed = filesystem.glob(path) if any(sign in path for sign in "*?[") else [path]
                listed = [one for one in listed if filesystem.isfile(one)]
        except (OSError, ImportError, ValueError) as error:
            raise InputError(f"{name} cannot be opened: {error}") from error
        if not listed:
            raise InputError(f"{name}: there is no such file, or none of {', '.join(KINDS)} in it")
        unknown = [one for one in listed if not kind_of(one)]
        if unknown:
            raise InputError(
                f"{unknown[0]} is none of {', '.join(KINDS)} by its name (also .{' and .'.join(PACKED)}): rename it"
            )
        found += [filesystem.unstrip_protocol(one) if "://" in name else one for one in sorted(listed)]
    if double := next((one for one in found if found.count(one) > 1), None):
        raise InputError(f"{double} is named twice")
    return found


def kind_of(path: str) -> str | None:
    """Of a file, by its name; None of one that cannot be read here."""
    parts = path.lower().rsplit("/", 1)[-1].split(".")
    if parts[-1] in PACKED:
        parts.pop()
    return parts[-1] if len(parts) > 1 and parts[-1] in KINDS else None


@contextmanager
def opened(path: str, *, unpack: bool = True) -> Iterator[BinaryIO]:
    """:raises InputError: if it cannot be opened."""
    try:
        with fsspec.open(path, "rb") as raw:
            ending = path.lower().rsplit(".", 1)[-1] if unpack else ""
            if ending == "gz":
                with gzip.open(raw) as file:
                    yield cast(BinaryIO, file)
            elif ending in PACKED:
                with zstd.open(raw) as file:
                    yield cast(BinaryIO, file)
            else:
                yield cast(BinaryIO, raw)
    except (OSError, EOFError, zlib.error, zstd.ZstdError) as error:
        raise InputError(f"{path} cannot be read to its end: {error}") from error


def read_rows(path: str, encoding: str = "utf-8") -> Generator[Row | Bad, None, None]:
    """Every row of the file in order. Close it, if it is not read to its end.

    :raises InputError: if it cannot be read to its end, is not in `encoding`, or is not what its name says.
    """
    kind = kind_of(path)
    if kind == "parquet":
        yield from _parquet(path)
        return
    _check_encoding(path, encoding)
    with opened(path) as file, closing(_lines(file, encoding)) as lines:
        if kind in ("csv", "tsv"):
            yield from _csv(path, lines, encoding, "\t" if kind == "tsv" else ",")
        else:
            yield from _jsonl(lines, encoding)


def _check_encoding(path: str, encoding: str) -> None:
    """A broken line is a matter of its row; a file of them is in another encoding."""
    broken = lines = 0
    with opened(path) as file:
        start = file.read(4)
        if encoding.replace("-", "").lower() in ("utf8", "utf8sig") and start[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise InputError(f"{path} is in UTF-16: give --encoding utf-16")
    if encoding.replace("-", "").lower().startswith("utf16"):
        return  # lines cannot be told apart before it is decoded
    with opened(path) as file:
        for line in file:
            lines += 1
            try:
                line.decode(encoding)
            except UnicodeDecodeError:
                broken += 1
            except LookupError as error:
                raise InputError(f"--encoding {encoding}: there is no such encoding") from error
            if lines == SAMPLE:
                break
    if broken > lines / 2:
        raise InputError(
            f"{path} is not in {encoding}: {broken} of its first {lines} lines are none; give its encoding, such as "
            "--encoding cp949"
        )


def _jsonl(lines: Iterator[str], encoding: str) -> Iterator[Row | Bad]:
    number = 0
    for line in lines:
        if not line.strip():
            continue
        number += 1
        if _is_broken(line):
            yield Bad(number, "", f"the line is not in {encoding}")
            continue
        try:
            values = json.loads(line)
        except ValueError as error:
            yield Bad(number, "", f"the line is no JSON: {error}")
            continue
        except RecursionError:
            yield Bad(number, "", "the line is JSON of too many levels")
            continue
        yield Row(number, values) if isinstance(values, dict) else Bad(number, "", "the line is no JSON object")


def _lines(file: BinaryIO, encoding: str) -> Generator[str, None, None]:
    # Only \n ends a line: U+2028 and others may stand in a text.
    text = io.TextIOWrapper(file, _with_mark(encoding), errors="surrogateescape", newline="\n")
    try:
        for line in text:  # noqa: UP028 - `yield from` would close it
            yield line
    finally:
        text.detach()  # who opened the file closes it


def _with_mark(encoding: str) -> str:
    """That takes a byte order mark for none of the text."""
    return "utf-8-sig" if encoding.replace("-", "").lower() == "utf8" else encoding


def _is_broken(text: str) -> bool:
    return not text.isascii() and any(BROKEN[0] <= sign <= BROKEN[1] for sign in text)


def _csv(path: str, lines: Iterator[str], encoding: str, delimiter: str) -> Iterator[Row | Bad]:
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    header = next(reader, None)
    if not header:
        raise InputError(f"{path} is empty: its first line must name the columns")
    if double := next((name for name in header if header.count(name) > 1), None):
        raise InputError(f"{path} names the column {double!r} twice")
    number = 0
    while True:
        number, line = number + 1, reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield Bad(number, "", f"line {line} and what follows is no CSV ({error}): is a quote closed, and doubled?")
            if "unexpected end of data" in str(error):
                return
            continue
        if cells is None:
            return
        if not cells:
            number -= 1  # an empty line
        elif len(cells) != len(header):
            yield Bad(number, "", f"line {line} has {len(cells)} cells, the header {len(header)}")
        else:
            yield Row(number, dict(zip(header, cells, strict=True)))


def _parquet(path: str) -> Iterator[Row | Bad]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ModuleNotFoundError as error:
        raise InputError(f"{path} is Parquet, which needs the extra `bulk`: pip install -e '.[bulk]'") from error
    with opened(path, unpack=False) as raw:
        try:
            number = 0
            for batch in ParquetFile(raw).iter_batches(batch_size=1000):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(number, values)
        except ArrowException as error:
            raise InputError(f"{path} cannot be read as Parquet: {error}") from error


def to_document(row: Row | Bad, texts: Sequence[str], id_column: str | None, prefix: str) -> Document | Bad:
    """What of `row` is encoded, or why nothing is. Without `id_column` its id is that of its index, or `prefix` and its
    number.

    A field without a text is no fault as long as another one has some. A document of an index may lack it altogether.
    """
    if isinstance(row, Bad):
        return row
    found: dict[str, str] = {}
    for column in texts:
        if column not in row.values and row.key is None:
            return Bad(row.number, column, f"there is no column {column}, but {', '.join(map(str, row.values))[:200]}")
        value = row.values.get(column)
        if value is None:
            continue
        if not isinstance(value, str):
            return Bad(row.number, column, f"it is {type(value).__name__}, not a text")
        if _is_broken(value):
            return Bad(row.number, column, "it is not in the encoding of the file")
        if value.strip():
            found[column] = value
    if not found:
        return Bad(row.number, texts[0], "there is no text")
    if id_column is None:
        return Document(row.number, row.key.id if row.key else f"{prefix}-{row.number}", found, row.values, row.key)
    id_ = row.values.get(id_column)
    if isinstance(id_, bool) or not isinstance(id_, str | int) or id_ == "":
        return Bad(row.number, id_column, f"the id is {'missing' if id_ in (None, '') else repr(id_)[:80]}")
    if isinstance(id_, str) and _is_broken(id_):
        return Bad(row.number, id_column, "it is not in the encoding of the file")
    return Document(row.number, str(id_), found, row.values)
