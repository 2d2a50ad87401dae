"""As what each piece of a vocabulary of words is emitted, and how much of an occurrence of a word it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.vocabulary import HANGUL, NEVER, SPECIAL_TOKENS, Roles, Word, piece_of, split_word
from training.words.candidates import COMMON_HANJA, HANGUL_WORD, HANJA
from training.words.cong import Morpheme

UNKNOWN = "[UNK]"
_GENERAL = 20_000  #: rank up to which a noun that had been silent speaks at the start of a word
#: What looks like a noun of general Korean and mostly is an ending or a particle with its stem.
_LIKE_NOUNS = frozenset({"대한", "위해", "하지", "중의", "중인"})
_SEEN = 5  #: occurrences from which the sample says how often a piece is a word
_UNSEEN_SYLLABLE = 0.3
_LEAST_SYLLABLE, _LEAST_WORD = 0.15, 0.5  #: shares of a piece that never is whole morphemes
_SYLLABLE_POWER = 1.5


@dataclass(frozen=True)
class PieceUse:
    """How often each piece covers content or function in the sample, and how often it is whole morphemes."""

    content: Counter[str]
    function: Counter[str]
    whole: Counter[str]

    @classmethod
    def of(cls, words: Counter[Word], pieces: Container[str]) -> PieceUse:
        use = cls(Counter(), Counter(), Counter())
        for word, n in words.items():
            surface = "".join(segment.surface for segment in word)
            labels = [segment.content for segment in word for _ in segment.surface]
            borders, at = {0}, 0
            for segment in word:
                at += len(segment.surface)
                borders.add(at)
            for start, end in split_word(surface, pieces) or ():
                piece = piece_of(surface, (start, end))
                (use.content if 2 * sum(labels[start:end]) >= end - start else use.function)[piece] += n
                if start in borders and end in borders:
                    use.whole[piece] += n
        return use

    def total(self, piece: str) -> int:
        return self.content[piece] + self.function[piece]


@dataclass(frozen=True)
class Before:
    """The vocabulary that a run goes on from: as what it emits each piece, None if never."""

    emits: dict[str, str | None]

    @classmethod
    def of(cls, pieces: list[str], roles: Roles) -> Before:
        targets = (None if target == NEVER else pieces[target] for target in roles.emitted_as)
        return cls(dict(zip(pieces, targets, strict=True)))

    def words(self) -> set[str]:
        return {target for target in self.emits.values() if target is not None}


def word_roles(
    pieces: list[str],
    before: Before,
    use: PieceUse,
    general: Mapping[str, Morpheme],
    characters: Mapping[str, int],
) -> Roles:
    """Old pieces keep their role, but for endings that went out as themselves, nouns that were silent and Chinese
    characters that hardly occur; new ones go out as their bare form, within words only where they mostly are content.

    A text without any word is emitted by the first syllable of each piece, by a letter or digit as itself, and at the
    worst as ``[UNK]``: it is never empty if it holds a letter or digit.
    """
    index = {piece: i for i, piece in enumerate(pieces)}

    def speaks_as(piece: str) -> str | None:
        bare = piece.removeprefix("##")
        if piece in SPECIAL_TOKENS or not _is_word(piece):
            return None
        if HANJA.fullmatch(bare) and characters.get(bare, 0) < COMMON_HANJA:
            return None
        if piece not in before.emits:
            if bare not in index:
                return None
            return bare if piece == bare or use.content[piece] >= use.function[piece] else None
        target = before.emits[piece]
        if target == piece != bare and HANGUL.search(piece):
            target = None
        if target not in index:
            target = None
        if target is None and HANGUL_WORD.fullmatch(piece) and piece not in _LIKE_NOUNS:
            morpheme = general.get(piece)
            if morpheme and morpheme.rank < _GENERAL and morpheme.tag in ("NNG", "NNP"):
                return piece
        return target

    def last_as(piece: str, target: str | None) -> str | None:
        if piece in SPECIAL_TOKENS:
            return UNKNOWN if piece == UNKNOWN else None
        if target is not None or not _is_word(piece):
            return target
        bare = piece.removeprefix("##")
        if HANJA.fullmatch(bare):
            return UNKNOWN
        return next((form for form in (bare[0], bare) if form in index), piece)

    emitted = [speaks_as(piece) for piece in pieces]
    last = [last_as(piece, target) for piece, target in zip(pieces, emitted, strict=True)]
    return Roles(
        [NEVER if target is None else index[target] for target in emitted],
        [NEVER if target is None else index[target] for target in last],
    )


def _is_word(piece: str) -> bool:
    return any(character.isalnum() for character in piece)


def own_shares(pieces: list[str], roles: Roles, use: PieceUse) -> NDArray[np.float32]:
    """How much of an occurrence of its word each piece is: [vocabulary].

    A syllable that is a word of its own one time in four, and else what is left of an unknown one, hardly says that
    the text is about that word.
    """
    shares = np.ones(len(pieces), np.float32)
    for i, piece in enumerate(pieces):
        bare = piece.removeprefix("##")
        if roles.emitted_as[i] == NEVER or not all(HANGUL.match(character) for character in bare):
            continue
        total = use.total(piece)
        whole = (use.whole[piece] + 1) / (total + 1)
        if len(bare) == 1:
            known = _LEAST_SYLLABLE + (1 - _LEAST_SYLLABLE) * whole**_SYLLABLE_POWER
            shares[i] = known if total >= _SEEN else _UNSEEN_SYLLABLE
        elif total >= _SEEN:
            shares[i] = _LEAST_WORD + (1 - _LEAST_WORD) * whole
    return shares
