"""From a directory on disk to something that encodes: verify, load, and reproduce the golden vectors, or refuse."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from app.encoders.base import Encoder, TokenBatch
from sparse_encoder.artifact import (
    MANIFEST,
    TOKENIZER,
    Artifact,
    GoldenVector,
    InputType,
    Manifest,
    file_record,
    read_artifact,
    read_manifest,
)
from sparse_encoder.packed import unpack
from sparse_encoder.tokenizer import Tokenizer
from sparse_encoder.vector import SparseVector

EMBEDDED = Path(__file__).parent / "embedded"

log = logging.getLogger(__name__)


class CheckpointError(Exception):
    """The checkpoint must not be served. The message says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model that is loaded and known to compute what its publisher computed."""

    manifest: Manifest
    tokenizer: Tokenizer
    encoder: Encoder
    probe: str  #: a text whose vector is not empty, so that it reaches the encoder

    def max_length(self, input_type: InputType) -> int:
        """In tokens, special ones included; what is beyond is cut off."""
        return self.manifest.max_length_query if input_type == "query" else self.manifest.max_length_document


def load_checkpoint(artifact: Artifact, build_encoder: Callable[[Artifact], Encoder]) -> Checkpoint:
    """`artifact` loaded, warm, and checked against its golden vectors.

    :raises EncoderError: if the encoder cannot run it.
    :raises CheckpointError: if it does not reproduce its golden vectors.
    """
    try:
        tokenizer = Tokenizer.from_file(artifact.path / TOKENIZER)
    except ValueError as error:
        raise CheckpointError(f"the tokenizer of {artifact.manifest.version} cannot be used: {error}") from error
    if len(tokenizer.vocabulary) != artifact.manifest.vocabulary_size:
        raise CheckpointError(
            f"tokenizer.json has {len(tokenizer.vocabulary)} tokens, the manifest says "
            f"{artifact.manifest.vocabulary_size}: publish the model again"
        )
    vectors = list(artifact.golden())
    probe = next((golden.text for golden in vectors if golden.ids), None)
    if probe is None:
        raise CheckpointError(f"every golden vector of {artifact.manifest.version} is empty: publish the model again")
    checkpoint = Checkpoint(artifact.manifest, tokenizer, build_encoder(artifact), probe)
    for line, golden in enumerate(vectors, start=1):
        _check_golden(checkpoint, golden, line)
    return checkpoint


@contextmanager
def open_artifact(model: Path | None, cache_dir: Path | None) -> Iterator[Artifact]:
    """The artifact at `model`, or else the one that the package carries, unpacked in `cache_dir`; verified.

    If `cache_dir` (or the user's cache directory) cannot be written, the embedded one is unpacked in a temporary
    directory, which lasts as long as the block.

    :raises ArtifactError: if the artifact is incomplete or changed.
    :raises CheckpointError: if there is no model at all.
    """
    if model:
        yield read_artifact(model)
        return
    if not EMBEDDED.is_dir():
        raise CheckpointError("this installation carries no model: give one with --model DIRECTORY")
    # Two builds of one version differ in their manifests, so neither finds the other's files.
    name = f"{read_manifest(EMBEDDED).version}-{file_record(EMBEDDED / MANIFEST).sha256[:12]}"
    with ExitStack() as stack:
        try:
            artifact = unpack(EMBEDDED, (cache_dir or Path.home() / ".cache" / "sparse-encoder") / name)
        except (OSError, RuntimeError) as error:  # RuntimeError: a user without a home
            log.warning(
                "the embedded model goes to a temporary directory at every start, because the cache directory cannot "
                "be written (%s): give a writable one with --cache-dir",
                error,
            )
            artifact = unpack(EMBEDDED, stack.enter_context(_temporary_directory()) / name)
        yield artifact


@contextmanager
def _temporary_directory() -> Iterator[Path]:
    try:
        made = TemporaryDirectory(prefix="sparse-encoder-")
    except OSError as error:
        raise CheckpointError(
            f"no directory can be written to unpack the embedded model in ({error}): mount one, and give it with "
            "--cache-dir"
        ) from error
    with made as path:
        yield Path(path)


def _check_golden(checkpoint: Checkpoint, golden: GoldenVector, line: int) -> None:
    tokenizer = checkpoint.tokenizer
    (text,) = tokenizer.encode_batch([golden.text], checkpoint.max_length(golden.input_type))
    vector = SparseVector.from_pairs([], [])
    if text.content_tokens:
        (vector,) = checkpoint.encoder.encode(TokenBatch.pad([text.ids], tokenizer.pad_id))
    difference = np.zeros(len(tokenizer.vocabulary), np.float32)
    difference[vector.ids] = vector.weights
    difference[list(golden.ids)] -= np.array(golden.weights, np.float32)
    worst = int(np.abs(difference).argmax())
    tolerance = checkpoint.manifest.golden_tolerance
    if not abs(difference[worst]) <= tolerance:
        raise CheckpointError(
            f"{checkpoint.manifest.version} does not reproduce line {line} of its golden.jsonl: the weight of "
            f"{tokenizer.vocabulary[worst]!r} is {difference[worst]:+.2g} off, the tolerance is {tolerance:.2g}. "
            "Its tokenizer, its weights or this software are not those it was published with: publish it again"
        )
