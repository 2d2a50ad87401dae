"""How fast the encoder is with full batches, to tell before a text waits whether it can be answered in time."""

from __future__ import annotations

#: Share of the newest batch in the mean: some ten batches back count.
NEWEST = 0.2


class Pace:
    """Tokens a second over recent batches that were a twelfth full or more: smaller ones are slower by the token, and
    no measure of what many texts take; those of documents among queries are a tenth full, padding included."""

    def __init__(self, max_batch_tokens: int, tokens_per_second: float | None = None) -> None:
        """`tokens_per_second`: as measured before the first batch, if it was."""
        self._full = max_batch_tokens / 12
        self._more: float | None = None  # work for each token and each token that it is compared with
        self.tokens_per_second = tokens_per_second

    def work(self, tokens: int) -> int:
        """Of one text: tokens of short texts that take as long. What attention compares grows with the square."""
        return round(tokens * (1 + (self._more or 0.0) * tokens))

    def observe_alone(self, tokens: int, seconds: float) -> None:
        """A long text of `tokens` took `seconds`. Short ones cannot be slower by the token than it is."""
        if seconds <= 0:
            return
        self._see(max(tokens / seconds, self.tokens_per_second or 0.0))
        assert self.tokens_per_second
        more = max(0.0, seconds * self.tokens_per_second / tokens - 1) / tokens
        self._more = more if self._more is None else self._more + NEWEST * (more - self._more)

    def observe(self, tokens: int, seconds: float) -> None:
        """A batch of short texts, `tokens` in all, took `seconds`."""
        if tokens < self._full or seconds <= 0:
            return
        self._see(tokens / seconds)

    def _see(self, tokens_per_second: float) -> None:
        known = self.tokens_per_second
        self.tokens_per_second = tokens_per_second if known is None else known + NEWEST * (tokens_per_second - known)

    def left(self, work: int, seconds: float) -> int:
        """Of `work` that has been in the encoder for `seconds`."""
        return max(0, work - int(seconds * (self.tokens_per_second or 0.0)))

    def seconds(self, work: int) -> float:
        """What `work` will take; 0 while nothing is known."""
        return work / self.tokens_per_second if self.tokens_per_second else 0.0
