"""From a version in the store to a model that may be served, step by step, or a reason why not."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from app.encoders.base import EncoderError
from app.metrics import Metrics
from app.models import memory
from app.models.loaded import Load, LoadedModel, ModelError, check_golden, check_memory
from app.versions.gates import Rules, check_canary, check_lengths, check_vocabulary
from app.versions.resident import Versions
from sparse_encoder.artifact import ArtifactError
from sparse_encoder.store import Store, StoreError, UnknownVersionError

#: The steps at which a version can be refused.
STAGES = ("fetch", "vocabulary", "memory", "load", "golden", "canary")
#: Of a download that this process did not make: its last use is longer ago, so it is of no use.
LEFT_AFTER_SECONDS = 3600.0

log = logging.getLogger(__name__)


class Refused(Exception):
    """A version that must not be served: damaged, wrong, too large, or unlike the one that is."""

    def __init__(self, version: str, stage: str, reason: str) -> None:
        super().__init__(f"{version} is refused at {stage}: {reason}")
        self.version = version
        self.stage = stage
        self.reason = reason


class Superseded(Exception):
    """The version is not wanted any more; loading it was given up."""


class Loader:
    """Loads in one thread, so that requests go on meanwhile. Whoever loads takes `turn` first: one loads at a time."""

    def __init__(
        self,
        store: Store,
        cache_dir: Path,
        load: Load,
        rules: Rules,
        versions: Versions,
        metrics: Metrics,
    ) -> None:
        self.turn = asyncio.Lock()
        self._store = store
        self._downloads = cache_dir / "downloaded"
        self._load_artifact = load
        self._rules = rules
        self._versions = versions
        self._metrics = metrics
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="load")
        self._downloaded: dict[str, Path] = {}

    async def load(
        self,
        version: str,
        served: LoadedModel | None = None,
        *,
        trusted: bool = False,
        superseded: Callable[[], bool] = lambda: False,
    ) -> LoadedModel:
        """`version`, which passed every check.

        With `served` it is to take the place of that one: it must have its vocabulary and, unless `trusted`, resemble
        it. `superseded` is asked, in the thread, between the steps. If memory is short, idle versions leave first.

        :raises Refused: if it must not be served.
        :raises Superseded: if it is not wanted any more.
        :raises StoreError: if the store cannot be reached.
        """
        resident = self._versions.get(version)
        loaded = resident.model if resident else None
        loop = asyncio.get_running_loop()
        while True:
            try:
                work = partial(self._load, version, loaded, served, trusted, superseded)
                return await loop.run_in_executor(self._thread, _or_free, work)
            except Refused as refused:
                if refused.stage != "memory" or not await self._versions.make_room():
                    raise

    async def clean_cache(self, keep: Iterable[str]) -> None:
        """Deletes what was downloaded for versions other than `keep`; what others downloaded, once it is old."""
        for version in self._downloaded.keys() - set(keep):
            await asyncio.to_thread(shutil.rmtree, self._downloaded.pop(version), True)
        await asyncio.to_thread(_delete_left, self._downloads, set(self._downloaded.values()))

    def stop(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _load(
        self,
        version: str,
        loaded: LoadedModel | None,
        served: LoadedModel | None,
        trusted: bool,
        superseded: Callable[[], bool],
    ) -> LoadedModel:
        @contextmanager
        def stage(name: str) -> Iterator[None]:
            if superseded():
                raise Superseded
            with self._stage(version, name):
                yield

        artifact = None
        if loaded:
            manifest = loaded.manifest
        else:
            with stage("fetch"):
                artifact = self._store.fetch(version, self._downloads)
            manifest = artifact.manifest
            if artifact.path.is_relative_to(self._downloads):
                self._downloaded[version] = artifact.path
                with suppress(OSError):  # perhaps a directory that is only read
                    os.utime(artifact.path)  # so that others see that it is in use
        if served:
            with stage("vocabulary"):
                check_vocabulary(manifest, served.manifest, self._rules)
        if artifact:
            with stage("memory"):
                check_memory(manifest.weight_bytes, memory.available_bytes())
            with stage("load"):
                check_lengths(manifest, self._rules)
                loaded = self._load_artifact(artifact)
            with stage("golden"):
                check_golden(loaded)
        assert loaded
        with stage("canary"):
            check_canary(loaded, None if trusted else served, self._rules)
        if superseded():
            raise Superseded
        return loaded

    @contextmanager
    def _stage(self, version: str, name: str) -> Iterator[None]:
        """Times a step and turns what goes wrong in it into a reason; only a store that is away is none."""
        started = time.perf_counter()
        try:
            yield
        except (ArtifactError, ModelError, EncoderError, UnknownVersionError) as error:
            raise Refused(version, name, str(error)) from error
        except StoreError:
            raise
        except Exception as error:
            log.exception("loading %s failed at %s in an unexpected way", version, name)
            raise Refused(version, name, f"{type(error).__name__}: {error}") from error
        finally:
            self._metrics.swap_stage_seconds.labels(name).observe(time.perf_counter() - started)


def _delete_left(downloads: Path, kept: set[Path]) -> None:
    """What processes that ended downloaded, wholly or not; one that runs may be at work with what is young."""
    for path in downloads.iterdir() if downloads.is_dir() else ():
        try:
            if path not in kept and time.time() - path.stat().st_mtime > LEFT_AFTER_SECONDS:
                shutil.rmtree(path)
        except OSError as error:
            log.warning("%s is of no use any more and cannot be deleted: %s", path, error)


def _or_free(work: Callable[[], LoadedModel]) -> LoadedModel:
    """Tracebacks hold the model that failed, which would be freed on the event loop and stop it meanwhile."""
    try:
        return work()
    except (Refused, Superseded) as error:
        outcome = error.with_traceback(None)
        outcome.__cause__ = outcome.__context__ = None
    memory.give_back_freed_memory()
    raise outcome
