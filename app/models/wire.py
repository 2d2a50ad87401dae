"""The bytes of an answer, put together from token keys that were escaped once.

ASCII only: OpenSearch decodes an answer chunk by chunk, and a character cut in two would be lost without an error.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

from sparse_encoder.token_ids import MAX_TOKEN_IDS
from sparse_encoder.vector import SparseVector

Keys = Sequence[str | None]  #: for each token id, `"token":` in ASCII JSON, or None for one that is never written


#: What becomes of a token with a dot in it, on both sides: left out, or written with a one dot leader (U+2024).
DottedTokens = Literal["drop", "replace"]


class Writer(Protocol):
    """Makes the JSON of one vector."""

    def __call__(self, vector: SparseVector, keys: Keys, max_weight: float) -> str: ...


def word_keys(vocabulary: Sequence[str], dotted: DottedTokens) -> Keys:
    """Keys that are the tokens themselves, astral characters as surrogate pairs.

    Blank tokens have none. A dot cannot stay: OpenSearch reads it as a path, and fails on documents that pass a second
    inference processor. What is done is done to queries and documents alike, so both sides agree.
    """
    written = [token.replace(".", "\u2024") if dotted == "replace" else token for token in vocabulary]
    often = Counter(written)

    def key(token: str, name: str) -> str | None:
        if not name.strip() or "." in name or (name != token and often[name] > 1):
            return None
        return json.dumps(name) + ":"

    return [key(token, name) for token, name in zip(vocabulary, written, strict=True)]


def token_id_keys(vocabulary: Sequence[str]) -> Keys:
    """Keys that are the tokenizer's ids, as strings."""
    return [f'"{token_id}":' for token_id in range(len(vocabulary))]


def sparse_vector_keys(vocabulary: Sequence[str], token_ids: Mapping[str, int]) -> Keys | None:
    """Keys that OpenSearch's `sparse_vector` field can hold: the ids of `token_ids`, or without such a table those of
    the tokenizer; None if there are too many of these.

    A token that is not in a table that has others has no key: it cannot be emitted.
    """
    if token_ids:
        return [f'"{token_ids[token]}":' if token in token_ids else None for token in vocabulary]
    return token_id_keys(vocabulary) if len(vocabulary) <= MAX_TOKEN_IDS else None


def keys_of_formats(
    vocabulary: Sequence[str], token_ids: Mapping[str, int], dotted: DottedTokens
) -> Mapping[str, Keys]:
    """By the name that a request gives the format: see `word_keys`, `token_id_keys` and `sparse_vector_keys`.

    Without `sparse_vector` if such a field cannot hold the vocabulary.
    """
    words = word_keys(vocabulary, dotted)
    keys = {"word": words, "lexical": words, "token_id": token_id_keys(vocabulary)}
    if (of_fields := sparse_vector_keys(vocabulary, token_ids)) is not None:
        keys["sparse_vector"] = of_fields
    return keys


def write_vector(vector: SparseVector, keys: Keys, max_weight: float) -> str:
    """`{"token":weight,...}` in the order of `vector`, weights at most `max_weight`, with 5 significant digits."""
    pairs = zip(vector.ids.tolist(), vector.weights.tolist(), strict=True)
    items = [f"{key}{min(weight, max_weight):.5g}" for token_id, weight in pairs if (key := keys[token_id]) is not None]
    return "{" + ",".join(items) + "}"


def write_index_values(vector: SparseVector, keys: Keys, max_weight: float) -> str:
    """`[{"index":token id,"value":weight},...]` by ascending id, those of the tokenizer; `keys` are not needed."""
    pairs = sorted(zip(vector.ids.tolist(), vector.weights.tolist(), strict=True))
    return "[" + ",".join(f'{{"index":{index},"value":{min(weight, max_weight):.5g}}}' for index, weight in pairs) + "]"
