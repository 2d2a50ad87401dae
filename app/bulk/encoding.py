"""Texts to vectors as the service makes them, by its tokenizer and its encoder, in batches of one length."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal

from app.encoders.base import Precision, TokenBatch
from app.encoders.openvino_encoder import OpenVINOEncoder
from app.encoders.select import build_encoder
from app.engine.budget import Budget, measure
from app.models.conversion import open_model
from app.models.loaded import LoadedModel, check_golden, default_cache_dir, load_model
from sparse_encoder.artifact import Artifact, InputType
from sparse_encoder.batching import by_length
from sparse_encoder.checkpoint.source import Choices
from sparse_encoder.query_tokens import MAX_QUERY_WEIGHT
from sparse_encoder.store import Store
from sparse_encoder.tokenizer import TokenisedText
from sparse_encoder.vector import SparseVector

Format = Literal["word", "token_id", "sparse_vector"]
EMPTY = SparseVector.from_pairs([], [])


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelChoice:
    """What encodes, and how."""

    model: str | None = None  #: directory or name on the hub; None for the embedded one
    query_model: str | None = None  #: of a pair of encoders, which is another version than `model` alone
    store: str | None = None  #: whose `version`, a name or an alias, is taken instead
    version: str = "stable"
    device: str = "auto"
    precision: Precision = "auto"
    threads: int = 0  #: of a CPU, 0 for all
    cache_dir: Path = field(default_factory=default_cache_dir)


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorChoice:
    """Which vector of a text is wanted."""

    input_type: InputType = "document"
    top_k: int = 256
    min_weight: float = 0.0
    max_windows: int = 1
    format: Format = "word"


@dataclass(frozen=True, slots=True)
class Encoded:
    """A text that went through the encoder."""

    weights: dict[str, float]  #: by the names that the format has for tokens, heaviest first, five digits
    tokens: int  #: that were encoded, special ones included
    cut: bool  #: whether the end of the text was too long for the model


def open_artifact(choice: ModelChoice) -> Artifact:
    """:raises ArtifactError, ModelError, EncoderError, StoreError: if it cannot be had, or not be served."""
    if choice.store is not None:
        store = Store(choice.store)
        return store.fetch(store.resolve(choice.version), choice.cache_dir)
    exact = partial(OpenVINOEncoder, precision="f32", threads=choice.threads)
    return open_model(choice.model, choice.cache_dir, Choices(), exact, choice.query_model)


def load(choice: ModelChoice, artifact: Artifact) -> LoadedModel:
    """:raises ModelError, EncoderError: if it does not compute what its publisher computed."""
    build = partial(
        build_encoder,
        device=choice.device,
        precision=choice.precision,
        threads=choice.threads,
        cache_dir=choice.cache_dir,
    )
    model = load_model(artifact, build)
    check_golden(model)
    return model


class BulkEncoder:
    """Encodes in the calling thread."""

    def __init__(self, model: LoadedModel, choice: VectorChoice) -> None:
        """:raises ValueError: if the format is not possible with the model's vocabulary."""
        if choice.format not in model.keys:
            raise ValueError(
                f"--format {choice.format} cannot hold the {len(model.tokenizer.vocabulary):,} tokens of "
                f"{model.version}: use --format word, or token_id"
            )
        budget: Budget = measure(model)
        self._model, self._choice, self._most_tokens = model, choice, budget.batch_tokens
        keys = model.keys[choice.format]
        self._names = [None if key is None else _name(key) for key in keys]
        self._most = MAX_QUERY_WEIGHT if choice.input_type == "query" else math.inf

    def encode(self, texts: Sequence[str]) -> list[Encoded | None]:
        """Of each text; None of one that the encoder fails on even alone. Memory grows with the number of texts."""
        model, choice = self._model, self._choice
        length = model.max_length(choice.input_type)
        prompted = [model.manifest.prompted(text, choice.input_type) for text in texts]
        tokenised = model.tokenizer.encode_windows(prompted, length, choice.max_windows)
        windows = [window for text in tokenised for window in text]
        vectors: list[SparseVector | None] = [EMPTY] * len(windows)
        full = [place for place, window in enumerate(windows) if window.content_tokens]
        for batch in by_length([len(windows[place].ids) for place in full], self._most_tokens):
            places = [full[index] for index in batch]
            for place, vector in zip(places, self._batch([windows[place].ids for place in places]), strict=True):
                vectors[place] = vector
        rest = iter(vectors)
        return [self._encoded(text, list(islice(rest, len(text)))) for text in tokenised]

    def _batch(self, ids: Sequence[Sequence[int]]) -> list[SparseVector | None]:
        """A batch that fails is halved, so that a text that cannot be encoded fails alone."""
        try:
            encoder = self._model.encoder_of(self._choice.input_type)
            return list(encoder.encode(TokenBatch.pad(ids, self._model.tokenizer.pad_id)))
        except Exception:
            if len(ids) == 1:
                return [None]
        half = len(ids) // 2
        return self._batch(ids[:half]) + self._batch(ids[half:])

    def _encoded(self, text: Sequence[TokenisedText], vectors: Sequence[SparseVector | None]) -> Encoded | None:
        whole = [vector for vector in vectors if vector is not None]
        if len(whole) < len(vectors):
            return None
        vector = SparseVector.maximum(whole).prune(top_k=self._choice.top_k, min_weight=self._choice.min_weight)
        pairs = zip(vector.ids.tolist(), vector.weights.tolist(), strict=True)
        weights = {
            name: float(f"{min(weight, self._most):.5g}")
            for id_, weight in pairs
            if (name := self._names[id_]) is not None
        }
        tokens = sum(len(window.ids) for window in text if window.content_tokens)
        return Encoded(weights, tokens, text[-1].truncated)


def _name(key: str) -> str:
    return str(json.loads(key.removesuffix(":")))
