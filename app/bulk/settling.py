"""An index after the last document: every copy of it there, and few segments."""

from __future__ import annotations

import time
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from app.bulk.files import SinkError
from app.bulk.patience import Patience, Say, may_pass
from app.opensearch.cluster import Cluster, RequestFailed, error_text
from app.opensearch.facts import OpenSearchError

PAUSE_SECONDS = 1.0
SECONDS_BETWEEN_LINES = 30.0


class Settling:
    """Of the index `name`; whatever may pass is waited for."""

    def __init__(self, cluster: Cluster, name: str, patience_seconds: float, say: Say) -> None:
        self._cluster, self._name = cluster, name
        self._patience_seconds, self._say = patience_seconds, say

    def merge(self) -> str:
        """Into one segment a shard, which searches go through quickest; it may take as long as the writing did.

        :raises OpenSearchError: if it is refused, or fails.
        :raises SinkError: if the cluster was away for long.
        """
        path = f"/{quote(self._name)}/_forcemerge?max_num_segments=1&wait_for_completion=false"
        why = _failure(self._ended(self._ask("POST", path)["task"]))
        self._ask("POST", f"/{quote(self._name)}/_refresh")  # so that searches see the new segments
        found = self._ask("GET", f"/{quote(self._name)}/_segments")["indices"]
        copies = [copy for index in found.values() for shard in index["shards"].values() for copy in shard]
        more = sum(copy["num_search_segments"] > 1 for copy in copies)
        if why:
            raise OpenSearchError(f"{self._name} is written, but not merged ({why}): the same command merges it")
        if more:
            return f"{self._name} has been merged, but {more} of its {len(copies)} copies have several segments again"
        return f"{self._name} is merged into one segment a shard"

    def _ended(self, task: str) -> Mapping[str, Any]:
        """What a task says in the end."""
        started = told = time.monotonic()
        while True:
            try:
                answer: dict[str, Any] = self._ask("GET", f"/_tasks/{quote(task, safe=':')}")
            except RequestFailed as error:
                if error.status != HTTPStatus.NOT_FOUND:
                    raise
                return {"error": {"type": "task", "reason": "the node that merged it has been started again"}}
            if answer["completed"]:
                return answer
            if time.monotonic() - told > SECONDS_BETWEEN_LINES:
                told = time.monotonic()
                self._say(f"{self._name} is being merged for {told - started:,.0f} s")
            time.sleep(PAUSE_SECONDS)

    def wait_for_copies(self) -> str:
        """As long as they may come: a copy for which there is no node is told, and so is a cluster that may not be
        asked.

        :raises SinkError: if documents are missing, or the cluster was away for long.
        """
        started = told = time.monotonic()
        while True:
            try:
                health = self._ask("GET", f"/_cluster/health/{quote(self._name)}?level=indices")
            except RequestFailed as error:
                return f"whether {self._name} has all its copies cannot be seen ({error})"
            if health["status"] == "green":
                return f"{self._name} is green: all copies of its shards are there"
            missing = health["unassigned_shards"] + health["initializing_shards"]
            what = f"{self._name} is {health['status']}: {missing} copies of its shards are not there"
            if without_node(health):
                nodes = health["number_of_data_nodes"]
                return f"{what}, for which there are too few data nodes ({nodes}): add some, or set fewer replicas"
            waited = time.monotonic() - started
            if waited > self._patience_seconds:
                what = f"{what} after {waited:,.0f} s: GET /_cluster/allocation/explain says why"
                if health["status"] == "red":
                    raise SinkError(f"{what}. The same command ends the run when they are back")
                return what
            if time.monotonic() - told > SECONDS_BETWEEN_LINES:
                told = time.monotonic()
                self._say(f"{what} yet")
            time.sleep(PAUSE_SECONDS)

    def _ask(self, method: str, path: str) -> Any:
        patience = Patience(self._name, self._patience_seconds, self._say)
        while True:
            try:
                return self._cluster.request(method, path)
            except OpenSearchError as error:
                if not may_pass(error):
                    raise
                patience.wait(f"{self._name} waits", str(error))


def without_node(health: Mapping[str, Any]) -> bool:
    """Whether the copies that are missing are those without a data node, by an answer of _cluster/health."""
    nodes = health["number_of_data_nodes"]
    for_ever = sum(
        index["number_of_shards"] * max(0, index["number_of_replicas"] + 1 - nodes)
        for index in health["indices"].values()
    )
    coming = health["initializing_shards"] + health["delayed_unassigned_shards"]
    return health["status"] == "yellow" and not coming and health["unassigned_shards"] <= for_ever


def _failure(task: Mapping[str, Any]) -> str:
    """Why a task is not done, or not on all shards; empty if it is."""
    if error := task.get("error"):
        return error_text(error)
    failed = task["response"]["_shards"].get("failures", [])
    return error_text(failed[0]["reason"]) if failed else ""
