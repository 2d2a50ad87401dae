"""A run: which rows are done, and what became of each.

The unit of work is a part, some hundred rows of one file. A part is done when its receipt exists; it is written after
the vectors, so that a stop at any moment costs one part, and what was written of it is written again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from app.bulk.encoding import BulkEncoder, Encoded
from app.bulk.plan import Manifest, Say, Wanted, prefix_of
from app.bulk.rows import Bad, Document, Row, read_rows, to_document
from app.bulk.sinks import Item, Sink, SinkError, whole_file

RECEIPTS, REJECTED, SUMMARY = "receipts", "rejected", "summary.json"
SECONDS_BETWEEN_LINES = 30.0  #: of progress, where there is no terminal


@dataclass(slots=True)
class Summary:
    """What became of the rows."""

    rows: int = 0
    documents: int = 0
    rejected: int = 0
    empty: int = 0  #: documents of which a text has no token
    cut: int = 0  #: documents of which a text was too long for the model
    tokens: int = 0
    words: int = 0  #: of all vectors
    vectors: int = 0
    seconds: float = 0.0  #: in which parts were made, stops not counted
    version: str = ""
    reasons: dict[str, int] = field(default_factory=dict)  #: of rejections, by column

    def add(self, receipt: Mapping[str, Any]) -> None:
        for name in ("rows", "documents", "rejected", "empty", "cut", "tokens", "words", "vectors", "seconds"):
            setattr(self, name, getattr(self, name) + receipt[name])
        for name, count in receipt["reasons"].items():
            self.reasons[name] = self.reasons.get(name, 0) + count

    def lines(self) -> list[str]:
        rate = f", {self.documents / self.seconds:,.0f} documents/s" if self.seconds and self.documents else ""
        active = f"{self.words / self.vectors:.0f} words a vector" if self.vectors else "no vectors"
        told = [
            f"{self.rows:,} rows: {self.documents:,} documents, {self.rejected:,} rejected",
            f"{self.tokens:,} tokens in {self.seconds:,.0f} s{rate}; {active}; by {self.version}",
        ]
        if self.cut:
            told.append(f"{self.cut:,} documents were longer than the model reads: their ends are not in the vectors")
        if self.empty:
            told.append(f"{self.empty:,} documents have a text without any token, and no vector of it")
        return told


def go_on(directory: Path, manifest: Manifest, encoder: Callable[[], BulkEncoder], sink: Sink, say: Say) -> Summary:
    """Makes the parts that are not done, and tells what became of all.

    :raises InputError, SinkError: if a file cannot be read any more, or nothing can be written.
    """
    wanted = manifest.wanted
    summary = Summary(version=wanted.version)
    samples: list[tuple[str, Mapping[str, Mapping[str, float]]]] = []
    loaded: BulkEncoder | None = None
    with _Progress(sum(one.rows for one in manifest.inputs), say) as progress, closing(_parts(manifest)) as parts:
        for place, part, rows in parts:
            receipt_file = directory / RECEIPTS / f"{part}.json"
            if receipt_file.exists():
                receipt = json.loads(receipt_file.read_text(encoding="utf-8"))
                progress.skip(receipt)
            else:
                loaded = loaded or encoder()
                receipt = _make(directory, manifest, place, part, rows, loaded, sink)
                with whole_file(receipt_file) as path:
                    path.write_text(json.dumps(receipt, ensure_ascii=False), encoding="utf-8")
                progress.made(receipt)
            summary.add(receipt)
            if receipt["sample"]:
                samples.append((receipt["sample"]["id"], receipt["sample"]["vectors"]))
    for line in sink.finish(_spread(samples), summary.documents):
        say(line)
    with whole_file(directory / SUMMARY) as path:
        path.write_text(json.dumps(asdict(summary), ensure_ascii=False, indent=1), encoding="utf-8")
    return summary


def _spread(samples: Sequence[Any], most: int = 100) -> list[Any]:
    step = max(1, len(samples) // most)
    return list(samples[::step])


def _parts(manifest: Manifest) -> Generator[tuple[int, str, list[Row | Bad]], None, None]:
    """The place of the file, the name of the part, its rows."""
    wanted = manifest.wanted
    for place, one in enumerate(manifest.inputs):
        with closing(read_rows(one.path, wanted.encoding)) as every:
            rows = islice(every, one.rows)
            for number, start in enumerate(range(0, one.rows, wanted.part_rows)):
                some = list(islice(rows, wanted.part_rows))
                if not some:
                    raise SinkError(f"{one.path} ends at row {start}, it had {one.rows}: it has changed meanwhile")
                yield place, f"{place:05d}-{number:06d}", some


def _make(
    directory: Path,
    manifest: Manifest,
    place: int,
    part: str,
    rows: Sequence[Row | Bad],
    encoder: BulkEncoder,
    sink: Sink,
) -> dict[str, Any]:
    """Encodes and writes a part; its receipt."""
    started = time.monotonic()
    wanted, path = manifest.wanted, manifest.inputs[place].path
    doubled = set(manifest.doubled.get(str(place), ()))
    bad: list[Bad] = []
    documents: list[Document] = []
    for row in rows:
        document = to_document(row, wanted.texts, wanted.id_column, prefix_of(path, place))
        if isinstance(document, Document) and document.number in doubled:
            document = Bad(row.number, wanted.id_column or "", f"an earlier row has the id {document.id!r}")
        (documents if isinstance(document, Document) else bad).append(document)  # type: ignore[arg-type]
    items, failed = _items(documents, wanted, encoder)
    bad += failed
    bad += sink.write(part, items)
    refused = {one.number for one in bad}
    kept = [item for item in items if item.document.number not in refused]
    if bad:
        with (
            whole_file(directory / REJECTED / f"part-{part}.jsonl") as target,
            target.open("w", encoding="utf-8") as out,
        ):
            for one in sorted(bad, key=lambda one: one.number):
                told = {"file": path, "row": one.number, "column": one.column, "reason": one.reason}
                out.write(json.dumps(told, ensure_ascii=False) + "\n")
    reasons: dict[str, int] = {}
    for one in bad:
        name = one.column or "(row)"
        reasons[name] = reasons.get(name, 0) + 1
    vectors = [encoded for item in kept for encoded in item.vectors.values()]
    return {
        "rows": len(rows),
        "documents": len(kept),
        "rejected": len(bad),
        "reasons": reasons,
        "empty": sum(any(not one.weights for one in item.vectors.values()) for item in kept),
        "cut": sum(any(one.cut for one in item.vectors.values()) for item in kept),
        "tokens": sum(one.tokens for one in vectors),
        "words": sum(len(one.weights) for one in vectors),
        "vectors": len(vectors),
        "seconds": time.monotonic() - started,
        "sample": _sample(kept),
    }


def _sample(items: Sequence[Item]) -> dict[str, Any] | None:
    if not items:
        return None
    item = items[len(items) // 2]
    return {"id": item.document.id, "vectors": {field: one.weights for field, one in item.vectors.items()}}


def _items(documents: Sequence[Document], wanted: Wanted, encoder: BulkEncoder) -> tuple[list[Item], list[Bad]]:
    """All texts of a part are encoded together, so that batches are of one length."""
    texts: list[str] = []
    owners: list[tuple[int, str]] = []
    for number, document in enumerate(documents):
        if wanted.joined:
            texts.append("\n".join(document.texts.values()))
            owners.append((number, wanted.texts[0]))
        else:
            texts += document.texts.values()
            owners += [(number, name) for name in document.texts]
    vectors: list[dict[str, Encoded]] = [{} for _ in documents]
    failed: dict[int, str] = {}
    for (number, name), encoded in zip(owners, encoder.encode(texts), strict=True):
        if encoded is None:
            failed[number] = name
        else:
            vectors[number][name] = encoded
    items = [Item(document, vectors[n]) for n, document in enumerate(documents) if n not in failed]
    bad = [Bad(documents[n].number, name, "the encoder fails on it, even alone") for n, name in failed.items()]
    return items, bad


class _Progress:
    """A bar on a terminal, else a line now and then."""

    def __init__(self, rows: int, say: Say) -> None:
        self._bar = tqdm(total=rows, unit="row", disable=None, smoothing=0)
        self._say, self._rows, self._done = say, rows, 0
        self._tokens = self._rejected = 0
        self._seconds = 0.0
        self._said = time.monotonic()

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def skip(self, receipt: Mapping[str, Any]) -> None:
        self._done += receipt["rows"]
        self._rejected += receipt["rejected"]
        self._bar.update(receipt["rows"])
        self._bar.initial = self._done  # what was done before is not part of the pace

    def made(self, receipt: Mapping[str, Any]) -> None:
        self._done += receipt["rows"]
        self._rejected += receipt["rejected"]
        self._tokens += receipt["tokens"]
        self._seconds += receipt["seconds"]
        pace = f"{self._tokens / self._seconds:,.0f} tokens/s" if self._seconds else ""
        self._bar.set_postfix_str(f"{pace}, {self._rejected:,} rejected", refresh=False)
        self._bar.update(receipt["rows"])
        if self._bar.disable and time.monotonic() - self._said > SECONDS_BETWEEN_LINES:
            self._said = time.monotonic()
            self._say(f"{self._done:,} of {self._rows:,} rows, {self._rejected:,} rejected, {pace}")
