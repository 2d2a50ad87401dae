"""Which models are in memory, which of them is served, and when one leaves. Used on the event loop only."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from app.metrics import Metrics
from app.models.loaded import LoadedModel, answered_bands, peak_bytes
from app.models.memory import available_bytes, give_back_freed_memory

#: Between two times that memory is given back which only a peak needed; each takes about 20 ms, in a thread.
GIVE_BACK_SECONDS = 30.0

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Resident:
    """A model in memory."""

    model: LoadedModel
    users: int = 0  #: requests that hold it
    requested: bool = False  #: a request asked for it by name, so it stays when another version is served
    last_used: int = 0  #: rank among all uses

    @property
    def version(self) -> str:
        return self.model.version


class Versions:
    """Requests `hold` a version from admission to answer; one that is held never leaves.

    A version that is no longer served leaves with its last request, unless requests asked for it by name: of those the
    most recently used stay, `max_resident` versions in all.
    """

    serving: Resident  #: what requests get that ask for none; set by `serve`, which comes first

    def __init__(self, metrics: Metrics, max_resident: int) -> None:
        self.max_resident = max_resident
        self.waiting: Counter[str] = Counter()  #: requests that wait until this version is loaded
        self._metrics = metrics
        self._resident: dict[str, Resident] = {}
        self._uses = itertools.count(1)

    def get(self, version: str) -> Resident | None:
        return self._resident.get(version)

    def residents(self) -> list[Resident]:
        return list(self._resident.values())

    @contextmanager
    def hold(self, resident: Resident) -> Iterator[Resident]:
        """Keeps it in memory for as long as the block runs. Not to be kept, nor its model, after that."""
        resident.users += 1
        resident.last_used = next(self._uses)
        try:
            yield resident
        finally:
            resident.users -= 1
            self._tidy()

    def add(self, model: LoadedModel) -> None:
        """Takes in a version that requests ask for by name; the least recently used one leaves for it, as soon as it
        can."""
        self._take_in(Resident(model, requested=True, last_used=next(self._uses)))
        self._tidy()

    def serve(self, model: LoadedModel) -> None:
        """From now on requests get `model`; those that hold another keep it until they are answered."""
        resident = self._resident.get(model.version) or Resident(model, last_used=next(self._uses))
        self._take_in(resident)
        self.serving = resident
        self._metrics.show_served(resident.version, answered_bands(model.manifest))
        self._tidy()

    async def make_room(self) -> str | None:
        """Lets the least recently used version go that nobody needs now, and names it; None if there is none."""
        if (idle := self._least_needed()) is None:
            return None
        version = idle.version
        await self._let_go(idle)
        return version

    async def give_back_memory(self) -> None:
        """Again and again until cancelled: what a peak took is not kept for the next one."""
        while True:
            await asyncio.sleep(GIVE_BACK_SECONDS)
            await asyncio.to_thread(_give_back, [resident.model for resident in self._resident.values()])

    @property
    def has_room(self) -> bool:
        """Whether one more can be added: none has to leave, or one can."""
        return len(self._resident) < self.max_resident or self._least_needed() is not None

    def _least_needed(self) -> Resident | None:
        idle = filter(self._idle, self._resident.values())
        return min(idle, key=lambda resident: resident.last_used, default=None)

    def _take_in(self, resident: Resident) -> None:
        if resident.version not in self._resident:
            asyncio.get_running_loop().run_in_executor(None, _specialise, resident.model)
        self._resident[resident.version] = resident
        self._metrics.resident.labels(resident.version).set(1)

    def _idle(self, resident: Resident) -> bool:
        return not resident.users and resident is not self.serving and not self.waiting[resident.version]

    def _tidy(self) -> None:
        idle = sorted(filter(self._idle, self._resident.values()), key=lambda resident: resident.last_used)
        for resident in idle:
            if not resident.requested or len(self._resident) > self.max_resident:
                self._let_go(resident)

    def _let_go(self, resident: Resident) -> asyncio.Future[None]:
        """Done when its memory is free, which takes a third of a second for a model of 230 MB: in a thread."""
        del self._resident[resident.version]
        self._metrics.resident.remove(resident.version)
        last = [resident.model]
        del resident.model
        return asyncio.get_running_loop().run_in_executor(None, _free, last)


def _specialise(model: LoadedModel) -> None:
    """While it serves already; it serves without as well."""
    if peak_bytes(model.manifest.weight_bytes) > available_bytes():
        log.info("%s: memory is short, so short queries have no graph of their own", model.version)
        return
    try:
        for encoder in model.encoders:
            encoder.specialise()
    except Exception:
        log.exception("%s: short queries have no graph of their own", model.version)
    give_back_freed_memory()


def _give_back(models: list[LoadedModel]) -> None:
    while models:  # none is referred to for longer than need be, nor by a traceback
        model = models.pop()
        try:
            for encoder in model.encoders:
                encoder.give_back_memory()
        except Exception:
            log.exception("%s: its memory cannot be given back", model.version)
        del model
    give_back_freed_memory()


def _free(last: list[LoadedModel]) -> None:
    last.clear()
    give_back_freed_memory()
