"""Vectors of an artifact by torch and transformers: what a serving encoder, which uses neither, is checked against."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from sparse_encoder.artifact import TOKENIZER, Artifact, GoldenVector, InputType, Manifest
from sparse_encoder.checkpoint.convert import GoldenMaker
from sparse_encoder.checkpoint.golden import GOLDEN_TEXTS
from sparse_encoder.model import load_masked_lm
from sparse_encoder.tokenizer import Tokenizer
from sparse_encoder.vector import SparseVector


class Reference:
    """An artifact in torch, f32."""

    def __init__(self, artifact: Artifact) -> None:
        self._manifest = artifact.manifest
        self.tokenizer = Tokenizer.from_file(artifact.path / TOKENIZER)
        self._model = load_masked_lm(artifact.path, attn_implementation="eager")

    @torch.no_grad()
    def vector(self, text: str, input_type: InputType) -> SparseVector:
        """The vector of one text, by the formula of the manifest."""
        manifest = self._manifest
        length = manifest.max_length_query if input_type == "query" else manifest.max_length_document
        (tokenised,) = self.tokenizer.encode_batch([text], length)
        if not tokenised.content_tokens:
            return SparseVector.from_pairs([], [])
        logits = self._model(input_ids=torch.tensor([tokenised.ids])).logits[0]
        return SparseVector.from_dense(weights(logits, manifest).numpy())


def weights(logits: Tensor, manifest: Manifest) -> Tensor:
    """[tokens, vocabulary] to [vocabulary], by the formula of the manifest."""
    activated = logits.relu().log1p()
    if manifest.activation == "log1p_log1p_relu":
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
