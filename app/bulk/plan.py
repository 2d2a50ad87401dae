"""What a run is: which rows there are, and what shall become of them. It is kept in the directory of the run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np
from tqdm import tqdm

from app.bulk.files import LOCK, RunError, RunFiles, left_over
from app.bulk.patience import Say
from app.bulk.rows import Document, Row, to_document
from app.bulk.sinks import common_type, type_of
from app.bulk.sources import Source

MANIFEST = "run.json"


@dataclass(frozen=True, slots=True)
class Input:
    """A source as it was when the run began."""

    path: str
    fingerprint: str
    rows: int  #: also of an index those that went before they were read
    ends: Sequence[int]  #: the number of the last row of each part


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
    doubled: Mapping[str, Sequence[int]]  #: rows whose id an earlier row has, by the place of the source


def version_of_run(files: RunFiles) -> str | None:
    """Of the model that the run in `files` began with; None if there is none."""
    known = files.read_json(MANIFEST)
    return str(known["wanted"]["version"]) if known else None


def prepare(files: RunFiles, wanted: Wanted, sources: Sequence[Source], say: Say) -> Manifest:
    """The manifest of the run in `files`: made now by reading every row once, or the one that it began with.

    :raises RunError: if the directory holds something else, or another run.
    :raises InputError: if an input cannot be read.
    """
    known = files.read_json(MANIFEST)
    if known is None:
        if others := [name for name in files.names() if name != LOCK and not left_over(name)]:
            raise RunError(f"{files.url} holds {others[0]} and is no run: give an empty or a new directory")
        manifest = _scan(wanted, sources, say)
        known = files.write_first_json(MANIFEST, asdict(manifest))
        if known == json.loads(json.dumps(asdict(manifest))):
            return manifest
        say(f"{files.url} was begun by another process meanwhile: this one goes on with its parts")
    _refuse_another(files, known, wanted, sources)
    files.clear()
    inputs = [Input(**one) for one in known["inputs"]]
    return Manifest(Wanted(**known["wanted"]), inputs, known["columns"], known["doubled"])


def _refuse_another(files: RunFiles, known: Mapping[str, Any], wanted: Wanted, sources: Sequence[Source]) -> None:
    now = json.loads(json.dumps(asdict(wanted)))
    differing = [
        f"{name} was {value!r} and is {now[name]!r}" for name, value in known["wanted"].items() if value != now[name]
    ]
    had, has = ([one["path"] for one in known["inputs"]], [one.path for one in sources])
    if had != has:
        differing.append(f"the inputs were {', '.join(had)} and are {', '.join(has)}")
    else:
        for one, source in zip(known["inputs"], sources, strict=True):
            if one["fingerprint"] != source.fingerprint():
                differing.append(f"{source.path} has changed")
    if differing:
        raise RunError(
            f"{files.url} belongs to another run ({'; '.join(differing)}): give a new directory, or what it began with"
        )


def _scan(wanted: Wanted, sources: Sequence[Source], say: Say) -> Manifest:
    """Reads everything once: how many rows there are, of what types, and which ids come twice."""
    found: list[Input] = []
    columns: dict[str, str | None] = {}
    ids = Ids()
    left = wanted.limit
    with tqdm(desc="rows", unit="row", disable=None) as bar:
        for place, source in enumerate(sources):
            rows = 0
            ends: list[int] = []
            with closing(source.rows()) as every:
                for row in islice(every, left):
                    if rows % wanted.part_rows == 0:
                        ends.append(0)
                    rows += 1
                    ends[-1] = row.number
                    bar.update()
                    if isinstance(row, Row):
                        _note_types(columns, row)
                    document = to_document(row, wanted.texts, wanted.id_column, prefix_of(source, place))
                    if isinstance(document, Document):
                        ids.add(document.id, place, row.number)
            left = None if left is None else left - rows
            if left is None:
                rows = max(rows, source.count or 0)
            found.append(Input(source.path, source.fingerprint(), rows, ends))
    _refuse_unknown_columns(wanted, columns)
    total = sum(one.rows for one in found)
    say(f"{total:,} rows in {', '.join(source.path for source in sources[:3])}{' ...' if len(sources) > 3 else ''}")
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


def prefix_of(source: Source, place: int) -> str:
    """Of the ids of rows that have none."""
    return f"{place}-{source.prefix}"


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
