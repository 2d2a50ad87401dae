"""How long a queue will take, from the batches before it."""

import pytest

from app.engine.pace import Pace


def test_nothing_is_said_before_a_full_batch_was_seen() -> None:
    pace = Pace(100)
    pace.observe(8, 1.0)  # a single query: slow by the token
    assert pace.seconds(1000) == 0.0


def test_it_follows_the_recent_full_batches() -> None:
    pace = Pace(100)
    pace.observe(100, 1.0)
    assert pace.seconds(300) == pytest.approx(3.0)
    for _ in range(50):
        pace.observe(100, 0.5)
    assert pace.seconds(300) == pytest.approx(1.5, rel=0.01)


def test_it_begins_with_what_was_measured() -> None:
    pace = Pace(100, 50.0)
    assert pace.seconds(300) == pytest.approx(6.0)
    for _ in range(50):
        pace.observe(100, 1.0)
    assert pace.seconds(300) == pytest.approx(3.0, rel=0.01)


def test_the_work_of_a_long_text_grows_with_the_square_as_it_was_seen() -> None:
    pace = Pace(100, 100.0)
    assert pace.work(1000) == 1000
    pace.observe_alone(1000, 15.0)  # half as long again as so many short ones
    assert (pace.work(1000), pace.work(10)) == (1500, 10)
    assert pace.work(2000) == pytest.approx(4000)
    pace.observe_alone(1000, 10.0)  # no slower than short ones: the square counts for less
    assert pace.work(1000) == pytest.approx(1400)


def test_long_texts_alone_say_how_fast_it_is_at_least() -> None:
    pace = Pace(100)
    pace.observe_alone(1000, 10.0)
    assert pace.seconds(300) == pytest.approx(3.0)
    for _ in range(50):
        pace.observe_alone(1000, 5.0)
    assert pace.seconds(300) == pytest.approx(1.5, rel=0.01)
    assert pace.work(1000) == pytest.approx(1000, rel=0.01)


def test_what_is_in_the_encoder_gets_less() -> None:
    pace = Pace(100, 50.0)
    assert [pace.left(300, seconds) for seconds in (0.0, 2.0, 9.0)] == [300, 200, 0]
