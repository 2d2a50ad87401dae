"""The parts of a run, made by the actors of a Ray cluster.

Rows are sent to the actors, which encode and write; receipts come back. An actor has one part at a time. What is lost
with an actor, a node or this process is made again: a part may be made any number of times. So neither Ray's lineage
nor its restarts are needed, and a cluster may shrink and grow meanwhile.
"""

from __future__ import annotations

import logging
import socket
import sys
from collections import Counter, deque
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from app.bulk.files import RunError
from app.bulk.making import Job, Made, Maker, Part
from app.bulk.patience import Say

LOCAL = "local"
PROBE_SECONDS = 5.0
LOOK_SECONDS = 60.0  #: between lines that say what is waited for
MOST_LOST = 5  #: actors at one part, and of each place before one is ready
OBJECT_STORE_BYTES = 200_000_000  #: of a cluster that is started here; parts are a few megabytes


class Actor:
    """Makes parts in a process of its own."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def ready(self) -> None:
        """Apart from the constructor, whose failure would come without its message."""
        self._maker = Maker(self._job)

    def make(self, part: Part) -> Made:
        return self._maker.make(part)


@contextmanager
def cluster(address: str, say: Say) -> Iterator[None]:
    """Connects to the cluster at `address`, HOST:PORT, or starts one on this machine for `local`.

    :raises RunError: if there is none, or it cannot be used from here.
    """
    if address != LOCAL:
        _probe(address)
    options: dict[str, Any] = {"logging_level": logging.ERROR}
    if address == LOCAL:
        options |= {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    try:
        context = ray.init(address=address, **options)
    except Exception as error:  # Ray raises plain ones, such as of a start that took more than 30 s
        raise RunError(
            f"Ray at {address} cannot be used ({error}): this command must run on a node of the cluster, with its "
            "versions of Ray and Python, and HOME must be a directory that can be written"
        ) from error
    try:
        if context.dashboard_url:
            say(f"Ray's dashboard: http://{context.dashboard_url}")
        yield
    finally:
        ray.shutdown()


def _probe(address: str) -> None:
    """Ray waits for a dead address for a minute and more, and says nothing."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "://" in address:
        raise RunError(
            f"--address {address} is neither local nor HOST:PORT: give the address of the cluster's head (port 6379 as "
            "a rule), and run this command on one of its nodes"
        )
    try:
        socket.create_connection((host, int(port)), PROBE_SECONDS).close()
    except OSError as error:
        raise RunError(
            f"no Ray cluster answers at {address} ({error}): is it the head's address, and does it run?"
        ) from error


class OnRay:
    """A way to make parts; see `app.bulk.run.Way`. Only inside of `cluster`."""

    def __init__(self, processes: int | None, cpus: int, gpus: int, say: Say) -> None:
        """`processes`: None for as many as there is room for now, of `cpus` and `gpus` each; `cpus` 0 for all of the
        smallest node.

        :raises RunError: if there is room for none.
        """
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        self._cpus = cpus or min((int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1), default=1)
        self._gpus, self._say = gpus, say
        room = [
            min(int(node.get("CPU", 0)) // self._cpus, int(node.get("GPU", 0)) // gpus if gpus else sys.maxsize)
            for node in nodes
        ]
        self._processes = processes or sum(room)
        if not self._processes:
            raise RunError(
                f"no node of the cluster has {_sizes(self._cpus, gpus)} for one process: give --threads, or "
                "--concurrency if nodes are still to come"
            )
        say(f"{self._processes} processes of {_sizes(self._cpus, gpus)}; Ray has {len(nodes)} nodes")

    def __call__(self, job: Job, parts: Iterator[Part]) -> Generator[tuple[Part, Made], None, None]:
        if (first := next(parts, None)) is None:
            return
        job = replace(job, model=replace(job.model, threads=self._cpus))
        actors = ray.remote(num_cpus=self._cpus, num_gpus=self._gpus, max_restarts=0, max_task_retries=0)(Actor)
        yield from _Pool(actors, ray.put(job), chain([first], parts), self._say).run(self._processes)


class _Pool:
    """Gives parts to actors one by one, and begins another actor for each that is lost."""

    def __init__(self, actors: Any, job: Any, parts: Iterator[Part], say: Say) -> None:
        self._actors, self._job, self._say = actors, job, say
        self._parts: Iterator[Part] | None = parts
        self._again: deque[Part] = deque()  # of actors that were lost
        self._lost: Counter[str] = Counter()  # by the name of the part
        self._beginning: dict[Any, Any] = {}  # actors, by what they answer with
        self._working: dict[Any, tuple[Any, Part]] = {}
        self._idle: list[Any] = []
        self._not_begun = 0  # lost actors since one was ready
        self._most_not_begun = 0

    def run(self, processes: int) -> Iterator[tuple[Part, Made]]:
        self._most_not_begun = MOST_LOST * processes
        for _ in range(processes):
            self._begin()
        while self._parts is not None or self._again or self._working:
            answers, _ = ray.wait([*self._working, *self._beginning], timeout=LOOK_SECONDS)
            if not answers:
                self._say(
                    f"{len(self._working)} processes work, {len(self._beginning)} wait for a place; free in Ray: "
                    f"{ray.available_resources().get('CPU', 0):.0f} CPUs"
                )
                continue
            actor, part = self._working.pop(answers[0], None) or (self._beginning.pop(answers[0]), None)
            try:
                made = ray.get(answers[0])
            except RayTaskError as error:
                raise error.cause if isinstance(error.cause, Exception) else error from error
            except RayError as error:  # the actor is gone, or what it answered
                self._make_again(part, str(error))
                continue
            if part:
                yield part, made
            else:
                self._not_begun = 0
            self._idle.append(actor)
            self._give()

    def _begin(self) -> None:
        actor = self._actors.remote(self._job)
        self._beginning[actor.ready.remote()] = actor

    def _give(self) -> None:
        """A part to every actor that has none, while there are parts."""
        while self._idle and (part := self._next()):
            actor = self._idle.pop()
            self._working[actor.make.remote(part)] = actor, part

    def _next(self) -> Part | None:
        if self._again:
            return self._again.popleft()
        part = next(self._parts, None) if self._parts is not None else None
        if part is None:
            self._parts = None
        return part

    def _make_again(self, part: Part | None, why: str) -> None:
        if part is None:
            self._say(f"a process was lost before it was ready, another is begun ({why.splitlines()[0]})")
            self._not_begun += 1
            if self._not_begun == self._most_not_begun:
                raise RunError(
                    f"{self._not_begun} processes in a row were lost before one was ready: give them more memory, or "
                    f"every node the software of this one. Of the last: {' '.join(why.split())}"
                )
        else:
            self._say(f"a process was lost, and what it worked at is done again ({why.splitlines()[0]})")
            self._lost[part.name] += 1
            if self._lost[part.name] == MOST_LOST:
                raise RunError(
                    f"{MOST_LOST} processes were lost at the part {part.name}, {len(part.rows)} rows of {part.path}: "
                    "give them more memory, or --part-rows fewer"
                )
            self._again.append(part)
        self._begin()
        self._give()


def _sizes(cpus: int, gpus: int) -> str:
    return f"{cpus} CPUs{f' and {gpus} GPU' if gpus else ''}"
