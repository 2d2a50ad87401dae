"""From a directory on disk to something that encodes: verify, load, and reproduce the golden vectors, or refuse."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import gettempdir

import numpy as np

from app.encoders.base import Encoder, TokenBatch
from app.models.wire import DottedTokens, Keys, keys_of_formats
from sparse_encoder.artifact import (
    TOKENIZER,
    Artifact,
    GoldenVector,
    InputType,
    Manifest,
    read_artifact,
)
from sparse_encoder.checkpoint.inspection import PEAK_BYTES_A_WEIGHT_BYTE
from sparse_encoder.packed import read_packed
from sparse_encoder.query_tokens import QueryTokens
from sparse_encoder.token_ids import read_token_ids
from sparse_encoder.tokenizer import Tokenizer
from sparse_encoder.vector import SparseVector

GOLDEN_AT_ONCE = 8  #: golden texts of about one length in one run: each run has a price, and so has padding
#: Tokens of a vector on average, where the publisher does not say: as few and as many as no useful model has.
USUAL_BAND = (2.0, 2000.0)
EMBEDDED = Path(__file__).parent.parent / "embedded"


class ModelError(Exception):
    """The model must not be served. The message says why, and what to do."""


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """A model that is loaded and known to compute what its publisher computed."""

    manifest: Manifest
    tokenizer: Tokenizer
    encoder: Encoder  #: of documents, and of queries unless these have their own
    query_tokens: QueryTokens | None  #: for queries without the encoder, if the artifact has them
    keys: Mapping[str, Keys]  #: of the answers, by `sparse_embedding_format`
    golden: tuple[GoldenVector, ...]
    query_encoder: Encoder | None = None

    @property
    def version(self) -> str:
        return self.manifest.version

    @property
    def probe(self) -> str:
        """A text whose vector is not empty, so that it reaches the encoder."""
        return next(golden.text for golden in self.golden if golden.ids)

    def max_length(self, input_type: InputType) -> int:
        """In tokens, special ones included; what is beyond is cut off."""
        return self.manifest.max_length_query if input_type == "query" else self.manifest.max_length_document

    def encoder_of(self, input_type: InputType) -> Encoder:
        return self.query_encoder if self.query_encoder and input_type == "query" else self.encoder

    @property
    def encoders(self) -> tuple[Encoder, ...]:
        """Each once."""
        return (self.encoder, self.query_encoder) if self.query_encoder else (self.encoder,)

    def never_emits(self, token_id: int) -> bool:
        never = self.manifest.never_emitted_ids  # which ascend
        place = bisect_left(never, token_id)
        return place < len(never) and never[place] == token_id

    def vector(self, text: str, input_type: InputType) -> SparseVector:
        """The vector of one text, in the calling thread, past the queue of the service."""
        text = self.manifest.prompted(text, input_type)
        (tokenised,) = self.tokenizer.encode_batch([text], self.max_length(input_type))
        if not tokenised.content_tokens:
            return SparseVector.from_pairs([], [])
        return self.encoder_of(input_type).encode(TokenBatch.pad([tokenised.ids], self.tokenizer.pad_id))[0]


def answered_bands(manifest: Manifest) -> dict[InputType, tuple[float, float]]:
    """How many tokens a vector has on average as it is answered, at least and at most, by input type.

    By the band that the publisher's gate measured it against, if the manifest has one.
    """
    bands: dict[InputType, tuple[float, float]] = {"document": USUAL_BAND, "query": USUAL_BAND}
    for input_type in bands:
        with suppress(KeyError, TypeError, ValueError):  # of another publisher
            least, most = manifest.evaluation["prune"]["gate"][f"active_{input_type}"]
            bands[input_type] = float(least), float(most)
    return bands


#: What `main` makes of `load_model` and the settings: an artifact in memory, not yet checked.
Load = Callable[[Artifact], LoadedModel]


def load_model(
    artifact: Artifact, build_encoder: Callable[[Artifact], Encoder], dotted_tokens: DottedTokens = "drop"
) -> LoadedModel:
    """`artifact` in memory, not yet known to compute what it should: see `check_golden`.

    :raises EncoderError: if the encoder cannot run it.
    :raises ArtifactError: if a table beside its weights is wrong.
    :raises ModelError: if its tokenizer is wrong, or it has no golden vector to check.
    """
    # The encoder takes longest, mostly outside of Python: what else must be read is read meanwhile.
    with ThreadPoolExecutor(1, thread_name_prefix="load") as pool:
        encoder = pool.submit(build_encoder, artifact.part("document"))
        queries = pool.submit(build_encoder, artifact.part("query")) if artifact.manifest.query_encoder else None
        tokenizer = _read_tokenizer(artifact)
        golden = tuple(artifact.golden())
        if not any(vector.ids for vector in golden):
            raise ModelError(f"every golden vector of {artifact.manifest.version} is empty: publish the model again")
        query_tokens = QueryTokens.read(artifact.path, len(tokenizer.vocabulary))
        keys = keys_of_formats(tokenizer.vocabulary, read_token_ids(artifact.path), dotted_tokens)
        return LoadedModel(
            manifest=artifact.manifest,
            tokenizer=tokenizer,
            encoder=encoder.result(),
            query_tokens=query_tokens,
            keys=keys,
            golden=golden,
            query_encoder=queries.result() if queries else None,
        )


def _read_tokenizer(artifact: Artifact) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_file(artifact.path / TOKENIZER)
    except ValueError as error:
        raise ModelError(f"the tokenizer of {artifact.manifest.version} cannot be used: {error}") from error
    if len(tokenizer.vocabulary) != artifact.manifest.vocabulary_size:
        raise ModelError(
            f"tokenizer.json has {len(tokenizer.vocabulary)} tokens, the manifest says "
            f"{artifact.manifest.vocabulary_size}: publish the model again"
        )
    return tokenizer


def check_golden(model: LoadedModel) -> None:
    """Encodes every golden text, which also warms the encoder.

    :raises ModelError: if a vector differs from what the publisher's code computed.
    """
    lines = sorted(enumerate(model.golden, start=1), key=lambda numbered: len(numbered[1].text))
    for encoder in model.encoders:
        own = [numbered for numbered in lines if model.encoder_of(numbered[1].input_type) is encoder]
        for start in range(0, len(own), GOLDEN_AT_ONCE):
            together = own[start : start + GOLDEN_AT_ONCE]
            vectors = _vectors(model, encoder, [golden for _, golden in together])
            for (line, golden), vector in zip(together, vectors, strict=True):
                _check_golden(model, golden, vector, line)


def peak_bytes(weight_bytes: int) -> int:
    """Bytes that loading a model takes at most; `weight_bytes`: of its weights in f32."""
    return round(weight_bytes * PEAK_BYTES_A_WEIGHT_BYTE)


def check_memory(weight_bytes: int, available_bytes: int) -> None:
    """A version that is served stays in memory meanwhile, so this one must fit beside it. `weight_bytes`: in f32.

    :raises ModelError: if it does not.
    """
    needed = peak_bytes(weight_bytes)
    if needed > available_bytes:
        raise ModelError(
            f"loading it takes up to {needed / 1e6:,.0f} MB, {available_bytes / 1e6:,.0f} MB are available: raise the "
            "memory limit, or lower --max-resident-versions"
        )


def default_cache_dir() -> Path:
    """In the user's home, or for a user without one where temporary files go."""
    try:
        return Path.home() / ".cache" / "sparse-encoder"
    except RuntimeError:
        return Path(gettempdir()) / "sparse-encoder"


def open_artifact(model: Path | None) -> Artifact:
    """The artifact at `model`, or else the one that the package carries; verified.

    :raises ArtifactError: if the artifact is incomplete or changed.
    :raises ModelError: if there is no model at all.
    """
    if model:
        return read_artifact(model)
    if not EMBEDDED.is_dir():
        raise ModelError("this installation carries no model: give one with --model DIRECTORY")
    return read_packed(EMBEDDED)


def _vectors(model: LoadedModel, encoder: Encoder, together: Sequence[GoldenVector]) -> list[SparseVector]:
    texts = [model.manifest.prompted(golden.text, golden.input_type) for golden in together]
    tokenised = [
        model.tokenizer.encode_batch([text], model.max_length(golden.input_type))[0]
        for text, golden in zip(texts, together, strict=True)
    ]
    vectors = [SparseVector.from_pairs([], []) for _ in together]
    full = [index for index, text in enumerate(tokenised) if text.content_tokens]
    if full:
        batch = TokenBatch.pad([tokenised[index].ids for index in full], model.tokenizer.pad_id)
        for index, vector in zip(full, encoder.encode(batch), strict=True):
            vectors[index] = vector
    return vectors


def _check_golden(model: LoadedModel, golden: GoldenVector, vector: SparseVector, line: int) -> None:
    vocabulary, manifest = model.tokenizer.vocabulary, model.manifest
    expected = np.zeros(len(vocabulary), np.float32)
    expected[list(golden.ids)] = golden.weights
    difference = -expected
    difference[vector.ids] += vector.weights
    worst = int(np.abs(difference).argmax())
    encoder = model.encoder_of(golden.input_type)
    if rounding := encoder.rounding:
        length = float(np.linalg.norm(expected)) or 1.0
        fits, tolerance = float(np.linalg.norm(difference)) <= rounding * length, rounding * length
    else:
        fits, tolerance = abs(difference[worst]) <= manifest.golden_tolerance, manifest.golden_tolerance
    if not fits:
        raise ModelError(
            f"{manifest.version} does not reproduce line {line} of its golden.jsonl: the weight of "
            f"{vocabulary[worst]!r} is {difference[worst]:+.2g} off, the tolerance is {tolerance:.2g}. "
            "Its tokenizer, its weights or this software are not those it was published with: publish it again"
            + (f", or see whether --precision f32 serves it; now it is {encoder.device}" if rounding else "")
        )
