"""Which pieces the vocabulary of words has: the old ones that are worth their place, and new words by their score."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from training.extension import syllables
from training.vocabulary import border_counts, piece_of, split_word
from training.words.candidates import HANGUL_WORD, HANJA, Candidate, Compounds, Evidence, find_candidates, letters
from training.words.counts import prefix_counts
from training.words.roles import Before, PieceUse, word_roles

#: An old word is weak that CoNg does not hold among so many and that starts fewer words than this share of all; a word
#: within others counts threefold, since the sample that says so is smaller than the corpora.
_KNOWN_RANK = 60_000
_WEAK_SHARE = 4.4e-6
_WITHIN = 3
_SILENT_NOUNS, _SILENT_NAMES = 40_000, 20_000  #: ranks up to which no noun may be silent
_LEAST_WITHIN = 2  #: times that a word must continue others to be a piece there as well


@dataclass(frozen=True)
class Choice:
    pieces: list[str]  #: the old ones that stay, in their order, then the new ones
    dropped: list[str]  #: old pieces that go
    new: dict[str, Candidate]  #: by word; none ``##``


def choose_pieces(
    old: list[str], before: Before, evidence: Evidence, compounds: Compounds, kiwi: Any, most: int
) -> Choice:
    """At most ``most`` words are emitted. Deterministic."""
    counts = evidence.counts()
    weak = weak_words(before, evidence, counts.continuations)
    kept = [piece for piece in old if piece.removeprefix("##") not in weak]
    known = frozenset(kept)
    needed = [*letters(evidence.texts.characters), *syllables()]
    inner = [f"##{letter}" for letter in needed if not HANJA.fullmatch(letter)]  # those stand alone
    base = list(dict.fromkeys([*kept, *needed, *inner]))
    room = max(0, most - _emitted(base, before, evidence))
    found = find_candidates(evidence, compounds, frozenset(base), kiwi)

    within = {
        word for word in found if HANGUL_WORD.fullmatch(word) and _continues(word, counts.continuations, counts.endings)
    }
    everything = frozenset([*base, *found, *(f"##{word}" for word in within)])
    crossing, clean = border_counts(evidence.words, everything)
    fit = {
        word: candidate
        for word, candidate in found.items()
        if candidate.source == "everyday" or crossing[word] <= clean[word]
    }
    words = _first(fit, room)
    silent = silent_nouns(evidence, [*base, *words, *(f"##{word}" for word in words)], before)
    words = _first({word: Candidate(word, "silent nouns", 0.0) for word in silent} | fit, room)
    inner = [f"##{word}" for word in words if word in within and crossing[f"##{word}"] <= clean[f"##{word}"]]
    new = {letter: Candidate(letter, "letters", 0.0) for letter in needed if letter not in known} | words
    return Choice(list(dict.fromkeys([*base, *words, *inner])), [piece for piece in old if piece not in known], new)


def _first(candidates: dict[str, Candidate], count: int) -> dict[str, Candidate]:
    return dict(itertools.islice(candidates.items(), count))


def _emitted(pieces: list[str], before: Before, evidence: Evidence) -> int:
    """How many words a vocabulary without any new word emits."""
    use = PieceUse(Counter(), Counter(), Counter())
    return len(word_roles(pieces, before, use, evidence.general, evidence.texts.characters).emitted)


def _continues(word: str, continuations: Counter[str], endings: Counter[str]) -> bool:
    return continuations[word] >= _LEAST_WITHIN and continuations[word] > endings[word]


def weak_words(before: Before, evidence: Evidence, continuations: Counter[str]) -> set[str]:
    """Old words of two or more syllables that hardly any text holds, and that would take the place of a better one.

    In corpora that are too small to tell, none.
    """
    old = [word for word in before.words() if HANGUL_WORD.fullmatch(word)]
    starts = prefix_counts(evidence.texts.hangul, old)
    least = int(_WEAK_SHARE * sum(evidence.texts.hangul.values()))
    return {
        word
        for word in old
        if (word not in evidence.general or evidence.general[word].rank > _KNOWN_RANK)
        and starts[word] + _WITHIN * continuations[word] < least
    }


def silent_nouns(evidence: Evidence, pieces: Iterable[str], before: Before) -> list[str]:
    """Nouns of general Korean without a piece, of whose pieces none is emitted; most frequent first."""
    known = frozenset(pieces)
    silent_pieces = {piece for piece, target in before.emits.items() if target is None}
    nouns = [*evidence.nouns(_SILENT_NOUNS, frozenset({"NNG"})), *evidence.nouns(_SILENT_NAMES, frozenset({"NNP"}))]

    def is_silent(noun: str) -> bool:
        spans = split_word(noun, known)
        return spans is None or all(piece_of(noun, span) in silent_pieces for span in spans)

    return [noun for noun in nouns if noun not in known and is_silent(noun)]
