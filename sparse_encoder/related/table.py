"""The table of related words of a model, in memory, to be looked at and changed."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from sparse_encoder.lexical_tables import NONE, LexicalTables
from sparse_encoder.related.changes import RefusedError

#: What a related word weighs in a query of its word alone, by the weight of that word: among the first ones.
DEFAULT_SHARE = 0.6


class RelatedTable:
    """Rows by the id of a word, each of at most so many relations as the model has room for."""

    def __init__(
        self, tables: LexicalTables, own_weight: NDArray[np.float32], bias: NDArray[np.float32], power: float
    ) -> None:
        """`own_weight` and `bias` [vocabulary]: of the model, whose `related_power` is `power`."""
        self.tokens = tables.related_token.copy()
        self.weights = tables.related_weight.copy()
        self._own_weight, self._bias, self._power = own_weight, bias, power

    def row(self, word: int) -> dict[int, float]:
        """What `word` is related to, by id, strongest first."""
        pairs = zip(self.tokens[word].tolist(), self.weights[word].tolist(), strict=True)
        return dict(sorted((pair for pair in pairs if pair[0] != NONE), key=lambda pair: -pair[1]))

    def default_weight(self, word: int, related: int) -> float:
        """With it `related` weighs `DEFAULT_SHARE` of `word` in a query of `word` alone, as far as it is the table that
        brings it up: the network adds to that or takes from it."""
        own = max(float(self._own_weight[word]), 0.1)
        logit = math.expm1(DEFAULT_SHARE * own)
        # The table adds own x weight / own^power to a logit that starts from the bias.
        return float((logit - min(0.0, float(self._bias[related]))) / own ** (1 - self._power))

    def place(self, word: int, related: int, by_hand: Mapping[tuple[int, int], float]) -> int:
        """Where in the row of `word` its relation to `related` goes: where it is, or else into an empty place, or else
        instead of the weakest that is not `by_hand`.

        :raises RefusedError: if it is the same word, or all of the row is by hand.
        """
        if word == related:
            raise RefusedError("both are one word to the model")
        row = self.tokens[word]
        for wanted in (related, NONE):
            if (row == wanted).any():
                return int((row == wanted).argmax())
        others = [at for at, token in enumerate(row.tolist()) if not by_hand.get((word, token))]
        if not others:
            raise RefusedError(f"one of them has {len(row)} relations already, all added by hand: remove one first")
        return min(others, key=lambda at: float(self.weights[word, at]))

    def put(self, word: int, related: int, weight: float, place: int) -> int | None:
        """Relates them; returns what had to make room, if anything."""
        gone = int(self.tokens[word, place])
        self.tokens[word, place], self.weights[word, place] = related, weight
        return None if gone in (NONE, related) else gone

    def drop(self, word: int, related: int) -> bool:
        """Relates them no longer; false if they were not related."""
        at = self.tokens[word] == related
        self.tokens[word, at], self.weights[word, at] = NONE, 0
        return bool(at.any())
