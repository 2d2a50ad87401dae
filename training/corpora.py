"""Running text: the rows of ``[[data.corpora]]``, one text each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from training.config import Config, Corpus
from training.data import LeakFilter, load_retrieval
from training.pairs import NUMBERED, clean, folded
from training.readers import BadRows, not_text, read_lines, read_rows

_START = 40  #: folded characters that a passage is known by


@dataclass(frozen=True, slots=True)
class CorpusText:
    title: str  #: "" = none
    parts: tuple[str, ...]  #: its fields

    def joined(self, characters: int) -> str:
        return " . ".join(filter(None, self.parts))[:characters]


def read_corpus(config: Config, corpus: Corpus, bad: BadRows) -> Iterator[CorpusText]:
    """The texts of one file, cleaned, no field much longer than is needed. Raises ``DataError``."""
    for title, fields in _rows(config, corpus, bad):
        parts = tuple(clean(NUMBERED.sub(" ", part[: 2 * corpus.characters])) for part in fields)
        if any(parts):
            yield CorpusText(title, parts)


def _rows(config: Config, corpus: Corpus, bad: BadRows) -> Iterator[tuple[str, list[str]]]:
    if corpus.fields:
        for _, row in read_rows(config.data_source(corpus.path), corpus.fields, bad):
            yield (row[corpus.title] or "" if corpus.title else ""), [row[field] or "" for field in corpus.fields]
        return
    path = config.data_path(corpus.path)
    for number, line in enumerate(read_lines(path), 1):
        if not_text(line):
            bad.report(str(path), number, f"holds bytes that are no text: {line[:80]!r}")
        else:
            yield "", [line]


class Unseen:
    """Knows what a corpus must not hold: passages of evaluation, and the training passages, whose words would else be
    their own answer."""

    def __init__(self, config: Config, passages: Iterable[str]) -> None:
        self._leaks = LeakFilter((load_retrieval(config, item.name) for item in config.data.retrieval_sets), ())
        self._starts = {folded(passage[: 2 * _START])[:_START] for passage in passages}

    def reason(self, text: CorpusText, characters: int) -> str:
        """Why ``text`` is left out, "" if it is not."""
        if any(folded(part[: 2 * _START])[:_START] in self._starts for part in text.parts if len(part) >= _START):
            return "training passage"
        return "evaluation passage" if self._leaks.leaks(text.joined(characters)) else ""


def unseen_texts(config: Config, name: str, unseen: Unseen, counts: Counter[str]) -> Iterator[str]:
    """The texts of the corpus ``name`` that may be learned from; ``counts`` gets what was left out, by reason."""
    bad = BadRows(config.data.max_bad_rows)
    for corpus in config.data.corpora:
        if corpus.name != name:
            continue
        for number, text in enumerate(read_corpus(config, corpus, bad)):
            if number % corpus.every:
                continue
            reason = unseen.reason(text, corpus.characters)
            counts[reason or "kept"] += 1
            if not reason:
                yield text.joined(corpus.characters)
