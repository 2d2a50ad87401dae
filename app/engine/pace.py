"""How fast the encoder is with full batches, to tell before a text waits whether it can be answered in time."""

from __future__ import annotations

#: Share of the newest batch in the mean: some ten batches back count.
NEWEST = 0.2


class Pace:
    """Tokens a second over recent batches that were at least half full: small ones are slower by the token."""

    def __init__(self, max_batch_tokens: int) -> None:
        self._full = max_batch_tokens / 2
        self._tokens_per_second: float | None = None

    def observe(self, tokens: int, seconds: float) -> None:
        """A batch of `tokens` took `seconds`."""
        if tokens < self._full or seconds <= 0:
            return
        seen = tokens / seconds
        known = self._tokens_per_second
        self._tokens_per_second = seen if known is None else known + NEWEST * (seen - known)

    def seconds(self, tokens: int) -> float:
        """What `tokens` will take; 0 while no full batch was seen."""
        return tokens / self._tokens_per_second if self._tokens_per_second else 0.0
