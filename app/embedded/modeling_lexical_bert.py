"""LexicalBert: a BERT whose own words weigh by construction, and whose head adds what the text does not say.

A copy of this file lies beside the weights of every version published in this architecture, for
`from_pretrained(..., trust_remote_code=True)`; it needs torch and transformers only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel, BertPreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput

CLOSED = -1e4  #: logit of what is never emitted
OWN_TOKEN = "own_token"  #: name of the only tensor that holds integers


class LexicalBertConfig(BertConfig):
    model_type = "lexical_bert"

    def __init__(self, own_saturation: float = 0.9, own_length_power: float = 0.25, **settings: Any) -> None:
        """`own_saturation` s: a word's count c weighs c (1 + s) / (c + s), as in BM25.

        `own_length_power` p: in a text of n words it is divided by n^p, since a long text holds many by chance.
        """
        super().__init__(**settings)
        self.own_saturation = own_saturation
        self.own_length_power = own_length_power


class _Head(nn.Module):
    """From hidden states to what the decoder multiplies; `skip` brings each token itself past the layers."""

    def __init__(self, config: LexicalBertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.skip = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, states: Tensor, embeddings: Tensor) -> Tensor:
        out: Tensor = self.LayerNorm(nn.functional.gelu(self.dense(states) + self.skip(embeddings)))
        return out


class LexicalBertForMaskedLM(BertPreTrainedModel):
    """Logits whose SPLADE vector, `max over positions of log1p(relu(logit))`, has two parts.

    The words of the text weigh `own_weight x saturation(count) / length^power x importance`, where importance is
    `2 sigmoid(...)` of the hidden state; all other words weigh what the head gives them. `own_token` says as which
    token a token is emitted (`##noun` as `noun`), -1 for never; positions of such tokens are silent.
    """

    config_class = LexicalBertConfig
    _tied_weights_keys = {}  # noqa: RUF012 - as transformers declares it

    def __init__(self, config: LexicalBertConfig) -> None:
        super().__init__(config)
        self.bert = BertModel(config, add_pooling_layer=False)
        self.head = _Head(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        self.importance = nn.Linear(config.hidden_size, 1)
        self.own_weight = nn.Parameter(torch.ones(config.vocab_size))
        self.register_buffer(OWN_TOKEN, torch.full((config.vocab_size,), -1, dtype=torch.int32))
        self.own_token: Tensor
        self.post_init()  # type: ignore[no-untyped-call]

    def get_output_embeddings(self) -> nn.Linear:
        return self.decoder

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        self.decoder = new_embeddings

    def own_tokens(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The token as which each position is emitted, -1 where it is silent or padding: [B, L]."""
        return torch.where(attention_mask.bool(), self.own_token[input_ids].long(), -1)

    def own_words(self, states: Tensor, tokens: Tensor) -> Tensor:
        """What the word of each position weighs in the vector, 0 where `tokens` [B, L] is -1: [B, L]."""
        speaks = tokens >= 0
        counts = ((tokens.unsqueeze(1) == tokens.unsqueeze(2)) & speaks.unsqueeze(1)).sum(2).float()
        lengths = speaks.sum(1, keepdim=True).clamp(min=1).float()
        saturation = self.config.own_saturation
        frequency = counts * (1 + saturation) / (counts + saturation) * lengths**-self.config.own_length_power
        importance = 2 * torch.sigmoid(self.importance(states).squeeze(-1).float())
        weights = self.own_weight[tokens.clamp(min=0)].float() * frequency * importance
        return torch.relu(weights) * speaks

    def head_states(self, states: Tensor, input_ids: Tensor) -> Tensor:
        """What the decoder multiplies: [B, L, hidden]."""
        out: Tensor = self.head(states, self.bert.embeddings.word_embeddings(input_ids))
        return out

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **inputs: Any) -> MaskedLMOutput:
        """`input_ids` and `attention_mask`: [B, L]; logits [B, L, vocabulary]."""
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        inputs = {name: value for name, value in inputs.items() if name != "labels"}
        states = self.bert(input_ids=input_ids, attention_mask=attention_mask, **inputs)[0]
        tokens = self.own_tokens(input_ids, attention_mask)
        own = torch.expm1(self.own_words(states, tokens))
        logits = self.decoder(self.head_states(states, input_ids))
        speaks = tokens >= 0
        present = torch.zeros(len(tokens), logits.shape[2], dtype=torch.bool, device=logits.device)
        rows = torch.arange(len(tokens), device=logits.device).unsqueeze(1).expand_as(tokens)
        present[rows[speaks], tokens[speaks]] = True
        logits = logits.masked_fill(present.unsqueeze(1) | ~speaks.unsqueeze(2), CLOSED)
        index = tokens.clamp(min=0).unsqueeze(2)
        value = torch.where(speaks.unsqueeze(2), own.unsqueeze(2).to(logits.dtype), logits.gather(2, index))
        return MaskedLMOutput(logits=logits.scatter(2, index, value))


class LexicalBertSplade(LexicalBertForMaskedLM):
    """The same, whose output is the sparse vector of each text."""

    def forward(  # type: ignore[override]
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **inputs: Any
    ) -> tuple[Tensor, Tensor]:
        """The weight of each word of the vocabulary, [B, V], and the largest weight of each position, [B, L]."""
        output = super().forward(input_ids, attention_mask, **inputs)
        assert output.logits is not None
        weights = torch.log1p(torch.relu(output.logits))
        return weights.amax(dim=1), weights.amax(dim=-1)


def put_own_words(vectors: Tensor, own: Tensor, tokens: Tensor, column: Tensor) -> Tensor:
    """`vectors` [batch, columns] in which the words of the texts weigh `own` [batch, length], each at its heaviest.

    `tokens` [batch, length] are their ids, -1 where there is none, and `column` [vocabulary] the column of each id,
    -1 where it has none.
    """
    columns = torch.where(tokens >= 0, column[tokens.clamp(min=0)], -1)
    rows = torch.arange(len(tokens), device=tokens.device).unsqueeze(1).expand_as(tokens)
    keep = columns >= 0
    places = (rows * vectors.shape[1] + columns)[keep]
    flat = vectors.flatten()
    present = torch.zeros_like(flat, dtype=torch.bool).index_fill(0, places, True)
    heaviest = torch.zeros_like(flat).scatter_reduce(0, places, own[keep], "amax")
    return torch.where(present, heaviest, flat).view_as(vectors)
