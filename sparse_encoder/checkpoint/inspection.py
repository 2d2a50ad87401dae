"""What a checkpoint is, in lines for people."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import tokenizers

from sparse_encoder.artifact import TOKENIZER, Artifact, Manifest
from sparse_encoder.checkpoint.directory import SourceError
from sparse_encoder.checkpoint.source import Source

#: Bytes that loading takes at its peak for each byte of weights. Measured with OpenVINO 2026.4 and 597 MB of weights:
#: 2.66, and once loaded 2.65 (f32), 2.2 (bf16) or 0.8 (int8); of weights in blocks of int8 2.0, once loaded 0.8 to 0.9.
PEAK_BYTES_A_WEIGHT_BYTE = 2.7
_SCRIPTS = {"HANGUL": "Hangul", "LATIN": "Latin", "CJK": "Han", "HIRAGANA": "Kana", "KATAKANA": "Kana"}
_SHOWN = 12


def of_source(source: Source) -> Iterator[str]:
    """Lines about a checkpoint that would be converted."""
    layout, tokenizer = source.layout, source.tokenizer
    yield f"kind: {source.shape.kind}"
    yield f"architecture: {layout.architecture}, {layout.vocabulary_size:,} x {layout.layers.embedding_size} embeddings"
    dtypes = sorted({tensor.dtype for tensor in source.tensors.values()})
    yield f"weights: {len(source.tensors)} tensors, {', '.join(dtypes)}"
    yield f"weight of a token: {source.shape.activation}, {source.shape.pooling} over positions"
    yield from _vocabulary(tokenizer.backend, source.never_emitted_ids, tokenizer.size)
    yield f"lengths: {source.max_length_document} tokens for documents, {source.max_length_query} for queries"
    if source.shape.prompt_document or source.shape.prompt_query:
        yield f"prompts: {source.shape.prompt_document!r} for documents, {source.shape.prompt_query!r} for queries"
    if source.shape.max_active_tokens:
        yield f"tokens of a vector: {source.shape.max_active_tokens} unless a request says otherwise"
    yield f"queries: {_queries(source)}"
    yield _memory(source.weight_bytes)


def of_artifact(path: Path, manifest: Manifest) -> Iterator[str]:
    """Lines about an artifact of ours."""
    backend = tokenizers.Tokenizer.from_file(str(path / TOKENIZER))
    yield f"kind: an artifact of this project, {manifest.version} of {manifest.created}"
    yield f"architecture: {manifest.architecture}"
    yield f"weight of a token: {manifest.activation}, {manifest.pooling} over positions"
    if queries := manifest.query_encoder:
        yield f"queries: by {queries.architecture}, {queries.activation}, {queries.pooling} over positions"
    yield from _vocabulary(backend, manifest.never_emitted_ids, manifest.vocabulary_size)
    yield f"lengths: {manifest.max_length_document} tokens for documents, {manifest.max_length_query} for queries"
    yield _memory(manifest.weight_bytes)


def sample(artifact: Artifact, text: str) -> str:
    """The heaviest tokens of `text`.

    :raises ImportError: without torch and transformers.
    :raises SourceError: if it has none, because weights or tokenizer are damaged.
    """
    from sparse_encoder.checkpoint.reference import Reference

    try:
        reference = Reference(artifact)
        vector = reference.vector(text, "document").prune(top_k=_SHOWN)
    except ValueError as error:
        raise SourceError(f"{artifact.path} does not encode a text: {error}") from error
    words = (f"{token} {weight:.2f}" for token, weight in vector.to_words(reference.tokenizer.vocabulary).items())
    return f"sample: {text} → {', '.join(words) or 'nothing'}"


def _queries(source: Source) -> str:
    if other := source.queries:
        layout, shape = other.layout, other.shape
        return (
            f"by an encoder of their own, {other.name}: {shape.kind}, {layout.architecture}, "
            f"{layout.vocabulary_size:,} x {layout.layers.embedding_size} embeddings, {shape.activation}, "
            f"{shape.pooling} over positions"
        )
    return "inference-free by default" if source.query_tokens else "by the encoder"


def _memory(weight_bytes: int) -> str:
    peak = weight_bytes * PEAK_BYTES_A_WEIGHT_BYTE
    return f"memory: {weight_bytes / 1e6:,.0f} MB of weights in f32, up to {peak / 1e6:,.0f} MB while it is loaded"


def _vocabulary(backend: tokenizers.Tokenizer, never_emitted_ids: Sequence[int], size: int) -> Iterator[str]:
    never = set(never_emitted_ids)
    scripts = Counter(_script(backend.decode([token_id])) for token_id in range(size) if token_id not in never)
    counts = ", ".join(f"{count:,} {script}" for script, count in scripts.most_common())
    yield f"vocabulary: {size:,} tokens, {size - len(never):,} can be emitted: {counts}"
    shown = " ".join(f"{token_id} {backend.id_to_token(token_id)}" for token_id in never_emitted_ids[:_SHOWN])
    yield f"never emitted: {shown}{f' and {len(never) - _SHOWN:,} more' if len(never) > _SHOWN else ''}"


def _script(text: str) -> str:
    """Of the first letter; what has none is digits or other."""
    for character in text:
        if character.isalpha():
            return _SCRIPTS.get(unicodedata.name(character, "").partition(" ")[0], "other letters")
    return "digits" if any(character.isdigit() for character in text) else "other"
