"""The published model as its own class for `AutoModel.from_pretrained(..., trust_remote_code=True)`.

A copy of this file lies beside the weights of every published version; it needs torch and transformers only.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import BertForMaskedLM


class MaskedLMSplade(BertForMaskedLM):
    """A masked language model whose output is the sparse vector of each text."""

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **inputs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`input_ids` and `attention_mask`: [B, L].

        Returns the weight of each word of the vocabulary, `w_j = max_t log(1 + relu(logit_tj))` over unmasked positions
        t, as [B, V]; and the largest weight that each position gives to any word, [B, L].
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        logits = super().forward(input_ids=input_ids, attention_mask=attention_mask, **inputs).logits
        weights = torch.log1p(torch.relu(logits)) * attention_mask.unsqueeze(-1)
        return weights.amax(dim=1), weights.amax(dim=-1)
