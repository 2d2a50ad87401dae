"""How large the next bulk request is: by how the ones before it went. Pure."""

from __future__ import annotations

#: Of one request. OpenSearch is quickest with a few megabytes and takes 100, what stands before it often less.
FIRST_BYTES, LEAST_BYTES, MOST_BYTES = 4_000_000, 64_000, 16_000_000
#: For one request: below the first, more would be taken as gladly; above the second, it waits in OpenSearch's queue.
QUICK_SECONDS, SLOW_SECONDS = 1.0, 5.0


class BulkSize:
    """Grows by a quarter after a full request that went quickly; halves after one that was slow or refused."""

    def __init__(self) -> None:
        self.bytes = FIRST_BYTES
        self._most = MOST_BYTES

    def went(self, sent: int, seconds: float) -> None:
        """A request of `sent` bytes was taken after `seconds`."""
        if seconds > SLOW_SECONDS:
            self.refused()
        elif seconds < QUICK_SECONDS and 2 * sent > self.bytes:
            self.bytes = min(self.bytes * 5 // 4, self._most)

    def refused(self) -> None:
        """OpenSearch, or what stands before it, was full or away."""
        self.bytes = min(self._most, max(self.bytes // 2, LEAST_BYTES))

    def too_large(self, sent: int) -> None:
        """So many bytes are never taken at once."""
        self._most = self.bytes = min(self.bytes, max(sent // 2, 1))
