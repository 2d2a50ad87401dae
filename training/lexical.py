"""What a word weighs by itself: document frequencies of emitted tokens, and the weight they give."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from training.vocabulary import NEVER, Roles


def emitted_rows(tokenizer: Tokenizer, roles: Roles, texts: list[str], max_length: int) -> list[list[int]]:
    """For each text the ids under which its own tokens are emitted, repeats kept, in order."""
    out = []
    for encoding in tokenizer.encode_batch(texts):
        ids = (roles.emitted_as[i] for i in encoding.ids[:max_length])
        out.append([i for i in ids if i != NEVER])
    return out


def idf(rows: list[list[int]], vocabulary_size: int) -> NDArray[np.float32]:
    """``idf_of`` the words of texts, as ``emitted_rows`` gives them: [vocabulary]."""
    frequency = np.zeros(vocabulary_size, np.int64)
    for row in rows:
        frequency[list(set(row))] += 1
    return idf_of(frequency, len(rows))


def idf_of(frequency: NDArray[np.int64], texts: int) -> NDArray[np.float32]:
    """``log(1 + (N - df + .5) / (df + .5))`` (Robertson & Zaragoza 2009, as Lucene computes it): [vocabulary]."""
    return np.log1p((texts - frequency + 0.5) / (frequency + 0.5)).astype(np.float32)


def blended(few: NDArray[np.float32], many: NDArray[np.float32]) -> NDArray[np.float32]:
    """The idf of ``few`` texts, lowered half-way to that of ``many`` where a word is more frequent there: else all that
    the few hardly hold would weigh the same."""
    return np.minimum(few, (few + many) / 2)


def own_weights(idf_values: NDArray[np.float32], scale: float) -> NDArray[np.float32]:
    """``scale x sqrt(idf)``, so that a word that two texts share scores ``scale² x idf``: [vocabulary]."""
    return np.asarray(scale * np.sqrt(idf_values), np.float32)
