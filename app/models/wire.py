"""The bytes of an answer, put together from token keys that were escaped once.

ASCII only: OpenSearch decodes an answer chunk by chunk, and a character cut in two would be lost without an error.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

import msgpack
import numpy as np

from sparse_encoder.token_ids import MAX_TOKEN_IDS
from sparse_encoder.vector import SparseVector

JSON, MSGPACK = "application/json", "application/msgpack"

Keys = Sequence[str | None]  #: for each token id, `"token":` in ASCII JSON, or None for one that is never written


#: What becomes of a token with a dot in it, on both sides: left out, or written with a one dot leader (U+2024).
DottedTokens = Literal["drop", "replace"]


class Writer(Protocol):
    """Makes the bytes of one vector."""

    def __call__(self, vector: SparseVector, keys: Keys, max_weight: float) -> bytes: ...


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
    """By the name that a request gives the format: see `word_keys`, `token_id_keys` and `sparse_vector_keys`; the
    tokens themselves for `write_full` and `write_indices`.

    Without `sparse_vector` if such a field cannot hold the vocabulary.
    """
    words = word_keys(vocabulary, dotted)
    keys = {"word": words, "lexical": words, "token_id": token_id_keys(vocabulary)}
    keys |= {"full": vocabulary, "indices": vocabulary}
    if (of_fields := sparse_vector_keys(vocabulary, token_ids)) is not None:
        keys["sparse_vector"] = of_fields
    return keys


def write_vector(vector: SparseVector, keys: Keys, max_weight: float) -> bytes:
    """`{"token":weight,...}` in the order of `vector`, weights at most `max_weight`, with 5 significant digits."""
    pairs = _pairs(vector, max_weight)
    items = [f"{key}{weight:.5g}" for token_id, weight in pairs if (key := keys[token_id]) is not None]
    return f"{{{','.join(items)}}}".encode("ascii")


def write_full(vector: SparseVector, keys: Keys, max_weight: float) -> bytes:
    """`[{"id":token id,"word":token,"weight":weight},...]` in the order of `vector`; `keys` are the tokens."""
    pairs = _pairs(vector, max_weight)
    items = [f'{{"id":{id_},"word":{json.dumps(keys[id_])},"weight":{weight:.5g}}}' for id_, weight in pairs]
    return f"[{','.join(items)}]".encode("ascii")


def write_indices(vector: SparseVector, keys: Keys, max_weight: float, *, tokens: bool = False) -> bytes:
    """`{"indices":[token id,...],"values":[weight,...]}` in the order of `vector`; with `tokens` these as well."""
    ids = vector.ids.tolist()
    values = ",".join(f"{weight:.5g}" for _, weight in _pairs(vector, max_weight))
    words = f',"tokens":{json.dumps([keys[token_id] for token_id in ids])}' if tokens else ""
    return f'{{"indices":[{",".join(map(str, ids))}],"values":[{values}]{words}}}'.encode("ascii")


def pack_indices(vector: SparseVector, keys: Keys, max_weight: float, *, tokens: bool = False) -> bytes:
    """As `write_indices`, in MessagePack, weights in single precision."""
    document: dict[str, list[Any]] = {
        "indices": vector.ids.tolist(),
        "values": [weight for _, weight in _pairs(vector, max_weight)],
    }
    if tokens:
        document["tokens"] = [keys[token_id] for token_id in vector.ids.tolist()]
    packed: bytes = msgpack.packb(document, use_single_float=True)
    return packed


def write_index_values(vector: SparseVector, keys: Keys, max_weight: float) -> bytes:
    """`[{"index":token id,"value":weight},...]` by ascending id, those of the tokenizer; `keys` are not needed."""
    items = [f'{{"index":{index},"value":{weight:.5g}}}' for index, weight in sorted(_pairs(vector, max_weight))]
    return f"[{','.join(items)}]".encode("ascii")


def _pairs(vector: SparseVector, max_weight: float) -> Iterator[tuple[int, float]]:
    weights = vector.weights if max_weight == math.inf else np.minimum(vector.weights, max_weight)
    return zip(vector.ids.tolist(), weights.tolist(), strict=True)


@dataclass(frozen=True, slots=True)
class Form:
    """How an answer is written."""

    media_type: str
    write: Writer

    def join(self, vectors: Sequence[bytes | None]) -> bytes:
        """The body for all of them; None stands for a text that could not be encoded."""
        if self.media_type == MSGPACK:
            return b"".join([msgpack.Packer().pack_array_header(len(vectors)), *(one or b"\xc0" for one in vectors)])
        return b"[" + b",".join(one or b"null" for one in vectors) + b"]"


def form_of(format_: str, tokens: bool, accept: str) -> Form:
    """By the format that a request names, whether it wants tokens, and the types that its client accepts."""
    if any(kind in accept for kind in (MSGPACK, "application/x-msgpack", "application/vnd.msgpack")):
        return Form(MSGPACK, partial(pack_indices, tokens=tokens))
    if format_ == "indices":
        return Form(JSON, partial(write_indices, tokens=tokens))
    return Form(JSON, write_full if format_ == "full" else write_vector)
