"""Roles of OpenSearch's security plugin for whoever sets up, indexes and searches, with what each needs. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

PREDICT = "cluster:admin/opensearch/ml/predict"  #: encodes a text; who indexes or searches does so
SETTINGS = "cluster:admin/settings/update"
SEES_CLUSTER = [
    "cluster:monitor/health",
    "cluster:monitor/main",
    "cluster:monitor/nodes/info",
    "cluster:monitor/state",
    "cluster:monitor/task/get",
]
MAKES_RESOURCES = [
    "cluster:admin/ingest/pipeline/delete",
    "cluster:admin/ingest/pipeline/get",
    "cluster:admin/ingest/pipeline/put",
    "cluster:admin/ingest/pipeline/simulate",
    "cluster:admin/opensearch/ml/connectors/delete",
    "cluster:admin/opensearch/ml/connectors/search",
    "cluster:admin/opensearch/ml/create_connector",
    "cluster:admin/opensearch/ml/deploy_model",
    "cluster:admin/opensearch/ml/deploy_model_on_nodes",
    "cluster:admin/opensearch/ml/model_groups/delete",
    "cluster:admin/opensearch/ml/model_groups/search",
    "cluster:admin/opensearch/ml/models/delete",
    "cluster:admin/opensearch/ml/models/get",
    "cluster:admin/opensearch/ml/models/search",
    "cluster:admin/opensearch/ml/register_model",
    "cluster:admin/opensearch/ml/register_model_group",
    "cluster:admin/opensearch/ml/register_model_meta",
    "cluster:admin/opensearch/ml/undeploy_model",
    "cluster:admin/opensearch/ml/undeploy_models",
    "cluster:admin/opensearch/ml/update_model_group",
    "cluster:admin/opensearch/ml/upload_model_chunk",
    "cluster:admin/search/pipeline/delete",
    "cluster:admin/search/pipeline/get",
    "cluster:admin/search/pipeline/put",
    # Permissions of the cluster, in spite of their names.
    "indices:admin/index_template/delete",
    "indices:admin/index_template/get",
    "indices:admin/index_template/put",
    "indices:admin/index_template/simulate",
    "indices:admin/index_template/simulate_index",
]
#: Permissions of the cluster as well, because such a request may name any index.
SCROLLS = ["indices:data/read/scroll", "indices:data/read/scroll/clear"]
OF_ANY_INDEX = ["indices:data/write/bulk", "indices:data/read/mget", *SCROLLS]
MAKES_INDICES = [
    "indices:admin/create",
    "indices:admin/delete",
    "indices:admin/get",
    "indices:admin/aliases*",
    "indices:admin/forcemerge*",
    "indices:admin/mapping/put",
    "indices:admin/refresh*",
    "indices:admin/resolve/index",
    "indices:admin/settings/update",
    "indices:monitor/segments*",
    "indices:monitor/settings/get",
]
WRITES = [f"indices:data/write/{what}" for what in ("index", "delete", "update", "bulk*")]
READS = [f"indices:data/read/{what}" for what in ("get", "search", "mget*", "explain")]


def make_roles(name: str, patterns: Sequence[str], *, cluster_settings: bool) -> dict[str, Any]:
    """Roles by their names, for the set-up `name` and indices of the `patterns`.

    `cluster_settings`: the operator may change those of the cluster, as a set-up does where they are not right.
    """
    of_operator = [*SEES_CLUSTER, *([SETTINGS] if cluster_settings else []), *MAKES_RESOURCES, PREDICT, *OF_ANY_INDEX]
    return {
        f"{name}-operator": {
            "description": f"sets up, checks, copies and removes {name}",
            "cluster_permissions": of_operator,
            "index_permissions": [
                _on([f"{name}-*", *patterns], MAKES_INDICES, WRITES, READS),
                # To see which use the pipelines, or models in fields of the type semantic.
                _on(["*"], ["indices:monitor/settings/get", "indices:admin/mappings/get"]),
            ],
        },
        f"{name}-indexer": {
            "description": f"indexes, changes and deletes documents of {name}",
            "cluster_permissions": [PREDICT, "indices:data/write/bulk"],
            "index_permissions": [_on(patterns, ["indices:admin/create"], ["indices:admin/mapping/put"], WRITES)],
        },
        f"{name}-searcher": {
            "description": f"searches {name}",
            "cluster_permissions": [PREDICT, "indices:data/read/msearch", *SCROLLS],
            "index_permissions": [_on(patterns, ["indices:data/read/get", "indices:data/read/search"])],
        },
    }


def _on(patterns: Sequence[str], *actions: Sequence[str]) -> dict[str, Any]:
    return {
        "index_patterns": list(dict.fromkeys(patterns)),
        "allowed_actions": [action for part in actions for action in part],
    }


def as_patch(roles: dict[str, Any]) -> list[dict[str, Any]]:
    """What `PATCH /_plugins/_security/api/roles` takes: makes these roles, or replaces those of their names."""
    return [{"op": "add", "path": f"/{name}", "value": role} for name, role in roles.items()]
