"""Before anything is changed: what stands in the way of a set-up, and what live indices need for it. Only reads."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from app.opensearch.cluster import Cluster, RequestFailed
from app.opensearch.facts import OpenSearchError
from app.opensearch.impact import INGEST, SEARCH, Impact, Index, impact, matches, sample_name, way_out
from app.opensearch.indices import find_indices
from app.opensearch.plan import Plan, index_settings
from app.opensearch.resources import Found, asked_url, asked_version, find, find_all


@dataclass(frozen=True, slots=True)
class Preflight:
    """What was found, if nothing stands in the way."""

    impacts: Sequence[tuple[Index, Impact]]  #: of the indices that use the pipelines
    warnings: Sequence[str]


def preflight(cluster: Cluster, plan: Plan, *, overwrite: bool) -> Preflight:
    """`overwrite`: pipelines that somebody edited may be replaced.

    :raises OpenSearchError: for all that stands in the way.
    """
    owner = plan.options.name
    obstacles = _foreign(cluster, plan, overwrite=overwrite)
    obstacles += template_obstacles(cluster, plan)
    indices = find_indices(cluster, owner, plan.options.pattern)
    users = [index for index in indices if index.uses(owner)]
    impacts = [(index, impact(index, plan.fields, index_settings(plan.options))) for index in users]
    stuck = [(index, one.obstacles) for index, one in impacts if one.obstacles]
    warnings = [
        not_encoded(index, owner) for index in indices if not index.uses(owner) and INGEST not in index.settings
    ]
    other = [i for i in users if plan.model_version and i.model_version not in (None, plan.model_version)]
    if other and _moves(find_all(cluster, owner), plan):
        stuck += [
            (i, [f"its vectors were made by {i.model_version}, and queries would be encoded by {plan.model_version}"])
            for i in other
        ]
    else:
        warnings += [other_model(i, owner, str(plan.model_version)) for i in other]
    if stuck:
        obstacles += [f"{index.name}: {'; '.join(reasons)}" for index, reasons in stuck]
        ways = [way for index, _ in stuck for way in way_out(owner, index)]
        obstacles.append(
            "what an index has cannot be changed in place. A set-up beside this one, a new index, and the alias that "
            "you search by moved to it:\n  " + "\n  ".join(dict.fromkeys(ways))
        )
    if obstacles:
        raise OpenSearchError("nothing was changed, because\n" + "\n".join(f"- {obstacle}" for obstacle in obstacles))
    return Preflight(impacts, warnings)


def _foreign(cluster: Cluster, plan: Plan, *, overwrite: bool) -> list[str]:
    owner, obstacles = plan.options.name, []
    for resource in plan.resources:
        for found in find(cluster, resource.kind, resource.name):
            if found.owner != owner:
                obstacles.append(
                    f"there is a {resource.kind} {resource.name} (id {found.id}) that was not made by this set-up, so "
                    "it was left alone: choose another --name"
                )
            elif found.edited and not overwrite:
                obstacles.append(
                    f"the {found.kind} {found.name} was edited since setup made it, and setup would undo that: say "
                    "what you want by options, then --overwrite"
                )
    return obstacles


def _moves(found: Sequence[Found], plan: Plan) -> bool:
    """Whether the connectors would ask another service, or for another version."""
    connector = plan.resource("connector")
    now = [Found("connector", connector.name, "", None, None, body=connector.body)]
    return bool(found) and (asked_url(found), asked_version(found)) != (asked_url(now), asked_version(now))


def template_obstacles(cluster: Cluster, plan: Plan) -> list[str]:
    """Why new indices would not become what the set-up's template says; the template need not be there yet."""
    owner, body = plan.options.name, dict(plan.resource("index template").body)
    path = f"/_index_template/_simulate_index/{sample_name(plan.options.pattern)}"
    try:
        try:
            simulated = cluster.request("POST", path, body)
        except RequestFailed as error:
            named = re.search(r"existing templates \[(.+?)\] with patterns", error.reason)
            if not named or named[1] != owner:
                raise
            # The one that is to be replaced stands in its own way.
            simulated = cluster.request("POST", path, {**body, "priority": body["priority"] + 1})
    except RequestFailed as error:
        return [f"OpenSearch would refuse the index template: {error}"]
    return overruled(cluster, simulated, owner, plan.options.pattern)


def overruled(cluster: Cluster, simulated: Any, owner: str, pattern: str) -> list[str]:
    """What is wrong with an index of the `pattern` as OpenSearch would make it (`simulated`); empty if nothing is."""
    settings = simulated.get("template", {}).get("settings", {}).get("index", {})
    if settings.get("default_pipeline") == owner:
        return []
    templates = cluster.request("GET", "/_index_template")["index_templates"]
    sample = sample_name(pattern)
    rivals = {
        one["name"]: one["index_template"].get("priority", 0)
        for one in templates
        if one["name"] != owner and any(matches(p, sample) for p in one["index_template"]["index_patterns"])
    }
    name, priority = max(rivals.items(), key=lambda rival: rival[1], default=("of a name that is not known", "unknown"))
    return [
        f"the index template {name} (priority {priority}) wins for {pattern}, so new indices would get no pipeline "
        "and no vectors: give a higher --priority, or another --index-pattern"
    ]


def not_encoded(index: Index, owner: str) -> str:
    return (
        f"{index.name} fits the pattern of {owner}, but has no pipeline: its documents get no vectors. To take it in:\n"
        f'  PUT /{index.name}/_settings {{"{INGEST}": "{owner}", "{SEARCH}": "{owner}"}}\n'
        f"  python -m app.opensearch setup --name {owner} (and your options; it adds the fields)\n"
        f"  POST /{index.name}/_update_by_query?conflicts=proceed&wait_for_completion=false"
    )


def other_model(index: Index, owner: str, now: str) -> str:
    return (
        f"{index.name}: its vectors were made by {index.model_version}, and {now} encodes now, queries as well: make "
        "a new index, and go over to it:\n  " + "\n  ".join(way_out(owner, index))
    )
