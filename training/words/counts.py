"""How often what is written, over the whole corpora and without an analyser: words, Latin words, letters, titles."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tqdm import tqdm

from training.config import Config
from training.corpora import read_corpus
from training.pairs import is_strong, read_terms
from training.readers import BadRows

_HANGUL = re.compile(r"[가-힣]+")
_LATIN = re.compile(r"[0-9a-z]*[a-z][0-9a-z]*|(?<![가-힣])[가-힣]{2,}+[0-9]{1,3}(?![0-9])")  # gpt, 5g, 코로나19
_FOREIGN = re.compile(r"[^\x00-\x7f가-힣㐀-鿿]+")  #: where marks may be
_ACRONYM = re.compile(r"(?<![A-Za-z0-9])(?:[A-Z][A-Z0-9]{1,4}|[0-9][A-Z]{1,2})(?![A-Za-z0-9])")


@dataclass(frozen=True)
class TextCounts:
    hangul: dict[str, float] = field(default_factory=dict)  #: runs of Hangul, each by the weight of its corpus
    latin: Counter[str] = field(default_factory=Counter)  #: texts that hold a word of Latin letters, in lower case
    acronyms: Counter[str] = field(default_factory=Counter)  #: texts that hold a short word of capitals
    terms: Counter[str] = field(default_factory=Counter)  #: Latin words of term lists
    characters: Counter[str] = field(default_factory=Counter)  #: as the tokenizer reads them
    titles: frozenset[str] = frozenset()  #: what texts are about


def plain(text: str) -> str:
    """Without accents and combining marks, in lower case, as the tokenizer of a vocabulary of words reads."""
    return _FOREIGN.sub(_without_marks, unicodedata.normalize("NFKC", text).lower())


def _without_marks(found: re.Match[str]) -> str:
    split = unicodedata.normalize("NFD", found.group())
    return unicodedata.normalize("NFC", "".join(c for c in split if unicodedata.category(c) != "Mn"))


def count_texts(config: Config) -> TextCounts:
    """Over the whole corpora and the term lists. Raises ``DataError``."""
    bad = BadRows(config.data.max_bad_rows)
    hangul: dict[str, float] = {}
    latin: Counter[str] = Counter()
    acronyms: Counter[str] = Counter()
    characters: Counter[str] = Counter()
    titles: set[str] = set()
    for corpus in config.data.corpora:
        runs: Counter[str] = Counter()
        for row in tqdm(read_corpus(config, corpus, bad), desc=f"words of {corpus.path}", unit="text"):
            text = row.joined(corpus.characters)
            if row.title:
                titles.add(row.title)
            runs.update(_HANGUL.findall(text))
            acronyms.update(set(_ACRONYM.findall(text)))
            small = plain(text)
            characters.update(small)
            latin.update(set(_LATIN.findall(small)))
        for run, n in runs.items():
            hangul[run] = hangul.get(run, 0.0) + n * corpus.weight
    return TextCounts(hangul, latin, acronyms, _latin_terms(config, bad), characters, frozenset(titles))


def _latin_terms(config: Config, bad: BadRows) -> Counter[str]:
    counts: Counter[str] = Counter()
    for source in config.data.terms:
        for pair in read_terms(config.data_source(source.path), source, bad):
            if is_strong(pair, source):
                for side in (pair.term, pair.related):
                    counts.update(set(_LATIN.findall(plain(side))))
    return counts


def prefix_counts(runs: Mapping[str, float], words: Iterable[str]) -> dict[str, float]:
    """How often a run of Hangul starts with each of ``words``."""
    wanted = set(words)
    longest = max(map(len, wanted), default=0)
    counts = dict.fromkeys(wanted, 0.0)
    for run, n in runs.items():
        for end in range(2, min(longest, len(run)) + 1):
            if run[:end] in wanted:
                counts[run[:end]] += n
    return counts
