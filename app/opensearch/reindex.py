"""Goes over to a new index, whose documents another set-up encodes: copy, compare, and move the alias.

A document is copied with its version, so that a second run, or one after an interruption, copies only what is missing
or has changed since.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from app.opensearch.advice import explained
from app.opensearch.cluster import Cluster, error_text
from app.opensearch.facts import OpenSearchError
from app.opensearch.impact import INGEST, SEARCH, Index
from app.opensearch.indices import find_index
from app.opensearch.plan import META

Say = Callable[[str], None]
Hit = Mapping[str, Any]

SOURCE = (
    "copied_from"  #: in the `_meta` of an index, while it is only a copy: what its source lacks may be deleted in it
)
SCROLL = "10m"  #: longer than a page takes to encode
SHOWN_ERRORS = 5
NOW_OR_LATER = (429, 500, 502, 503, 504)  #: the service is full, stops or is gone: the next pass tries again


def reindex(cluster: Cluster, owner: str, source: str, target: str, alias: str | None, page: int, say: Say) -> None:
    """Copies `source` to `target`, an index of the set-up `owner`, in pages of `page` documents; then moves `alias`.

    :raises OpenSearchError: if a document cannot be copied, or the counts differ; the alias then stays where it is.
    """
    old = find_index(cluster, source)
    if old is None:
        raise OpenSearchError(f"there is no index {source}: GET /_cat/indices names those that exist")
    if alias and cluster.find(f"/_resolve/index/{quote(alias)}")["indices"]:
        raise OpenSearchError(f"--alias {alias} is the name of an index: an alias needs a name of its own")
    new = _prepare(cluster, owner, old.name, target, say)
    left_out = [f"{name}_{made}" for name in old.encoded for made in ("sparse", "chunks")]
    passes = 0
    while copied := _copy(cluster, old.name, target, left_out, page, say):
        passes += 1
        say(f"pass {passes}: {copied:,} documents copied")
    if alias and alias in new.aliases:
        say(f"{alias} is {target} already, which now has what was still written to {old.name}")
        return
    had, has = (_count(cluster, name) for name in (old.name, target))
    if has > had and new.meta.get(META, {}).get(SOURCE) == old.name:
        _delete_gone(cluster, old.name, target, page, say)
        has = _count(cluster, target)
    if had != has:
        raise OpenSearchError(
            f"{old.name} has {had:,} documents and {target} {has:,}: something else writes to one of them, or did; "
            "the alias was not moved. Run this again, or copy to a new index"
        )
    say(f"{target} has the {has:,} documents of {old.name}")
    if alias:
        _move(cluster, old, new, alias, say)
    else:
        say(f"searches go on in {old.name}: --alias NAME moves an alias")


def _count(cluster: Cluster, index: str) -> int:
    cluster.request("POST", f"/{quote(index)}/_refresh")
    return int(cluster.request("GET", f"/{quote(index)}/_count")["count"])


def _prepare(cluster: Cluster, owner: str, source: str, target: str, say: Say) -> Index:
    """`target`, which is made if it is not there; the copy's source is noted in it until the copy is done."""
    new = find_index(cluster, target)
    if new is None:
        simulated = cluster.request("POST", f"/_index_template/_simulate_index/{quote(target)}").get("template", {})
        settings = simulated.get("settings", {}).get("index", {})
        pipelines = settings.get("default_pipeline"), settings.get("search", {}).get("default_pipeline")
    else:
        pipelines = new.settings.get(INGEST), new.settings.get(SEARCH)
    if pipelines != (owner, owner):
        raise OpenSearchError(
            f"{target} does not go through the pipelines of {owner}, so nothing was copied: run setup --name {owner} "
            f"first, and give the index a name that its template is for (GET /_index_template/{owner})"
        )
    if new is None:
        meta = {**simulated["mappings"].get("_meta", {})}
        meta[META] = {**meta.get(META, {}), SOURCE: source}
        cluster.request("PUT", f"/{quote(target)}", {"mappings": {"_meta": meta}})
        say(f"created {target}")
    made = find_index(cluster, target)
    assert made
    return made


def _copy(cluster: Cluster, source: str, target: str, left_out: Sequence[str], page: int, say: Say) -> int:
    """One pass; how many documents were copied.

    :raises OpenSearchError: if some could not be, and none could, or they never can.
    """
    total = cluster.request("GET", f"/{quote(source)}/_count")["count"]
    copied = seen = said = 0
    again: list[str] = []
    never: list[str] = []
    for hits in _pages(cluster, source, left_out, page):
        missing = _missing(cluster, target, hits)
        for hit, outcome in zip(missing, _bulk(cluster, target, missing), strict=True):
            error = outcome.get("error")
            if error is None:
                copied += 1
            elif outcome["status"] != 409:  # a newer version came there meanwhile
                failed = again if outcome["status"] in NOW_OR_LATER else never
                failed.append(f"{hit['_id']}: {explained(error_text(error))}")
        seen += len(hits)
        if total and (percent := min(100, 100 * seen // total)) > said:
            said = percent
            say(f"{source} -> {target}: {percent} %, {seen:,} of {total:,} documents")
    if never or (again and not copied):
        failed = never or again
        raise OpenSearchError(
            f"{len(failed):,} documents could not be copied, and the alias was not moved; run this again when the "
            "reason is gone, it copies what is missing:\n  " + "\n  ".join(failed[:SHOWN_ERRORS])
        )
    return copied


def _pages(cluster: Cluster, index: str, left_out: Sequence[str], page: int) -> Iterator[list[Hit]]:
    body = {"size": page, "sort": ["_doc"], "version": True, "_source": {"excludes": list(left_out)}}
    answer = cluster.request("POST", f"/{quote(index)}/_search?scroll={SCROLL}&search_pipeline=_none", body)
    try:
        while hits := answer["hits"]["hits"]:
            yield hits
            answer = cluster.request("POST", "/_search/scroll", {"scroll": SCROLL, "scroll_id": answer["_scroll_id"]})
    finally:
        cluster.request("DELETE", "/_search/scroll", {"scroll_id": [answer["_scroll_id"]]})


def _missing(cluster: Cluster, target: str, hits: Sequence[Hit]) -> list[Hit]:
    """Those that `target` does not have in this version or a newer one."""
    docs = [{"_id": hit["_id"], "_source": False, **_routing(hit)} for hit in hits]
    found = cluster.request("POST", f"/{quote(target)}/_mget", {"docs": docs})["docs"]
    return [hit for hit, there in zip(hits, found, strict=True) if there.get("_version", 0) < hit["_version"]]


def _bulk(cluster: Cluster, target: str, hits: Sequence[Hit]) -> list[dict[str, Any]]:
    lines: list[Mapping[str, Any]] = []
    for hit in hits:
        version = {"version": hit["_version"], "version_type": "external"}
        lines += [{"index": {"_id": hit["_id"], **version, **_routing(hit)}}, hit["_source"]]
    return _send_bulk(cluster, target, lines, "index")


def _send_bulk(cluster: Cluster, index: str, lines: Sequence[Mapping[str, Any]], action: str) -> list[dict[str, Any]]:
    if not lines:
        return []
    body = "".join(json.dumps(line) + "\n" for line in lines).encode()
    return [item[action] for item in cluster.request("POST", f"/{quote(index)}/_bulk", body)["items"]]


def _delete_gone(cluster: Cluster, source: str, target: str, page: int, say: Say) -> None:
    """Deletes in `target` what was deleted in `source` since it was copied."""
    deleted = 0
    for hits in _pages(cluster, target, ["*"], page):
        docs = [{"_id": hit["_id"], "_source": False, **_routing(hit)} for hit in hits]
        found = cluster.request("POST", f"/{quote(source)}/_mget", {"docs": docs})["docs"]
        gone = [hit for hit, there in zip(hits, found, strict=True) if not there.get("found")]
        _send_bulk(cluster, target, [{"delete": {"_id": h["_id"], **_routing(h)}} for h in gone], "delete")
        deleted += len(gone)
    say(f"deleted {deleted:,} documents in {target}, which are no longer in {source}")


def _routing(hit: Hit) -> dict[str, Any]:
    return {"routing": hit["_routing"]} if "_routing" in hit else {}


def _move(cluster: Cluster, old: Index, new: Index, alias: str, say: Say) -> None:
    """In one step, so that a search finds one index or the other; the index brings its query model along."""
    target = new.name
    kept = cluster.find(f"/{quote(old.name)}/_alias/{quote(alias)}")
    settings = kept[old.name]["aliases"][alias] if kept else {}
    there = [{"remove": {"index": old.name, "alias": alias}}] if kept else []
    back = [{"remove": {"index": target, "alias": alias}}, {"add": {"index": old.name, "alias": alias, **settings}}]
    actions = [*there, {"add": {"index": target, "alias": alias, **settings}}]
    cluster.request("POST", "/_aliases", {"actions": actions})
    meta = {**new.meta, META: {key: value for key, value in new.meta.get(META, {}).items() if key != SOURCE}}
    cluster.request("PUT", f"/{quote(target)}/_mapping", {"_meta": meta})
    say(f"{alias} is {target} now; {old.name} is kept. The way back: POST /_aliases {json.dumps({'actions': back})}")
