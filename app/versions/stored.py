"""The parts that serve from a store, put together, started and stopped in order."""

from __future__ import annotations

import asyncio
import os
import re
import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from app.metrics import Metrics
from app.models.loaded import Load
from app.versions.gates import Rules
from app.versions.loading import Loader
from app.versions.requested import Requested
from app.versions.resident import Versions
from app.versions.swap import Swapper
from app.versions.watching import Watcher
from sparse_encoder.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSettings:
    """What is served from where; `Settings` explains each."""

    url: str
    alias: str
    poll_seconds: float
    cache_dir: Path
    request_timeout_seconds: float
    rules: Rules


class Stored:
    """`start`, then use the parts, then `stop`; all on one event loop."""

    def __init__(self, settings: StoreSettings, load: Load, versions: Versions, metrics: Metrics) -> None:
        """:raises StoreError: if there is no such kind of store."""
        store = Store(settings.url)
        self._versions = versions
        self.watcher = Watcher(store, settings.poll_seconds, _instance(), self._held, metrics)
        metrics.watch_store(self.watcher.age_seconds)
        loader = Loader(store, settings.cache_dir, load, settings.rules, versions, metrics)
        self.swapper = Swapper(settings.alias, versions, loader, self.watcher, metrics)
        self._cache_dir = str(settings.cache_dir)
        self.requested = Requested(
            settings.alias, versions, loader, self.watcher, settings.request_timeout_seconds, self.public
        )
        self._loader = loader
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Serves a version and begins to watch; raises as `Swapper.start`."""
        await self.swapper.start()
        self._tasks = [asyncio.create_task(self.watcher.run()), asyncio.create_task(self.swapper.run())]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._loader.stop()
        await self.watcher.stop()

    def public(self, message: str) -> str:
        """`message` for an answer over HTTP: no path of the store or of the cache, no address of a server."""
        return without_places(message, (*self.watcher.store.places, self._cache_dir))

    def describe(self) -> dict[str, object]:
        """For `/info` and the answers of `/admin`."""
        failure = self.swapper.failure
        return {
            "resident": self._held(),
            "aliases": {name: alias.version for name, alias in self.watcher.snapshot.aliases.items()},
            "follows": self.swapper.alias,
            "last_failure": {**asdict(failure), "reason": self.public(failure.reason)} if failure else None,
            "store_error": self.public(trouble) if (trouble := self.watcher.trouble()) else None,
        }

    def _held(self) -> list[str]:
        return [resident.version for resident in self._versions.residents()]


def _instance() -> str:
    """The name of this process in the store."""
    return re.sub(r"[^\w.-]", "-", f"{socket.gethostname()[:100]}-{os.getpid()}", flags=re.ASCII).lstrip("._-")


def without_places(message: str, places: Sequence[str]) -> str:
    for place in sorted(places, key=len, reverse=True):
        message = message.replace(place, "the store")
    return re.sub(r"\b[a-z][a-z0-9+]*://[^\s\"')]+", "its server", message)
