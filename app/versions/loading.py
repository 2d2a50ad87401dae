"""From a version in the store to a model that may be served, step by step, or a reason why not."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from hashlib import sha256
from pathlib import Path
from traceback import clear_frames

from app.encoders.base import EncoderError
from app.metrics import Metrics
from app.models import memory
from app.models.loaded import Load, LoadedModel, ModelError, check_golden, check_memory
from app.versions.gates import Rules, check_canary, check_vocabulary
from app.versions.patience import Patience
from app.versions.resident import Versions
from sparse_encoder.artifact import Artifact, ArtifactError, read_artifact
from sparse_encoder.store import Store, StoreError, UnknownVersionError

#: The steps at which a version can be refused.
STAGES = ("fetch", "vocabulary", "memory", "load", "golden", "canary")
#: That the files of a version may take to come.
FETCH_SECONDS = 600.0
#: Of downloads that this process did not make. One that was used longer ago is of no use; one as young as `YOUNG` may
#: be in the making; of those between so many stay.
LEFT_AFTER_SECONDS, YOUNG_SECONDS, MOST_LEFT = 3600.0, 600.0, 3

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
        self._patience = Patience(store.url)
        self._downloads = cache_dir / "downloaded"
        self._last_served = cache_dir / "served"
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
        artifact = None
        if loaded is None:
            artifact = await self._patience.call(FETCH_SECONDS, self._fetch, version, superseded)
        work = partial(self._load, version, loaded, artifact, served, trusted, superseded)
        let_go: list[str] = []
        try:
            while True:
                try:
                    return await self._in_thread(work)
                except Refused as refused:
                    if refused.stage != "memory" or (idle := await self._versions.make_room()) is None:
                        raise
                    let_go.append(idle)
        except (Refused, Superseded):
            await self._bring_back(let_go)
            raise

    async def load_last(self, alias: str) -> LoadedModel | None:
        """The version that was served last under `alias` from this store, of those that were downloaded.

        :raises Refused: if it is damaged or cannot be loaded.
        """
        version, path = await asyncio.to_thread(self._read_last, alias)
        if path is None:
            return None
        artifact = await asyncio.to_thread(self._open_last, version, path)
        return await self._in_thread(partial(self._load, version, None, artifact, None, True, lambda: False))

    async def remember(self, alias: str, version: str) -> None:
        """For `load_last` of a later start; a version that is read in place cannot be remembered."""
        if path := self._downloaded.get(version):
            await asyncio.to_thread(self._write_last, alias, {"version": version, "directory": path.name})

    async def clean_cache(self, keep: Iterable[str]) -> None:
        """Deletes what was downloaded for versions other than `keep`; what others downloaded, once it is old."""
        for version in self._downloaded.keys() - set(keep):
            await asyncio.to_thread(shutil.rmtree, self._downloaded.pop(version), True)
        await asyncio.to_thread(_delete_left, self._downloads, set(self._downloaded.values()))

    def stop(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _in_thread(self, work: Callable[[], LoadedModel]) -> LoadedModel:
        return await asyncio.get_running_loop().run_in_executor(self._thread, _or_free, work)

    async def _bring_back(self, versions: list[str]) -> None:
        """Those that left for one which failed, as far as they can be had."""
        for version in versions:
            try:
                artifact = await self._patience.call(FETCH_SECONDS, self._fetch, version, lambda: False)
                work = partial(self._load, version, None, artifact, None, True, lambda: False)
                self._versions.add(await self._in_thread(work))
            except (Refused, StoreError) as error:
                log.error("%s left to make room, and does not come back: %s", version, error)

    def _fetch(self, version: str, superseded: Callable[[], bool]) -> Artifact:
        with self._stage(version, "fetch", superseded):
            artifact = self._store.fetch(version, self._downloads)
        if artifact.path.is_relative_to(self._downloads):
            self._downloaded[version] = artifact.path
            with suppress(OSError):  # perhaps a directory that is only read
                os.utime(artifact.path)  # so that others see that it is in use
        return artifact

    def _load(
        self,
        version: str,
        loaded: LoadedModel | None,
        artifact: Artifact | None,
        served: LoadedModel | None,
        trusted: bool,
        superseded: Callable[[], bool],
    ) -> LoadedModel:
        """One of `loaded` and `artifact` is given."""
        stage = partial(self._stage, version, superseded=superseded)
        if served:
            with stage("vocabulary"):
                manifest = artifact.manifest if artifact else loaded.manifest if loaded else None
                assert manifest
                check_vocabulary(manifest, served.manifest, self._rules)
        if artifact:
            with stage("memory"):
                check_memory(artifact.manifest.weight_bytes, memory.available_bytes())
            with stage("load"):
                loaded = self._load_artifact(artifact)
            with stage("golden"):
                check_golden(loaded)
        assert loaded
        with stage("canary"):
            check_canary(loaded, None if trusted else served, self._rules)
        if superseded():
            raise Superseded
        return loaded

    def _last(self, alias: str) -> Path:
        of = sha256(f"{self._store.url}\n{alias}".encode()).hexdigest()[:16]
        return self._last_served / f"{of}.json"

    def _read_last(self, alias: str) -> tuple[str, Path | None]:
        try:
            record = json.loads(self._last(alias).read_text(encoding="utf-8"))
            version, path = str(record["version"]), self._downloads / str(record["directory"])
        except (OSError, ValueError, KeyError, TypeError):
            return "", None
        return version, path if path.is_dir() else None

    def _write_last(self, alias: str, record: dict[str, str]) -> None:
        target = self._last(alias)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f".{target.name}.{os.getpid()}")
            temporary.write_text(json.dumps({"store": self._store.url, "alias": alias, **record}), encoding="utf-8")
            temporary.replace(target)
        except OSError as error:
            log.warning("a start without the store will not find %s: %s", record["version"], error)

    def _open_last(self, version: str, path: Path) -> Artifact:
        with self._stage(version, "fetch", lambda: False):
            artifact = read_artifact(path)
        self._downloaded[version] = path
        return artifact

    @contextmanager
    def _stage(self, version: str, name: str, superseded: Callable[[], bool]) -> Iterator[None]:
        """Times a step and turns what goes wrong in it into a reason; only a store that is away is none."""
        if superseded():
            raise Superseded
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
    ages: dict[Path, float] = {}
    for path in downloads.iterdir() if downloads.is_dir() else ():
        with suppress(OSError):  # another deletes it too
            if path not in kept:
                ages[path] = time.time() - path.stat().st_mtime
    between = sorted((path for path in ages if ages[path] > YOUNG_SECONDS), key=ages.__getitem__)
    for number, path in enumerate(between, start=1):
        if number > MOST_LEFT or ages[path] > LEFT_AFTER_SECONDS:
            try:
                shutil.rmtree(path)
            except OSError as error:
                log.warning("%s is of no use any more and cannot be deleted: %s", path, error)


def _or_free(work: Callable[[], LoadedModel]) -> LoadedModel:
    """Tracebacks hold the model that failed, which would be freed on the event loop and stop it meanwhile, or stay
    until the collector of garbage comes."""
    outcome: list[Exception] = []  # no variable is the error itself: it refers to this frame
    try:
        return work()
    except (Refused, Superseded) as error:
        cause: BaseException | None = error
        while cause:
            clear_frames(cause.__traceback__)
            cause = cause.__cause__ or cause.__context__
        error.__cause__ = error.__context__ = None
        outcome.append(error.with_traceback(None))
    memory.give_back_freed_memory()
    raise outcome.pop()
