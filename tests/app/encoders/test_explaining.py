"""Where weights come from, on a text small enough to compute by hand."""

from __future__ import annotations

import numpy as np
import pytest

from app.encoders.explaining import Head, Reading, reasons


def test_what_an_own_word_brings_up_is_shared_by_its_places_beside_the_head() -> None:
    reading = Reading(
        ids=np.array([5, 6, 5], np.int32),
        places=np.array([[5, 6, 5]], np.int32),
        weights=np.ones((1, 3), np.float32),
        shares=np.ones((1, 3), np.float32),
        related=np.array([[7], [8], [7]], np.int32),
        added=np.array([[0.5], [0.25], [0.5]], np.float32),  # 5 adds 1 to the logit of 7, by halves
        states=np.array([[0.0], [1.0], [0.0]], np.float32),
        speaks=np.ones(3, np.bool_),
    )
    head = Head(np.array([[1.0]], np.float32), np.zeros(1, np.float32))  # of 7: a logit of 1, at the second place
    (reason,) = reasons(reading, head, np.array([7], np.int32), "log1p_relu", "max")
    assert (reason.own, reason.at, reason.head, reason.related) == (False, 1, 1.0, ((5, 1.0),))
    assert reason.weight == pytest.approx(np.log1p(2.0))
    assert dict(reason.shares) == pytest.approx({1: 0.5, 0: 0.25, 2: 0.25})
