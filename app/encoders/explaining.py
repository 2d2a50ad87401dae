"""Where the weights of a vector come from: which positions of a text, and by which way. What the encoders share.

Apart from encoding: nothing here runs when a vector is computed. A maximum forgets where it was, so the head is asked
again, for the words that are to be explained only: [L, words] logits, never those of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparse_encoder.artifact import Activation, Pooling
from sparse_encoder.lexical_tables import NONE
from sparse_encoder.query_tokens import MAX_QUERY_WEIGHT, QueryTokens

WORDS_AT_ONCE = 1024  #: whose logits exist at a time, at each position
MOST_POSITIONS = 16  #: that a word names where it is the sum over all of them, the largest first


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What was computed at the L positions of one text, before it becomes a vector."""

    ids: NDArray[np.int32]  #: [L]
    places: NDArray[np.int32]  #: [n, L] words that weigh by themselves at each position, `NONE` for none
    weights: NDArray[np.float32]  #: [n, L] what each of them weighs there
    shares: NDArray[np.float32]  #: [n, L] how much of an occurrence each is
    related: NDArray[np.int32]  #: [L, r] words that the first word of a position brings up, `NONE` for none
    added: NDArray[np.float32]  #: [L, r] what that adds to the logit of each
    states: NDArray[np.float32]  #: [L, hidden] what the head over the vocabulary multiplies; [L, 0] without one
    speaks: NDArray[np.bool_]  #: [L] the positions that the head listens to


@dataclass(frozen=True, slots=True)
class Head:
    """Of the head over the vocabulary, n words; `rows` [n, hidden] and `bias` [n]."""

    rows: NDArray[np.float32]
    bias: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a word has its weight."""

    own: bool  #: a word of the text itself
    weight: float  #: as it was computed here, in f32
    at: int | None  #: the position at which the head, or an own word, is the heaviest; None: at none in particular
    head: float | None  #: the logit of the head there, bias included; None if the head has no say
    related: tuple[tuple[int, float], ...]  #: own words that bring it up by the table, and what each adds to the logit
    shares: tuple[tuple[int, float], ...]  #: positions that brought it, and how much of it: 1 in all, unless it is the
    #: sum over more than `MOST_POSITIONS`, or the bias alone brought it


def reasons(
    reading: Reading, head: Head | None, words: NDArray[np.int32], activation: Activation, pooling: Pooling
) -> list[Reason]:
    """One for each of `words`, whose rows are those of `head`."""
    own = set(reading.places[reading.places != NONE].tolist())
    text_ids = set(reading.ids.tolist()) if not len(reading.places) else own
    brought = _brought(reading)
    found: list[Reason] = []
    for start, logits in _logits(reading, head, words):
        for column, word in enumerate(words[start : start + WORDS_AT_ONCE].tolist()):
            if word in own:
                found.append(_own(reading, word))
            elif pooling == "sum":
                found.append(_summed(logits[:, column], word in text_ids, activation))
            else:
                silent = head is None or not head.rows[start + column].any()
                related = brought.get(word, {})
                found.append(_highest(reading, logits[:, column], silent, related, word in text_ids, activation))
    return found


def read_query(query_tokens: QueryTokens, ids: Sequence[int]) -> Reading:
    """Of a query that is encoded by a table: what `query_tokens` says of its `ids`."""
    rows = np.array(ids, np.int32)
    length = len(rows)
    if query_tokens.related is None:
        places = query_tokens.emitted_as[rows][None]
        shares = np.ones_like(places, np.float32)
        related, added = np.empty((length, 0), np.int32), np.empty((length, 0), np.float32)
    else:
        places, shares = query_tokens.related.places(ids)
        related, added = query_tokens.related.brought(places[0], query_tokens.weights)
    weights = np.where(places == NONE, 0, query_tokens.weights[places] * shares).astype(np.float32)
    return Reading(
        ids=rows,
        places=places,
        weights=weights,
        shares=shares,
        related=related,
        added=added,
        states=np.empty((length, 0), np.float32),
        speaks=np.zeros(length, np.bool_),
    )


def activate(logits: NDArray[np.float32], activation: Activation) -> NDArray[np.float32]:
    weights = np.maximum(logits, 0)
    for _ in range(activation.count("log1p")):
        weights = np.log1p(weights)
    return weights


def _logits(reading: Reading, head: Head | None, words: NDArray[np.int32]) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """For `WORDS_AT_ONCE` words each time the number of the first, and their logits [positions that speak, words]."""
    states = reading.states[reading.speaks]
    for start in range(0, len(words), WORDS_AT_ONCE):
        part = slice(start, start + WORDS_AT_ONCE)
        if head is None:
            yield start, np.zeros((len(states), len(words[part])), np.float32)
        else:
            yield start, states @ head.rows[part].T + head.bias[part]


def _brought(reading: Reading) -> dict[int, dict[int, float]]:
    """By word: which own words bring it up, and what each of them adds in all places of the text."""
    brought: dict[int, dict[int, float]] = {}
    for position, rank in np.argwhere((reading.added != 0) & (reading.related != NONE)).tolist():
        by = int(reading.places[0, position])
        of_word = brought.setdefault(int(reading.related[position, rank]), {})
        of_word[by] = of_word.get(by, 0.0) + float(reading.added[position, rank])
    return brought


def _own(reading: Reading, word: int) -> Reason:
    """A word of the text weighs what its heaviest place does, and all its places are counted for it."""
    there = reading.places == word
    weights = np.where(there, reading.weights, -1)
    at = int(weights.argmax()) % there.shape[1]
    spoken = np.where(there, reading.shares, 0).sum(0)
    shares = _shared({position: float(spoken[position]) for position in np.flatnonzero(spoken).tolist()})
    return Reason(True, float(weights.max()), at, None, (), shares)


def _summed(logits: NDArray[np.float32], own: bool, activation: Activation) -> Reason:
    weights = activate(logits, activation)
    total = float(weights.sum())
    largest = np.argsort(-weights, kind="stable")[:MOST_POSITIONS]
    shares = tuple((int(at), float(weights[at]) / total) for at in largest if weights[at] > 0)
    at = int(largest[0])
    return Reason(own, total, at, float(logits[at]), (), shares)


def _highest(
    reading: Reading,
    logits: NDArray[np.float32],
    silent: bool,
    related: dict[int, float],
    own: bool,
    activation: Activation,
) -> Reason:
    """`silent`: the head has no row for the word, so that no position can bring it."""
    head = float(logits.max()) if len(logits) else None
    at = None if silent or head is None else int(np.flatnonzero(reading.speaks)[logits.argmax()])
    brought: dict[int, float] = {}
    if at is not None and head is not None and head > 0:
        brought[at] = head
    for by, adds in related.items():
        positions = np.flatnonzero(reading.places[0] == by).tolist()
        for position in positions if adds > 0 else ():
            brought[position] = brought.get(position, 0.0) + adds / len(positions)
    logit = np.array([(head or 0.0) + sum(related.values())], np.float32)
    table = tuple(sorted(related.items(), key=lambda item: -item[1]))
    if reading.states.shape[1] == 0:  # a table of fixed weights, which end where OpenSearch's do
        head, logit = None, np.minimum(logit, MAX_QUERY_WEIGHT)
    return Reason(own, float(activate(logit, activation)[0]), at, head, table, _shared(brought))


def _shared(brought: dict[int, float]) -> tuple[tuple[int, float], ...]:
    total = sum(brought.values())
    return tuple((at, part / total) for at, part in sorted(brought.items(), key=lambda item: (-item[1], item[0])))
