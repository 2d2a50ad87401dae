"""Serves what an alias of the store stands for, and goes over to another version without losing a request."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from datetime import UTC, datetime

from app.metrics import Metrics
from app.models.loaded import ModelError
from app.versions.loading import STAGES, Loader, Refused, Superseded
from app.versions.resident import Versions
from app.versions.watching import Watcher
from sparse_encoder.store import Alias, StoreError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a version is not served."""

    version: str
    stage: str
    reason: str
    time: str  #: UTC, ISO 8601


class Swapper:
    """A version that fails is not tried again until the alias is set anew, or `follow(retry=True)`."""

    failure: Failure | None = None  #: the last one, until the alias is served again

    def __init__(self, alias: str, versions: Versions, loader: Loader, watcher: Watcher, metrics: Metrics) -> None:
        self.alias = alias
        self._versions = versions
        self._loader = loader
        self._watcher = watcher
        self._metrics = metrics
        self._followed: Alias | None = None  # as it was when its version came to be served
        self._refused: Alias | None = None
        for result in ("served", "superseded", "store_unreachable", *(f"refused_{stage}" for stage in STAGES)):
            metrics.swaps.labels(result)  # a rate needs the zero before the first one

    async def start(self) -> None:
        """Serves the version of the alias, or else the newest one before it that can be served. If the store is away,
        the one that was served last, from the cache.

        :raises StoreError: if the store cannot be read, and nothing is left of it in the cache.
        :raises ModelError: if there is no such version; tells why for each.
        """
        try:
            await self._watcher.poll()
            alias = self._wanted()
            if alias is None and (reason := self._watcher.snapshot.unreadable.get(self.alias)):
                raise StoreError(reason)
        except StoreError as error:
            if not await self._serve_last(str(error)):
                raise
            return
        if alias is None:
            known = ", ".join(self._watcher.snapshot.aliases) or "none"
            raise ModelError(
                f"the store {self._watcher.store.url} has no alias {self.alias!r} (it has {known}): publish a version "
                "under this alias, or name another with --alias"
            )
        reasons, away = [], False
        for version in (alias.version, *alias.previous):
            try:
                model = await self._loader.load(version)
            except (Refused, StoreError) as error:
                self._tell(version, error)
                away |= isinstance(error, StoreError)
                if version == alias.version and isinstance(error, Refused):
                    self._refused = alias
                reasons.append(str(error))
                continue
            if reasons:
                log.error("%s stands for %s, which cannot be served: serving %s", self.alias, alias.version, version)
            self._followed = alias
            self._versions.serve(model)
            await self._keep_in_cache(model.version)
            return
        if not away or not await self._serve_last("\n".join(reasons)):
            raise ModelError(f"no version that {self.alias} stood for can be served:\n" + "\n".join(reasons))

    async def _serve_last(self, reason: str) -> bool:
        try:
            model = await self._loader.load_last(self.alias)
        except Refused as refused:
            self._tell(refused.version, refused)
            return False
        if model is None:
            return False
        log.error(
            "the store is away at the start: serving %s from the cache, which was served last as %s: %s",
            model.version,
            self.alias,
            reason,
        )
        self._versions.serve(model)
        return True

    async def run(self) -> None:
        """Follows the alias, poll by poll, until cancelled."""
        while True:
            await self._watcher.polled.wait()
            self._watcher.polled.clear()
            try:
                await self.follow()
            except Exception:
                log.exception("following %s failed; trying again at the next poll", self.alias)

    async def follow(self, *, retry: bool = False) -> None:
        """Serves what the alias stands for now, unless that was refused before. `retry`: even then."""
        async with self._loader.turn:
            # Again if it changed while a version was loaded.
            while (alias := self._wanted()) and alias.version != self._versions.serving.version:
                if alias == self._refused and not retry:
                    return
                retry = False
                try:
                    await self._swap(alias)
                except Superseded:
                    self._metrics.swaps.labels("superseded").inc()
                    log.info("%s moved on while %s was loaded", self.alias, alias.version)
                except Refused as refused:
                    self._refused = alias
                    self._tell(alias.version, refused)
                except StoreError as error:  # the next poll tries again
                    self._tell(alias.version, error)
                    return
            if alias:
                self._followed, self._refused, self.failure = alias, None, None
                self._metrics.refused_version.clear()

    async def _swap(self, alias: Alias) -> None:
        before = self._versions.serving.version
        started = time.perf_counter()
        model = await self._loader.load(
            alias.version,
            self._versions.serving.model,  # in no variable here: the one replaced must be free to leave
            trusted=self._is_way_back(alias.version),
            superseded=lambda: (now := self._wanted()) is not None and now.version != alias.version,
        )
        self._versions.serve(model)
        self._metrics.swaps.labels("served").inc()
        seconds = {
            "load_seconds": round(time.perf_counter() - started, 3),
            "seconds_since_alias_set": _seconds_since(alias.updated),
        }
        fields = {"version": alias.version, "before": before, **seconds}
        log.info("serving another version", extra={"fields": fields})
        await self._keep_in_cache(alias.version)

    async def _keep_in_cache(self, served: str) -> None:
        """And nothing that is no longer in memory."""
        await self._loader.remember(self.alias, served)
        await self._loader.clean_cache(resident.version for resident in self._versions.residents())

    def _wanted(self) -> Alias | None:
        return self._watcher.snapshot.aliases.get(self.alias)

    def _is_way_back(self, version: str) -> bool:
        """One that was served before need not resemble the version that one wants to get away from."""
        if self._followed is None or version not in self._followed.previous:
            return False
        created = {name: rank for rank, name in enumerate(self._watcher.snapshot.versions)}
        return created.get(version, math.inf) < created.get(self._versions.serving.version, math.inf)

    def _tell(self, version: str, error: Refused | StoreError) -> None:
        stage, reason = (error.stage, error.reason) if isinstance(error, Refused) else ("store", str(error))
        self._metrics.swaps.labels(f"refused_{stage}" if isinstance(error, Refused) else "store_unreachable").inc()
        if self.failure is None or (self.failure.version, self.failure.reason) != (version, reason):
            fields = {"version": version, "stage": stage, "reason": reason}
            log.error("%s is not served: %s", version, reason, extra={"fields": fields})
        if (wanted := self._wanted()) and wanted.version == version:
            self._metrics.show_refused(version, stage)
        self.failure = Failure(version, stage, reason, datetime.now(UTC).isoformat(timespec="seconds"))


def _seconds_since(moment: str) -> float | None:
    try:
        return round((datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds(), 3)
    except (ValueError, TypeError):  # written by other software
        return None
