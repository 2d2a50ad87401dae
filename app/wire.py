"""The bytes of an answer, put together from token keys that were escaped once.

ASCII only: OpenSearch decodes an answer chunk by chunk, and a character cut in two would be lost without an error.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from sparse_encoder.vector import SparseVector

Keys = Sequence[str | None]  #: for each token id, `"token":` in ASCII JSON, or None for one that is never written


def word_keys(vocabulary: Sequence[str]) -> Keys:
    """Keys that are the tokens themselves, astral characters as surrogate pairs.

    Blank tokens and tokens with a dot have none: OpenSearch reads a dot in a key as a path, and fails on documents that
    pass a second inference processor. They are left out of queries and documents alike, so both sides agree.
    """
    return [json.dumps(token) + ":" if token.strip() and "." not in token else None for token in vocabulary]


def token_id_keys(vocabulary_size: int) -> Keys:
    """Keys that are token ids as strings, as a `sparse_vector` field needs them."""
    return [f'"{token_id}":' for token_id in range(vocabulary_size)]


def write_vector(vector: SparseVector, keys: Keys, max_weight: float) -> str:
    """`{"token":weight,...}` in the order of `vector`, weights at most `max_weight`, with 5 significant digits."""
    pairs = zip(vector.ids.tolist(), vector.weights.tolist(), strict=True)
    items = [f"{key}{min(weight, max_weight):.5g}" for token_id, weight in pairs if (key := keys[token_id]) is not None]
    return "{" + ",".join(items) + "}"
