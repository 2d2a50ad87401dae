"""Queries without the encoder ("inference-free", "doc-only"): a query's own tokens, each with a fixed weight.

An artifact may carry `query_tokens.json`: under which token id each vocabulary entry is emitted (`##noun` as `noun`),
and what that token weighs in a query. A repeated token counts once, as in OpenSearch's `SPARSE_TOKENIZE` models.

Where it has `related`, a query gets related words as well, and its tokens speak for parts and as a last resort: all of
it looked up in the tables among the weights, so it is not written a second time, and follows when the table is changed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_encoder.artifact import ArtifactError
from sparse_encoder.lexical_tables import NONE, LexicalTables
from sparse_encoder.vector import SMALLEST_WEIGHT, SparseVector

QUERY_TOKENS = "query_tokens.json"
NEVER = -1
MAX_QUERY_WEIGHT = 64.0  #: Lucene's FeatureField refuses a query with a heavier token


@dataclass(frozen=True, slots=True, eq=False)
class RelatedWords:
    """What a query's own words bring along: `factor` x min(1, `words` / n) x the sum of their rows of the table, for a
    query of n own words, each by its own weight over their mean. Words of the query itself get nothing."""

    factor: float
    words: float
    tables: LexicalTables

    def __post_init__(self) -> None:
        if not all(math.isfinite(value) and value > 0 for value in (self.factor, self.words)):
            raise ArtifactError(
                f"{QUERY_TOKENS} has related words with factor {self.factor} and words {self.words}, both must be "
                "positive: publish the model again"
            )

    def vector(self, ids: Sequence[int], weights: NDArray[np.float32]) -> SparseVector:
        """Of a query with the token ids `ids`, whose own words have `weights` [vocabulary]."""
        places, shares = self.places(ids)
        speaks = places != NONE
        if not speaks.any():
            return SparseVector.from_pairs([], [])
        own, at = np.unique(places[speaks], return_inverse=True)
        own_weights = np.zeros(len(own), np.float32)
        np.maximum.at(own_weights, at, weights[places[speaks]] * shares[speaks])
        tokens, added = self._added(places[0], weights)
        new = ~np.isin(tokens, own)
        together = np.concatenate([own_weights, np.minimum(added[new], MAX_QUERY_WEIGHT)])
        heavy = together >= SMALLEST_WEIGHT
        return SparseVector.from_pairs(np.concatenate([own, tokens[new]])[heavy], together[heavy])

    def places(self, ids: Sequence[int]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """What each of the `ids` of a query speaks for, its word and its parts, and how much of an occurrence each of
        these is: [1 + parts, n]; `NONE` for nothing."""
        tables, rows = self.tables, list(ids)
        return np.vstack([tables.words(rows), tables.part_token[rows].T]), tables.own_share[rows].T

    def brought(
        self, words: NDArray[np.int32], weights: NDArray[np.float32]
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """What the `words` [n] of a query bring along, where each of them is for the first time: the related words, and
        what that adds to each, [n, related]."""
        distinct, first = np.unique(words, return_index=True)
        first = first[distinct != NONE]
        related = np.full((len(words), self.tables.related_token.shape[1]), NONE, np.int32)
        added = np.zeros(related.shape, np.float32)
        if len(first):  # else the query's tokens speak for parts only
            own = words[first]
            emphasis = weights[own]
            emphasis = self.factor * min(1.0, self.words / len(own)) * emphasis / emphasis.mean()
            related[first] = self.tables.related_token[own]
            added[first] = self.tables.related_weight[own] * emphasis[:, None]
        return related, added

    def _added(
        self, words: NDArray[np.int32], weights: NDArray[np.float32]
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Related words of the `words` [n], and what each weighs."""
        related, added = self.brought(words, weights)
        there = related != NONE
        tokens, at = np.unique(related[there], return_inverse=True)
        return tokens, np.bincount(at, added[there], len(tokens)).astype(np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class QueryTokens:
    """What each token of a query contributes to its vector."""

    default: bool  #: whether queries of this model are encoded this way if the request does not say
    emitted_as: NDArray[np.int32]  #: [vocabulary] token id in the vector, `NEVER` for none
    weights: NDArray[np.float32]  #: [vocabulary] weight of an emitted token, in (0, MAX_QUERY_WEIGHT]; 0 elsewhere
    related: RelatedWords | None = None

    def __post_init__(self) -> None:
        size = len(self.emitted_as)
        targets = self.emitted_as[self.emitted_as != NEVER]
        if self.weights.shape != (size,) or (targets < 0).any() or (targets >= size).any():
            raise ArtifactError(
                f"{QUERY_TOKENS} must give each token an emitted id below the vocabulary's size, and a weight: "
                "publish the model again"
            )
        if self.related:
            tables = self.related.tables
            if len(tables.own_token) != size:
                raise ArtifactError(
                    f"{QUERY_TOKENS} is for {size} tokens, the weights are for {len(tables.own_token)}: publish the "
                    "model again"
                )
            also = np.concatenate([tables.own_token, tables.last_token, tables.part_token.ravel()])
            targets = np.concatenate([targets, also[also != NONE]])
        weights = self.weights[targets]
        if not ((weights > 0) & (weights <= MAX_QUERY_WEIGHT)).all():
            raise ArtifactError(
                f"{QUERY_TOKENS} holds a weight outside (0, {MAX_QUERY_WEIGHT:g}], which OpenSearch refuses: "
                "publish the model again"
            )

    def vector(self, ids: Sequence[int]) -> SparseVector:
        """The vector of a query with the token ids `ids`, special ones included."""
        if self.related:
            return self.related.vector(ids, self.weights)
        emitted = np.unique(self.emitted_as[list(ids)])
        emitted = emitted[emitted != NEVER]
        return SparseVector.from_pairs(emitted, self.weights[emitted])

    @classmethod
    def read(cls, directory: Path, vocabulary_size: int) -> QueryTokens | None:
        """Those of the artifact in `directory`; None if it has none.

        :raises ArtifactError: if they are wrong or of another vocabulary.
        """
        path = directory / QUERY_TOKENS
        if not path.is_file():
            return None
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            related = document.get("related")
            tokens = cls(
                bool(document["default"]),
                np.array(document["emitted_as"], np.int32),
                np.array(document["weights"], np.float32),
                RelatedWords(float(related["factor"]), float(related["words"]), LexicalTables.read(directory))
                if related
                else None,
            )
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise ArtifactError(f"{path} is no table of query tokens ({error!r}): publish the model again") from error
        if len(tokens.emitted_as) != vocabulary_size:
            raise ArtifactError(
                f"{path} is for {len(tokens.emitted_as)} tokens, the vocabulary has {vocabulary_size}: "
                "publish the model again"
            )
        return tokens

    def write(self, directory: Path) -> None:
        document: dict[str, Any] = {
            "default": self.default,
            "emitted_as": self.emitted_as.tolist(),
            "weights": [float(f"{weight:.5g}") for weight in self.weights.tolist()],
        }
        if self.related:
            document["related"] = {"factor": self.related.factor, "words": self.related.words}
        (directory / QUERY_TOKENS).write_text(json.dumps(document) + "\n", encoding="utf-8")
