"""How each kind of resource is found, created and deleted, and how ours are told from others'."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from app.opensearch.cluster import Cluster
from app.opensearch.plan import Kind, Resource

ML = "/_plugins/_ml"
#: Kinds with an id of OpenSearch's making: where they live, what creates one, and where its id is in the answer.
WITH_ID: Mapping[Kind, tuple[str, str, str]] = {
    "model group": (f"{ML}/model_groups", "/_register", "model_group_id"),
    "connector": (f"{ML}/connectors", "/_create", "connector_id"),
    "model": (f"{ML}/models", "/_register?deploy=true", "model_id"),
}
#: Kinds whose name is their id.
NAMED: Mapping[Kind, str] = {
    "ingest pipeline": "/_ingest/pipeline",
    "search pipeline": "/_search/pipeline",
    "index template": "/_index_template",
}
#: The description of everything that setup makes. OpenSearch takes few signs in one.
MARK = "made by python -m app.opensearch setup ({owner}, {fingerprint})"
MARK_PATTERN = re.compile(re.escape(MARK).replace(r"\{owner\}", "(.+)").replace(r"\{fingerprint\}", "([0-9a-f]{12})"))


@dataclass(frozen=True, slots=True)
class Found:
    """A resource that exists."""

    kind: Kind
    name: str
    id: str
    owner: str | None  #: the set-up that made it; None if something else did
    fingerprint: str | None
    state: str | None = None  #: of a model
    edited: bool = False  #: whether somebody changed it since; only seen of pipelines
    body: Mapping[str, Any] = field(default_factory=dict, repr=False)  #: as OpenSearch gives it, if it does

    @property
    def path(self) -> str:
        return path_of(self.kind, self.id)


def path_of(kind: Kind, id_: str) -> str:
    """Where the resource with that id is."""
    return f"{WITH_ID[kind][0] if kind in WITH_ID else NAMED[kind]}/{id_}"


def fingerprint(resource: Resource, body: Mapping[str, Any]) -> str:
    """Of what `resource` is, `body` having the ids of others in place of references."""
    return _fingerprint(resource.tokenizer or body)


def _fingerprint(content: bytes | Mapping[str, Any]) -> str:
    content = content if isinstance(content, bytes) else json.dumps(content, sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()[:12]


def marked(kind: Kind, body: Mapping[str, Any], owner: str, print_: str) -> dict[str, Any]:
    """`body` with the mark of its maker."""
    description = MARK.format(owner=owner, fingerprint=print_)
    return {
        **body,
        **({"_meta": {"description": description}} if kind == "index template" else {"description": description}),
    }


def find(cluster: Cluster, kind: Kind, name: str) -> list[Found]:
    """All resources of the `kind` with that name; of those without an id there is at most one."""
    if kind in WITH_ID:
        return [
            _found_model(cluster, name, hit["_id"])
            if kind == "model"
            else _found(kind, name, hit["_id"], hit["_source"])
            for hit in _search(cluster, kind, {"term": {"name.keyword": name}})
        ]
    answer = cluster.find(f"{NAMED[kind]}/{name}")
    if not answer:
        return []
    if kind == "index template":
        template = answer["index_templates"][0]["index_template"]
        return [replace(_found(kind, name, name, template.get("_meta", {})), body=template)]
    found = _found(kind, name, name, answer[name])
    content = {key: value for key, value in answer[name].items() if key != "description"}
    return [replace(found, edited=found.owner is not None and _fingerprint(content) != found.fingerprint)]


def models_of_others(cluster: Cluster, found: Sequence[Found]) -> list[str]:
    """Names of models that stand on connectors of `found` and are not among them."""
    connectors = [one.id for one in found if one.kind == "connector"]
    ours = {one.id for one in found if one.kind == "model"}
    hits = _search(cluster, "model", {"terms": {"connector_id.keyword": connectors}}) if connectors else []
    return sorted(f"{hit['_source']['name']} ({hit['_id']})" for hit in hits if hit["_id"] not in ours)


def semantic_fields(cluster: Cluster, found: Sequence[Found]) -> dict[str, list[str]]:
    """By the id of a model of `found`, the fields of type `semantic` that name it, as `field of index`."""
    ids = {one.id for one in found if "model_config" in one.body}  # without one, no field can name it
    if not ids:
        return {}
    answer = cluster.request("GET", "/_all/_mapping?filter_path=*.mappings.**.model_id,*.mappings.**.search_model_id")
    users: dict[str, list[str]] = {}
    for index, body in answer.items():
        for name, field_ in _fields(body["mappings"].get("properties", {})):
            for id_ in ids & {field_.get("model_id"), field_.get("search_model_id")}:
                users.setdefault(id_, []).append(f"{name} of {index}")
    return users


def _fields(properties: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Fields that name a model, by their whole names."""
    for name, mapping in properties.items():
        if isinstance(mapping.get("model_id", mapping.get("search_model_id")), str):
            yield f"{prefix}{name}", mapping
        yield from _fields(mapping.get("properties", {}), f"{prefix}{name}.")


def model_ids(cluster: Cluster, owner: str) -> dict[str, str]:
    """`documents`: the id of the model that encodes them, `queries`: of the one for queries; empty if there is none.

    As the pipelines name them, so that they are those in use.
    """
    found = {kind: find(cluster, kind, owner) for kind in ("ingest pipeline", "search pipeline")}
    ids = {}
    for kind, side, key in (
        ("ingest pipeline", "documents", "model_id"),
        ("search pipeline", "queries", "default_model_id"),
    ):
        text = json.dumps(found[kind][0].body) if found[kind] and found[kind][0].owner == owner else ""
        if named := re.search(rf'"{key}": "([^"]+)"', text):
            ids[side] = named[1]
    return ids


def asked_version(found: Sequence[Found]) -> str | None:
    """The version or alias that the connectors among `found` ask for; None if they leave it to the service."""
    for one in found:
        if one.kind == "connector" and (version := re.search(r'"version": "([^"]+)"', _action(one)["request_body"])):
            return version[1]
    return None


def asked_url(found: Sequence[Found]) -> str | None:
    """Where the connectors among `found` send texts to; None if there are none."""
    return next((str(_action(one)["url"]) for one in found if one.kind == "connector"), None)


def _action(connector: Found) -> Mapping[str, Any]:
    action: Mapping[str, Any] = connector.body["actions"][0]
    return action


def _search(cluster: Cluster, kind: Kind, query: Mapping[str, Any]) -> list[dict[str, Any]]:
    body = {"query": query, "size": 100}
    hits: list[dict[str, Any]] = cluster.request("POST", f"{WITH_ID[kind][0]}/_search", body)["hits"]["hits"]
    return hits


def _found(kind: Kind, name: str, id_: str, body: Mapping[str, Any]) -> Found:
    mark = MARK_PATTERN.fullmatch(body.get("description") or "")
    return Found(kind, name, id_, mark and mark[1], mark and mark[2], body=body)


def _found_model(cluster: Cluster, name: str, id_: str) -> Found:
    """Asked for by its id, because a search does not see the latest state."""
    model = cluster.request("GET", f"{ML}/models/{id_}")
    found = _found("model", name, id_, model)
    if found.owner is None and "model_content_hash_value" in model:
        # OpenSearch forgets the description of an uploaded model. Its group and its content tell whose and what it is.
        groups = _search(cluster, "model group", {"ids": {"values": [model["model_group_id"]]}})
        owner = _found("model group", name, id_, groups[0]["_source"]).owner if groups else None
        found = replace(found, owner=owner, fingerprint=model["model_content_hash_value"][:12])
    return replace(found, state=model["model_state"])


def find_all(cluster: Cluster, owner: str) -> list[Found]:
    """Everything that the set-up `owner` made, in an order in which it can be deleted."""
    names = (owner, f"{owner}-documents", f"{owner}-queries")
    kinds: tuple[Kind, ...] = (
        "index template",
        "search pipeline",
        "ingest pipeline",
        "model",
        "connector",
        "model group",
    )
    found = [
        f for kind in kinds for name in (names if kind in WITH_ID else (owner,)) for f in find(cluster, kind, name)
    ]
    return [one for one in found if one.owner == owner]
