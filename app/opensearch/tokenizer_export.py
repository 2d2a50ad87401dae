"""The query side of a model as OpenSearch's `SPARSE_TOKENIZE` model: queries are then encoded inside the cluster.

OpenSearch tokenises a query with `tokenizer.json`, takes each id once, names it by decoding it alone, drops what
decodes to nothing, and looks the name up in `idf.json`; for a `sparse_vector` field the id itself is the key. Two ids
of one name are an error before 3.3, and two keys after it. So the exported vocabulary gives every token the id that it
is emitted under, and a token that is never emitted that of [UNK], which decodes to nothing.

A token has one weight there, so queries are their own words: the parts and the related words that the service can look
up are left out.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

from tokenizers import Regex, Tokenizer
from tokenizers.decoders import Decoder, Replace
from tokenizers.normalizers import NFC, Normalizer, Sequence

from sparse_encoder.artifact import TOKENIZER, Artifact, ArtifactError
from sparse_encoder.query_tokens import NEVER, QUERY_TOKENS, QueryTokens
from sparse_encoder.token_ids import read_token_ids
from sparse_encoder.tokenizer import tokens_by_id

PREFIX = "##"
IDF = "idf.json"  #: the name is fixed by OpenSearch
ABOVE_ALL_TOKEN_IDS = 1 << 24
NO_TOKEN = ""  #: of an id that the vocabulary leaves out


def write_sparse_tokenizer(artifact: Artifact, target: Path) -> Path:
    """Writes the zip file `target`, for `artifact`; returns `target`.

    Tokens with a dot are dropped, as the service drops them by default.

    :raises ArtifactError: if the artifact has no query weights, or OpenSearch could not name its tokens.
    """
    tokenizer = Tokenizer.from_file(str(artifact.path / TOKENIZER))
    kind = json.loads(tokenizer.to_str())["model"]["type"]
    if kind != "WordPiece":
        raise ArtifactError(
            f"{artifact.manifest.version} has a {kind} tokenizer, whose tokens SPARSE_TOKENIZE of OpenSearch cannot "
            "tell apart: encode its queries by the service instead"
        )
    tokens = QueryTokens.read(artifact.path, artifact.manifest.vocabulary_size)
    if tokens is None:
        raise ArtifactError(
            f"{artifact.manifest.version} has no {QUERY_TOKENS}, so its queries need the encoder: encode them by the "
            "service instead, or publish the model again"
        )
    vocabulary = [token or NO_TOKEN for token in tokens_by_id(tokenizer)]
    token_ids = read_token_ids(artifact.path) or {token: token_id for token_id, token in enumerate(vocabulary)}
    document = json.loads(tokenizer.to_str())
    ids = document["model"]["vocab"]
    for special in document["added_tokens"]:
        special["id"] = ids[special["content"]] = ids[special["content"]] + ABOVE_ALL_TOKEN_IDS
    weights: dict[str, float] = {}
    kept_whole: list[str] = []
    for token, target_id in zip(vocabulary, tokens.emitted_as.tolist(), strict=True):
        if token == NO_TOKEN or ids[token] >= ABOVE_ALL_TOKEN_IDS:
            continue
        emitted = vocabulary[target_id]
        if target_id == NEVER or "." in emitted or not emitted.strip():
            ids[token] = ids[document["model"]["unk_token"]]
            continue
        if emitted == token and token.startswith(PREFIX):
            kept_whole.append(token.removeprefix(PREFIX))
        elif emitted not in (token, token.removeprefix(PREFIX)):
            raise ArtifactError(
                f"{artifact.manifest.version} emits {token!r} as {emitted!r}, which OpenSearch's SPARSE_TOKENIZE "
                "cannot do: encode its queries by the service instead"
            )
        ids[token] = token_ids[emitted]
        weights[emitted] = float(f"{tokens.weights[target_id]:.5g}")
    # An id of both `x` and `##x` is decoded as either.
    document["decoder"] = _setting(Replace(Regex(f"^{PREFIX}(?!(?:{_any(kept_whole)})$)"), ""))
    # The service composes Hangul before the tokenizer sees it.
    document["normalizer"] = _setting(Sequence([NFC(), *([tokenizer.normalizer] if tokenizer.normalizer else [])]))
    document["post_processor"] = None  # it would add special tokens, by ids that are not theirs any more
    # Where the service cuts a query off, whose length counts the special tokens; OpenSearch's own limit is 512.
    tokenizer.enable_truncation(artifact.manifest.max_length_query - tokenizer.num_special_tokens_to_add(is_pair=False))
    document["truncation"] = json.loads(tokenizer.to_str())["truncation"]
    with ZipFile(target, "w", ZIP_DEFLATED) as archive:
        archive.writestr(TOKENIZER, json.dumps(document))
        archive.writestr(IDF, json.dumps(weights))
    return target


def _setting(part: Decoder | Normalizer) -> Any:
    """`part` as it stands in a `tokenizer.json`."""
    return json.loads(part.__getstate__())


def _any(tokens: list[str]) -> str:
    return "|".join(map(re.escape, tokens)) or r"[^\s\S]"
