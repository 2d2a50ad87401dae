"""For which words a piece speaks beside its own: 전세금 also for 전세, 손해배상 for 손해 and 배상."""

from __future__ import annotations

from collections.abc import Container, Mapping

from training.words.candidates import HANGUL_WORD
from training.words.cong import Neighbours

PARTS = 2  #: words that a piece may speak for beside its own
PART_SHARE = 0.6  #: of an occurrence that each is
_LEAST = 3  #: syllables of a word that has parts
_BOTH, _ONE, _BY_LENGTH, _AFTER_SYLLABLE = 3.0, 1.0, 0.1, 1.0  #: how good a cut is: both halves, one, per syllable
SUSPECT = 0.86  #: cosine of a nearest neighbour above which CoNg's vector has not been learned


def trusted(neighbours: Neighbours, words: Container[str]) -> Neighbours:
    """Those among ``words``, of words whose vector says something."""
    among = {word: [(other, score) for other, score in row if other in words] for word, row in neighbours.items()}
    return {word: row for word, row in among.items() if row and row[0][1] <= SUSPECT}


def word_parts(
    words: Container[str], word: str, cut: tuple[str, ...], neighbours: Mapping[str, Container[str]]
) -> tuple[str, ...]:
    """The one or two of ``words`` that ``word`` begins and ends with and that belong to its meaning: because the
    analyser cuts it so (``cut``, empty if it never does) or because one is a neighbour of the other.

    A cut into two such halves goes first, then the one with the longer half. A half at the end has two syllables at
    least, one at the start may be the word's only one.
    """
    if not HANGUL_WORD.fullmatch(word) or len(word) < _LEAST:
        return ()

    def belongs(half: str) -> bool:
        if half not in words:
            return False
        return half in cut or half in neighbours.get(word, ()) or word in neighbours.get(half, ())

    best: tuple[float, tuple[str, ...]] = (0.0, ())
    for at in range(2, len(word)):
        first, second = word[:at], word[at:]
        begins, ends = belongs(first), len(second) >= 2 and belongs(second)
        if begins and ends:
            found: tuple[float, tuple[str, ...]] = (_BOTH, (first, second))
        elif begins or ends:
            half = first if begins else second
            found = (_ONE + _BY_LENGTH * len(half), (half,))
        else:
            continue
        best = max(best, found, key=lambda item: item[0])
    if word[1:] in cut and word[1:] in words:
        best = max(best, (_AFTER_SYLLABLE, (word[1:],)), key=lambda item: item[0])
    return best[1]
