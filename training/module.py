"""The sparse encoder as a module of sentence-transformers; it never builds batch x length x vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers.base.modules.input_module import InputModule
from tokenizers import Tokenizer
from torch import Tensor

from sparse_encoder.model import SpladeModel, load_masked_lm
from training.batches import pad
from training.vocabulary import Roles

TASKS = ("query", "document", "term")
USAGE = "usage.npy"
_USAGE_STEP = 0.05  #: so the mean covers some twenty batches
_FADE = 3.0  #: a word a third below zero learns at 1/e of the speed
_SMALLEST_SLOPE = 0.01  #: and one 1.5 below not at all: the backward pass is for few words


class FadingRelu(torch.autograd.Function):
    """``relu`` whose gradient fades out below zero instead of ending there.

    Else a word that FLOPS has switched off never comes back, whatever a ranking would gain by it: most are off after a
    few hundred steps. A surrogate gradient, as for spiking networks (Neftci et al. 2019, arXiv:1901.09948).
    """

    @staticmethod
    def forward(ctx: Any, signed: Tensor) -> Tensor:
        ctx.save_for_backward(signed)
        return torch.relu(signed)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (signed,) = ctx.saved_tensors
        slope = torch.exp(_FADE * signed.clamp(max=0.0))
        return gradients[0] * torch.where(slope > _SMALLEST_SLOPE, slope, 0.0)


class TiledSplade(InputModule):
    """Features in: input_ids, attention_mask. Out: ``sentence_embedding`` and ``signed`` [batch, emitted] (the vectors,
    and the same before ``relu``), and ``states`` [batch, length, hidden] (the encoder's last hidden state, for the
    alignment loss)."""

    def __init__(
        self, splade: SpladeModel, tokenizer: Tokenizer, roles: Roles, max_tokens: dict[str, int], bf16: bool
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.splade = splade
        self.tokenizer = tokenizer
        self.roles = roles
        self.max_tokens = max_tokens
        self.bf16 = bf16
        self.heads_only = False  #: stage 1 needs no sparse vectors
        words = len(roles.emitted_as) if splade.emitted is None else len(splade.emitted)
        self.register_buffer("usage", torch.zeros((len(TASKS), words)))
        self.usage: Tensor  #: running mean of the weight of each word by task, over recent batches

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any) -> dict[str, Tensor]:
        limit = self.max_tokens[kwargs.get("task") or "document"]
        rows = []
        for encoding in self.tokenizer.encode_batch(list(inputs)):
            ids = encoding.ids
            rows.append(ids if len(ids) <= limit else [*ids[: limit - 1], ids[-1]])
        batch = pad(rows)
        return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        ids, mask = features["input_ids"], features["attention_mask"]
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=self.bf16 and self.training):
            states = self.splade.hidden_states(ids, mask)
        features["states"] = states
        if not self.heads_only:
            dtype = torch.bfloat16 if self.bf16 and self.training else torch.float32
            features["signed"] = self.splade.signed_weights(states, ids, mask, dtype)
            if self.splade.lexical and self.splade.mlm.config.related:
                with torch.no_grad():
                    features["supported"] = self.splade.related(states, ids, mask) > 0
            features["sentence_embedding"] = FadingRelu.apply(features["signed"])  # type: ignore[no-untyped-call]
        return features

    def observe(self, task: str, weights: Tensor) -> Tensor:
        """Takes the weights of a batch [batch, words] into the running mean of its task; returns that mean [words]."""
        usage = self.usage[TASKS.index(task)]
        seen = weights.detach().mean(0)
        usage.copy_(torch.lerp(usage, seen, _USAGE_STEP) if usage.any() else seen)
        return usage.clone()

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        self.splade.mlm.save_pretrained(output_path)
        self.tokenizer.save(str(Path(output_path) / "tokenizer.json"))
        self.roles.save(Path(output_path) / "roles.json")
        np.save(Path(output_path) / USAGE, self.usage.numpy(force=True))

    @classmethod
    def load(cls, model_name_or_path: str, **_: Any) -> TiledSplade:  # type: ignore[override]
        return load_module(Path(model_name_or_path), max_tokens=dict.fromkeys(TASKS, 512), bf16=False)


def load_module(path: Path, *, max_tokens: dict[str, int], bf16: bool) -> TiledSplade:
    """Read what ``TiledSplade.save`` (or the vocabulary and start stages) wrote."""
    roles = Roles.load(path / "roles.json")
    mlm = load_masked_lm(path)
    splade = SpladeModel(mlm, roles.emitted)
    module = TiledSplade(splade, Tokenizer.from_file(str(path / "tokenizer.json")), roles, max_tokens, bf16)
    if (path / USAGE).is_file():
        module.usage.copy_(torch.from_numpy(np.load(path / USAGE)))
    return module
