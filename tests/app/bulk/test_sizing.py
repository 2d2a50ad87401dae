from __future__ import annotations

from app.bulk.sizing import FIRST_BYTES, LEAST_BYTES, MOST_BYTES, QUICK_SECONDS, SLOW_SECONDS, BulkSize


def test_requests_grow_while_they_go_quickly_and_no_further_than_the_most() -> None:
    size = BulkSize()
    size.went(FIRST_BYTES, QUICK_SECONDS / 2)
    assert size.bytes == FIRST_BYTES * 5 // 4
    for _ in range(20):
        size.went(size.bytes, QUICK_SECONDS / 2)
    assert size.bytes == MOST_BYTES


def test_one_that_was_far_from_full_says_nothing_of_larger_ones_nor_does_one_of_middling_speed() -> None:
    size = BulkSize()
    size.went(FIRST_BYTES // 10, QUICK_SECONDS / 2)
    size.went(FIRST_BYTES, (QUICK_SECONDS + SLOW_SECONDS) / 2)
    assert size.bytes == FIRST_BYTES


def test_they_halve_where_opensearch_is_slow_or_full_and_no_further_than_the_least() -> None:
    size = BulkSize()
    size.went(1, 2 * SLOW_SECONDS)
    size.refused()
    assert size.bytes == FIRST_BYTES // 4
    for _ in range(20):
        size.refused()
    assert size.bytes == LEAST_BYTES


def test_what_is_never_taken_at_once_is_not_tried_again() -> None:
    size = BulkSize()
    size.too_large(1_000_000)
    for _ in range(20):
        size.went(size.bytes, QUICK_SECONDS / 2)
    assert size.bytes == 500_000
    size.too_large(30_000)  # a limit below what it halves to
    assert size.bytes == 15_000
    size.refused()
    assert size.bytes == 15_000
