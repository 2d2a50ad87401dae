"""What the table alone makes of a text: nothing but lookups, no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from training.vocabulary import NEVER, Roles
from training.words.parts import PART_SHARE
from training.words.tables import WordTables

_LEAST_OWN = 0.4  #: of its weight that a word brings up others by, however seldom its piece is that word


def words_by_table(
    ids: Sequence[int], roles: Roles, tables: WordTables, table: sp.csr_matrix, weights: NDArray[np.float32]
) -> list[int]:
    """The words of a text of the pieces ``ids``: its own, then the related ones, heaviest first.

    ``weights`` [vocabulary]: what a word brings up its row by.
    """
    own: dict[int, float] = {}
    for piece in ids:
        word = roles.emitted_as[piece]
        if word != NEVER:
            share = _LEAST_OWN + (1 - _LEAST_OWN) * float(tables.own_share[piece, 0])
            own[word] = max(own.get(word, 0.0), float(weights[word]) * share)
    if not own and roles.last:
        own = {roles.last[piece]: 1.0 for piece in ids if roles.last[piece] != NEVER}
    related = _related(own, table)
    parts = tables.parts()
    for word in list(own):
        for part in parts.get(word, ()):
            own.setdefault(part, own[word] * PART_SHARE)
    return [*own, *(word for word in sorted(related, key=lambda j: (-related[j], j)) if word not in own)]


def _related(own: Mapping[int, float], table: sp.csr_matrix) -> dict[int, float]:
    found: dict[int, float] = {}
    for word, weight in own.items():
        start, stop = table.indptr[word : word + 2]
        for column, value in zip(table.indices[start:stop].tolist(), table.data[start:stop].tolist(), strict=True):
            found[column] = found.get(column, 0.0) + weight * value
    return found
