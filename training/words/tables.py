"""What a piece speaks for, as the model holds it: its own word and parts of it, and how much of each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.vocabulary import NEVER, Roles
from training.words.cong import Neighbours
from training.words.parts import PART_SHARE, PARTS, word_parts


@dataclass(frozen=True, eq=False)
class WordTables:
    own_share: NDArray[np.float32]  #: [vocabulary, 1 + PARTS] of an occurrence, of the word itself and of its parts
    part_token: NDArray[np.int32]  #: [vocabulary, PARTS] ids, ``NEVER`` where there is none

    def parts(self) -> dict[int, list[int]]:
        """By the id of a piece those of its parts."""
        found = np.flatnonzero((self.part_token != NEVER).any(1))
        return {int(i): [int(j) for j in self.part_token[i] if j != NEVER] for i in found}

    def save(self, path: Path) -> None:
        np.savez_compressed(path, own_share=self.own_share, part_token=self.part_token)

    @classmethod
    def load(cls, path: Path) -> WordTables:
        with np.load(path) as arrays:
            return cls(arrays["own_share"], arrays["part_token"])


def own_words(pieces: list[str], roles: Roles) -> set[str]:
    """The words that are emitted as themselves because a text holds them, not only as a last resort."""
    return {pieces[target] for target in set(roles.emitted_as) - {NEVER}}


def word_tables(
    pieces: list[str],
    roles: Roles,
    shares: NDArray[np.float32],
    cuts: dict[str, tuple[str, ...]],
    neighbours: Neighbours,
) -> WordTables:
    """``shares`` [vocabulary] as ``roles.own_shares`` gives them; ``cuts`` by compound; ``neighbours`` trusted ones."""
    index = {piece: i for i, piece in enumerate(pieces)}
    words = own_words(pieces, roles)
    near = {word: frozenset(other for other, _ in row) for word, row in neighbours.items()}
    own_share = np.ones((len(pieces), 1 + PARTS), np.float32)
    own_share[:, 0] = shares
    part_token = np.full((len(pieces), PARTS), NEVER, np.int32)
    for i, target in enumerate(roles.emitted_as):
        if target == NEVER:
            continue
        word = pieces[target]
        for place, part in enumerate(word_parts(words, word, cuts.get(word, ()), near)):
            part_token[i, place] = index[part]
            own_share[i, 1 + place] = PART_SHARE
    return WordTables(own_share, part_token)
