"""The indices of a set-up: have they what it needs, and are their vectors those of their texts by the model of now?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from app.opensearch.advice import explained
from app.opensearch.cluster import Cluster, RequestFailed, error_text
from app.opensearch.facts import OpenSearchError
from app.opensearch.impact import INGEST, SEARCH, Index, impact
from app.opensearch.indices import find_indices
from app.opensearch.preflight import not_encoded, other_model
from app.opensearch.vectors import at, differing, vectors_of

DOCUMENTS = 8  #: that are looked at in each index, by chance


def inspect(
    cluster: Cluster,
    owner: str,
    patterns: Sequence[str],
    fields: Mapping[str, Mapping[str, Any]],
    version: str | None,
    say: Callable[[str], None],
) -> list[str]:
    """What is wrong with indices that use the pipelines of `owner`, or fit `patterns`; `say` hears of those that are
    right.

    `fields`: mappings of the set-up, by whole names; `version`: that encodes now, if it is known.
    """
    indices = {index.name: index for pattern in patterns for index in find_indices(cluster, owner, pattern)}
    problems = []
    for index in indices.values():
        if not index.uses(owner):
            # One of another set-up, or of a pipeline that somebody chose, is no matter of this one.
            problems += [not_encoded(index, owner)] if INGEST not in index.settings else []
            continue
        found = _shape(index, owner, fields) or _vectors(cluster, index, owner, fields, version, say)
        problems += found
    return problems


def _shape(index: Index, owner: str, fields: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lacks = [name for name in (INGEST, SEARCH) if index.settings.get(name) != owner]
    problems = [
        f"{index.name} has not the setting {name}, so its "
        f"{'documents get no vectors' if name == INGEST else 'queries'} "
        f'{"" if name == INGEST else "must name the model "}: PUT /{index.name}/_settings {{"{name}": "{owner}"}}'
        for name in lacks
    ]
    ahead = impact(index, fields, {})
    problems += [f"{index.name}: {obstacle}" for obstacle in ahead.obstacles]
    if ahead.fields:
        problems.append(
            f"{index.name} has no field {', '.join(ahead.fields)}: run setup again, which adds what is missing"
        )
    return problems


def _vectors(
    cluster: Cluster,
    index: Index,
    owner: str,
    fields: Mapping[str, Mapping[str, Any]],
    version: str | None,
    say: Callable[[str], None],
) -> list[str]:
    """Encodes some documents of `index` anew, and compares."""
    moved = version is not None and index.model_version not in (None, version)
    encoded = [name for name in fields if f"{name}_sparse" in fields]
    try:
        hits = _some_documents(cluster, index, encoded)
        stale = [
            hit["_id"]
            for hit, new in zip(hits, _encoded(cluster, owner, hits), strict=True)
            if _stale(hit, new, encoded)
        ]
    except OpenSearchError as error:
        if not isinstance(error, RequestFailed) or error.status != 403:
            return [f"{index.name}: its documents could not be looked at: {error}"]
        say(f"not looked at: documents of {index.name}, which this user may not read")
        return [other_model(index, owner, str(version))] if moved else []
    if moved and (stale or not hits):
        return [other_model(index, owner, str(version))]
    if moved:
        return [
            f"{index.name}: {len(hits)} documents have vectors of {version}, and its _meta says "
            f"{index.model_version}. If all "
            f'were encoded anew: PUT /{index.name}/_mapping {{"_meta": {{"sparse_encoder": {{"set_up": "{owner}", '
            f'"model_version": "{version}"}}}}}}'
        ]
    if stale:
        return [
            f"{index.name}: {len(stale)} of {len(hits)} documents have no vector of their text by the model of now "
            f"(ids {', '.join(stale)}): the text was changed past the pipeline, as an update does, or the model was. "
            f"Encode them anew: POST /{index.name}/_update_by_query?conflicts=proceed&wait_for_completion=false"
        ]
    say(f"ok: {index.name}, {len(hits)} of its documents have the vectors of their texts")
    return []


def _some_documents(cluster: Cluster, index: Index, encoded: Sequence[str]) -> list[Any]:
    has_text = {"bool": {"should": [{"exists": {"field": name}} for name in encoded]}}
    body = {"size": DOCUMENTS, "query": {"function_score": {"query": has_text, "random_score": {}}}}
    hits = cluster.request("POST", f"/{quote(index.name)}/_search?search_pipeline=_none", body)["hits"]["hits"]
    return [hit for hit in hits if "_source" in hit]


def _encoded(cluster: Cluster, owner: str, hits: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The documents of `hits` as the pipeline would make them now."""
    if not hits:
        return []
    docs = [{key: hit[key] for key in ("_index", "_id", "_source")} for hit in hits]
    answer = cluster.request("POST", f"/_ingest/pipeline/{owner}/_simulate", {"docs": docs})
    for hit, one in zip(hits, answer["docs"], strict=True):
        if "doc" not in one:
            raise OpenSearchError(f"{hit['_id']} cannot be encoded anew: {explained(error_text(one['error']))}")
    return [one["doc"]["_source"] for one in answer["docs"]]


def _stale(hit: Mapping[str, Any], new: Mapping[str, Any], encoded: Sequence[str]) -> bool:
    for name in encoded:
        stored, made = (vectors_of(at(document, f"{name}_sparse")) for document in (hit["_source"], new))
        if len(stored) != len(made) or any(differing(*pair) for pair in zip(stored, made, strict=True)):
            return True
    return False
