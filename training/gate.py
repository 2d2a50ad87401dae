"""Whether a measured model may be published: a pure decision on figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from training.config import GateConfig

Report = Mapping[str, Any]  #: what ``training evaluate`` wrote; also the ``evaluation`` of a manifest


def failures(report: Report, gate: GateConfig, incumbents: Mapping[str, Report]) -> list[str]:
    """What speaks against the model, one sentence each with figure and threshold; empty if nothing does.

    ``incumbents``: the figures of the versions that services use now, by version.
    """
    found = []
    for name, row in report["retrieval"].items():
        for side, (low, high) in (("query", gate.active_query), ("document", gate.active_document)):
            active = row[f"active_{side}"]
            if not low <= active <= high:
                found.append(f"{name}: {active:.1f} active words a {side}, must be {low:g} to {high:g}")
    for measure in ("source_preservation", "synonym_activation"):
        least = getattr(gate, measure)
        if least and "terms" not in report:
            found.append(f"{measure} was not measured, must be at least {least:.1%}: the recipe has no held-out terms")
        elif least and report["terms"][measure] < least:
            found.append(f"{measure} is {report['terms'][measure]:.1%}, must be at least {least:.1%}")
    for version, incumbent in incumbents.items():
        for name, before in incumbent.get("retrieval", {}).items():
            now = report["retrieval"].get(name)
            if now is None:
                found.append(f"{name} was not measured, but {version} was measured on it")
                continue
            size, size_before = ((r["documents"], r["queries"]) for r in (now, before))
            if size != size_before:
                found.append(f"{name} has {size} documents and queries, {version} was measured on {size_before}")
                continue
            figure, figure_before = (r["sparse"]["nDCG@10"] for r in (now, before))
            if figure < figure_before - gate.max_ndcg_drop:
                lost = f"{name}: nDCG@10 {figure:.3f}, {version} has {figure_before:.3f}"
                found.append(f"{lost}; it may lose {gate.max_ndcg_drop:g}")
    return found
