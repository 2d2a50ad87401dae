"""Whether a request is taken or refused at once, before anything waits for it."""

from __future__ import annotations

from collections import Counter

from app.engine.pace import Pace
from app.errors import Overloaded, TooLarge

# Share of its time for which a request may be expected to wait: the batch that runs and the answer need some as well.
IN_TIME = 0.6
# The same of one that has nothing ahead of it: it is tried though it will be close.
IN_TIME_ALONE = 0.8
# A longer text counts as several: what is in flight is in memory.
CHARACTERS_OF_A_TEXT = 8192


class Admission:
    """Counts what is in flight, and whose.

    A client may have all that the service takes, as long as no other comes; one that comes then is still taken, up to
    its share, by weight, among all that have something in flight. In all it is never more than twice what the service
    takes.
    """

    def __init__(self, max_texts_in_flight: int, request_timeout_seconds: float, pace: Pace) -> None:
        self.texts_in_flight = 0
        self.request_timeout_seconds = request_timeout_seconds
        self.pace = pace
        self._most = max_texts_in_flight
        self._of_clients: Counter[str] = Counter()
        self._weights: dict[str, float] = {}  # of the same
        self._all_weights = 0.0  # added up
        self._all = 0  # the same added up

    def enter(self, client: str, texts: int, characters: int, weight: float = 1.0) -> int:
        """What the request counts for, to be given to `leave`.

        :raises Overloaded: if there would be too much in flight; none of `texts` is taken then.
        """
        counted = min(texts + characters // CHARACTERS_OF_A_TEXT, max(texts, self._most))
        own = self._of_clients[client]
        others = self._all_weights - self._weights.get(client, 0.0)
        within_share = own + counted <= int(self._most * weight / (weight + others))
        if self._all + counted > (2 if within_share else 1) * self._most:
            sharing = len(self._of_clients) - bool(own)
            whose = "" if own == self._all else f", {own} of this client, which shares with {sharing} others,"
            raise Overloaded(
                f"{self._all} texts are in flight{whose} and {counted} more would exceed {self._most}: try again later"
            )
        self._of_clients[client] += counted
        self._weights[client], self._all_weights = weight, others + weight
        self._all += counted
        self.texts_in_flight += texts
        return counted

    @property
    def clients(self) -> int:
        """That have something in flight."""
        return len(self._of_clients)

    @property
    def largest_share(self) -> float:
        """Of all that is in flight, what the client has that has most; 0 to 1, and 0 if nothing is."""
        return max(self._of_clients.values(), default=0) / self._all if self._all else 0.0

    def leave(self, client: str, texts: int, counted: int) -> None:
        """`counted`: what `enter` said."""
        self.texts_in_flight -= texts
        self._all -= counted
        self._of_clients[client] -= counted
        if self._of_clients[client] <= 0:
            del self._of_clients[client]
            self._all_weights -= self._weights.pop(client, 0.0)  # gone already: requests without a text count for none

    def tokens_in_time(self) -> int | None:
        """That one request may have, if no other is there; None if the pace is not known."""
        pace = self.pace.tokens_per_second
        return int(pace * IN_TIME_ALONE * self.request_timeout_seconds) if pace else None

    def refuse_if_never(self, texts: int, tokenised: int, work: int) -> None:
        """What cannot be encoded in time even alone is refused before it is tokenised to the end.

        `work`: of the first `tokenised` of `texts`.

        :raises TooLarge: says how many texts can. One text is always tried.
        """
        if texts == 1 or not work:
            return
        seconds, most = self.pace.seconds(work), IN_TIME_ALONE * self.request_timeout_seconds
        if seconds > most:
            fitting = max(1, int(tokenised * most / seconds))
            raise TooLarge(
                f"{texts} texts of such length take about {seconds * texts / tokenised:.0f} s, and a request has "
                f"{self.request_timeout_seconds:g} s: send at most {fitting} of them at once",
                "texts",
            )

    def refuse_if_too_late(self, work: int, ahead: int) -> None:
        """A text that would only wait for its deadline is better sent elsewhere at once.

        `ahead`: what is done before this `work`, or beside it.

        :raises Overloaded: if it would not be done in time.
        """
        seconds = self.pace.seconds(ahead + work)
        # With nothing ahead it is tried: a pace that was measured at a bad moment would refuse all for ever.
        if ahead and seconds > IN_TIME * self.request_timeout_seconds:
            raise Overloaded(
                f"behind {self.pace.seconds(ahead):.1f} s of work it would take {seconds:.1f} s, too much of the "
                f"{self.request_timeout_seconds:g} s that a request has: send less at once, or try again later"
            )
