"""How fast the encoder is with full batches, to tell before a text waits whether it can be answered in time."""

from __future__ import annotations

#: Share of the newest batch in the mean: some ten batches back count.
NEWEST = 0.2


class Pace:
    """Tokens a second over recent batches that were a tenth full or more: smaller ones are slower by the token, and
    no measure of what many texts take; those of documents among queries are an eighth full."""

    def __init__(self, max_batch_tokens: int, tokens_per_second: float | None = None) -> None:
        """`tokens_per_second`: as measured before the first batch, if it was."""
        self._full = max_batch_tokens / 10
        self._more = 0.0  # work for each token and each token that it is compared with
        self.tokens_per_second = tokens_per_second

    def work(self, tokens: int) -> int:
        """Of one text: tokens of short texts that take as long. What attention compares grows with the square."""
        return round(tokens * (1 + self._more * tokens))

    def observe_alone(self, tokens: int, seconds: float) -> None:
        """A long text of `tokens` took `seconds`."""
        if self.tokens_per_second and seconds > 0:
            more = max(0.0, seconds * self.tokens_per_second / tokens - 1) / tokens
            self._more = more if not self._more else self._more + NEWEST * (more - self._more)

    def observe(self, tokens: int, seconds: float) -> None:
        """A batch of short texts, `tokens` in all, took `seconds`."""
        if tokens < self._full or seconds <= 0:
            return
        seen = tokens / seconds
        known = self.tokens_per_second
        self.tokens_per_second = seen if known is None else known + NEWEST * (seen - known)

    def seconds(self, work: int) -> float:
        """What `work` will take; 0 while nothing is known."""
        return work / self.tokens_per_second if self.tokens_per_second else 0.0
