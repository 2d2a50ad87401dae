"""Queries without the encoder ("inference-free", "doc-only"): a query's own tokens, each with a fixed weight.

An artifact may carry `query_tokens.json`: under which token id each vocabulary entry is emitted (`##noun` as `noun`),
and what that token weighs in a query. A repeated token counts once, as in OpenSearch's `SPARSE_TOKENIZE` models.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sparse_encoder.artifact import ArtifactError
from sparse_encoder.vector import SparseVector

QUERY_TOKENS = "query_tokens.json"
NEVER = -1
MAX_QUERY_WEIGHT = 64.0  #: Lucene's FeatureField refuses a query with a heavier token


@dataclass(frozen=True, slots=True, eq=False)
class QueryTokens:
    """What each token of a query contributes to its vector."""

    default: bool  #: whether queries of this model are encoded this way if the request does not say
    emitted_as: NDArray[np.int32]  #: [vocabulary] token id in the vector, `NEVER` for none
    weights: NDArray[np.float32]  #: [vocabulary] weight of an emitted token, in (0, MAX_QUERY_WEIGHT]; 0 elsewhere

    def __post_init__(self) -> None:
        size = len(self.emitted_as)
        targets = self.emitted_as[self.emitted_as != NEVER]
        if self.weights.shape != (size,) or (targets < 0).any() or (targets >= size).any():
            raise ArtifactError(
                f"{QUERY_TOKENS} must give each token an emitted id below the vocabulary's size, and a weight: "
                "publish the model again"
            )
        weights = self.weights[targets]
        if not ((weights > 0) & (weights <= MAX_QUERY_WEIGHT)).all():
            raise ArtifactError(
                f"{QUERY_TOKENS} holds a weight outside (0, {MAX_QUERY_WEIGHT:g}], which OpenSearch refuses: "
                "publish the model again"
            )

    def vector(self, ids: Sequence[int]) -> SparseVector:
        """The vector of a query with the token ids `ids`, special ones included."""
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
            tokens = cls(
                bool(document["default"]),
                np.array(document["emitted_as"], np.int32),
                np.array(document["weights"], np.float32),
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
        document = {
            "default": self.default,
            "emitted_as": self.emitted_as.tolist(),
            "weights": [float(f"{weight:.5g}") for weight in self.weights.tolist()],
        }
        (directory / QUERY_TOKENS).write_text(json.dumps(document) + "\n", encoding="utf-8")
