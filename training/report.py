"""The figures of a checkpoint for people: a Markdown table and a plot."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from training.retrieval import MEASURES

TOP = 15  #: heaviest tokens of a term that the term measures look at
REFERENCE_TOP = 20


def table(report: dict[str, Any]) -> str:
    """The report as a Markdown table."""
    lines = [
        "| set | documents / queries | "
        + " | ".join(f"{name} (BM25)" for name in MEASURES)
        + f" | nDCG@10 at {_cut(report)} | nDCG@10, inference-free queries | active query / document |",
        "|---|---|" + "---|" * (len(MEASURES) + 3),
    ]
    for name, row in report["retrieval"].items():
        figures = " | ".join(f"{row['sparse'][m]:.3f} ({row['bm25'][m]:.3f})" for m in MEASURES)
        lines.append(
            f"| {name} | {row['documents']:,} / {row['queries']:,} | {figures} "
            f"| {row['short']['nDCG@10']:.3f} "
            f"| {row['inference_free']['nDCG@10']:.3f} | {row['active_query']:.0f} / {row['active_document']:.0f} |"
        )
    if everyday := report.get("everyday"):
        lines += ["", *_everyday(everyday)]
    if empty := report.get("empty"):
        counts = ", ".join(f"{row['empty']:,} of {row['texts']:,} {name}" for name, row in empty.items())
        lines += ["", f"Texts whose vector is empty: {counts}."]
    if terms := report.get("terms"):
        lines += [
            "",
            f"{terms['terms']:,} held-out terms: source preservation {terms['source_preservation']:.1%}, synonym "
            f"activation at {TOP} {terms['synonym_activation']:.1%}; by a word of other syllables "
            f"{terms['new_synonym_activation']:.1%} of {terms['new_synonym_terms']:,}.",
        ]
    if domains := report.get("domains"):
        lines += ["", "| domain | terms | source preservation | synonym activation |", "|---|---|---|---|"]
        lines += [
            f"| {name} | {row['terms']:,} | {row['source_preservation']:.1%} | {row['synonym_activation']:.1%} |"
            for name, row in domains.items()
        ]
    if dense := {name: row["dense"] for name, row in report["retrieval"].items() if "dense" in row}:
        figures = ", ".join(f"{name} {row['nDCG@10']:.3f}" for name, row in dense.items())
        lines += ["", f"nDCG@10 of the dense teacher: {figures}."]
    if (overlap := report.get("reference_overlap")) is not None:
        lines += [
            "",
            f"Of the reference's {REFERENCE_TOP} heaviest tokens of a held-out term {overlap:.1%} are among ours.",
        ]
    return "\n".join(lines)


def _cut(report: dict[str, Any]) -> str:
    cuts = {f"{row['short']['top_k_query']} / {row['short']['top_k_document']}" for row in report["retrieval"].values()}
    return f"{', '.join(sorted(cuts)) or 'fewer'} words"


def _everyday(everyday: dict[str, Any]) -> Iterator[str]:
    """Shares of everyday queries, over all and by domain."""
    names = {
        "own": "own words whole",
        "two_related": "two related",
        "three_related": "three",
        "no_look_alike": "no look-alike",
        "all": "own + three + none",
        "look_alike_rate": "look-alikes among added words",
    }
    names = {name: title for name, title in names.items() if name in everyday}
    yield f"| everyday words | queries | {' | '.join(names.values())} |"
    yield "|---|---|" + "---|" * len(names)
    for domain, row in {"all": everyday, **everyday["domains"]}.items():
        yield f"| {domain} | {row['queries']} | {' | '.join(f'{row[name]:.0%}' for name in names)} |"


def plot(report: dict[str, Any], path: Path) -> None:
    """nDCG@10 by set, beside BM25."""
    names = list(report["retrieval"])
    place = np.arange(len(names))
    figure = Figure(figsize=(8, 3.5), layout="constrained")
    axes = figure.subplots()
    systems = [("bm25", "BM25 + kiwi"), ("sparse", "sparse encoder"), ("dense", "dense teacher")]
    systems = [(key, label) for key, label in systems if all(key in report["retrieval"][name] for name in names)]
    width = 0.8 / max(1, len(systems))
    for number, (system, label) in enumerate(systems):
        values = [report["retrieval"][name][system]["nDCG@10"] for name in names]
        bars = axes.bar(place + (number - (len(systems) - 1) / 2) * width, values, width, label=label)
        axes.bar_label(bars, fmt="%.3f", fontsize=7)
    axes.set_xticks(place, names, fontsize=8)
    axes.set_ylabel("nDCG@10")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)
