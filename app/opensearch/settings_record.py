"""Cluster settings, changed so that they can be put back.

What they were is kept in the cluster itself, in the same request that changes them, under a name that OpenSearch leaves
to its users. All set-ups of a cluster share the record; the last one to go puts the settings back.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from app.opensearch.facts import Facts
from app.opensearch.plan import TRUSTED, Setting

RECORD = "cluster.metadata.sparse_encoder"


def read_record(facts: Facts) -> dict[str, Any]:
    """`owners`: names of the set-ups; `changed`: what each setting `was` (None: not set) and what it was `set` to."""
    record: dict[str, Any] = json.loads(facts.persistent.get(RECORD, '{"owners": [], "changed": {}}'))
    return record


def to_apply(settings: Sequence[Setting], owner: str, facts: Facts) -> dict[str, Any] | None:
    """The persistent settings to put for the set-up `owner`; None if all is as it must be."""
    record = read_record(facts)
    if not settings and (owner in record["owners"] or not record["changed"]):
        return None  # also where this needs a permission that nobody has: managed clusters
    changed = dict(record["changed"])
    for setting in settings:
        was = changed.get(setting.key, {"was": facts.persistent.get(setting.key)})["was"]
        changed[setting.key] = {"was": was, "set": setting.value}
    owners = sorted({*record["owners"], owner})
    return {**{s.key: s.value for s in settings}, RECORD: json.dumps({"owners": owners, "changed": changed})}


def to_restore(owner: str, facts: Facts) -> dict[str, Any] | None:
    """The persistent settings to put when the set-up `owner` goes; None if there is nothing to do.

    A setting that somebody changed since then stays as it is.
    """
    record = read_record(facts)
    if owner not in record["owners"]:
        return None
    owners = [name for name in record["owners"] if name != owner]
    if owners:
        return {RECORD: json.dumps({**record, "owners": owners})}
    return {
        **{key: change["was"] for key, change in record["changed"].items() if _untouched(facts, key, change["set"])},
        RECORD: None,
    }


def _untouched(facts: Facts, key: str, value: Any) -> bool:
    now = facts.persistent.get(key)
    return list(now or ()) == list(value) if key == TRUSTED else str(now).lower() == str(value).lower()
