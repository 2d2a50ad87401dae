"""Vectors of an artifact by torch and transformers: what a serving encoder, which uses neither, is checked against."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparse_encoder.architectures import ARCHITECTURES
from sparse_encoder.artifact import QUERY_PREFIX, TOKENIZER, Artifact, GoldenVector, InputType, Manifest
from sparse_encoder.checkpoint.convert import GoldenMaker
from sparse_encoder.checkpoint.golden import GOLDEN_TEXTS
from sparse_encoder.model import load_masked_lm
from sparse_encoder.own_weights import load_own_weights
from sparse_encoder.tokenizer import Tokenizer
from sparse_encoder.vector import SparseVector


class Reference:
    """An artifact in torch, f32."""

    def __init__(self, artifact: Artifact) -> None:
        self._manifest = artifact.manifest
        self.tokenizer = Tokenizer.from_file(artifact.path / TOKENIZER)
        documents = _Encoder(artifact.part("document"))
        self._encoders: dict[InputType, _Encoder] = {
            "document": documents,
            "query": _Encoder(artifact.part("query")) if artifact.manifest.query_encoder else documents,
        }

    def vector(self, text: str, input_type: InputType) -> SparseVector:
        """The vector of one text, by the formula of the manifest."""
        manifest = self._manifest
        length = manifest.max_length_query if input_type == "query" else manifest.max_length_document
        (tokenised,) = self.tokenizer.encode_batch([manifest.prompted(text, input_type)], length)
        if not tokenised.content_tokens:
            return SparseVector.from_pairs([], [])
        return self._encoders[input_type].vector(tokenised.ids)


class _Encoder:
    def __init__(self, artifact: Artifact) -> None:
        """`artifact`: of one encoder, or the part of two that is one."""
        self._manifest = artifact.manifest
        self._own = ARCHITECTURES[artifact.manifest.architecture].head == "own"
        load = load_own_weights if self._own else load_masked_lm
        with tempfile.TemporaryDirectory(prefix="reference-") as folder:  # of names that transformers knows
            for name in (*artifact.manifest.weight_files, artifact.config.name):
                if name.startswith(QUERY_PREFIX) == bool(artifact.prefix):
                    (Path(folder) / name.removeprefix(artifact.prefix)).symlink_to(artifact.path.absolute() / name)
            self._model: Any = load(Path(folder), attn_implementation="eager")

    @torch.no_grad()
    def vector(self, token_ids: list[int]) -> SparseVector:
        manifest, ids = self._manifest, torch.tensor([token_ids])
        if self._own:
            row = torch.zeros(manifest.vocabulary_size)
            row = row.scatter_reduce(0, ids[0], self._model(ids, torch.ones_like(ids))[0], "amax")
            row[list(manifest.never_emitted_ids)] = 0
            return SparseVector.from_dense(row.numpy())
        logits = self._model(input_ids=ids).logits[0]
        return SparseVector.from_dense(weights(logits, manifest).numpy())


def weights(logits: Tensor, manifest: Manifest) -> Tensor:
    """[tokens, vocabulary] to [vocabulary], by the formula of the manifest."""
    activated = logits.relu()
    for _ in range(manifest.activation.count("log1p")):
        activated = activated.log1p()
    return activated.amax(0) if manifest.pooling == "max" else activated.sum(0)


def _vectors(artifact: Artifact) -> Iterator[GoldenVector]:
    reference = Reference(artifact)
    types: tuple[InputType, ...] = ("document", "query")
    for input_type in types:
        for text in GOLDEN_TEXTS:
            vector = reference.vector(text, input_type)
            yield GoldenVector(text, input_type, tuple(vector.ids.tolist()), tuple(vector.weights.tolist()))


REFERENCE = GoldenMaker("by torch and transformers, which do not serve it", _vectors)
