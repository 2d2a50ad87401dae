"""Fixed weights for the tokens of a query, in each form in which checkpoints for inference-free queries bring them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray

from sparse_encoder.checkpoint.directory import Directory, SourceError
from sparse_encoder.checkpoint.shapes import Shape
from sparse_encoder.checkpoint.tokenizer_files import SourceTokenizer
from sparse_encoder.checkpoint.weights import open_weights
from sparse_encoder.query_tokens import MAX_QUERY_WEIGHT, NEVER, QueryTokens

IDF, TEXT = "idf.json", "query_token_weights.txt"


def find_query_tokens(
    directory: Directory, shape: Shape, tokenizer: SourceTokenizer, never_emitted: Iterable[int]
) -> QueryTokens | None:
    """The table of `directory`, which makes inference-free queries the default; None if it brings no weights.

    A weight of 0 or below keeps a token out of queries, one above `MAX_QUERY_WEIGHT` counts as that: OpenSearch takes
    no other.

    :raises SourceError: if a table is wrong, or of another vocabulary.
    """
    weights = _weights(directory, shape, tokenizer)
    if weights is None:
        return None
    weights = np.clip(weights, 0, MAX_QUERY_WEIGHT)
    weights[list(never_emitted)] = 0
    if not (weights > 0).any():
        raise SourceError("its weights for the tokens of queries are all 0: use a checkpoint with trained weights")
    emitted_as = np.where(weights > 0, np.arange(len(weights)), NEVER).astype(np.int32)
    return QueryTokens(True, emitted_as, weights)


def _weights(directory: Directory, shape: Shape, tokenizer: SourceTokenizer) -> NDArray[np.float32] | None:
    """[vocabulary]"""
    if shape.query_weights:
        return _of_module(directory, shape.query_weights, tokenizer)
    for folder in (directory, shape.encoder):
        if folder.file(IDF):
            return _by_token(folder, IDF, folder.settings(IDF), tokenizer)
        if (text := folder.text(TEXT)) is not None:
            return _by_token(folder, TEXT, _table(folder, text), tokenizer)
    return None


def _of_module(directory: Directory, module: Directory, tokenizer: SourceTokenizer) -> NDArray[np.float32]:
    path = module.settings("config.json").get("path")
    if path is not None:
        for folder in (module, directory):
            if isinstance(path, str) and path.endswith(".json") and folder.file(path):
                return _by_token(folder, path, folder.settings(path), tokenizer)
        raise SourceError(
            f"{module.root}/config.json names the weights {path!r}, which are not there: download it again"
        )
    own = module.text("tokenizer.json")
    if own is None or _vocabulary(own) != tokenizer.backend.get_vocab():
        raise SourceError(
            f"{module.root} has another vocabulary than the encoder: use a checkpoint with one vocabulary"
        )
    tensors = open_weights(module)
    if tensors.keys() != {"weight"} or len(tensors["weight"].shape) != 1:
        raise SourceError(f"{module.root} must hold one tensor, the weight of each token, got {sorted(tensors)}")
    weights = tensors["weight"].read()
    if len(weights) < tokenizer.size:
        raise SourceError(f"{module.root} has {len(weights)} weights for {tokenizer.size} tokens: download it again")
    return weights[: tokenizer.size]


def _vocabulary(text: str) -> dict[str, int] | None:
    try:
        return dict(tokenizers.Tokenizer.from_str(text).get_vocab())
    except Exception:  # the library raises plain Exception
        return None


def _table(folder: Directory, text: str) -> dict[str, float]:
    """Lines of a token, white space, and its weight."""
    table = {}
    for number, line in enumerate(text.split("\n"), start=1):
        token, _, weight = line.rstrip().replace("\t", " ").rpartition(" ")
        if line.strip():
            try:
                table[token.rstrip()] = float(weight)
            except ValueError as error:
                raise SourceError(
                    f"{folder.root / TEXT} line {number} is no token and weight: download it again"
                ) from error
    return table


def _by_token(
    folder: Directory, name: str, table: Mapping[str, Any], tokenizer: SourceTokenizer
) -> NDArray[np.float32]:
    weights = np.zeros(tokenizer.size, np.float32)
    for token, weight in table.items():
        if type(weight) not in (int, float) or not math.isfinite(weight):
            raise SourceError(f"{folder.root / name} gives {token[:80]!r} the weight {weight!r}: it must be a number")
        token_id = tokenizer.backend.token_to_id(token)
        if token_id is not None:
            weights[token_id] = weight
    return weights
