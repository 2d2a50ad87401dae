"""What a run is: which rows there are, and in which directory it is kept."""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from tqdm import tqdm

from app.bulk.rows import Document, Row, opened, read_rows, to_document
from app.bulk.sinks import common_type, type_of, whole_file

Say = Callable[[str], None]
MANIFEST, LOCK = "run.json", "run.lock"


class RunError(Exception):
    """The run cannot begin or go on. The message says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Input:
    """A file as it was when the run began."""

    path: str
    bytes: int
    sha256: str
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a run does: two that differ are two runs."""

    texts: Sequence[str]
    joined: bool  #: one vector of all texts together, named by the first, or one of each
    id_column: str | None
    version: str  #: of the model
    vectors: Mapping[str, Any]  #: see `VectorChoice`
    target: str
    encoding: str
    limit: int | None
    part_rows: int

    @property
    def fields(self) -> Sequence[str]:
        """That get a vector."""
        return self.texts[:1] if self.joined else self.texts


@dataclass(frozen=True, slots=True)
class Manifest:
    """What the run directory belongs to."""

    wanted: Wanted
    inputs: Sequence[Input]
    columns: Mapping[str, str]  #: and the type of each
    doubled: Mapping[str, Sequence[int]]  #: rows whose id an earlier row has, by the place of the file


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """:raises RunError: if another process has the run."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with (directory / LOCK).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RunError(f"another process works on {directory}: wait for it, or end it") from error
            yield
    except OSError as error:
        raise RunError(f"{directory} cannot be used ({error}): give a directory that can be written") from error


def version_of_run(directory: Path) -> str | None:
    """Of the model that the run in `directory` began with; None if there is none."""
    file = directory / MANIFEST
    return str(json.loads(file.read_text(encoding="utf-8"))["wanted"]["version"]) if file.is_file() else None


def prepare(directory: Path, wanted: Wanted, inputs: Sequence[str], say: Say) -> Manifest:
    """The manifest of the run in `directory`: made now by reading every row once, or the one that it began with.

    :raises RunError: if the directory holds something else, or another run.
    :raises InputError: if an input cannot be read.
    """
    file = directory / MANIFEST
    if not file.exists():
        if others := [path.name for path in directory.iterdir() if path.name != LOCK]:
            raise RunError(f"{directory} holds {others[0]} and is no run: give an empty or a new directory")
        manifest = _scan(wanted, inputs, say)
        with whole_file(file) as path:
            path.write_text(json.dumps(asdict(manifest), ensure_ascii=False, indent=1), encoding="utf-8")
        return manifest
    known = json.loads(file.read_text(encoding="utf-8"))
    _refuse_another(directory, known, wanted, inputs)
    return Manifest(
        Wanted(**known["wanted"]), [Input(**one) for one in known["inputs"]], known["columns"], known["doubled"]
    )


def _refuse_another(directory: Path, known: Mapping[str, Any], wanted: Wanted, inputs: Sequence[str]) -> None:
    now = json.loads(json.dumps(asdict(wanted)))
    differing = [
        f"{name} was {value!r} and is {now[name]!r}" for name, value in known["wanted"].items() if value != now[name]
    ]
    paths = [one["path"] for one in known["inputs"]]
    if paths != list(inputs):
        differing.append(f"the inputs were {', '.join(paths)} and are {', '.join(inputs)}")
    else:
        for one in known["inputs"]:
            if (one["bytes"], one["sha256"]) != _print(one["path"]):
                differing.append(f"{one['path']} has changed")
    if differing:
        raise RunError(
            f"{directory} belongs to another run ({'; '.join(differing)}): give a new directory, or what it began with"
        )


def _print(path: str) -> tuple[int, str]:
    with opened(path, unpack=False) as file:
        digest, size = hashlib.sha256(), 0
        while block := file.read(1 << 20):
            digest.update(block)
            size += len(block)
        return size, digest.hexdigest()


def _scan(wanted: Wanted, inputs: Sequence[str], say: Say) -> Manifest:
    """Reads everything once: how many rows there are, of what types, and which ids come twice."""
    found: list[Input] = []
    columns: dict[str, str | None] = {}
    ids = Ids()
    left = wanted.limit
    with tqdm(desc="rows", unit="row", disable=None) as bar:
        for place, path in enumerate(inputs):
            rows = 0
            with closing(read_rows(path, wanted.encoding)) as every:
                for row in islice(every, left):
                    rows += 1
                    bar.update()
                    if isinstance(row, Row):
                        _note_types(columns, row)
                    document = to_document(row, wanted.texts, wanted.id_column, prefix_of(path, place))
                    if isinstance(document, Document):
                        ids.add(document.id, place, row.number)
            left = None if left is None else left - rows
            size, digest = _print(path)
            found.append(Input(path, size, digest, rows))
    _refuse_unknown_columns(wanted, columns)
    total = sum(one.rows for one in found)
    say(f"{total:,} rows in {len(found)} file{'s' if len(found) > 1 else ''}")
    return Manifest(wanted, found, {name: kind or "string" for name, kind in columns.items()}, ids.doubled())


def _note_types(columns: dict[str, str | None], row: Row) -> None:
    for name, value in row.values.items():
        if value is not None:
            columns[name] = common_type(columns.get(name), type_of(value))
        else:
            columns.setdefault(name, None)


def _refuse_unknown_columns(wanted: Wanted, columns: Mapping[str, object]) -> None:
    asked = [*wanted.texts, *([wanted.id_column] if wanted.id_column else [])]
    if columns and (missing := [name for name in asked if name not in columns]):
        raise RunError(f"no row has a column {', '.join(missing)}; there are {', '.join(map(str, columns))}")


def prefix_of(path: str, place: int) -> str:
    """Of the ids of rows that have none."""
    return f"{place}-{PurePosixPath(path).name.split('.')[0]}"


class Ids:
    """Which ids came before, in 24 bytes each: by 128 bits of their hash."""

    def __init__(self) -> None:
        self._digests, self._places = bytearray(), bytearray()

    def add(self, id_: str, place: int, row: int) -> None:
        self._digests += hashlib.blake2b(id_.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        self._places += int(place << 40 | row).to_bytes(8, "little")

    def doubled(self) -> dict[str, list[int]]:
        """Rows by file, all but the first of each id."""
        if not self._places:
            return {}
        digests = np.frombuffer(self._digests, np.uint64).reshape(-1, 2)
        places = np.frombuffer(self._places, np.uint64)
        order = np.lexsort((places, digests[:, 0], digests[:, 1]))
        digests, places = digests[order], places[order]
        again = np.concatenate([[False], (digests[1:] == digests[:-1]).all(axis=1)])
        found: dict[str, list[int]] = {}
        for one in sorted(places[again].tolist()):
            found.setdefault(str(one >> 40), []).append(one & (1 << 40) - 1)
        return found
