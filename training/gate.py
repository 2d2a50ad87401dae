"""Whether a checkpoint may be published, by its figures and those of the versions that it would replace."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from training.config import GateConfig

Evaluation = Mapping[str, Any]  #: as `training.evaluate.evaluate` makes it


def failed_gates(gate: GateConfig, evaluation: Evaluation, incumbents: Mapping[str, Evaluation]) -> list[str]:
    """One sentence for each gate that fails, with its figure and threshold.

    ``incumbents``: the evaluations of the versions to be replaced, by version. A figure that is missing or no number
    fails; so does a retrieval set that the incumbent was measured on in another way.
    """
    failed = [*_active_words(gate, evaluation), *_terms(gate, evaluation)]
    failed += _everyday(gate, evaluation)
    for version, incumbent in incumbents.items():
        failed += _ndcg(gate.max_ndcg_drop, evaluation, version, incumbent)
    return failed


def _active_words(gate: GateConfig, evaluation: Evaluation) -> Iterator[str]:
    sets = evaluation.get("retrieval") or {}
    if not sets:
        yield "active words were not measured: the recipe names no retrieval set"
    for name, row in sets.items():
        for kind, (low, high) in (("query", gate.active_query), ("document", gate.active_document)):
            active = row[f"active_{kind}"]
            if not low <= active <= high:
                yield f"{name}: {active:.1f} active words a {kind}, must be {low:g} to {high:g}"


def _terms(gate: GateConfig, evaluation: Evaluation) -> Iterator[str]:
    minima = {
        "source_preservation": gate.source_preservation,
        "synonym_activation": gate.synonym_activation,
    }
    for name, minimum in minima.items():
        share = (evaluation.get("terms") or {}).get(name)
        if not minimum:
            continue
        if share is None:
            yield f"{name.replace('_', ' ')} was not measured, must be at least {minimum:.3f}: name held-out terms"
        elif not share >= minimum:
            yield f"{name.replace('_', ' ')} is {share:.3f}, must be at least {minimum:.3f}"


def _everyday(gate: GateConfig, evaluation: Evaluation) -> Iterator[str]:
    share = (evaluation.get("everyday") or {}).get("all")
    if not gate.everyday:
        return
    if share is None:
        yield f"everyday words were not measured, must be at least {gate.everyday:.3f}: name a file in data.everyday"
    elif not share >= gate.everyday:
        yield (
            f"everyday queries with own words, three related ones and no look-alike: {share:.3f}, must be at least "
            f"{gate.everyday:.3f}"
        )


def _ndcg(max_loss: float, evaluation: Evaluation, version: str, incumbent: Evaluation) -> Iterator[str]:
    sets = evaluation.get("retrieval") or {}
    for name, theirs in (incumbent.get("retrieval") or {}).items():
        if name not in sets:
            yield f"{name}: not measured, but {version} was: measure it too"
            continue
        ours = sets[name]
        counts = [(row["documents"], row["queries"]) for row in (ours, theirs)]
        if counts[0] != counts[1]:
            yield (
                f"{name}: measured on {counts[0][0]:,} documents and {counts[0][1]:,} queries, {version} on "
                f"{counts[1][0]:,} and {counts[1][1]:,}: the figures cannot be compared"
            )
            continue
        figure, least = ours["sparse"]["nDCG@10"], theirs["sparse"]["nDCG@10"] - max_loss
        if not figure >= least:
            yield f"{name}: nDCG@10 is {figure:.3f}, must be at least {least:.3f} ({version} less {max_loss:g})"
