"""Writes a checkpoint of others as an artifact of ours, so that one path serves both."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from safetensors.numpy import save_file

from sparse_encoder.artifact import (
    CONFIG,
    GOLDEN,
    QUERY_PREFIX,
    TOKENIZER,
    Artifact,
    Description,
    GoldenVector,
    QueryEncoder,
    TrainingOrigin,
    describe_files,
    write_artifact,
    write_golden,
)
from sparse_encoder.checkpoint.directory import SourceError
from sparse_encoder.checkpoint.golden import GOLDEN_TOLERANCE
from sparse_encoder.checkpoint.source import Source

SOURCE_CARD = "SOURCE_README.md"
#: What is kept of the source besides: a licence may ask for it.
_KEPT = {"README.md": SOURCE_CARD, "LICENSE": "LICENSE", "LICENSE.txt": "LICENSE.txt", "NOTICE": "NOTICE"}

_CARD = """# {version}

Converted from {sources}. Weight of token j of a text, over its positions t: {formula}.

Architecture {architecture}; {emitted:,} of {vocabulary:,} tokens can be emitted{closed}.
At most {document} tokens for documents and {query} for queries. Golden vectors: {golden}.
Licence and limits are those of the source{card}.
"""


@dataclass(frozen=True, slots=True)
class GoldenMaker:
    """What computes the golden vectors of an artifact that is complete but for them."""

    name: str  #: for the manifest
    vectors: Callable[[Artifact], Iterable[GoldenVector]]


def convert(source: Source, target: Path, golden: GoldenMaker) -> Path:
    """Writes `source` as the new artifact `target`; nothing is left of it on a failure.

    :raises ArtifactExistsError: if `target` exists.
    :raises SourceError: if a weight is NaN or infinite, there is no room on the disk, or no text gets a vector.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    needed, free = source.weight_bytes + 100_000_000, shutil.disk_usage(target.parent).free
    if needed > free:
        raise SourceError(
            f"writing it takes up to {needed / 1e6:,.0f} MB, {target.parent} has {free / 1e6:,.0f} MB: "
            "free some, or give another directory with --cache-dir"
        )
    description = _description(source, golden.name)

    def fill(directory: Path) -> None:
        _write_files(source, description, directory)
        (directory / GOLDEN).touch()
        vectors = list(golden.vectors(Artifact(directory, describe_files(directory, description))))
        if {vector.input_type for vector in vectors if vector.ids} != {"document", "query"}:
            raise SourceError("no text gets a vector from it: its training collapsed, or it is no sparse encoder")
        write_golden(directory / GOLDEN, vectors)

    return write_artifact(target, fill, lambda _: description)


def _description(source: Source, golden: str) -> Description:
    queries = source.queries
    return Description(
        version=source.version,
        architecture=source.layout.architecture,
        activation=source.shape.activation,
        pooling=source.shape.pooling,
        max_length_document=source.max_length_document,
        max_length_query=source.max_length_query,
        vocabulary_size=source.tokenizer.size,
        never_emitted_ids=source.never_emitted_ids,
        prompt_document=source.shape.prompt_document,
        prompt_query=source.shape.prompt_query,
        max_active_tokens=source.shape.max_active_tokens,
        query_encoder=_query_encoder(queries) if queries else None,
        golden_tolerance=GOLDEN_TOLERANCE,
        evaluation={"golden_vectors": golden},
        training=TrainingOrigin(
            commit=source.revision,
            command=f"converted from {source.name}"
            + (f", queries from {queries.name}@{queries.revision}" if queries else ""),
            base=source.name,
            data_origin=(),
        ),
    )


def _query_encoder(queries: Source) -> QueryEncoder:
    return QueryEncoder(
        architecture=queries.layout.architecture, activation=queries.shape.activation, pooling=queries.shape.pooling
    )


def _write_encoder(source: Source, directory: Path, prefix: str) -> None:
    weights, tied = source.weights()
    file = directory / f"{prefix}model.safetensors"
    save_file(weights, file, {"format": "pt"})
    file.chmod(0o644)  # the library writes for its user only
    config = {
        "architectures": [source.layout.architecture],
        **source.config,
        # In a text they stand where tokenizer.json puts them; the defaults of transformers are those of other models.
        **dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")),
        "tie_word_embeddings": tied,
        "dtype": "float32",
    }
    _write_json(directory / f"{prefix}{CONFIG}", config)


def _write_files(source: Source, description: Description, directory: Path) -> None:
    _write_encoder(source, directory, "")
    if source.queries:
        _write_encoder(source.queries, directory, QUERY_PREFIX)
    (directory / TOKENIZER).write_text(source.tokenizer.to_json(), encoding="utf-8")
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": source.max_length_document,
        "pad_token": source.tokenizer.backend.id_to_token(source.tokenizer.pad_id),
    }
    _write_json(directory / "tokenizer_config.json", tokenizer_config)
    if source.query_tokens:
        source.query_tokens.write(directory)
    for one, prefix in ((source, ""), (source.queries, "QUERY_")):
        for name, kept in _KEPT.items():
            if one and (path := one.directory.file(name)):
                shutil.copyfile(path, directory / (prefix + kept))
    has_card = (directory / SOURCE_CARD).is_file()
    (directory / "README.md").write_text(_card(source, description, has_card), encoding="utf-8")


def _card(source: Source, description: Description, has_card: bool) -> str:
    encoders = [source, *([source.queries] if source.queries else [])]
    return _CARD.format(
        version=description.version,
        sources=", for queries from ".join(f"`{one.name}` (revision {one.revision})" for one in encoders),
        formula=", of queries ".join(map(_formula, encoders)),
        closed="" if source.layout.layers.own_weight else ", the others are closed in the output bias",
        architecture=", of queries ".join(one.layout.architecture for one in encoders),
        emitted=description.vocabulary_size - len(description.never_emitted_ids),
        vocabulary=description.vocabulary_size,
        document=description.max_length_document,
        query=description.max_length_query,
        golden=description.evaluation["golden_vectors"],
        card=f", see {SOURCE_CARD}" if has_card else "",
    )


def _formula(source: Source) -> str:
    own = source.layout.layers.own_weight
    inner = f"relu({own}(state[t])), where t holds j," if own else "relu(logit[t, j])"
    for _ in range(source.shape.activation.count("log1p")):
        inner = f"log1p({inner})"
    return f"the {'maximum' if source.shape.pooling == 'max' else 'sum'} of `{inner}`"


def _write_json(path: Path, document: dict[str, object]) -> None:
    path.write_text(json.dumps(document, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
