"""What tests ask of a running cluster and of the service."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.opensearch.cluster import Cluster
from app.opensearch.service import EncoderService
from app.opensearch.vectors import Vector, at, vectors_of
from tests.app.server import Server, running
from tests.tiny import SENTENCES

Run = Callable[..., str]  #: the command line; see the fixture `run`
Setup = tuple[str, ...]  #: its options

DOCUMENTS = [{"title": " ".join(text.split()[:2]), "text": text} for text in SENTENCES]


@dataclass(frozen=True)
class Live:
    """A running cluster, with what tests ask of it."""

    version: str
    cluster: Cluster

    @property
    def is_3(self) -> bool:
        return self.version.startswith("3.")

    def bulk(
        self,
        index: str,
        documents: Sequence[Mapping[str, Any]],
        numbers: Sequence[int] | None = None,
        **options: object,
    ) -> list[dict[str, Any]]:
        """The outcome of indexing each document under its number: `{"status", "error"?, ...}`."""
        lines = [
            json.dumps(line)
            for number, document in zip(numbers or range(len(documents)), documents, strict=True)
            for line in ({"index": {"_index": index, "_id": str(number)}}, document)
        ]
        query = "&".join(["refresh=true", *(f"{key}={value}" for key, value in options.items())])
        answer = self.cluster.request("POST", f"/_bulk?{query}", ("\n".join(lines) + "\n").encode())
        return [item["index"] for item in answer["items"]]

    def index(self, index: str, documents: Sequence[Mapping[str, Any]], **options: object) -> None:
        """Like `bulk`; every document must succeed."""
        assert [item.get("error") for item in self.bulk(index, documents, None, **options)] == [None] * len(documents)

    def documents(self, index: str) -> list[dict[str, Any]]:
        """Every document, by number."""
        hits = self.cluster.request("POST", f"/{index}/_search?search_pipeline=_none", {"size": 10_000})["hits"]["hits"]
        return [hit["_source"] for hit in sorted(hits, key=lambda hit: int(hit["_id"]))]

    def vectors(self, index: str, field: str = "text") -> list[Vector]:
        """That of each document, by number; `{}` of one that has none."""
        return [next(iter(vectors_of(at(document, f"{field}_sparse"))), {}) for document in self.documents(index)]

    def search(self, index: str, query: Mapping[str, Any], **body: object) -> dict[str, float]:
        """Score by document number, best first."""
        hits = self.cluster.request("POST", f"/{index}/_search", {"query": query, "size": 50, **body})["hits"]["hits"]
        return {hit["_id"]: hit["_score"] for hit in hits}


def serve(artifact: Path, *options: str) -> AbstractContextManager[Server]:
    command = ("-m", "app", "--model", str(artifact), "--encoder-threads", "1", "--precision", "f32")
    return running(*command, *(options or ("--port", "0")))


def encode_requests(service: EncoderService, status: int = 200) -> int:
    line = f'sparse_encoder_requests_total{{path="/encode",status="{status}"}} '
    metrics = httpx.get(f"{service.url}/metrics").text.splitlines()
    return sum(int(float(found.removeprefix(line))) for found in metrics if found.startswith(line))


def assert_vectors(found: Sequence[Mapping[str, float]], expected: Sequence[Mapping[str, float]]) -> None:
    """Alike but for the last digits, which differ with what else is in the encoder's batch."""
    assert len(found) == len(expected)
    for left, right in zip(found, expected, strict=True):
        assert {token for token, weight in left.items() if weight > 0.01} <= right.keys()
        assert {token for token, weight in right.items() if weight > 0.01} <= left.keys()
        assert {t: w for t, w in left.items() if t in right} == pytest.approx(
            {t: w for t, w in right.items() if t in left}, abs=0.001
        )


def dot(left: dict[str, float], right: dict[str, float]) -> float:
    return sum(weight * right[token] for token, weight in left.items() if token in right)


def neural(field: str, text: str) -> dict[str, Any]:
    return {"neural_sparse": {field: {"query_text": text}}}
