"""Rows out of files: TSV, CSV, JSON lines (each also ``.xz`` or ``.gz``), Parquet, and Hugging Face datasets.

A bad row is never dropped in silence: it is logged with its place, counted, and one more than the recipe allows stops
the run.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import logging
import lzma
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

logger = logging.getLogger(__name__)

HUB = "hf:"  #: ``hf:owner/name`` or ``hf:owner/name:split`` is a dataset of the hub
_DELIMITERS = {".tsv": "\t", ".csv": ","}
_LOGGED = 20  #: bad rows of a file that are logged one by one
_PARQUET_ROWS = 4096
_LONGEST_CELL = 10_000_000  #: characters; csv's own limit is 131,072
_HEAD = 1 << 20  #: bytes that tell the encoding
_SURROGATE = re.compile("[\ud800-\udfff]")
_MAGIC = {b"\x1f\x8b": "a gzip", b"\xfd7zXZ\0": "an xz", b"PK\x03\x04": "a zip", b"PAR1": "a Parquet"}


class DataError(ValueError):
    """A data file is missing or cannot be read as its recipe says; the message names file and line."""


class BadRows:
    """Counts the bad rows and the blank lines of each file. One bad row more than ``allowed`` is a ``DataError``."""

    def __init__(self, allowed: int = 0) -> None:
        self.allowed = allowed
        self.counts: Counter[str] = Counter()
        self.blank_lines: Counter[str] = Counter()

    def report(self, name: str, row: int, problem: str) -> None:
        """Row ``row`` of file ``name`` is bad. Raises ``DataError`` if that is one too many."""
        self.counts[name] += 1
        message = f"{name}:{row}: {problem}"
        if self.counts[name] > self.allowed:
            more = f" ({self.counts[name]} bad rows, data.max_bad_rows is {self.allowed})" if self.allowed else ""
            raise DataError(message + more)
        if self.counts[name] <= _LOGGED:
            logger.warning("bad row left out: %s", message)


def read_lines(path: Path) -> Iterator[str]:
    """Lines of a text file, ``.xz``, ``.gz`` or plain, in UTF-8 (its mark is left out), UTF-16 with its mark, or CP949.

    Bytes that are no text come as lone surrogates, which ``not_text`` finds. Raises ``DataError`` if the file is not
    there, is cut off or damaged, or is in none of these.
    """
    _check_file(path)
    number = 0
    try:
        with _open_bytes(path) as file:
            encoding = _encoding(path, file.read(_HEAD))
            file.seek(0)
            errors = "surrogatepass" if encoding == "utf-16" else "surrogateescape"
            with io.TextIOWrapper(file, encoding=encoding, errors=errors) as text:
                for line in text:
                    number += 1
                    yield line
    except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error, UnicodeError) as error:
        raise DataError(f"{path}: cut off or damaged after line {number} ({error}): get the file again") from error


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise DataError(
            f"{path}: no such file; the recipe's data.root (or --data-root) decides where data is looked for"
        )


def _open_bytes(path: Path) -> BinaryIO:
    if path.suffix == ".xz":
        return cast(BinaryIO, lzma.open(path, "rb"))
    return cast(BinaryIO, gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")


def _encoding(path: Path, head: bytes) -> str:
    if head.startswith(codecs.BOM_UTF8):
        return "utf-8-sig"
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    for magic, kind in _MAGIC.items():
        if head.startswith(magic):
            raise DataError(f"{path}: no text but {kind} file, by its first bytes: name it as what it is, or unpack it")
    if b"\0" in head:
        raise DataError(f"{path}: holds zero bytes: no text, or UTF-16 without a mark; save it as UTF-8")
    foreign = sum(byte > 0x7F for byte in head)
    broken = len(not_text(head.decode("utf-8", "surrogateescape")))
    if 2 * broken <= foreign:  # single bad bytes are for the rows that hold them
        return "utf-8"
    try:
        codecs.getincrementaldecoder("cp949")().decode(head)
    except UnicodeDecodeError:
        raise DataError(f"{path}: neither UTF-8 nor CP949: save it as UTF-8") from None
    logger.info("%s: read as CP949", path)
    return "cp949"


def not_text(value: str) -> list[str]:
    """The lone surrogates in ``value``: bytes that no encoding explains, or halves of a character in JSON."""
    return _SURROGATE.findall(value)


def read_rows(path: Path | str, fields: Iterable[str], bad: BadRows) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, row) for each good row of ``path``; a row holds at least ``fields``, each text or None.

    ``path`` may also be ``hf:owner/name[:split]``. Numbers are lines where the file has lines, else rows from 1. Raises
    ``DataError`` if the file is missing, is of no known kind or lacks a column, or if ``bad`` has enough.
    """
    wanted = list(fields)
    name = str(path)
    for number, row in _raw_rows(path, wanted, bad):
        if missing := [field for field in wanted if field not in row]:
            bad.report(name, number, f"expected an object with {', '.join(wanted)}; {', '.join(missing)} is missing")
        elif wrong := [field for field in wanted if not isinstance(row[field], str | None)]:
            bad.report(name, number, f"{wrong[0]} must be text, found {row[wrong[0]]!r:.80}")
        elif broken := [field for field, value in row.items() if isinstance(value, str) and not_text(value)]:
            bad.report(name, number, f"{broken[0]} holds bytes or escapes that are no text: {row[broken[0]]!r:.80}")
        else:
            yield number, row


def read_jsonl(path: Path, *fields: str) -> Iterator[dict[str, Any]]:
    """The objects of a JSON-lines file with values of any kind; each must hold ``fields``.

    For files that must be whole, such as retrieval sets: raises ``DataError`` with the line's number.
    """
    bad = BadRows()
    for number, row in _json_rows(path, bad):
        if any(field not in row for field in fields):
            bad.report(str(path), number, f"expected an object with {', '.join(fields)}; found {row!r:.80}")
        if not_text(json.dumps(row, ensure_ascii=False)):
            bad.report(str(path), number, f"holds bytes or escapes that are no text: {row!r:.80}")
        yield row


def _raw_rows(path: Path | str, fields: list[str], bad: BadRows) -> Iterator[tuple[int, dict[str, Any]]]:
    if isinstance(path, str) and path.startswith(HUB):
        return _dataset_rows(path, fields)
    path = Path(path)
    if path.is_dir():
        return _dataset_rows(path, fields)
    kind = (Path(path.stem) if path.suffix in (".xz", ".gz") else path).suffix
    if kind == ".parquet":
        return _parquet_rows(path, fields)
    if kind in _DELIMITERS:
        return _table_rows(path, _DELIMITERS[kind], fields, bad)
    if kind in (".jsonl", ".json"):
        return _json_rows(path, bad)
    raise DataError(f"{path}: known are .jsonl, .tsv, .csv (also .xz, .gz), .parquet, a saved dataset, and {HUB}NAME")


def _json_rows(path: Path, bad: BadRows) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            bad.blank_lines[str(path)] += 1
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            bad.report(str(path), number, f"not JSON: {error}")
            continue
        if isinstance(row, dict):
            yield number, row
        else:
            bad.report(str(path), number, f"expected an object, found {line[:80]!r}")


def _table_rows(path: Path, delimiter: str, fields: list[str], bad: BadRows) -> Iterator[tuple[int, dict[str, Any]]]:
    csv.field_size_limit(_LONGEST_CELL)  # of the whole process; nothing else here reads CSV
    # In TSV a quotation mark is a character like any other; in CSV it holds cells together.
    plain = delimiter == "\t"
    reader = csv.reader(read_lines(path), delimiter=delimiter, quoting=csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL)
    header = next(reader, [])
    if missing := set(fields) - set(header):
        raise DataError(f"{path}:1: the header lacks {', '.join(sorted(missing))}; found {header}")
    if doubled := [name for name, times in Counter(filter(None, header)).items() if times > 1]:
        raise DataError(f"{path}:1: the header has {doubled[0]!r} more than once: give each column its own name")
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            bad.report(str(path), reader.line_num, f"{error}; perhaps a quotation mark is not closed")
            continue
        if not cells:
            bad.blank_lines[str(path)] += 1
        elif len(cells) == len(header):
            yield reader.line_num, dict(zip(header, cells, strict=True))
        else:
            bad.report(str(path), reader.line_num, f"{len(cells)} columns, the header has {len(header)}")


def _parquet_rows(path: Path, fields: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    _check_file(path)
    number = 0
    try:
        file = ParquetFile(path)
        _check_columns(str(path), file.schema_arrow.names, fields)
        for batch in file.iter_batches(_PARQUET_ROWS):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except (ArrowException, OSError, UnicodeError) as error:
        raise DataError(f"{path}: not a readable Parquet file, after row {number}: {error}") from None


def _dataset_rows(path: Path | str, fields: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    import datasets

    if isinstance(path, Path):
        try:
            data = datasets.load_from_disk(str(path))
        except FileNotFoundError as error:
            raise DataError(f"{path}: a folder, but no dataset that `save_to_disk` wrote: {error}") from None
    else:
        name, _, split = path.removeprefix(HUB).partition(":")
        try:
            data = datasets.load_dataset(name, split=split or "train")
        except Exception as error:  # the library raises many kinds: no network, no such dataset, no such split
            raise DataError(f"{path}: cannot be loaded: {error}") from error
    if isinstance(data, datasets.DatasetDict):
        raise DataError(f"{path}: has the splits {', '.join(data)}: name the folder of one")
    _check_columns(str(path), data.column_names, fields)
    yield from enumerate(data, 1)


def _check_columns(path: str, found: list[str], fields: list[str]) -> None:
    if missing := set(fields) - set(found):
        raise DataError(f"{path}: the columns lack {', '.join(sorted(missing))}; found {', '.join(found)}")
