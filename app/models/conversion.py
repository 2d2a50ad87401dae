"""From what `--model` names to an artifact: ours as it is, a checkpoint of others converted once, into the cache."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from app.encoders.base import Encoder, TokenBatch
from app.models import memory
from app.models.loaded import ModelError, check_memory, open_artifact
from sparse_encoder.artifact import TOKENIZER, Artifact, ArtifactExistsError, GoldenVector, InputType, read_artifact
from sparse_encoder.checkpoint.convert import GoldenMaker, convert
from sparse_encoder.checkpoint.golden import GOLDEN_TEXTS
from sparse_encoder.checkpoint.locate import locate, open_located
from sparse_encoder.checkpoint.shapes import is_artifact
from sparse_encoder.checkpoint.source import Choices, read_pair, read_source
from sparse_encoder.tokenizer import Tokenizer

log = logging.getLogger(__name__)


def open_model(
    model: str | None,
    cache_dir: Path,
    choices: Choices,
    exact_encoder: Callable[[Artifact], Encoder],
    query_model: str | None = None,
) -> Artifact:
    """The artifact that `model` stands for: a directory, a name on the hub, or None for the embedded one.

    `choices` and `query_model`, which encodes queries, are for checkpoints of others only. `exact_encoder`: in f32, for
    the golden vectors of what is converted.

    :raises ArtifactError: if it is damaged, or no checkpoint that can be served.
    :raises ModelError: if it does not fit into memory, or cannot be written into `cache_dir`.
    :raises EncoderError: if the encoder cannot run it.
    """
    if model is None:
        _refuse(choices, "the embedded model")
        return open_artifact(None)
    located = locate(model)
    try:
        if is_artifact(located.path) and query_model is None:
            _refuse(choices, model)
            artifact = open_located(located, cache_dir)
            check_memory(artifact.manifest.weight_bytes, memory.available_bytes())
            return artifact
        if query_model is None:
            source = read_source(located.path, located.name, choices, located.revision)
        else:
            source = read_pair(located, locate(query_model), choices)
        check_memory(source.weight_bytes, memory.available_bytes())
        target = cache_dir / "converted" / f"{source.version}-{source.hash[8:24]}"
        if not target.is_dir():
            log.info("converting %s (%s) into %s, once", model, source.shape.kind, target)
            golden = GoldenMaker("by the encoder that serves it, in f32", lambda made: _golden(made, exact_encoder))
            with suppress(ArtifactExistsError):  # another process was quicker
                convert(source, target, golden)
        return read_artifact(target)
    except OSError as error:
        raise ModelError(
            f"{model} cannot be read, or {cache_dir} cannot be written ({error}): give a directory that can be, with "
            "--cache-dir"
        ) from error


def _refuse(choices: Choices, what: str) -> None:
    if choices != Choices():
        raise ModelError(
            f"{what} says its own lengths: leave out --max-length-document and --max-length-query, which are for "
            "checkpoints of others"
        )


def _golden(artifact: Artifact, exact_encoder: Callable[[Artifact], Encoder]) -> Iterator[GoldenVector]:
    tokenizer, encoder = Tokenizer.from_file(artifact.path / TOKENIZER), exact_encoder(artifact.part("document"))
    lengths: dict[InputType, int] = {
        "document": artifact.manifest.max_length_document,
        "query": artifact.manifest.max_length_query,
    }
    for input_type, length in lengths.items():
        if input_type == "query" and artifact.manifest.query_encoder:
            encoder = exact_encoder(artifact.part("query"))
        prompted = [artifact.manifest.prompted(text, input_type) for text in GOLDEN_TEXTS]
        for text, tokenised in zip(GOLDEN_TEXTS, tokenizer.encode_batch(prompted, length), strict=True):
            ids, weights = (), ()
            if tokenised.content_tokens:
                (vector,) = encoder.encode(TokenBatch.pad([tokenised.ids], tokenizer.pad_id))
                ids, weights = tuple(vector.ids.tolist()), tuple(vector.weights.tolist())
            yield GoldenVector(text, input_type, ids, weights)
