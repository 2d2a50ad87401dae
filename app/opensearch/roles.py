"""Roles for a cluster with the security plugin: who sets up, who indexes, who searches. Least privilege. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

#: Whose documents are encoded, or whose queries: OpenSearch asks the model as that user.
PREDICT = "cluster:admin/opensearch/ml/predict"
OPERATOR_CLUSTER = (
    "cluster:monitor/main",
    "cluster:monitor/nodes/info",
    "cluster:monitor/state",
    "cluster:admin/settings/update",
    *(
        f"cluster:admin/{kind}/pipeline/{action}"
        for kind in ("ingest", "search")
        for action in ("get", "put", "delete")
    ),
    "cluster:admin/ingest/pipeline/simulate",
    *(
        f"cluster:admin/opensearch/ml/{action}"
        for action in (
            "create_connector",
            "deploy_model",
            "register_model",
            "register_model_group",
            "register_model_meta",
            "undeploy_model",
            "undeploy_models",
            "upload_model_chunk",
            *(f"connectors/{action}" for action in ("get", "search", "delete")),
            *(f"models/{action}" for action in ("get", "search", "delete")),
            *(f"model_groups/{action}" for action in ("get", "search", "delete")),
        )
    ),
    PREDICT,
    # Cluster permissions in spite of their names.
    *(f"indices:admin/index_template/{action}" for action in ("get", "put", "delete", "simulate", "simulate_index")),
    "indices:data/read/mget",
    "indices:data/read/scroll",
    "indices:data/read/scroll/clear",
    "indices:data/write/bulk",
)
OPERATOR_INDICES = (
    *(f"indices:admin/{action}" for action in ("aliases", "aliases/get", "create", "delete", "get", "refresh*")),
    "indices:admin/mapping/put",
    "indices:admin/resolve/index",
    "indices:admin/settings/update",
    "indices:data/read/*",
    "indices:data/write/*",
    "indices:monitor/settings/get",
)
INDEXER_INDICES = ("indices:admin/create", "indices:admin/mapping/put", "indices:data/write/*")


def roles(name: str, patterns: Sequence[str]) -> dict[str, Any]:
    """As in the `roles.yml` of the security plugin; JSON is YAML. `patterns`: of the indices of the set-up `name`."""
    everywhere = {"index_patterns": ["*"], "allowed_actions": ["indices:monitor/settings/get"]}
    return {
        f"{name}-operator": _role(OPERATOR_CLUSTER, patterns, OPERATOR_INDICES, everywhere),
        f"{name}-indexer": _role((PREDICT, "indices:data/write/bulk"), patterns, INDEXER_INDICES),
        f"{name}-searcher": _role((PREDICT,), patterns, ("indices:data/read/search*", "indices:data/read/get")),
    }


def _role(
    cluster: Sequence[str], patterns: Sequence[str], actions: Sequence[str], *more: dict[str, Any]
) -> dict[str, Any]:
    own = {"index_patterns": list(patterns), "allowed_actions": list(actions)}
    return {"cluster_permissions": list(cluster), "index_permissions": [own, *more]}
