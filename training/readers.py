"""Rows out of files: TSV, CSV, JSON lines (each also ``.xz`` or ``.gz``), Parquet, and Hugging Face datasets.

A bad row is never dropped in silence: it is logged with its place, counted, and one more than the recipe allows stops
the run.
"""

from __future__ import annotations

import csv
import gzip
import json
import logging
import lzma
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

logger = logging.getLogger(__name__)

HUB = "hf:"  #: ``hf:owner/name`` or ``hf:owner/name:split`` is a dataset of the hub
_DELIMITERS = {".tsv": "\t", ".csv": ","}
_LOGGED = 20  #: bad rows of a file that are logged one by one
_PARQUET_ROWS = 4096


class DataError(ValueError):
    """A data file is missing or cannot be read as its recipe says; the message names file and line."""


class BadRows:
    """Counts the bad rows of each file. One more than ``allowed`` is a ``DataError``."""

    def __init__(self, allowed: int = 0) -> None:
        self.allowed = allowed
        self.counts: Counter[str] = Counter()

    def report(self, name: str, row: int, problem: str) -> None:
        """Row ``row`` of file ``name`` is bad. Raises ``DataError`` if that is one too many."""
        self.counts[name] += 1
        message = f"{name}:{row}: {problem}"
        if self.counts[name] > self.allowed:
            more = f" ({self.counts[name]} bad rows, data.max_bad_rows is {self.allowed})" if self.allowed else ""
            raise DataError(message + more)
        if self.counts[name] <= _LOGGED:
            logger.warning("bad row left out: %s", message)


def open_text(path: Path) -> TextIO:
    """Open a text file, ``.xz``, ``.gz`` or plain. Raises ``DataError`` if it is not there."""
    if not path.is_file():
        raise DataError(
            f"{path}: no such file; the recipe's data.root (or --data-root) decides where data is looked for"
        )
    if path.suffix == ".xz":
        return lzma.open(path, "rt", encoding="utf-8")
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")


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
    with open_text(path) as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                bad.report(str(path), number, f"not JSON: {error}")
                continue
            if isinstance(row, dict):
                yield number, row
            else:
                bad.report(str(path), number, f"expected an object, found {line[:80]!r}")


def _table_rows(path: Path, delimiter: str, fields: list[str], bad: BadRows) -> Iterator[tuple[int, dict[str, Any]]]:
    with open_text(path) as lines:
        # In TSV a quotation mark is a character like any other; in CSV it holds cells together.
        plain = delimiter == "\t"
        reader = csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL)
        header = next(reader, [])
        if missing := set(fields) - set(header):
            raise DataError(f"{path}:1: the header lacks {', '.join(sorted(missing))}; found {header}")
        for cells in reader:
            if len(cells) == len(header):
                yield reader.line_num, dict(zip(header, cells, strict=True))
            else:
                bad.report(str(path), reader.line_num, f"{len(cells)} columns, the header has {len(header)}")


def _parquet_rows(path: Path, fields: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    if not path.is_file():
        open_text(path)  # says where files are looked for
    try:
        file = ParquetFile(path)
    except ArrowException as error:
        raise DataError(f"{path}: not a readable Parquet file: {error}") from None
    _check_columns(str(path), file.schema_arrow.names, fields)
    number = 0
    for batch in file.iter_batches(_PARQUET_ROWS):
        for row in batch.to_pylist():
            number += 1
            yield number, row


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
