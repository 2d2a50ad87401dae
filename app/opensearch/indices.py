"""The indices that a set-up concerns, as they are in the cluster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from app.opensearch.cluster import Cluster
from app.opensearch.impact import INGEST, SEARCH, Index, flat, matches


def find_indices(cluster: Cluster, pipeline: str, pattern: str | None = None) -> list[Index]:
    """Those that use `pipeline`, for ingest or for search, or whose name fits `pattern`; by name."""
    settings = cluster.request("GET", f"/_all/_settings/{INGEST},{SEARCH}?flat_settings=true")
    names = {name for name, index in settings.items() if pipeline in index["settings"].values()}
    if pattern:
        path = f"/{quote(pattern, safe='*')}/_settings?flat_settings=true&ignore_unavailable=true"
        names |= {name for name in cluster.request("GET", path) if matches(pattern, name)}  # not what an alias names
    return [one for name in sorted(names) if (one := find_index(cluster, name))]


def find_index(cluster: Cluster, name: str) -> Index | None:
    """None if there is no such index."""
    answer: Any = cluster.find(f"/{quote(name)}?flat_settings=true")
    if not answer:
        return None
    ((concrete, index),) = answer.items()
    return index_of(concrete, index)


def index_of(name: str, index: Mapping[str, Any]) -> Index:
    """As GET /NAME?flat_settings=true tells it."""
    mapping = index["mappings"]
    return Index(
        name,
        index["settings"],
        flat(mapping.get("properties", {})),
        mapping.get("_meta", {}),
        frozenset(index["aliases"]),
    )
