"""The ways in which a published directory is used, and the vectors that each gives to the same texts."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers.sparse_encoder import SparseEncoder
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

from app.encoders.openvino_encoder import OpenVINOEncoder
from app.models.loaded import check_golden, load_model
from sparse_encoder.artifact import Artifact
from sparse_encoder.model import SpladeModel
from tests.tiny import SENTENCES, dense

TEXTS = ["손해배상", *SENTENCES[:5], " ".join(SENTENCES)]
#: Repeated words; none at all, but for a last resort.
ODD_TEXTS = ["치료 " * 25, "운동 식사 " * 9, "a", "7 7 7"]
ALL_TEXTS = TEXTS + ODD_TEXTS


def check_ways(artifact: Artifact) -> None:
    ours = by_the_service(artifact)
    assert (ours[: len(TEXTS)] > 0).sum(1).min() > 3
    for way in (by_training, by_the_class_of_the_directory, by_the_formula, by_sentence_transformers):
        np.testing.assert_allclose(way(artifact), ours, atol=1e-4, err_msg=way.__name__)


def by_the_service(artifact: Artifact) -> NDArray[np.float32]:
    checkpoint = load_model(artifact, lambda served: OpenVINOEncoder(served, "f32", threads=1))
    check_golden(checkpoint)
    size = artifact.manifest.vocabulary_size
    return np.stack([dense(checkpoint.vector(text, "document"), size) for text in ALL_TEXTS])


def has_own_code(artifact: Artifact) -> bool:
    """Whether other software needs the class that the artifact brings along."""
    return artifact.manifest.architecture == "LexicalBertForMaskedLM"


def inputs_of(artifact: Artifact) -> Any:
    """In one batch, with a row of padding at its end, which must do no harm."""
    tokenizer = AutoTokenizer.from_pretrained(artifact.path, trust_remote_code=has_own_code(artifact))
    length = artifact.manifest.max_length_document
    inputs = tokenizer(ALL_TEXTS, padding=True, truncation=True, max_length=length, return_tensors="pt")
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    padding = torch.full_like(ids[:1], tokenizer.pad_token_id)
    return {"input_ids": torch.cat([ids, padding]), "attention_mask": torch.cat([mask, torch.zeros_like(padding)])}


@torch.no_grad()
def by_training(artifact: Artifact) -> NDArray[np.float32]:
    model = SpladeModel.from_pretrained(artifact.path, list(artifact.manifest.never_emitted_ids))
    return np.asarray(model(**inputs_of(artifact))[:-1].numpy())


@torch.no_grad()
def by_the_class_of_the_directory(artifact: Artifact) -> NDArray[np.float32]:
    model = AutoModel.from_pretrained(artifact.path, trust_remote_code=True).eval()
    inputs = inputs_of(artifact)
    sparse_repr, token_weights = model(**inputs)
    assert token_weights.shape == inputs["input_ids"].shape
    torch.testing.assert_close(token_weights.amax(1), sparse_repr.amax(1))
    assert not token_weights[inputs["attention_mask"] == 0].any()
    return np.asarray(sparse_repr[:-1].numpy())


@torch.no_grad()
def by_the_formula(artifact: Artifact) -> NDArray[np.float32]:
    model = AutoModelForMaskedLM.from_pretrained(artifact.path, trust_remote_code=has_own_code(artifact)).eval()
    inputs = inputs_of(artifact)
    logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    logits = logits.masked_fill(inputs["attention_mask"].unsqueeze(-1) == 0, float("-inf"))[:-1]
    return np.asarray(torch.log1p(torch.relu(logits.max(dim=1).values)).numpy())


def by_sentence_transformers(artifact: Artifact) -> NDArray[np.float32]:
    encoder: Any = SparseEncoder(str(artifact.path), device="cpu", trust_remote_code=has_own_code(artifact))
    return np.asarray(encoder.encode_document(ALL_TEXTS, convert_to_sparse_tensor=False).numpy())
