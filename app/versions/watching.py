"""Looks at the store again and again, so that nothing else has to wait for it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

from app.errors import UnknownVersion
from app.metrics import Metrics
from app.versions.patience import Patience
from sparse_encoder.store import Alias, AliasError, Store, StoreError

#: A lease lasts an hour; it is renewed when the versions held change, and this often.
RENEW_SECONDS = 600.0
#: That one call to the store may take; that the end of the process waits for one.
STORE_SECONDS, STOP_SECONDS = 30.0, 3.0
#: Versions that the answer to an unknown one names, newest first.
NAMED_VERSIONS = 20

P = ParamSpec("P")
T = TypeVar("T")
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The store as it was at the last poll."""

    aliases: Mapping[str, Alias] = field(default_factory=dict)
    versions: tuple[str, ...] = ()  #: oldest first
    unreadable: Mapping[str, str] = field(default_factory=dict)  #: aliases, which stay what they were, and why

    def resolve(self, name: str) -> str:
        """The version that an alias stands for, or the version of that name.

        :raises UnknownVersion: if there is neither.
        """
        if alias := self.aliases.get(name):
            return alias.version
        if name in self.versions:
            return name
        newest = self.versions[: -NAMED_VERSIONS - 1 : -1]
        more = f" and {len(self.versions) - len(newest)} older ones" if len(newest) < len(self.versions) else ""
        raise UnknownVersion(
            f"there is no version or alias {name[:128]!r}; versions: {', '.join(newest) or 'none'}{more}; "
            f"aliases: {', '.join(self.aliases) or 'none'}"
        )


class Watcher:
    """Keeps `snapshot` up to date. All traffic with the store but the download of versions goes through it."""

    def __init__(
        self, store: Store, poll_seconds: float, instance: str, held: Callable[[], list[str]], metrics: Metrics
    ) -> None:
        """`held`: the versions in memory, for the lease of this service, which is named `instance`."""
        self.store = store
        self.instance = instance
        self.snapshot = Snapshot()
        self.polled = asyncio.Event()  #: set after every poll that succeeds
        self.error: str | None = None  #: why the store could not be read at the last poll
        self._poll_seconds = poll_seconds
        self._held = held
        self._metrics = metrics
        self._turn = asyncio.Lock()
        self._patience = Patience(store.url)
        self._polled_at = time.monotonic()
        self._leased: list[str] = []
        self._leased_at = 0.0
        self._lease_failed = False

    async def run(self) -> None:
        """Polls until cancelled."""
        while True:
            await asyncio.sleep(self._poll_seconds)
            try:
                with suppress(StoreError):  # which `poll` told already
                    await self.poll()
            except Exception:
                log.exception("a poll failed in an unexpected way; trying again")

    async def poll(self) -> None:
        """:raises StoreError: if the store cannot be read, or not in time; the snapshot stays as it was."""
        async with self._turn:
            before = self.snapshot
            try:
                self.snapshot = await self.do(self._read)
            except StoreError as error:
                self._metrics.failed_polls.inc()
                if self.error is None:
                    log.error("the store cannot be read; %s goes on with what it has: %s", self.instance, error)
                self.error = str(error)
                raise
            if self.error is not None:
                log.info("the store can be read again")
                self.error = None
            for name in self.snapshot.unreadable.keys() - before.unreadable.keys():
                log.error("the alias %s stays as it was: %s", name, self.snapshot.unreadable[name])
            self._polled_at = time.monotonic()
            self.polled.set()
            try:
                await self.do(self._renew_lease, self._held())
            except StoreError as error:
                self._tell_of_lease(error)

    def trouble(self) -> str | None:
        """Why the store, or a part of it, could not be read at the last poll."""
        return self.error or "; ".join(self.snapshot.unreadable.values()) or None

    def age_seconds(self) -> float:
        """Since the last poll that succeeded, or the start."""
        return time.monotonic() - self._polled_at

    async def do(self, operation: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """One operation of the store, in a thread.

        :raises StoreError: also if it takes longer than `STORE_SECONDS`.
        """
        return await self._patience.call(STORE_SECONDS, operation, *args, **kwargs)

    async def stop(self) -> None:
        with suppress(StoreError):  # it ends by itself in an hour
            await self._patience.call(STOP_SECONDS, self.store.drop_lease, self.instance)

    def _read(self) -> Snapshot:
        before = self.snapshot
        aliases: dict[str, Alias] = {}
        unreadable: dict[str, str] = {}
        for name in self.store.alias_names():
            try:
                alias = self.store.alias(name)
            except AliasError as error:
                unreadable[name] = str(error)
                alias = before.aliases.get(name)
            if alias:
                aliases[name] = alias
        versions = tuple(self.store.versions())
        if before.versions and not versions:  # aliases may have been read before it went away
            raise StoreError(
                f"{self.store.url} is empty or gone, it had {len(before.versions)} versions: mount its volume, or "
                "bring its directory back"
            )
        return Snapshot(aliases, versions, unreadable)

    def _renew_lease(self, held: list[str]) -> None:
        now = time.monotonic()
        if not held or (held == self._leased and now - self._leased_at < RENEW_SECONDS):
            return
        self.store.renew_lease(self.instance, held)
        self._leased, self._leased_at, self._lease_failed = held, now, False

    def _tell_of_lease(self, error: StoreError) -> None:
        if not self._lease_failed:
            log.warning("this service cannot say in the store what it serves, so a clean-up may remove it: %s", error)
        self._lease_failed = True
