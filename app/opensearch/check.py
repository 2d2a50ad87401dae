"""Does it work? What `setup` made, a Korean document through it, and every index that uses it."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.opensearch.cluster import Cluster
from app.opensearch.facts import OpenSearchError
from app.opensearch.impact import flat, sample_name
from app.opensearch.inspection import inspect
from app.opensearch.preflight import overruled
from app.opensearch.resources import Found, asked_version, find_all, model_ids, semantic_fields
from app.opensearch.service import EncoderService
from app.opensearch.vectors import Vector, at, differing, vectors_of

TEXT = "손해배상 청구는 손해를 안 날부터 삼 년 안에 하여야 한다. 자리표시 ${parameters.x} 도 글자일 뿐이다."
NEEDED = ("ingest pipeline", "search pipeline", "index template", "model", "connector")
WORDS_OF_THE_DOCUMENT = 5


@dataclass(frozen=True, slots=True)
class _Template:
    """What OpenSearch makes of the index template of the set-up."""

    settings: Mapping[str, Any]
    mappings: Mapping[str, Any]
    fields: Mapping[str, Mapping[str, Any]]  #: by whole names
    patterns: Sequence[str]

    @property
    def encoded(self) -> list[str]:
        return [name for name in self.fields if f"{name}_sparse" in self.fields]


def check(cluster: Cluster, owner: str, service: EncoderService | None, say: Callable[[str], None]) -> None:
    """Tells `say` each thing that works; `service`, if it can be reached from here, is compared with the index.

    :raises OpenSearchError: if something does not work; it names everything that was found.
    """
    found = find_all(cluster, owner)
    _check_resources(found, owner)
    say(f"ok: {', '.join(f'{one.kind} {one.name}' for one in found)}")
    ids = model_ids(cluster, owner)
    for side, id_ in ids.items():
        say(f"ok: {side} are encoded by the model {id_}")
    if service and service.info() is None:
        service = None
    asked = asked_version(found)
    version = service.version_of(asked) if service else None
    template = _template(cluster, owner, found)
    problems = [
        f"the {one.kind} {one.name} was edited since setup made it: say what you want by options of setup, with "
        "--overwrite"
        for one in found
        if one.edited
    ]
    problems += [
        f"{field} names the model {id_}, which setup has replaced: PUT /INDEX/_mapping with the one of now"
        for id_, fields in semantic_fields(cluster, found).items()
        for field in fields
        if id_ not in ids.values()
    ]
    for pattern in template.patterns:
        simulated = cluster.request("POST", f"/_index_template/_simulate_index/{sample_name(pattern)}")
        problems += overruled(cluster, simulated, owner, pattern)
    try:
        _check_a_document(cluster, owner, template, service, asked, say)
    except OpenSearchError as error:
        problems.append(str(error))
    problems += inspect(cluster, owner, template.patterns, template.fields, version, say)
    if problems:
        raise OpenSearchError("\nerror: ".join(problems))


def _check_resources(found: list[Found], owner: str) -> None:
    if missing := [kind for kind in NEEDED if kind not in {one.kind for one in found}]:
        hidden = ", or, if another user did, let that user run it with --access public" if found else ""
        raise OpenSearchError(f"there is no {', no '.join(missing)} of the set-up {owner}: run setup{hidden}")
    if idle := [f"{one.name} ({one.state})" for one in found if one.kind == "model" and one.state != "DEPLOYED"]:
        raise OpenSearchError(f"not deployed on every node: {', '.join(idle)}; run setup again, which deploys it")


def _template(cluster: Cluster, owner: str, found: Sequence[Found]) -> _Template:
    simulated = cluster.request("POST", f"/_index_template/_simulate/{owner}")["template"]
    patterns = next(one.body["index_patterns"] for one in found if one.kind == "index template")
    return _Template(simulated["settings"], simulated["mappings"], flat(simulated["mappings"]["properties"]), patterns)


def _check_a_document(
    cluster: Cluster,
    owner: str,
    template: _Template,
    service: EncoderService | None,
    asked: str | None,
    say: Callable[[str], None],
) -> None:
    """In an index of its own, which goes again; `asked`: the version that the connectors ask for."""
    fields = template.encoded
    index = f"{owner}-check-{secrets.token_hex(4)}"
    cluster.request("PUT", f"/{index}", {"settings": template.settings, "mappings": template.mappings})
    try:
        cluster.request("PUT", f"/{index}/_doc/1?refresh=true", dict.fromkeys(fields, TEXT))
        source = cluster.request("GET", f"/{index}/_doc/1")["_source"]
        for name in fields:
            _check_vector(name, vectors_of(at(source, f"{name}_sparse")))
        vector = vectors_of(at(source, f"{fields[0]}_sparse"))[0]
        say(f"ok: a document was encoded and indexed, its {fields[0]!r} by {len(vector)} tokens: {_heaviest(vector)}")
        if service:
            _compare(vector, service, template.fields[f"{fields[0]}_sparse"]["type"], asked)
            say(f"ok: {service.url} gives the same vector")
        words = [word for word in vector if not word.startswith("##")][:WORDS_OF_THE_DOCUMENT]
        for name in fields:
            if not _hits(cluster, index, _query(f"{name}_sparse", template, " ".join([*words, TEXT]))):
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


def _check_vector(name: str, vectors: Sequence[Vector]) -> None:
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


def _compare(vector: Vector, service: EncoderService, vector_type: str, asked: str | None) -> None:
    if vector_type == "nested":
        return  # the vector is of a chunk
    version = {"version": asked} if asked else {}
    (expected,) = service.encode(
        [TEXT], sparse_embedding_format="sparse_vector" if vector_type == "sparse_vector" else "word", **version
    )
    if differing(vector, expected):
        tokens = len({*vector} ^ {*expected})
        raise OpenSearchError(
            f"{service.url} gives the document another vector than the cluster got ({tokens} tokens are of one only): "
            "the connector reaches another service or model version; run setup with the right --encoder"
        )


def _heaviest(vector: Vector) -> str:
    return ", ".join(sorted(vector, key=lambda token: -vector[token])[:WORDS_OF_THE_DOCUMENT])


def _query(field: str, template: _Template, text: str) -> dict[str, Any]:
    if template.fields[field]["type"] != "nested":
        return {"neural_sparse": {field: {"query_text": text}}}
    return {"nested": {"path": field, "query": {"neural_sparse": {f"{field}.sparse_encoding": {"query_text": text}}}}}


def _hits(cluster: Cluster, index: str, query: Mapping[str, Any]) -> int:
    total: int = cluster.request("POST", f"/{index}/_search", {"query": query})["hits"]["total"]["value"]
    return total
