"""What a model must pass before it is served.

Each check raises `ModelError`, which says why, and what to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from app.models.loaded import LoadedModel, ModelError
from sparse_encoder.artifact import Manifest

#: Heaviest words of a text that are compared.
TOP_WORDS = 10
#: Golden texts of the version served that a new one encodes too.
MOST_TEXTS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The settings of the checks; `Settings` explains them."""

    allow_vocabulary_change: bool
    canary_min_active_tokens: float
    canary_max_active_tokens: float
    canary_min_overlap: float


def check_vocabulary(new: Manifest, served: Manifest, rules: Rules) -> None:
    """Documents were indexed by the words and ids of the version served: with others they are not found."""
    if new.vocabulary_sha256 != served.vocabulary_sha256 and not rules.allow_vocabulary_change:
        raise ModelError(
            f"its tokenizer or token ids are not those of {served.version}, so documents indexed before would no "
            "longer match: re-index with it under its version name first, then start with --allow-vocabulary-change"
        )


def check_canary(new: LoadedModel, served: LoadedModel | None, rules: Rules) -> None:
    """The vectors of the golden texts have a sensible number of tokens, and mean about what they meant so far.

    `served`: the version to compare with; None for one that is trusted, or if there is none.
    """
    active = sum(len(golden.ids) for golden in new.golden) / len(new.golden)
    if not rules.canary_min_active_tokens <= active <= rules.canary_max_active_tokens:
        raise ModelError(
            f"its golden vectors have {active:.1f} active tokens on average, outside of "
            f"{rules.canary_min_active_tokens:g} to {rules.canary_max_active_tokens:g}: its training collapsed, or set "
            "--canary-min-active-tokens and --canary-max-active-tokens"
        )
    if served is None:
        return
    overlaps = []
    for golden in served.golden[:MOST_TEXTS]:
        if golden.ids:
            before = _top_words(served, golden.ids)
            now = _top_words(new, new.vector(golden.text, golden.input_type).ids.tolist())
            overlaps.append(len(before & now) / len(before))
    overlap = sum(overlaps) / len(overlaps)
    if overlap < rules.canary_min_overlap:
        raise ModelError(
            f"only {overlap:.0%} of the {TOP_WORDS} heaviest words of the golden texts of {served.version} are among "
            f"its own, less than {rules.canary_min_overlap:.0%}: see whether it is a worse model; if it is a better "
            "one, lower --canary-min-overlap"
        )


def _top_words(model: LoadedModel, ids: Sequence[int]) -> set[str]:
    """`ids`: heaviest first."""
    return {model.tokenizer.vocabulary[token_id] for token_id in ids[:TOP_WORDS]}
