"""Read text, natural (query, passage) pairs and term pairs; keep evaluation out of training.

Readers yield cleaned rows; what the filters leave out is counted by reason, and a row that cannot be read is an error.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import lzma
import random
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from training.config import Config, ConfigError, PassageSource, TermSource

_TAG = re.compile(r"<[^<>]{0,60}>")
_SPACE = re.compile(r"\s+")
_NUMBERED = re.compile(r"\[(\d{1,2})\]")
_DEFINITION = re.compile(
    r"[\"“]([^\"”]{2,25})[\"”]\s*(?:이라 함은|라 함은|이란|란|이라 한다|은|는)\s*"
    r"([^\"“]{15,250}?(?:말한다|것|자|시설|행위)(?=[.,;\s]|$))"
)
_DEFINING_TITLES = frozenset({"정의", "용어의 정의", "용어의 뜻"})
_WINDOW = 40  #: characters; a training passage that shares a window of this size with an evaluation passage is a leak


class DataError(ValueError):
    """A data file is missing or cannot be read as its recipe says; the message names file and line."""


@dataclass(frozen=True, slots=True)
class PassagePair:
    source: str
    query: str
    passage: str


@dataclass(frozen=True, slots=True)
class TermPair:
    kind: str
    term: str
    related: str


@dataclass(frozen=True)
class RetrievalData:
    name: str
    document_ids: list[str]
    documents: list[str]
    queries: list[str]
    relevant: list[set[str]]


@dataclass(frozen=True)
class TrainingData:
    pairs: list[PassagePair]
    terms: list[TermPair]
    held_out: list[TermPair]  #: synonyms whose anchor no training term pair holds
    counts: dict[str, int]  #: what was read, kept and left out


def clean(text: str) -> str:
    """NFC, mark-up tags out, white space folded."""
    return _SPACE.sub(" ", _TAG.sub(" ", unicodedata.normalize("NFC", text))).strip()


def open_text(path: Path) -> TextIO:
    """Open a text file, ``.xz`` or plain. Raises ``DataError`` if it is not there."""
    if not path.is_file():
        raise DataError(
            f"{path}: no such file; the recipe's data.root (or --data-root) decides where data is looked for"
        )
    return lzma.open(path, "rt", encoding="utf-8") if path.suffix == ".xz" else path.open(encoding="utf-8")


def read_jsonl(path: Path, *fields: str) -> Iterator[dict[str, Any]]:
    """The objects of a JSON-lines file; each must hold ``fields``. Raises ``DataError`` with the line's number."""
    with open_text(path) as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{path}:{number}: not JSON: {error}") from None
            if not isinstance(row, dict) or any(field not in row for field in fields):
                raise DataError(f"{path}:{number}: expected an object with {', '.join(fields)}; found {line[:80]!r}")
            yield row


def numbered_items(text: str) -> dict[str, str]:
    """``"[1] a [2] b"`` -> ``{"1": "a", "2": "b"}``; a text without numbers is item 1."""
    parts = _NUMBERED.split(text)
    if len(parts) < 3:
        return {"1": clean(text)}
    return {number: clean(item) for number, item in zip(parts[1::2], parts[2::2], strict=True)}


def read_pairs(path: Path, source: PassageSource, rng: random.Random) -> Iterator[PassagePair]:
    """The natural pairs of one file, in file order."""
    fields = [source.query, source.passage, *([source.query_prefix] if source.query_prefix else [])]
    for row in read_jsonl(path, *fields):
        query, passage = row[source.query] or "", row[source.passage] or ""
        if not isinstance(query, str) or not isinstance(passage, str):
            raise DataError(
                f"{path}: {source.query} and {source.passage} must be text; found {query!r:.60}, {passage!r:.60}"
            )
        if source.reader == "numbered":
            answers = numbered_items(passage)
            for number, item in numbered_items(query).items():
                if number in answers:
                    yield PassagePair(source.name, item[:200], answers[number])
        elif source.reader == "definitions":
            if clean(query) in _DEFINING_TITLES:
                for term, meaning in _DEFINITION.findall(clean(passage)):
                    yield PassagePair(source.name, term, meaning)
        else:
            prefix = f"{row[source.query_prefix]} " if source.query_prefix and rng.random() < 0.5 else ""
            yield PassagePair(source.name, clean(prefix + query), clean(passage))


def read_terms(path: Path, source: TermSource) -> Iterator[TermPair]:
    """The term pairs of one file. Raises ``DataError`` for a wrong header or a row of another width."""
    with open_text(path) as lines:
        header = next(lines, "").rstrip("\n").split("\t")
        if missing := {"term", "related"} - set(header):
            raise DataError(f"{path}:1: the header lacks {', '.join(sorted(missing))}; found {header}")
        for number, line in enumerate(lines, 2):
            cells = line.rstrip("\n").split("\t")
            if len(cells) != len(header):
                raise DataError(f"{path}:{number}: {len(cells)} columns, the header has {len(header)}")
            row = dict(zip(header, cells, strict=True))
            try:
                strong = not row.get("score") or float(row["score"]) >= source.min_score
            except ValueError:
                raise DataError(f"{path}:{number}: score {row['score']!r} is no number") from None
            if strong:
                yield TermPair(source.kind, clean(row["term"]), clean(row["related"]))


def load_retrieval(config: Config, name: str) -> RetrievalData:
    """One retrieval set: ``corpus`` rows hold ``_id`` and ``text``, ``queries`` rows ``query`` and ``pos`` (ids)."""
    folder = config.data_path(config.data.retrieval)

    def existing(part: str) -> Path:
        compressed = folder / f"{name}.{part}.jsonl.xz"
        return compressed if compressed.is_file() else folder / f"{name}.{part}.jsonl"

    corpus = list(read_jsonl(existing("corpus"), "_id", "text"))
    queries = list(read_jsonl(existing("queries"), "query", "pos"))
    return RetrievalData(
        name=name,
        document_ids=[str(row["_id"]) for row in corpus],
        documents=[" ".join(filter(None, (row.get("title"), row["text"]))) for row in corpus],
        queries=[row["query"] for row in queries],
        relevant=[{str(i) for i in row["pos"]} for row in queries],
    )


def is_held_out(term: str, percent: int) -> bool:
    """Whether a term belongs to the test split: decided by its hash, so every run and every machine agrees."""
    return int.from_bytes(hashlib.sha1(term.lower().encode()).digest()[:4], "big") % 100 < percent


class LeakFilter:
    """Knows the evaluation texts and says which training rows repeat them."""

    def __init__(self, sets: Iterable[RetrievalData], forbidden_terms: Iterable[str]) -> None:
        self._windows: set[str] = set()
        self._texts: set[str] = set()
        self._terms = {self._key(term) for term in forbidden_terms}
        for data in sets:
            for text in itertools.chain(data.documents, data.queries):
                key = self._key(text)
                self._texts.add(key)
                self._windows.update(key[i : i + _WINDOW] for i in range(0, len(key) - _WINDOW + 1, _WINDOW // 2))

    @staticmethod
    def _key(text: str) -> str:
        return _SPACE.sub("", clean(text)).lower()

    def leaks(self, text: str) -> bool:
        key = self._key(text)
        return key in self._texts or any(key[i : i + _WINDOW] in self._windows for i in range(len(key) - _WINDOW + 1))

    def forbids(self, *terms: str) -> bool:
        return any(self._key(term) in self._terms for term in terms)


def load_training_data(config: Config) -> TrainingData:
    """Everything training may see, without what evaluation asks. Deterministic for a given config."""
    rng = random.Random(config.seed)
    sets = [load_retrieval(config, item.name) for item in config.data.retrieval_sets]
    forbid = {item.name for item in config.data.retrieval_sets if item.forbid_query_terms}
    leak = LeakFilter(sets, (query for data in sets if data.name in forbid for query in data.queries))
    counts: Counter[str] = Counter()
    pairs: list[PassagePair] = []
    for source in config.data.passages:
        rows = list(read_pairs(config.data_path(source.path), source, rng))
        counts[f"{source.name} read"] = len(rows)
        repeats = Counter(row.query for row in rows) if source.max_query_repeats else None
        rng.shuffle(rows)
        kept = 0
        for position, row in enumerate(rows):
            if source.max_pairs and kept == source.max_pairs:
                counts[f"{source.name} beyond max_pairs"] = len(rows) - position
                break
            if len(row.query) < 2 or len(row.passage) < 15:
                counts[f"{source.name} too short"] += 1
            elif row.query.rstrip(" .") == row.passage.rstrip(" ."):
                counts[f"{source.name} passage repeats the query"] += 1
            elif repeats and repeats[row.query] > source.max_query_repeats:
                counts[f"{source.name} query too common"] += 1
            elif leak.forbids(row.query) or leak.leaks(row.passage) or leak.leaks(row.query):
                counts[f"{source.name} leak"] += 1
            else:
                kept += 1
                pairs.append(row)
        counts[f"{source.name} kept"] = kept
    terms, held_out = _load_terms(config, leak, counts, rng)
    rng.shuffle(pairs)
    if not pairs and not terms:
        raise ConfigError(f"{config.name}: the recipe's data holds no training pair")
    return TrainingData(pairs, terms, held_out, dict(counts))


def _load_terms(
    config: Config, leak: LeakFilter, counts: Counter[str], rng: random.Random
) -> tuple[list[TermPair], list[TermPair]]:
    train: list[TermPair] = []
    held_out: list[TermPair] = []
    percent = config.data.held_out_percent
    for source in config.data.terms:
        rows = list(dict.fromkeys(read_terms(config.data_path(source.path), source)))
        name = Path(source.path).name.split(".")[0]
        counts[f"{name} read"] = len(rows)
        rng.shuffle(rows)
        kept: list[TermPair] = []
        for row in rows:
            usable = all(1 < len(side) < 25 and not side.startswith("-") for side in (row.term, row.related))
            if not usable or row.term.lower() == row.related.lower():
                counts[f"{name} unusable"] += 1
            elif leak.forbids(row.term, row.related):
                counts[f"{name} leak"] += 1
            elif is_held_out(row.term, percent):
                if source.kind == "synonym":
                    held_out.append(row)
                counts[f"{name} held out"] += 1
            elif is_held_out(row.related, percent):
                counts[f"{name} holds a held-out term"] += 1
            else:
                kept.append(row)
        train += kept[: source.max_pairs or None]
        counts[f"{name} kept"] = len(kept[: source.max_pairs or None])
    rng.shuffle(train)
    return train, held_out


def vocabulary_texts(config: Config) -> Iterator[str]:
    """A sample of every source, for the vocabulary: passages and queries, plain lines, terms."""
    rng = random.Random(config.seed)
    limit = config.vocabulary.characters_per_text
    for source in {source.path: source for source in config.data.passages}.values():
        rows = [
            f"{row[source.query] or ''} {row[source.passage] or ''}"
            for row in read_jsonl(config.data_path(source.path), source.query, source.passage)
        ]
        for row in rng.sample(rows, min(len(rows), source.vocabulary_texts)):
            yield clean(_NUMBERED.sub(" ", row))[:limit]
    for text in config.data.texts:
        with open_text(config.data_path(text.path)) as lines:
            everything = [line.strip() for line in lines]
        yield from rng.sample(everything, min(len(everything), text.max_lines))
    for terms in config.data.terms:
        if terms.kind != "translation":
            pairs = read_terms(config.data_path(terms.path), terms)
            words = sorted({side for pair in pairs for side in (pair.term, pair.related)})
            rng.shuffle(words)
            for start in range(0, min(len(words), 8_000), 20):
                yield " ".join(words[start : start + 20])
