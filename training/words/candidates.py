"""Which words deserve a piece, each with a score that tells which go first where there is room for some only.

A word of a source that stands for itself (letters, everyday words, general Korean's most frequent) has a fixed score;
of the others it is the logarithm of how often the corpora write it, plus what its source is trusted with. The numbers
were set on an encyclopedia, law and reviews, by looking at which words came last and which were left out.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training.vocabulary import HANGUL, Counts, Word
from training.words.cong import Morpheme
from training.words.counts import TextCounts, prefix_counts

HANGUL_WORD = re.compile(r"[가-힣]{2,}")
_HANGUL_RUN = re.compile(r"[가-힣]+")
HANJA = re.compile(r"[㐀-鿿]")
COMMON_HANJA = 200  #: occurrences from which a Chinese character is a word; rarer ones are only read
NEW_HANJA = 300  #: and from which one that had no piece gets one
_EVERYDAY = Path(__file__).with_name("everyday.txt")
_NOUNS = frozenset({"NNG", "NNP"})
_STEMS = frozenset({"VV", "VA"})
_GRAMMATICAL_STEMS = frozenset({"위하", "따르", "통하", "의하", "관하"})  #: ~을 위하여: of grammar, not of matter
#: Single syllables at the end of a compound that only change a word's use: 의학적, 학생들.
_AFFIXES = frozenset("들적상시용별화형류째급계내외간당하중전후주군면도번등측님씨쯤씩식")
_COMPOUND = 6  #: syllables of the longest compound that gets a piece
_COMPOUND_PARTS = 3
#: Numbers with a unit (5cm, 3d): the number and the unit are words.
_MEASURE = re.compile(
    r"\d+(cm|km|mm|kg|m|th|st|nd|rd|g|s|l|ha|m2|km2|kw|mw|hz|mhz|ghz|ft|in|cc|x|kb|mb|gb|dpi|px|[abcdefhknptvwy])"
)
_LATIN_WORD = re.compile(r"[a-z]{2,12}")
_MIXED = re.compile(r"(?=.*[a-z])(?=.*[0-9])[a-z0-9]+")
_NUMBERED_NAME = re.compile(r"[가-힣]+[0-9]+")  # 코로나19
_COUNTED_NAME = re.compile(r"(조|항|호|제|시즌|리그|파트|대회)")  # 제3, 시즌2: any number goes
_OTHER_LETTERS = 80  #: occurrences from which a letter of another script has a piece in any case
#: Laughing and crying, as the tokenizer sees it: ㅋㅋ, ㅎㅎㅎ, ㅠㅠ.
JAMO_RUNS = ("ᄏᄏ", "ᄏᄏᄏ", "ᄒᄒ", "ᄒᄒᄒ", "ᅲᅲ", "ᅮᅮ", "ᅲᅲᅲ", "ᅮᅮᅮ", "ᄃᄃ", "ᄋᄋ")
_SCRIPTS = (
    *((0x1100, 0x1113), (0x1161, 0x1176), (0x11A8, 0x11C3)),  # Hangul letters, as NFKC has them
    *((0x430, 0x460), (0x3B1, 0x3CA)),  # Cyrillic, Greek
    *((0x3041, 0x3097), (0x30A1, 0x30FB), (0x30FC, 0x30FD)),  # Japanese
)


@dataclass(frozen=True)
class Evidence:
    """What is known of words before any gets a piece."""

    words: Counter[Word]  #: a sample, segmented by the analyser
    texts: TextCounts  #: the whole corpora
    general: Mapping[str, Morpheme]  #: CoNg's vocabulary
    everyday: tuple[str, ...] = ()  #: words of today that neither may hold

    def counts(self) -> Counts:
        return Counts.of(self.words)

    def nouns(self, below: int, tags: frozenset[str] = _NOUNS) -> Iterator[str]:
        """Words of Hangul among general Korean's ``below`` most frequent morphemes."""
        for form, morpheme in self.general.items():
            if morpheme.rank < below and morpheme.tag in tags and HANGUL_WORD.fullmatch(form):
                yield form


@dataclass(frozen=True)
class Compounds:
    """Words that the analyser takes for several content morphemes in a row, at the start of a word."""

    counts: Counter[str] = field(default_factory=Counter)
    parts: dict[str, tuple[str, ...]] = field(default_factory=dict)  #: into which it is cut most often

    @classmethod
    def of(cls, words: Counter[Word]) -> Compounds:
        counts: Counter[str] = Counter()
        cuts: dict[str, Counter[tuple[str, ...]]] = {}
        for word, n in words.items():
            run: list[str] = []
            for segment in word:
                if not segment.content or not _HANGUL_RUN.fullmatch(segment.surface):
                    break
                run.append(segment.surface)
            compound = "".join(run)
            if len(run) >= 2 and len(compound) <= 8:
                counts[compound] += n
                cuts.setdefault(compound, Counter())[tuple(run)] += n
        return cls(counts, {compound: cut.most_common(1)[0][0] for compound, cut in cuts.items()})


@dataclass(frozen=True, slots=True)
class Candidate:
    word: str
    source: str
    score: float
    written: bool = False  #: whether the score is yet to be added to how often the corpora write the word


def everyday_words(path: Path = _EVERYDAY) -> tuple[str, ...]:
    return tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())


def find_candidates(evidence: Evidence, compounds: Compounds, known: frozenset[str], kiwi: Any) -> dict[str, Candidate]:
    """By word the candidate of its highest score, best first; none of ``known``. ``kiwi`` tells parts and nouns."""
    best: dict[str, Candidate] = {}
    for candidate in _all(evidence, compounds, known, kiwi):
        before = best.get(candidate.word)
        if candidate.word not in known and (before is None or candidate.score > before.score):
            best[candidate.word] = candidate
    return {candidate.word: candidate for candidate in sorted(best.values(), key=lambda c: (-c.score, c.word))}


def _all(evidence: Evidence, compounds: Compounds, known: frozenset[str], kiwi: Any) -> Iterator[Candidate]:
    counts = evidence.counts()
    general = list(_general(evidence, counts.starts + counts.continuations))
    fixed = [candidate.word for candidate in general if not candidate.written]
    yield from _everyday(evidence.everyday, known | set(fixed), kiwi)
    yield from _latin(evidence.texts)
    spelled = [*general, *_morphemes(evidence, counts, kiwi), *_compounds(evidence.texts, compounds)]
    written = prefix_counts(evidence.texts.hangul, (candidate.word for candidate in spelled))
    for candidate in spelled:
        usual = math.log1p(written[candidate.word]) if candidate.written else 0.0
        yield Candidate(candidate.word, candidate.source, candidate.score + usual)


def letters(characters: Counter[str]) -> list[str]:
    """Letters of other scripts, those that general texts hold and whole alphabets; jamo runs."""
    frequent = [
        character
        for character, n in characters.most_common()
        if character.isalnum()
        and not HANGUL.match(character)
        and n >= (NEW_HANJA if HANJA.match(character) else _OTHER_LETTERS)
    ]
    alphabets = [chr(code) for start, end in _SCRIPTS for code in range(start, end)]
    return list(dict.fromkeys([*frequent, *alphabets, *JAMO_RUNS]))


def _general(evidence: Evidence, found: Mapping[str, int]) -> Iterator[Candidate]:
    """General Korean by frequency: what is frequent goes first, whatever the corpora say."""
    titles = evidence.texts.titles
    for form, morpheme in evidence.general.items():
        rank, tag = morpheme.rank, morpheme.tag
        if not HANGUL_WORD.fullmatch(form) or tag not in _NOUNS | _STEMS | {"XR"}:
            continue
        if rank < 10_000:
            if form not in _GRAMMATICAL_STEMS:
                yield Candidate(form, "general", 50.0)
        elif rank < 20_000:
            if tag == "NNG":
                yield Candidate(form, "general", 40.0)
            elif found.get(form, 0) >= (8 if tag in _STEMS else 4):
                yield Candidate(form, "general", 0.0, written=True)
        elif tag == "NNG":
            yield Candidate(
                form, "rarer general", 3.6 if rank < 35_000 else 2.5 if form in titles else 2.1, written=True
            )
        elif tag == "NNP":
            yield Candidate(form, "names", -0.4 if form in titles else -1.0, written=True)


def _everyday(words: tuple[str, ...], known: frozenset[str] | set[str], kiwi: Any) -> Iterator[Candidate]:
    """All but those that are made of words which have a piece."""
    for word in words:
        if HANGUL_WORD.fullmatch(word):
            forms = [token.form for token in kiwi.tokenize(word)]
            if len(forms) > 1 and all(len(form) > 1 and form in known for form in forms):
                continue
        yield Candidate(word.lower(), "everyday", 60.0)


def _latin(texts: TextCounts) -> Iterator[Candidate]:
    def usual(word: str) -> float:
        return math.log1p(max(texts.latin[word], 2 * texts.terms[word], 3 * texts.acronyms[word.upper()]))

    acronyms = {word.lower(): n for word, n in texts.acronyms.items()}
    for word in texts.latin.keys() | texts.terms.keys() | acronyms.keys():
        acronym = acronyms.get(word, 0)
        if _LATIN_WORD.fullmatch(word):
            if acronym >= 5 and len(word) <= 4:
                yield Candidate(word, "abbreviations", 1.6 + usual(word))
            elif texts.latin[word] >= 30 or texts.terms[word] >= 12 or acronym >= 6:
                yield Candidate(word, "Latin", 0.4 + usual(word))
        elif _MIXED.fullmatch(word):
            measure = _MEASURE.fullmatch(word)
            if (not measure and texts.latin[word] >= 40) or (measure and word[0].isdigit() and acronym >= 40):
                yield Candidate(word, "with digits", 20.0)
        elif _NUMBERED_NAME.fullmatch(word) and texts.latin[word] >= 50 and not _COUNTED_NAME.match(word):
            yield Candidate(word, "with digits", 20.0)


def _morphemes(evidence: Evidence, counts: Counts, kiwi: Any) -> Iterator[Candidate]:
    """Nouns of the corpora that CoNg does not hold."""
    for form, n in (counts.starts + counts.continuations).items():
        if n < 10 or form in evidence.general or not HANGUL_WORD.fullmatch(form):
            continue
        if (n >= 20 or form in evidence.texts.titles) and is_noun(kiwi, form):
            yield Candidate(form, "corpora", -0.6, written=True)


def _compounds(texts: TextCounts, compounds: Compounds) -> Iterator[Candidate]:
    """Compounds that texts are about: first those that a syllable would be cut off from."""
    for word, n in compounds.counts.items():
        parts = compounds.parts[word]
        if word not in texts.titles or len(word) > _COMPOUND:
            continue
        if all(len(part) > 1 for part in parts):
            if n >= 10:
                yield Candidate(word, "compounds of words", -1.2, written=True)
        elif n >= 3 and len(parts) <= _COMPOUND_PARTS and not (len(parts[-1]) == 1 and parts[-1] in _AFFIXES):
            yield Candidate(word, "compounds of syllables", 2.9 if len(parts[0]) == 1 else 0.4, written=True)


def is_noun(kiwi: Any, text: str) -> bool:
    """Whether the analyser takes ``text`` for one noun."""
    return [(token.form, token.tag in _NOUNS) for token in kiwi.tokenize(text)] == [(text, True)]
