"""Whether a request is taken or refused at once, before anything waits for it."""

from __future__ import annotations

from app.engine.pace import Pace
from app.errors import Overloaded

# Share of its time for which a request may be expected to wait: the batch that runs and the answer need some as well.
IN_TIME = 0.6


class Admission:
    """Counts the texts in flight."""

    def __init__(self, max_texts_in_flight: int, request_timeout_seconds: float, pace: Pace) -> None:
        self.texts_in_flight = 0
        self.request_timeout_seconds = request_timeout_seconds
        self.pace = pace
        self._max_texts_in_flight = max_texts_in_flight

    def enter(self, texts: int) -> None:
        """:raises Overloaded: if there would be too many in flight; none of `texts` is taken then."""
        if self.texts_in_flight + texts > self._max_texts_in_flight:
            raise Overloaded(
                f"{self.texts_in_flight} texts are in flight and {texts} more would exceed "
                f"{self._max_texts_in_flight}: try again later"
            )
        self.texts_in_flight += texts

    def leave(self, texts: int) -> None:
        self.texts_in_flight -= texts

    def refuse_if_too_late(self, tokens: int, ahead: int) -> None:
        """A text that would only wait for its deadline is better sent elsewhere at once.

        `ahead`: tokens that are encoded before these `tokens`.

        :raises Overloaded: if they would not be encoded in time.
        """
        seconds = self.pace.seconds(ahead + tokens)
        # With nothing ahead it is tried: a pace that was measured at a bad moment would refuse all for ever.
        if ahead and seconds > IN_TIME * self.request_timeout_seconds:
            raise Overloaded(
                f"{ahead} tokens wait, so {tokens} more would take {seconds:.1f} s, too much of the "
                f"{self.request_timeout_seconds:g} s that a request has: send less at once, or try again later"
            )
