"""What is taken, and whose."""

from __future__ import annotations

import pytest

from app.engine.admission import CHARACTERS_OF_A_TEXT, Admission
from app.engine.pace import Pace
from app.errors import Overloaded, TooLarge


def admission(most: int = 100, tokens_per_second: float | None = None) -> Admission:
    return Admission(most, 60.0, Pace(64, tokens_per_second))


def test_one_client_may_have_all_and_another_is_still_taken_up_to_its_share() -> None:
    taken = admission()
    taken.enter("many", 100, 0)
    with pytest.raises(Overloaded, match="100 texts are in flight and 1 more would exceed 100"):
        taken.enter("many", 1, 0)
    few = taken.enter("few", 50, 0)
    with pytest.raises(Overloaded, match="150 texts are in flight, 50 of this client, which shares with 1 others, and"):
        taken.enter("few", 1, 0)
    assert taken.texts_in_flight == 150
    taken.leave("few", 50, few)
    taken.enter("third", 34 - 1, 0)


def test_a_share_is_by_weight() -> None:
    taken = admission()
    taken.enter("many", 100, 0)
    with pytest.raises(Overloaded):
        taken.enter("heavy", 76, 0, 3.0)
    heavy = taken.enter("heavy", 75, 0, 3.0)
    with pytest.raises(Overloaded):
        taken.enter("third", 21, 0)
    taken.enter("third", 20, 0)  # one of five parts
    taken.leave("heavy", 75, heavy)
    taken.enter("third", 50 - 20, 0)  # the weight has left with its client


def test_in_all_it_is_never_more_than_twice() -> None:
    taken = admission()
    taken.enter("many", 100, 0)
    entered = 0
    for number in range(1000):
        try:
            taken.enter(f"client {number}", 1, 0)
            entered += 1
        except Overloaded:
            pass
    assert 90 <= entered <= 100


def test_who_has_left_takes_no_share() -> None:
    taken = admission()
    for number in range(1000):
        taken.leave(f"{number}", 1, taken.enter(f"{number}", 1, 0))
    assert taken.enter("many", 100, 0) == 100
    assert taken.texts_in_flight == 100


def test_whose_the_load_is_can_be_told() -> None:
    taken = admission()
    assert (taken.clients, taken.largest_share) == (0, 0.0)
    counted = taken.enter("many", 60, 0)
    taken.enter("few", 20, 0)
    assert (taken.clients, taken.largest_share) == (2, 0.75)
    taken.leave("many", 60, counted)
    assert (taken.clients, taken.largest_share) == (1, 1.0)


def test_long_texts_count_as_several_and_the_longest_is_still_taken() -> None:
    taken = admission()
    assert taken.enter("a", 1, CHARACTERS_OF_A_TEXT - 1) == 1
    assert taken.enter("a", 1, 3 * CHARACTERS_OF_A_TEXT) == 4
    with pytest.raises(Overloaded):
        taken.enter("a", 1, 95 * CHARACTERS_OF_A_TEXT)
    assert admission().enter("a", 1, 1000 * CHARACTERS_OF_A_TEXT) == 100


def test_what_can_never_be_encoded_in_time_is_refused_with_what_can() -> None:
    taken = admission(tokens_per_second=1000.0)  # 48,000 tokens in the time of a request, and some left
    taken.refuse_if_never(1024, 100, 100 * 256)
    with pytest.raises(
        TooLarge, match=r"1024 texts of such length take about 524 s, .* has 60 s: send at most 93 of them"
    ):
        taken.refuse_if_never(1024, 100, 100 * 512)
    taken.refuse_if_never(93, 93, 93 * 512)
    taken.refuse_if_never(1, 1, 1_000_000)
    admission().refuse_if_never(1024, 1024, 1_000_000_000)  # nothing is known


def test_requests_without_a_text_leave_nothing_behind() -> None:
    taken = admission()
    for _ in range(2):
        assert taken.enter("a", 0, 0) == 0
    for _ in range(2):
        taken.leave("a", 0, 0)
    assert (taken.clients, taken.largest_share) == (0, 0.0)
