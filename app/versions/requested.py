"""Requests that name a version: it is found in memory, or loaded for them from the store."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from app.errors import Unavailable
from app.versions.loading import Loader, Refused
from app.versions.resident import Resident, Versions
from app.versions.watching import Snapshot, Watcher
from sparse_encoder.store import StoreError

log = logging.getLogger(__name__)


class Requested:
    """Several requests for one version wait for one load."""

    def __init__(
        self,
        served_alias: str,
        versions: Versions,
        loader: Loader,
        watcher: Watcher,
        timeout_seconds: float,
        public: Callable[[str], str],
    ) -> None:
        """`public` makes of a message one for clients."""
        self._public = public
        self._served_alias = served_alias
        self._versions = versions
        self._loader = loader
        self._watcher = watcher
        self._timeout_seconds = timeout_seconds
        self._loads: dict[str, asyncio.Task[None]] = {}
        self._refused: dict[str, str] = {}  # reasons by version, as of the snapshot
        self._refused_in = Snapshot()

    async def find(self, name: str) -> Resident:
        """The version or alias `name` in memory, for the caller to hold at once.

        :raises UnknownVersion: if there is none.
        :raises Unavailable: if it cannot be loaded, or not in time.
        """
        if name == self._served_alias:
            return self._versions.serving
        resident = self._versions.get(name)
        version = resident.version if resident else self._watcher.snapshot.resolve(name)
        if self._versions.get(version) is None:
            await self._wait_for(version)
        resident = self._versions.get(version)
        assert resident
        resident.requested = True
        return resident

    def forget_refusals(self) -> None:
        """The next request tries again."""
        self._refused.clear()

    async def _wait_for(self, version: str) -> None:
        if self._refused_in != self._watcher.snapshot:
            self._refused, self._refused_in = {}, self._watcher.snapshot
        if reason := self._refused.get(version):
            raise Unavailable(reason)
        self._versions.waiting[version] += 1  # so that it cannot leave again before it was used
        try:
            async with asyncio.timeout(self._timeout_seconds):
                await asyncio.shield(self._load_once(version))
        except TimeoutError:
            raise Unavailable(
                f"{version} was not loaded within {self._timeout_seconds:g} s: try again, it goes on"
            ) from None
        finally:
            self._versions.waiting[version] -= 1

    def _load_once(self, version: str) -> asyncio.Task[None]:
        if version not in self._loads:
            task = self._loads[version] = asyncio.create_task(self._load(version))
            task.add_done_callback(lambda task: (self._loads.pop(version), task.cancelled() or task.exception()))
        return self._loads[version]

    async def _load(self, version: str) -> None:
        async with self._loader.turn:
            if self._versions.get(version):  # came to be served meanwhile
                return
            if not self._versions.has_room:
                held = ", ".join(resident.version for resident in self._versions.residents())
                raise Unavailable(
                    f"{version} is not in memory and none of {held} can leave now: try again, or raise "
                    f"--max-resident-versions, which is {self._versions.max_resident}"
                )
            try:  # whoever leaves for it does so when it is there: a load that fails costs nobody anything
                self._versions.add(await self._loader.load(version))
            except Refused as refused:
                log.error("%s, which requests ask for", refused)
                self._refused[version] = self._public(str(refused))
                raise Unavailable(self._refused[version]) from refused
            except StoreError as error:
                log.error("%s, which requests ask for, cannot be fetched now: %s", version, error)
                raise Unavailable(f"{version} cannot be fetched now: {self._public(str(error))}") from error
