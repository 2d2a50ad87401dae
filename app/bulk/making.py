"""A part of a run is made here: rows in, vectors written, and what became of each row. The same code in every process.

It may be made any number of times, by several processes at once even: what it writes is the same each time.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.bulk.encoding import BulkEncoder, Encoded, ModelChoice, VectorChoice, load, open_artifact
from app.bulk.files import RunError
from app.bulk.plan import Wanted
from app.bulk.rows import Bad, Document, Row, to_document
from app.bulk.sinks import Item, Sink


@dataclass(frozen=True, slots=True)
class Part:
    """Some rows of a source."""

    name: str
    path: str  #: of the source
    prefix: str  #: of the ids of rows that have none
    rows: Sequence[Row | Bad]
    doubled: frozenset[int]  #: numbers of rows whose id an earlier one has


@dataclass(frozen=True, slots=True)
class Made:
    """What became of a part."""

    receipt: Mapping[str, Any]
    rejected: Sequence[Mapping[str, object]]


@dataclass(frozen=True, slots=True)
class Job:
    """All that a process must know to make parts of a run."""

    model: ModelChoice
    wanted: Wanted
    sink: Sink


class Maker:
    """Holds the encoder of a job."""

    def __init__(self, job: Job) -> None:
        """:raises ArtifactError, ModelError, EncoderError, StoreError: if the model cannot be had, or not be served.
        :raises RunError: if another version is here.
        :raises SinkError: if the output cannot be reached from here.
        """
        artifact = open_artifact(job.model)
        if artifact.manifest.version != job.wanted.version:
            raise RunError(
                f"the run has the model {job.wanted.version}, and here is {artifact.manifest.version}: every machine "
                "needs the same software and model"
            )
        job.sink.check()
        self._wanted, self._sink = job.wanted, job.sink
        self._encoder = BulkEncoder(load(job.model, artifact), VectorChoice(**job.wanted.vectors))

    def make(self, part: Part) -> Made:
        """:raises SinkError: if nothing can be written."""
        started = time.monotonic()
        wanted = self._wanted
        bad: list[Bad] = []
        documents: list[Document] = []
        for row in part.rows:
            document = to_document(row, wanted.texts, wanted.id_column, part.prefix)
            if isinstance(document, Bad):
                bad.append(document)
            elif document.number in part.doubled:
                bad.append(Bad(row.number, wanted.id_column or "", f"an earlier row has the id {document.id!r}"))
            else:
                documents.append(document)
        items, failed = _items(documents, wanted, self._encoder)
        bad += failed
        bad += self._sink.write(part.name, items)
        refused = {one.number for one in bad}
        kept = [item for item in items if item.document.number not in refused]
        rejected = [
            {"file": part.path, "row": one.number, "column": one.column, "reason": one.reason}
            for one in sorted(bad, key=lambda one: one.number)
        ]
        return Made(_receipt(part, kept, bad, time.monotonic() - started), rejected)


def _receipt(part: Part, kept: Sequence[Item], bad: Sequence[Bad], seconds: float) -> dict[str, Any]:
    reasons: dict[str, int] = {}
    for one in bad:
        name = one.column or "(row)"
        reasons[name] = reasons.get(name, 0) + 1
    vectors = [encoded for item in kept for encoded in item.vectors.values()]
    return {
        "rows": len(part.rows),
        "documents": len(kept),
        "rejected": len(bad),
        "reasons": reasons,
        "empty": sum(any(not one.weights for one in item.vectors.values()) for item in kept),
        "cut": sum(any(one.cut for one in item.vectors.values()) for item in kept),
        "tokens": sum(one.tokens for one in vectors),
        "words": sum(len(one.weights) for one in vectors),
        "vectors": len(vectors),
        "seconds": seconds,
        "sample": _sample(kept),
    }


def _sample(items: Sequence[Item]) -> dict[str, Any] | None:
    if not items:
        return None
    item = items[len(items) // 2]
    key = item.document.key
    of_index = {"routing": key.routing, "version": key.version} if key else {"routing": None}
    vectors = {field: one.weights for field, one in item.vectors.items()}
    return {"id": item.document.id, "vectors": vectors, **of_index}


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
