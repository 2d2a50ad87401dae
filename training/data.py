"""Everything that training may see: read, checked, without repetitions, without what evaluation asks.

What the filters leave out is counted by reason; bad rows are counted by file.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from training.config import Config, ConfigError, PassageSource, TermSource
from training.everyday import EverydayQuery, load_everyday
from training.pairs import (
    NUMBERED,
    PassagePair,
    TermPair,
    Triplet,
    clean,
    folded,
    is_strong,
    other_names,
    read_pairs,
    read_terms,
    read_triplets,
)
from training.readers import BadRows, not_text, read_jsonl, read_lines, read_rows

_WINDOW = 40  #: characters; a training passage that shares a window of this size with an evaluation passage is a leak
_LONGEST_TERM = 25


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
    held_out: list[TermPair]  #: synonyms whose anchor no training term pair or triplet holds
    counts: dict[str, int]  #: what was read, kept and left out
    triplets: list[Triplet]
    validation: list[PassagePair]  #: kept from training, to choose the best checkpoint by


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
    """Whether a term belongs to the test split: decided by the hash of its folded form, so every run and every machine
    agrees."""
    return int.from_bytes(hashlib.sha1(folded(term).encode()).digest()[:4], "big") % 100 < percent


class LeakFilter:
    """Knows the evaluation texts and says which training rows repeat them."""

    def __init__(
        self, sets: Iterable[RetrievalData], forbidden_terms: Iterable[str], everyday: Iterable[EverydayQuery] = ()
    ) -> None:
        self._windows: set[str] = set()
        self._texts: set[str] = set()
        self._terms = {folded(term) for term in forbidden_terms}
        self._asked = {frozenset((folded(row.query), folded(word))) for row in everyday for word in row.related}
        for data in sets:
            for text in itertools.chain(data.documents, data.queries):
                key = folded(text)
                self._texts.add(key)
                self._windows.update(key[i : i + _WINDOW] for i in range(0, len(key) - _WINDOW + 1, _WINDOW // 2))

    def leaks(self, text: str) -> bool:
        key = folded(text)
        return key in self._texts or any(key[i : i + _WINDOW] in self._windows for i in range(len(key) - _WINDOW + 1))

    def forbids(self, *terms: str) -> bool:
        return any(folded(term) in self._terms for term in terms)

    def asks(self, term: str, related: str) -> bool:
        """Whether the measure of everyday words looks for this pair, either way round."""
        return frozenset((folded(term), folded(related))) in self._asked


def load_training_data(config: Config) -> TrainingData:
    """Everything training may see, without what evaluation asks. Deterministic for a given config."""
    rng = random.Random(config.seed)
    sets = [load_retrieval(config, item.name) for item in config.data.retrieval_sets]
    forbid = {item.name for item in config.data.retrieval_sets if item.forbid_query_terms}
    forbidden = (query for data in sets if data.name in forbid for query in data.queries)
    leak = LeakFilter(sets, forbidden, load_everyday(config))
    counts: Counter[str] = Counter()
    bad = BadRows(config.data.max_bad_rows)
    pairs = _load_pairs(config, leak, counts, rng, bad)
    terms, held_out = _load_terms(config, leak, counts, rng, bad)
    triplets, held_out_anchors = _load_triplets(config, leak, counts, rng, bad)
    rng.shuffle(pairs)
    if not pairs and not terms and not triplets:
        raise ConfigError(f"{config.name}: the recipe's data holds no training pair")
    for name, rows in bad.counts.items():
        counts[f"{Path(name).name} bad rows"] = rows
    for name, lines in bad.blank_lines.items():
        counts[f"{Path(name).name} blank lines"] = lines
    kept = len(pairs) - config.data.validation_pairs
    if kept < 0:
        raise ConfigError(f"data.validation_pairs is {config.data.validation_pairs}, there are {len(pairs)} pairs")
    return TrainingData(pairs[:kept], terms, held_out + held_out_anchors, dict(counts), triplets, pairs[kept:])


def _load_pairs(
    config: Config, leak: LeakFilter, counts: Counter[str], rng: random.Random, bad: BadRows
) -> list[PassagePair]:
    pairs: list[PassagePair] = []
    known: set[tuple[str, str]] = set()
    shortest = config.data.min_passage_characters
    for source in config.data.passages:
        names = _other_names(config, source, bad)
        rows = list(read_pairs(config.data_source(source.path), source, names, rng, bad))
        counts[f"{source.name} read"] = len(rows)
        repeats = Counter(row.query for row in rows) if source.max_query_repeats else None
        rng.shuffle(rows)
        kept = 0
        for position, row in enumerate(rows):
            if source.max_pairs and kept == source.max_pairs:
                counts[f"{source.name} beyond max_pairs"] = len(rows) - position
                break
            key = (folded(row.query), folded(row.passage))
            if not (_has_letter(row.query) and _has_letter(row.passage)) or len(row.passage) < shortest:
                counts[f"{source.name} too short"] += 1
            elif row.query.rstrip(" .") == row.passage.rstrip(" ."):
                counts[f"{source.name} passage repeats the query"] += 1
            elif repeats and repeats[row.query] > source.max_query_repeats:
                counts[f"{source.name} query too common"] += 1
            elif key in known:
                counts[f"{source.name} repeated"] += 1
            elif leak.forbids(row.query) or leak.leaks(row.passage) or leak.leaks(row.query):
                counts[f"{source.name} leak"] += 1
            else:
                kept += 1
                known.add(key)
                pairs.append(row)
        counts[f"{source.name} kept"] = kept
    return pairs


def _other_names(config: Config, source: PassageSource, bad: BadRows) -> dict[str, list[str]]:
    """By the term files that ``source`` names; terms of the test split are left out."""
    percent = config.data.held_out_percent
    files = [TermSource(path=path) for path in source.other_names]
    pairs = (
        pair
        for file in files
        for pair in read_terms(config.data_source(file.path), file, bad)
        if is_strong(pair, file)
        and _usable(pair.term, pair.related)
        and not is_held_out(pair.term, percent)
        and not is_held_out(pair.related, percent)
    )
    return other_names(pairs)


def _load_terms(
    config: Config, leak: LeakFilter, counts: Counter[str], rng: random.Random, bad: BadRows
) -> tuple[list[TermPair], list[TermPair]]:
    train: list[TermPair] = []
    held_out: list[TermPair] = []
    percent = config.data.held_out_percent
    for source in config.data.terms:
        everything = list(read_terms(config.data_source(source.path), source, bad))
        strong = [row for row in everything if is_strong(row, source)]
        rows = list(dict.fromkeys(strong))
        name = _source_name(source.path)
        counts[f"{name} read"] += len(everything)
        counts[f"{name} below min_score"] += len(everything) - len(strong)
        counts[f"{name} repeated"] += len(strong) - len(rows)
        rng.shuffle(rows)
        kept: list[TermPair] = []
        for row in rows:
            if not _usable(row.term, row.related):
                counts[f"{name} unusable"] += 1
            elif leak.forbids(row.term, row.related):
                counts[f"{name} leak"] += 1
            elif is_held_out(row.term, percent):
                if source.kind == "synonym":
                    held_out.append(row)
                counts[f"{name} held out"] += 1
            elif is_held_out(row.related, percent):
                counts[f"{name} holds a held-out term"] += 1
            elif leak.asks(row.term, row.related):
                counts[f"{name} everyday"] += 1
            else:
                kept.append(row)
        used = kept[: source.max_pairs or None]
        counts[f"{name} kept"] += len(used)
        counts[f"{name} beyond max_pairs"] += len(kept) - len(used)
        train += used
    rng.shuffle(train)
    return train, held_out


def _load_triplets(
    config: Config, leak: LeakFilter, counts: Counter[str], rng: random.Random, bad: BadRows
) -> tuple[list[Triplet], list[TermPair]]:
    """Split by anchor: no training triplet holds a test anchor at any of its places."""
    train: list[Triplet] = []
    held_out: list[TermPair] = []
    percent = config.data.held_out_percent
    for source in config.data.triplets:
        everything = list(read_triplets(config.data_source(source.path), source, bad))
        rows = list(dict.fromkeys(everything))
        name = f"{_source_name(source.path)} triplets"
        counts[f"{name} read"] += len(everything)
        counts[f"{name} repeated"] += len(everything) - len(rows)
        if not source.negative:
            rows = with_negatives(rows, rng)
        rng.shuffle(rows)
        kept = 0
        for row in rows:
            sides = tuple(filter(None, (row.anchor, row.positive, row.negative)))
            if not row.negative:
                counts[f"{name} without a negative"] += 1
            elif not _usable(row.anchor, row.positive):
                counts[f"{name} unusable"] += 1
            elif leak.forbids(*sides):
                counts[f"{name} leak"] += 1
            elif is_held_out(row.anchor, percent):
                held_out.append(TermPair("synonym", row.anchor, row.positive, row.domain))
                counts[f"{name} held out"] += 1
            elif any(is_held_out(side, percent) for side in sides):
                counts[f"{name} holds a held-out term"] += 1
            elif leak.asks(row.anchor, row.positive):
                counts[f"{name} everyday"] += 1
            elif source.max_triplets and kept == source.max_triplets:
                counts[f"{name} beyond max_triplets"] += 1
            else:
                kept += 1
                train.append(row)
        counts[f"{name} kept"] += kept
    rng.shuffle(train)
    return train, held_out


def with_negatives(triplets: list[Triplet], rng: random.Random) -> list[Triplet]:
    """Each triplet with a negative that looks like its anchor: a term of the same list that shares a syllable with it
    and is no listed relative of it or of its positive; a row for which there is none keeps ``""``."""
    related: dict[str, set[str]] = {}
    for row in triplets:
        related.setdefault(row.anchor, {row.anchor}).add(row.positive)
        related.setdefault(row.positive, {row.positive}).add(row.anchor)
    holders: dict[str, list[str]] = {}
    for term in related:
        for syllable in dict.fromkeys(term.replace(" ", "")):
            holders.setdefault(syllable, []).append(term)
    out = []
    for row in triplets:
        close = related[row.anchor] | related[row.positive]
        syllables = list(dict.fromkeys(row.anchor.replace(" ", "")))
        rng.shuffle(syllables)
        negative = ""
        for syllable in syllables:
            terms = holders[syllable]
            tried = rng.sample(terms, min(len(terms), 20))
            negative = next((term for term in tried if term not in close), "")
            if negative:
                break
        out.append(replace(row, negative=negative))
    return out


def _source_name(path: str) -> str:
    return Path(path).name.split(".")[0]


def _has_letter(text: str) -> bool:
    return any(character.isalnum() for character in text)


def _usable(*terms: str) -> bool:
    fits = all(_has_letter(term) and len(term) < _LONGEST_TERM and not term.startswith("-") for term in terms)
    return fits and len({term.lower() for term in terms}) == len(terms)


def vocabulary_texts(config: Config) -> Iterator[str]:
    """A sample of every source, for the vocabulary: passages and queries, plain lines, terms."""
    rng = random.Random(config.seed)
    limit = config.vocabulary.characters_per_text
    bad = BadRows(config.data.max_bad_rows)
    for source in {source.path: source for source in config.data.passages}.values():
        rows = [
            f"{row[source.query] or ''} {row[source.passage] or ''}"
            for _, row in read_rows(config.data_source(source.path), [source.query, source.passage], bad)
        ]
        for row in rng.sample(rows, min(len(rows), source.vocabulary_texts)):
            yield clean(NUMBERED.sub(" ", row))[:limit]
    for text in config.data.texts:
        path = config.data_path(text.path)
        everything = []
        for number, line in enumerate(read_lines(path), 1):
            if not_text(line):
                bad.report(str(path), number, f"holds bytes that are no text: {line[:80]!r}")
            elif line.strip():
                everything.append(line.strip())
        yield from rng.sample(everything, min(len(everything), text.max_lines))
    for terms in config.data.terms:
        if terms.kind != "translation":
            pairs = read_terms(config.data_source(terms.path), terms, bad)
            words = sorted({side for pair in pairs if is_strong(pair, terms) for side in (pair.term, pair.related)})
            rng.shuffle(words)
            for start in range(0, min(len(words), 8_000), 20):
                yield " ".join(words[start : start + 20])
