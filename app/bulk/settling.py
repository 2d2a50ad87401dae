"""An index after the last document: few segments, and every copy of it there."""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import quote

from app.bulk.patience import Say
from app.opensearch.cluster import Cluster, error_text
from app.opensearch.facts import OpenSearchError

PAUSE_SECONDS = 1.0
SECONDS_BETWEEN_LINES = 30.0


def merge(cluster: Cluster, name: str, say: Say) -> str:
    """Into one segment a shard, which is what searches go through quickest; it may take as long as the writing did.

    :raises OpenSearchError: if it cannot be begun, or is not ended.
    """
    path = f"/{quote(name)}/_forcemerge?max_num_segments=1&wait_for_completion=false"
    task = quote(cluster.request("POST", path)["task"], safe=":")
    told = started = time.monotonic()
    while not (answer := cluster.request("GET", f"/_tasks/{task}"))["completed"]:
        if time.monotonic() - told > SECONDS_BETWEEN_LINES:
            told = time.monotonic()
            say(f"{name} is being merged for {told - started:,.0f} s")
        time.sleep(PAUSE_SECONDS)
    if error := _failure(answer):
        raise OpenSearchError(f"{name} was written, but not merged ({error}): the same command merges it")
    return f"{name} is merged into one segment a shard"


def _failure(task: dict[str, Any]) -> str:
    """Why a task is not done, or not on all shards; empty if it is."""
    if error := task.get("error"):
        return error_text(error)
    failed = task["response"]["_shards"].get("failures", [])
    return error_text(failed[0]["reason"]) if failed else ""


def wait_for_copies(cluster: Cluster, name: str, seconds: float, say: Say) -> str:
    """Until the index is green, as long as that can be hoped for: a copy for which there is no node is told, and so is
    a cluster that does not say how it is."""
    started = told = time.monotonic()
    while True:
        try:
            health = cluster.request("GET", f"/_cluster/health/{quote(name)}?level=indices")
        except OpenSearchError as error:
            return f"whether {name} is green cannot be seen ({error})"
        if health["status"] == "green":
            return f"{name} is green"
        missing = health["unassigned_shards"] + health["initializing_shards"]
        nodes = health["number_of_data_nodes"]
        copies = 1 + max(index["number_of_replicas"] for index in health["indices"].values())
        what = f"{name} is {health['status']}: {missing} copies of its shards are not there"
        if health["initializing_shards"] == 0 and nodes < copies:
            return f"{what}, since {copies} copies of each need as many data nodes, and there are {nodes}"
        waited = time.monotonic() - started
        if waited > seconds:
            return f"{what} after {waited:,.0f} s: GET /_cluster/allocation/explain says why"
        if time.monotonic() - told > SECONDS_BETWEEN_LINES:
            told = time.monotonic()
            say(f"{what} yet")
        time.sleep(PAUSE_SECONDS)
