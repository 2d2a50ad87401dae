"""How long a queue will take, from the batches before it."""

import pytest

from app.engine.pace import Pace


def test_nothing_is_said_before_a_full_batch_was_seen() -> None:
    pace = Pace(100)
    pace.observe(9, 1.0)  # a single query: slow by the token
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
