"""A run: which parts are done, and what became of them.

The unit of work is a part, some hundred rows of one source. A part is done when its receipt exists; it is written after
the vectors, so that a stop at any moment costs the parts at work, and what was written of them is written again. Rows
are read and receipts written in this process; parts are made here, or by others (`app.bulk.on_ray`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from typing import Any

from app.bulk.files import RunFiles
from app.bulk.making import Job, Made, Maker, Part
from app.bulk.patience import Say
from app.bulk.plan import Input, Manifest, prefix_of
from app.bulk.progress import Metrics, Progress
from app.bulk.sinks import Sample, Target
from app.bulk.sources import Source

RECEIPTS, REJECTED, SUMMARY = "receipts", "rejected", "summary.json"
SAMPLED = 100  #: documents that are compared with the index in the end, about
#: Makes all parts of a job, in any order.
Way = Callable[[Job, Iterator[Part]], Generator[tuple[Part, Made], None, None]]


@dataclass(slots=True)
class Summary:
    """What became of the rows."""

    rows: int = 0
    documents: int = 0
    rejected: int = 0
    changed: int = 0  #: documents of an index that another version took the place of, or that are gone
    empty: int = 0  #: documents of which a text has no token
    cut: int = 0  #: documents of which a text was too long for the model
    tokens: int = 0
    words: int = 0  #: of all vectors
    vectors: int = 0
    seconds: float = 0.0  #: in which parts were made, by all processes together, stops not counted
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
            f"{self.tokens:,} tokens in {self.seconds:,.0f} s of work{rate}; {active}; by {self.version}",
        ]
        if self.changed:
            told.append(f"{self.changed:,} documents were changed or deleted since the run began and are not in it")
        if self.cut:
            told.append(f"{self.cut:,} documents were longer than the model reads: their ends are not in the vectors")
        if self.empty:
            told.append(f"{self.empty:,} documents have a text without any token, and no vector of it")
        return told


def here(job: Job, parts: Iterator[Part]) -> Generator[tuple[Part, Made], None, None]:
    """One after the other in this process; the encoder uses every core."""
    maker: Maker | None = None
    try:
        for part in parts:
            maker = maker or Maker(job)
            yield part, maker.make(part)
    finally:
        job.sink.close()


def go_on(
    files: RunFiles,
    manifest: Manifest,
    sources: Sequence[Source],
    job: Job,
    way: Way,
    target: Target,
    say: Say,
    metrics: Metrics,
) -> Summary:
    """Makes the parts that are not done, and tells what became of all.

    :raises InputError, SinkError: if a source cannot be read any more, or nothing can be written.
    """
    summary = Summary(version=manifest.wanted.version)
    samples: list[Sample] = []
    names = [name for place, one in enumerate(manifest.inputs) for name in _names(place, one)]
    sampled = set(names[:: max(1, len(names) // SAMPLED)])
    done = {name.removesuffix(".json") for name in files.names(RECEIPTS)}

    def add(name: str, receipt: Mapping[str, Any]) -> None:
        summary.add(receipt)
        if receipt["sample"] and name in sampled:
            samples.append(Sample(**receipt["sample"]))

    made_now = way(job, _parts(manifest, sources, done))
    with Progress(sum(one.rows for one in manifest.inputs), say, metrics) as progress, closing(made_now):
        for name in names:
            if name not in done:
                continue
            receipt = files.read_json(f"{RECEIPTS}/{name}.json")
            add(name, receipt)
            progress.skip(receipt)
        for part, made in made_now:
            if made.rejected:
                lines = [json.dumps(one, ensure_ascii=False) + "\n" for one in made.rejected]
                files.write(f"{REJECTED}/part-{part.name}.jsonl", "".join(lines).encode())
            files.write_json(f"{RECEIPTS}/{part.name}.json", made.receipt)
            add(part.name, made.receipt)
            progress.made(made.receipt)
    summary.changed = max(0, sum(one.rows for one in manifest.inputs) - summary.rows)
    for line in target.finish(samples, summary.documents):
        say(line)
    files.clear()
    files.write_json(SUMMARY, asdict(summary))
    return summary


def _names(place: int, one: Input) -> list[str]:
    """Of the parts of a source."""
    return [f"{place:05d}-{number:06d}" for number in range(len(one.ends))]


def _parts(manifest: Manifest, sources: Sequence[Source], done: set[str]) -> Iterator[Part]:
    """Those that are not done."""
    for place, (one, source) in enumerate(zip(manifest.inputs, sources, strict=True)):
        names = _names(place, one)
        doubled = manifest.doubled.get(str(place), ())
        for number, rows in source.parts(one.ends, {number for number, name in enumerate(names) if name in done}):
            start, end = (one.ends[number - 1] if number else 0), one.ends[number]
            again = frozenset(row for row in doubled if start < row <= end)
            yield Part(names[number], source.path, prefix_of(source, place), rows, again)
