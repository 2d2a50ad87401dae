from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparse_encoder.vector import SMALLEST_WEIGHT, SparseVector

WEIGHTS = st.floats(min_value=0.0009765625, max_value=64.0, width=32)
PAIRS = st.dictionaries(st.integers(0, 200), WEIGHTS, max_size=40)


def vector(pairs: dict[int, float]) -> SparseVector:
    return SparseVector.from_pairs(list(pairs), list(pairs.values()))


@given(PAIRS)
def test_heaviest_first_and_ties_by_id(pairs: dict[int, float]) -> None:
    v = vector(pairs)
    assert list(zip(v.ids.tolist(), v.weights.tolist(), strict=True)) == sorted(
        pairs.items(), key=lambda item: (-item[1], item[0])
    )
    assert (v.ids.dtype, v.weights.dtype) == (np.dtype(np.int32), np.dtype(np.float32))


def test_equal_weights_are_in_the_order_of_their_ids() -> None:
    assert SparseVector.from_pairs([7, 3, 5], [1.0, 1.0, 2.0]).ids.tolist() == [5, 3, 7]


@given(PAIRS)
def test_dense_and_sparse_say_the_same(pairs: dict[int, float]) -> None:
    row = np.full(201, -1.0, dtype=np.float32)
    for id_, weight in pairs.items():
        row[id_] = weight
    v = SparseVector.from_dense(row)
    assert dict(zip(v.ids.tolist(), v.weights.tolist(), strict=True)) == pairs


def test_what_is_not_positive_is_not_active() -> None:
    row = np.array([0.0, -0.0, -3.0, SMALLEST_WEIGHT / 2, SMALLEST_WEIGHT, 0.5], dtype=np.float32)
    assert SparseVector.from_dense(row).ids.tolist() == [5, 4]


@given(PAIRS, st.integers(1, 50), st.floats(0, 64, width=32))
def test_pruning_keeps_the_heaviest(pairs: dict[int, float], top_k: int, min_weight: float) -> None:
    pruned = vector(pairs).prune(top_k=top_k, min_weight=min_weight)
    expected = sorted((weight for weight in pairs.values() if weight >= min_weight), reverse=True)[:top_k]
    assert pruned.weights.tolist() == expected


def test_pruning_by_nothing_changes_nothing() -> None:
    v = vector({1: 0.5, 2: 0.25})
    assert v.prune().ids.tolist() == v.ids.tolist()


@pytest.mark.parametrize("top_k", [0, -1])
def test_a_top_k_that_keeps_nothing_is_refused(top_k: int) -> None:
    with pytest.raises(ValueError, match="top_k must be at least 1"):
        vector({1: 0.5}).prune(top_k=top_k)


@given(PAIRS, PAIRS)
def test_dot_sums_the_shared_tokens(mine: dict[int, float], theirs: dict[int, float]) -> None:
    expected = sum(mine[id_] * theirs[id_] for id_ in mine.keys() & theirs.keys())
    assert vector(mine).dot(vector(theirs)) == pytest.approx(expected)


def test_words_are_in_the_order_of_their_weights() -> None:
    words = SparseVector.from_pairs([0, 2], [0.5, 0.75]).to_words(["손해", "배상", "손해배상"])
    assert list(words.items()) == [("손해배상", 0.75), ("손해", 0.5)]


def test_the_vocabulary_of_another_model_is_refused() -> None:
    with pytest.raises(ValueError, match="token id 2 is outside a vocabulary of 2 tokens"):
        SparseVector.from_pairs([2], [0.5]).to_words(["손해", "배상"])


def test_an_empty_vector_is_a_vector() -> None:
    empty = SparseVector.from_dense(np.zeros(10))
    assert (len(empty), empty.to_words([]), empty.dot(empty), len(empty.prune(top_k=3))) == (0, {}, 0.0, 0)


@pytest.mark.parametrize(
    ("ids", "weights", "message"),
    [
        ([1, 1], [0.5, 0.25], "occurs twice"),
        ([-1], [0.5], ">= 0, got -1"),
        ([1, 2], [0.5], "one length"),
        ([[1]], [[0.5]], "one length"),
        ([1], [0.0], "positive"),
        ([1], [-0.5], "positive"),
        ([1], [float("nan")], "positive"),
        ([1], [float("inf")], "positive"),
        ([1], [SMALLEST_WEIGHT / 2], "positive"),
    ],
)
def test_what_is_no_vector_is_refused(ids: list[int], weights: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SparseVector.from_pairs(ids, weights)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_broken_row_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="NaN or infinity"):
        SparseVector.from_dense(np.array([0.5, bad]))


def test_a_batch_is_no_row() -> None:
    with pytest.raises(ValueError, match="one dimension"):
        SparseVector.from_dense(np.ones((2, 3)))


def test_a_vector_cannot_be_changed() -> None:
    v = vector({1: 0.5, 2: 0.25})
    with pytest.raises(ValueError, match="read-only"):
        v.prune(top_k=1).weights[0] = 9.0


@given(st.lists(PAIRS, max_size=4))
def test_the_maximum_has_every_token_at_its_heaviest(rows: list[dict[int, float]]) -> None:
    expected = {id_: max(row.get(id_, 0.0) for row in rows) for row in rows for id_ in row}
    found = SparseVector.maximum([vector(row) for row in rows])
    assert dict(zip(found.ids.tolist(), found.weights.tolist(), strict=True)) == expected
    assert found.weights.tolist() == sorted(found.weights.tolist(), reverse=True)
