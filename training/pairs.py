"""What the files hold for training: natural (query, passage) pairs, related terms, triplets of terms."""

from __future__ import annotations

import math
import random
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from training.config import PassageSource, TermSource, TripletSource
from training.readers import BadRows, read_rows

_TAG = re.compile(r"<[^<>]{0,60}>")
_SPACE = re.compile(r"\s+")
NUMBERED = re.compile(r"\[(\d{1,2})\]")
_DEFINITION = re.compile(
    r"[\"“]([^\"”]{2,25})[\"”]\s*(?:이라 함은|라 함은|이란|란|이라 한다|은|는)\s*"
    r"([^\"“]{15,250}?(?:말한다|것|자|시설|행위)(?=[.,;\s]|$))"
)
_SHORT_NAME = re.compile(r"\(이하\s*[\"“]([^\"”]{2,25})[\"”]\s*(?:이?라|로)\s*(?:한다|부른다)\)")
_CLAUSE_START = re.compile(r"(?:[\n①-⑳]|\d\.|[가-하]\.|다\.|\))\s")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_CLAUSE = 250  #: characters before a short name that may describe it
#: What the words of one side of a term pair should weigh in the other's vector, by the kind of the pair.
STRENGTH: Mapping[str, float] = {"synonym": 1.0, "related": 0.5, "translation": 0.7}
_DEFINING_TITLES = frozenset({"정의", "용어의 정의", "용어의 뜻"})


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
    domain: str = field(default="", compare=False)
    score: float | None = field(default=None, compare=False)  #: None = the file has none


@dataclass(frozen=True, slots=True)
class Triplet:
    anchor: str
    positive: str
    negative: str  #: "" = none given
    domain: str = field(default="", compare=False)


def clean(text: str) -> str:
    """NFC, mark-up tags out, white space folded."""
    return _SPACE.sub(" ", _TAG.sub(" ", unicodedata.normalize("NFC", text))).strip()


def folded(text: str) -> str:
    """What makes two texts the same: case and spaces do not."""
    return _SPACE.sub("", clean(text)).lower()


def numbered_items(text: str) -> dict[str, str]:
    """``"[1] a [2] b"`` -> ``{"1": "a", "2": "b"}``; a text without numbers is item 1."""
    parts = NUMBERED.split(text)
    if len(parts) < 3:
        return {"1": clean(text)}
    return {number: clean(item) for number, item in zip(parts[1::2], parts[2::2], strict=True)}


def short_names(text: str) -> Iterator[tuple[str, str]]:
    """``(name, clause)`` for each short name that a legal text introduces and its clause does not hold as it is."""
    for match in _SHORT_NAME.finditer(text):
        before = _SHORT_NAME.sub("", text[max(0, match.start() - _CLAUSE) : match.start()])
        clause = clean(_CLAUSE_START.split(before)[-1])
        if folded(match.group(1)) not in folded(clause):
            yield match.group(1), clause


def without(name: str, text: str) -> str:
    """``text`` without the sentences that hold ``name``."""
    key = folded(name)
    return " ".join(sentence for sentence in _SENTENCE_END.split(text) if key not in folded(sentence))


def other_names(pairs: Iterable[TermPair]) -> dict[str, list[str]]:
    """What else a term is called, by its folded form, in both directions."""
    names: dict[str, dict[str, None]] = {}
    for pair in pairs:
        for one, other in ((pair.term, pair.related), (pair.related, pair.term)):
            names.setdefault(folded(one), {})[other] = None
    return {name: list(others) for name, others in names.items()}


def read_pairs(
    path: Path | str, source: PassageSource, names: Mapping[str, list[str]], rng: random.Random, bad: BadRows
) -> Iterator[PassagePair]:
    """The natural pairs of one file, in file order; ``names`` as ``other_names`` makes them, empty for none."""
    for pair in _read_pairs(path, source, rng, bad):
        if not source.other_names:
            yield pair
        for name in names.get(folded(pair.query), ()):
            yield PassagePair(pair.source, name, without(name, pair.passage))


def _read_pairs(path: Path | str, source: PassageSource, rng: random.Random, bad: BadRows) -> Iterator[PassagePair]:
    fields = [source.query, source.passage, *([source.query_prefix] if source.query_prefix else [])]
    for _, row in read_rows(path, fields, bad):
        query, passage = row[source.query] or "", row[source.passage] or ""
        if source.reader == "numbered":
            answers = numbered_items(passage)
            for number, item in numbered_items(query).items():
                if number in answers:
                    yield PassagePair(source.name, item[:200], answers[number])
        elif source.reader == "definitions":
            if clean(query) in _DEFINING_TITLES:
                for term, meaning in _DEFINITION.findall(clean(passage)):
                    yield PassagePair(source.name, term, meaning)
        elif source.reader == "short_names":
            for name, clause in short_names(passage):
                yield PassagePair(source.name, name, clause)
        else:
            prefix = f"{row[source.query_prefix]} " if source.query_prefix and rng.random() < 0.5 else ""
            yield PassagePair(source.name, clean(prefix + query), clean(passage))


def read_terms(path: Path | str, source: TermSource, bad: BadRows) -> Iterator[TermPair]:
    """The term pairs of one file, in file order."""
    for number, row in read_rows(path, [source.term, source.related], bad):
        term, related, domain = clean(row[source.term] or ""), clean(row[source.related] or ""), row.get("domain") or ""
        try:
            score = None if row.get("score") in (None, "") else float(row["score"])
        except (TypeError, ValueError):
            score = math.nan
        if score is not None and not math.isfinite(score):
            bad.report(str(path), number, f"score {row['score']!r:.80} is no number")
        else:
            yield TermPair(source.kind, term, related, domain, score)


def is_strong(pair: TermPair, source: TermSource) -> bool:
    return pair.score is None or pair.score >= source.min_score


def read_triplets(path: Path | str, source: TripletSource, bad: BadRows) -> Iterator[Triplet]:
    """The triplets of one file, in file order."""
    fields = [source.anchor, source.positive, *([source.negative] if source.negative else [])]
    for number, row in read_rows(path, fields, bad):
        texts = [clean(row[name] or "") for name in fields]
        if empty := [name for name, text in zip(fields, texts, strict=True) if not text]:
            bad.report(str(path), number, f"{empty[0]} is empty")
            continue
        yield Triplet(texts[0], texts[1], texts[2] if source.negative else "", row.get("domain") or "")
