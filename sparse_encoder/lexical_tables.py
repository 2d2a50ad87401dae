"""What the weights of a LexicalBert say of each token, as arrays to look up: the network is not needed for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sparse_encoder.artifact import ArtifactError
from sparse_encoder.weights import Weights, WeightsError

RELATED_TOKEN, RELATED_WEIGHT = "related_token", "related_weight"
NONE = -1  #: in arrays of ids: no token


@dataclass(frozen=True, slots=True, eq=False)
class LexicalTables:
    """By token; see `sparse_encoder.modeling_lexical_bert`. A checkpoint from before parts has none of them."""

    own_token: NDArray[np.int32]  #: [vocabulary] the word that it speaks for, `NONE` for none
    last_token: NDArray[np.int32]  #: [vocabulary] the same for a text without any word
    part_token: NDArray[np.int32]  #: [vocabulary, parts] the words that it speaks for besides
    own_share: NDArray[np.float32]  #: [vocabulary, 1 + parts] how much of an occurrence each of these is
    related_token: NDArray[np.int32]  #: [vocabulary, related] the related words of a word
    related_weight: NDArray[np.float32]  #: [vocabulary, related] and how much each is related

    @classmethod
    def read(cls, directory: Path) -> LexicalTables:
        """Those of the artifact in `directory`, packed or not.

        :raises ArtifactError: if its weights have no table of related words.
        """
        try:
            with Weights(directory) as weights:
                if RELATED_TOKEN not in weights:
                    raise ArtifactError(
                        f"the model in {directory} has no table of related words: train one that has (related > 0)"
                    )
                own = weights.integers("own_token")
                has_parts = "part_token" in weights
                return cls(
                    own_token=own,
                    last_token=weights.integers("last_token") if has_parts else np.full_like(own, NONE),
                    part_token=weights.integers("part_token") if has_parts else np.empty((len(own), 0), np.int32),
                    own_share=weights["own_share"] if has_parts else np.ones((len(own), 1), np.float32),
                    related_token=weights.integers(RELATED_TOKEN),
                    related_weight=weights[RELATED_WEIGHT],
                )
        except (WeightsError, KeyError) as error:
            raise ArtifactError(f"the tables of words in {directory} cannot be read: {error}") from error

    def words(self, ids: Sequence[int]) -> NDArray[np.int32]:
        """The word of each of the `ids` of a text, `NONE` for none; of a text without any word its last resort."""
        own = self.own_token[list(ids)]
        return own if (own != NONE).any() else self.last_token[list(ids)]
