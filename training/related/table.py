"""One table of related words out of several sources: each by its weight, and more where they agree."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from training.config import RelatedConfig
from training.related.cooccurrence import Cooccurrence
from training.vocabulary import Roles
from training.words.cong import Morpheme
from training.words.parts import SUSPECT
from training.words.tables import WordTables

_VOTE = 0.05  #: weight in a source from which it names a word
_FAINTEST = 0.1  #: share of a row's first weight below which a word is left out
_LEAST_COSINE = 0.5  #: between neighbours
_NEIGHBOURS = 40  #: of a row
_HUB, _HUB_POWER = 40, 0.7  #: a word that is a neighbour of more than so many others counts less for each
_NOISE = 250  #: and of so many not at all: its vector says nothing
_SPECIFIC_FLOOR, _SPECIFIC_SLOPE = 0.25, 0.5
#: What is looked for: nouns. A stem, a syllable, a number says little beside its noun.
_STEM, _DEPENDENT, _SYLLABLE, _NOUN_SYLLABLE, _DIGITS, _LATIN, _OTHER = 0.35, 0.3, 0.1, 0.75, 0.1, 0.6, 0.25
_WHOLE = 0.6  #: share from which a syllable is a word of its own
_STEM_TAGS = frozenset({"VV", "VA", "MAG", "MM", "NP"})
_LATIN_WORD = re.compile(r"[a-z0-9]{2,}")
_HANGUL_WORD = re.compile(r"[가-힣]+")


@dataclass(frozen=True, eq=False)
class Source:
    name: str
    matrix: sp.csr_matrix  #: [vocabulary, vocabulary], weighed
    names: sp.csr_matrix  #: the same before it was weighed: what the source names


def knowledge(corpus: Cooccurrence, first: Cooccurrence, shrinkage: float) -> NDArray[np.float32]:
    """How much a corpus says of each word: [vocabulary]. Little of one that it hardly holds, and less of one that is
    rarer there than in the ``first`` corpus, whose subject it rather is."""
    known = corpus.frequency / (corpus.frequency + shrinkage)
    if corpus is first:
        return np.asarray(known, np.float32)
    relative = (corpus.frequency / max(corpus.texts, 1)) / (np.maximum(first.frequency, 1) / max(first.texts, 1))
    return np.asarray(known * np.minimum(1.0, _SPECIFIC_FLOOR + _SPECIFIC_SLOPE * relative), np.float32)


def neighbour_weights(cosines: sp.csr_matrix) -> sp.csr_matrix:
    """Of the cosines of words in a like place [vocabulary, vocabulary]; words that are near to everything count less,
    and a word whose nearest is too near has no vector of its own. The first word of a row weighs 1."""
    hubs = np.bincount(cosines.indices, minlength=cosines.shape[1])
    penalty = np.minimum(1.0, (_HUB / np.maximum(hubs, 1)) ** _HUB_POWER) * (hubs < _NOISE)
    weights = cosines.copy()
    weights.data = np.maximum(cosines.data - _LEAST_COSINE, 0) * penalty[cosines.indices].astype(np.float32)
    largest = np.asarray(cosines.max(1).todense()).ravel()
    weights = sp.csr_matrix(sp.diags_array((largest <= SUSPECT).astype(np.float32)) @ weights)
    return scaled(strongest(weights, _NEIGHBOURS, 0.0))


def target_weights(
    pieces: Sequence[str], roles: Roles, general: Mapping[str, Morpheme], shares: NDArray[np.float32]
) -> NDArray[np.float32]:
    """How much each word is worth as a related word: [vocabulary]; 0 for what is not emitted as itself."""
    out = np.zeros(len(pieces), np.float32)
    for i, piece in enumerate(pieces):
        if roles.emitted_as[i] != i or piece.startswith("##"):
            continue
        morpheme = general.get(piece)
        tag = morpheme.tag if morpheme else ""
        if _HANGUL_WORD.fullmatch(piece):
            if len(piece) == 1:
                out[i] = _NOUN_SYLLABLE if tag == "NNG" and shares[i] > _WHOLE else _SYLLABLE
            else:
                out[i] = _STEM if tag in _STEM_TAGS else _DEPENDENT if tag == "NNB" else 1.0
        elif piece.isdigit() or (len(piece) == 1 and piece.isascii()):
            out[i] = _DIGITS
        else:
            out[i] = _LATIN if _LATIN_WORD.fullmatch(piece) else _OTHER
    return out


def combine(
    sources: Sequence[Source], settings: RelatedConfig, targets: NDArray[np.float32], tables: WordTables
) -> sp.csr_matrix:
    """The table [vocabulary, vocabulary]: of each row the ``words`` strongest, the first of which weighs 1.
    A word is not related to itself nor to its parts, which it holds."""
    total = together([source.matrix for source in sources])
    votes: dict[str, sp.csr_matrix] = {}
    for source in sources:
        named = source.names > _VOTE
        votes[source.name] = votes[source.name].maximum(named) if source.name in votes else named
    counts = together([sp.csr_matrix(vote, dtype=np.float32) for vote in votes.values()])
    counts.data = np.maximum(counts.data - 1, 0) * settings.agreement
    total = sp.csr_matrix((total + total.multiply(counts)) @ sp.diags_array(targets))
    if settings.mutual:
        total = scaled(total)
        total = sp.csr_matrix(total + settings.mutual * (total.T @ sp.diags_array(targets)))
    if settings.inherited:
        total = sp.csr_matrix(total + settings.inherited * (_mean_of_parts(tables) @ total))
    total = _without(total, tables.parts())
    return scaled(strongest(total, settings.words, _FAINTEST))


def _mean_of_parts(tables: WordTables) -> sp.csr_matrix:
    """[vocabulary, vocabulary]: multiplied with rows it gives for each compound the mean of those of its parts."""
    places = [(word, part, 1 / len(row)) for word, row in tables.parts().items() for part in row]
    table = np.array(places, np.float64).reshape(-1, 3)
    size = len(tables.part_token)
    return sp.csr_matrix((table[:, 2].astype(np.float32), table[:, :2].astype(np.int64).T), shape=(size, size))


def together(matrices: Sequence[sp.csr_matrix]) -> sp.csr_matrix:
    """Their sum."""
    return functools.reduce(lambda one, other: sp.csr_matrix(one + other), matrices)


def _without(table: sp.csr_matrix, parts: Mapping[int, Sequence[int]]) -> sp.csr_matrix:
    """The table without pairs of a word and itself or a part of it, nor what weighs nothing."""
    out = table.tocoo()
    banned = np.array([(word, part) for word, row in parts.items() for part in row], np.int64).reshape(-1, 2)
    size = table.shape[1]
    keys = out.row.astype(np.int64) * size + out.col
    keep = (out.row != out.col) & (out.data > 0) & ~np.isin(keys, banned[:, 0] * size + banned[:, 1])
    return sp.csr_matrix((out.data[keep], (out.row[keep], out.col[keep])), shape=table.shape)


def scaled(matrix: sp.csr_matrix) -> sp.csr_matrix:
    """Each row divided by its largest weight."""
    out = sp.csr_matrix(matrix, copy=True)
    largest = np.asarray(out.max(1).todense()).ravel()
    largest[largest <= 0] = 1.0
    out.data = out.data / np.repeat(largest, np.diff(out.indptr)).astype(out.data.dtype)
    return out


def strongest(matrix: sp.csr_matrix, count: int, faintest: float) -> sp.csr_matrix:
    """Of each row the ``count`` largest weights, those above ``faintest`` of its first."""
    ordered = sp.csr_matrix(matrix, copy=True)
    ordered.sum_duplicates()
    rows = np.repeat(np.arange(ordered.shape[0]), np.diff(ordered.indptr))
    order = np.lexsort((ordered.indices, -ordered.data, rows))
    rows, columns, weights = rows[order], ordered.indices[order], ordered.data[order]
    place = np.arange(len(rows)) - ordered.indptr[rows]
    first = weights[ordered.indptr[rows]] if len(rows) else weights
    keep = (place < count) & (weights > 0) & (weights > faintest * first)
    return sp.csr_matrix((weights[keep], (rows[keep], columns[keep])), shape=ordered.shape)
