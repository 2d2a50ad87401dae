"""Why a document of an index has its score for a query: the words that both share, and what brought each of them."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import numpy as np

from app.models.scoring import Rounding, shared_words
from app.opensearch.advice import explained
from app.opensearch.cluster import Cluster, error_text
from app.opensearch.facts import OpenSearchError
from app.opensearch.impact import Index
from app.opensearch.indices import find_index
from app.opensearch.resources import Found, asked_version, find, find_all, model_ids
from app.opensearch.service import EncoderService
from app.opensearch.vectors import Vector, at, differing, vectors_of
from sparse_encoder.vector import SparseVector

SAME_SCORE = 0.01  #: share in which the two scores may differ: the query is encoded twice, in other batches
MOST_PARTS = 31  #: that the service explains at once, beside the query


@dataclass(frozen=True, slots=True)
class Word:
    """A word that the query and (a part of) the document share; weights as OpenSearch computes with them."""

    word: str
    adds: float
    query: float
    document: float
    from_query: Sequence[str]  #: pieces of the query that brought it, the one that brought most first
    from_document: Sequence[str]


@dataclass(frozen=True, slots=True)
class Part:
    """What has a vector of its own: the whole text, or a chunk of it."""

    text: str
    score: float
    words: Sequence[Word]  #: those that add most first


@dataclass(frozen=True, slots=True)
class Hit:
    """A document and a query."""

    index: str
    id: str
    field: str
    query: str
    version: str  #: of the model, by which both are explained
    parts: Sequence[Part]  #: the best first; several if the text is kept in chunks
    score: float  #: of the best part
    opensearch: float  #: the score that OpenSearch gives; 0 if it does not find the document
    stale: bool  #: whether the index holds another vector than the text has now


def explain_hit(
    cluster: Cluster, owner: str, service: EncoderService, name: str, id_: str, query: str, field: str | None
) -> Hit:
    """:raises OpenSearchError: if there is no such set-up, index, document or vector, or no service."""
    index, made = _index(cluster, name), find_all(cluster, owner)
    models = model_ids(cluster, owner)
    if "queries" not in models:
        raise OpenSearchError(f"there are no pipelines of the set-up {owner}: give its --name, or run setup")
    field = _field(index, field)
    document = cluster.find(f"/{quote(index.name)}/_doc/{quote(id_, safe='')}")
    if document is None or "_source" not in document:
        raise OpenSearchError(f"{index.name} has no document {id_!r} whose source is kept")
    stored = vectors_of(at(document["_source"], f"{field}_sparse"))
    if not stored:
        raise OpenSearchError(
            f"the document {id_!r} of {index.name} has no vector in {field}_sparse: its {field} is empty, or it came "
            f"in past the pipeline {owner}"
        )
    texts, now = _as_encoded(cluster, owner, index, document, field)
    texts = texts if len(texts) == len(stored) else [""] * len(stored)
    rounding: Rounding = (
        "sparse_vector" if index.fields[f"{field}_sparse"]["type"] == "sparse_vector" else "rank_features"
    )
    asked = {
        "query": query,
        "rounding": rounding,
        **({"query_encoding": "inference_free"} if _inside(made) else {}),
        **({"version": version} if (version := asked_version(made)) else {}),
    }
    parts, version_used = _parts(service, asked, texts, stored)
    found = _score(cluster, index, id_, field, query, models["queries"])
    stale = len(stored) != len(now) or any(differing(*pair) for pair in zip(stored, now, strict=True))
    best = max(part.score for part in parts)
    parts = sorted(parts, key=lambda part: -part.score)
    return Hit(index.name, id_, field, query, version_used, parts, best, found, stale)


def doubts(hit: Hit) -> list[str]:
    """What of the explanation cannot be trusted, and why."""
    told = []
    if hit.stale:
        told.append(
            f"the index holds another vector of {hit.field} than the text has by {hit.version}: it was made by another "
            f"version, or the text was changed past the pipeline. Encode it anew: POST /{hit.index}/_update_by_query"
        )
    if abs(hit.score - hit.opensearch) > SAME_SCORE * max(hit.score, hit.opensearch):
        told.append(
            f"OpenSearch's own score is {hit.opensearch:.4f}: its queries are encoded by another version, or its model "
            "of queries is asked elsewhere; see what check says"
        )
    return told


def as_lines(hit: Hit) -> list[str]:
    """For a terminal: Hangul takes two columns there."""
    lines = [
        f"{hit.field} of document {hit.id} in {hit.index}, for the query {hit.query!r}, by {hit.version}",
        f"score {hit.score:.4f}; by OpenSearch {hit.opensearch:.4f}",
    ]
    for number, part in enumerate(hit.parts, 1):
        if len(hit.parts) > 1:
            lines += ["", f"part {number}, score {part.score:.4f}: {part.text[:60]}"]
        if part.words:
            rows = [
                (
                    f"{word.adds:.4f}",
                    f"{word.adds / part.score:.0%}",
                    f"{word.query:.4g}",
                    f"{word.document:.4g}",
                    word.word,
                    ", ".join(word.from_query),
                    ", ".join(word.from_document),
                )
                for word in part.words
            ]
            lines += [
                "",
                *_table(("adds", "share", "query", "document", "word", "from the query", "from the text"), rows),
            ]
        else:
            lines += ["", "the query and the text share no word"]
    return lines


def _index(cluster: Cluster, name: str) -> Index:
    answer = cluster.find(f"/{quote(name)}?flat_settings=true")
    if answer is not None and len(answer) > 1:
        raise OpenSearchError(f"{name} stands for {', '.join(sorted(answer))}: name the index that holds the document")
    index = find_index(cluster, name)
    if index is None:
        raise OpenSearchError(f"there is no index {name}")
    return index


def _field(index: Index, field: str | None) -> str:
    if field is None and len(index.encoded) == 1:
        return index.encoded[0]
    if field not in index.encoded:
        have = ", ".join(index.encoded) or "none"
        raise OpenSearchError(f"--field: which of the fields of {index.name} that have vectors ({have})?")
    return field


def _inside(made: Sequence[Found]) -> bool:
    """Whether queries are taken apart inside OpenSearch."""
    return any(one.kind == "model" and one.body.get("algorithm") == "SPARSE_TOKENIZE" for one in made)


def _as_encoded(
    cluster: Cluster, owner: str, index: Index, document: Mapping[str, Any], field: str
) -> tuple[list[str], list[Vector]]:
    """The texts that the pipeline sends of the field (no markup, cut, in chunks), and the vectors that it gets."""
    (pipeline,) = find(cluster, "ingest pipeline", owner)
    described = pipeline.body["processors"][0]["script"]["params"]["fields"]
    number = next((one["number"] for one in described if one["name"] == field), None)
    if number is None:
        raise OpenSearchError(f"the set-up {owner} does not encode {field}: give the --name of the one that does")
    docs = [{"_index": index.name, "_id": document["_id"], "_source": document["_source"]}]
    answer = cluster.request("POST", f"/_ingest/pipeline/{owner}/_simulate?verbose=true", {"docs": docs})
    texts: list[str] = []
    source: Mapping[str, Any] = {}
    for step in answer["docs"][0]["processor_results"]:
        if "doc" not in step:
            raise OpenSearchError(f"{document['_id']} cannot be encoded anew: {explained(error_text(step['error']))}")
        source = step["doc"]["_source"]
        texts = source.get(f"sparse_encoder_chunks_{number}") or _alone(source, number) or texts
    return texts, vectors_of(at(source, f"{field}_sparse"))


def _alone(source: Mapping[str, Any], number: int) -> list[str]:
    text = source.get(f"sparse_encoder_text_{number}")
    return [text] if text else []


def _parts(
    service: EncoderService, asked: Mapping[str, Any], texts: Sequence[str], stored: Sequence[Vector]
) -> tuple[list[Part], str]:
    parts: list[Part] = []
    version = ""
    for start in range(0, len(texts), MOST_PARTS):
        some = texts[start : start + MOST_PARTS]
        answer = service.explain(texts=[text or " " for text in some], **asked)
        version = answer["version"]
        asking = _Side(asked["query"], answer["query"])
        for text, told, vector in zip(some, answer["texts"], stored[start:], strict=False):
            parts.append(_part(asking, _Side(text, told), vector, asked["rounding"]))
    return parts, version


class _Side:
    """A text and the explanation of its vector."""

    def __init__(self, text: str, told: Mapping[str, Any]) -> None:
        self.text = text
        self.words = {word["key"]: word for word in told["words"]}
        self._tokens = told["tokens"]

    def pieces(self, key: str) -> list[str]:
        """Of the text, that brought the word; those that brought most first, neighbours as one.

        What the model puts around a text stands under its own name, such as `[CLS]`.
        """
        if key not in self.words:
            return []
        brought = [(self._tokens[one["token"]], one["share"]) for one in self.words[key]["tokens"]]
        around = {token["token"]: share for token, share in brought if token["start"] is None}
        spans: list[tuple[int, int, float]] = []
        for start, stop, share in sorted(
            (token["start"], token["stop"], share) for token, share in brought if token["start"] is not None
        ):
            if spans and start <= spans[-1][1]:
                first, last, sum_ = spans.pop()
                spans.append((first, max(stop, last), sum_ + share))
            else:
                spans.append((start, stop, share))
        pieces = [*around.items(), *((self.text[start:stop], share) for start, stop, share in spans)]
        return list(dict.fromkeys(piece for piece, _ in sorted(pieces, key=lambda piece: -piece[1])))


def _part(query: _Side, document: _Side, stored: Vector, rounding: Rounding) -> Part:
    keys = [key for key in query.words if key in stored]
    asks = [query.words[key]["weight"] for key in keys]
    holds = [stored[key] for key in keys]
    shared = shared_words(_vector(asks), _vector(holds), rounding)
    words = [
        Word(
            query.words[keys[one.id]]["word"],
            one.adds,
            one.query,
            one.document,
            query.pieces(keys[one.id]),
            document.pieces(keys[one.id]),
        )
        for one in shared
    ]
    return Part(document.text, sum(word.adds for word in words), words)


def _vector(weights: Sequence[float]) -> SparseVector:
    return SparseVector(np.arange(len(weights), dtype=np.int32), np.array(weights, np.float32))


def _score(cluster: Cluster, index: Index, id_: str, field: str, query: str, model: str) -> float:
    """By a search for this document alone, since 2.x refuses `_explain` of such queries."""
    vectors = f"{field}_sparse"
    nested = index.fields[vectors]["type"] == "nested"
    inner: dict[str, Any] = {
        "neural_sparse": {f"{vectors}.sparse_encoding" if nested else vectors: {"query_text": query, "model_id": model}}
    }
    if nested:
        inner = {"nested": {"path": vectors, "score_mode": "max", "query": inner}}
    body = {"query": {"bool": {"must": [inner], "filter": [{"ids": {"values": [id_]}}]}}}
    hits = cluster.request("POST", f"/{quote(index.name)}/_search?search_pipeline=_none", body)["hits"]["hits"]
    return float(hits[0]["_score"]) if hits else 0.0


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns as wide as they need be, the first four flush right."""
    widths = [max(_width(row[at]) for row in (head, *rows)) for at in range(len(head))]
    lines = []
    for row in (head, *rows):
        cells = []
        for number, (cell, width) in enumerate(zip(row, widths, strict=True)):
            space = " " * (width - _width(cell))
            cells.append(space + cell if number < 4 else cell + space)
        lines.append("  ".join(cells).rstrip())
    return lines


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(sign) in "WF" else 1 for sign in text)
