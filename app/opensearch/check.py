"""Does it work? Encodes, indexes, finds and deletes a Korean document, through what `setup` made."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from typing import Any

from app.opensearch.cluster import Cluster
from app.opensearch.facts import OpenSearchError
from app.opensearch.resources import Found, find_all
from app.opensearch.service import EncoderService

TEXT = "손해배상 청구는 손해를 안 날부터 삼 년 안에 하여야 한다. 자리표시 ${parameters.x} 도 글자일 뿐이다."
NEEDED = ("ingest pipeline", "search pipeline", "index template", "model", "connector")
WORDS_OF_THE_DOCUMENT = 5

Vector = Mapping[str, float]


def check(cluster: Cluster, owner: str, service: EncoderService | None, say: Callable[[str], None]) -> None:
    """Tells `say` each thing that works; `service`, if it can be reached from here, is compared with the index.

    :raises OpenSearchError: at the first thing that does not work.
    """
    found = find_all(cluster, owner)
    _check_resources(found, owner)
    say(f"ok: {', '.join(f'{one.kind} {one.name}' for one in found)}")
    template = cluster.request("POST", f"/_index_template/_simulate/{owner}")["template"]
    mappings = template["mappings"]["properties"]
    fields = [name for name in mappings if f"{name}_sparse" in mappings]
    index = f"{owner}-check-{secrets.token_hex(4)}"
    cluster.request("PUT", f"/{index}", {"settings": template["settings"], "mappings": template["mappings"]})
    try:
        cluster.request("PUT", f"/{index}/_doc/1?refresh=true", dict.fromkeys(fields, TEXT))
        source = cluster.request("GET", f"/{index}/_doc/1")["_source"]
        for name in fields:
            _check_vector(name, _vectors(source.get(f"{name}_sparse")))
        vector = _vectors(source[f"{fields[0]}_sparse"])[0]
        say(f"ok: a document was encoded and indexed, its {fields[0]!r} by {len(vector)} tokens: {_heaviest(vector)}")
        if service and service.info():
            _compare(vector, service, mappings, fields[0])
            say(f"ok: {service.url} gives the same vector")
        words = [word for word in vector if not word.startswith("##")][:WORDS_OF_THE_DOCUMENT]
        for name in fields:
            query = _query(f"{name}_sparse", mappings, " ".join([*words, TEXT]))
            if not _hits(cluster, index, query):
                raise OpenSearchError(
                    f"the document is indexed, but a query on {name}_sparse for its own words finds nothing: the "
                    "query's tokens are not the document's; run setup again, for queries and documents by one model"
                )
            say(f"ok: a query on {name!r} finds it")
        cluster.request("DELETE", f"/{index}/_doc/1?refresh=true")
        if _hits(cluster, index, {"match_all": {}}):
            raise OpenSearchError(f"the document was deleted from {index}, but is still found: look at the node's log")
        say("ok: deleted, it is found no more")
    finally:
        cluster.request("DELETE", f"/{index}")


def _check_resources(found: list[Found], owner: str) -> None:
    if missing := [kind for kind in NEEDED if kind not in {one.kind for one in found}]:
        raise OpenSearchError(f"there is no {', no '.join(missing)} of the set-up {owner}: run setup")
    if idle := [one.name for one in found if one.kind == "model" and one.state != "DEPLOYED"]:
        raise OpenSearchError(f"the model {', '.join(idle)} is not deployed: run setup again, which deploys it")


def _vectors(value: Any) -> list[Vector]:
    """One vector, or those of the chunks."""
    if isinstance(value, list):
        return [chunk["sparse_encoding"] for chunk in value]
    return [value] if value else []


def _check_vector(name: str, vectors: list[Vector]) -> None:
    if not any(vectors):
        raise OpenSearchError(
            f"the document has no tokens in {name}_sparse: either the pipeline did not run, or the service answered "
            "{} to a Korean sentence, which a model that knows Korean does not"
        )
    if any("\ufffd" in token for vector in vectors for token in vector):
        raise OpenSearchError(
            f"{name}_sparse holds U+FFFD, a Hangul syllable cut in two on its way: something between the nodes and "
            "the service rewrites its answers, which are ASCII; take it out, and index all documents anew"
        )


def _compare(vector: Vector, service: EncoderService, mappings: Mapping[str, Any], name: str) -> None:
    vector_type = mappings[f"{name}_sparse"]["type"]
    if vector_type == "nested":
        return  # the vector is of a chunk
    (expected,) = service.encode(
        [TEXT], sparse_embedding_format="sparse_vector" if vector_type == "sparse_vector" else "word"
    )
    differing = {token for token in {*vector, *expected} if abs(vector.get(token, 0) - expected.get(token, 0)) > 0.01}
    if differing:
        raise OpenSearchError(
            f"{service.url} gives the document another vector than the cluster got ({len(differing)} tokens differ): "
            "the connector reaches another service or model version; run setup with the right --encoder"
        )


def _heaviest(vector: Vector) -> str:
    return ", ".join(sorted(vector, key=lambda token: -vector[token])[:WORDS_OF_THE_DOCUMENT])


def _query(field: str, mappings: Mapping[str, Any], text: str) -> dict[str, Any]:
    if mappings[field]["type"] != "nested":
        return {"neural_sparse": {field: {"query_text": text}}}
    return {"nested": {"path": field, "query": {"neural_sparse": {f"{field}.sparse_encoding": {"query_text": text}}}}}


def _hits(cluster: Cluster, index: str, query: Mapping[str, Any]) -> int:
    total: int = cluster.request("POST", f"/{index}/_search", {"query": query})["hits"]["total"]["value"]
    return total
