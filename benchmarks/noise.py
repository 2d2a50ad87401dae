"""How much of a measurement the machine's other users took, and what was measured in spite of them.

A virtual machine loses time to its neighbours (`steal` of `/proc/stat`), and a measurement loses it to other processes
of its own. So a turn that lost much is taken again, and beside each median stands the minimum: what others take is only
ever added.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

#: Share of the processors' time that a turn may lose to neighbours before it is taken again.
MOST_STOLEN = 0.05
TRIES = 3


@dataclass(frozen=True, slots=True)
class Ticks:
    """Of all processors since the start of the machine."""

    stolen: int
    total: int

    @classmethod
    def now(cls, stat: Path = Path("/proc/stat")) -> Ticks:
        values = [int(value) for value in stat.read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]]
        return cls(values[7], sum(values))

    def stolen_until(self, later: Ticks) -> float:
        """The share, 0 to 1, of the time between."""
        return (later.stolen - self.stolen) / max(1, later.total - self.total)


class Turns:
    """Takes turns, disturbed ones again, and says at the end what was stolen of all of them."""

    def __init__(self, now: Callable[[], Ticks] = Ticks.now) -> None:
        self._now = now
        self._start = now()
        self.repeated = 0

    def take(self, measure: Callable[[], float]) -> float:
        """What `measure` gives, of the least disturbed of at most `TRIES`."""
        taken: list[tuple[float, float]] = []
        while len(taken) < TRIES:
            before = self._now()
            seconds = measure()
            taken.append((before.stolen_until(self._now()), seconds))
            if taken[-1][0] <= MOST_STOLEN:
                break
        self.repeated += len(taken) - 1
        return min(taken)[1]

    def __str__(self) -> str:
        stolen = self._start.stolen_until(self._now())
        return f"stolen by neighbours {stolen:.1%} of the time, {self.repeated} turns repeated"


def spread(seconds: Sequence[float]) -> str:
    """Median and minimum in milliseconds."""
    return f"{median(seconds) * 1000:,.1f} (least {min(seconds) * 1000:,.1f})"
