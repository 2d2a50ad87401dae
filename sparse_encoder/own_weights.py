"""An XLM-RoBERTa whose head weighs the tokens of a text themselves (the sparse part of BGE-M3), in torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import XLMRobertaConfig, XLMRobertaModel


class OwnWeights(XLMRobertaModel):
    """`relu(linear(state))` of each position: what its token weighs."""

    def __init__(self, config: XLMRobertaConfig) -> None:
        super().__init__(config, add_pooling_layer=False)
        self.sparse_linear = nn.Linear(config.hidden_size, 1)
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """f32 [texts, length], for `input_ids` and `attention_mask` [texts, length]."""
        states = super().forward(input_ids=input_ids, attention_mask=attention_mask)[0]
        weights: Tensor = torch.relu(self.sparse_linear(states)).squeeze(-1).float()
        return weights


def load_own_weights(path: Path, **settings: Any) -> OwnWeights:
    """The artifact in the directory `path`, in f32 and evaluation mode; `settings` go to `from_pretrained`."""
    model: Any = OwnWeights.from_pretrained(str(path), dtype=torch.float32, **settings)
    made: OwnWeights = model.eval()
    return made
