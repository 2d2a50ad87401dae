"""LexicalBert: a BERT whose own words weigh by construction, and whose head adds what the text does not say.

A copy of this file lies beside the weights of every version published in this architecture, for
`from_pretrained(..., trust_remote_code=True)`; it needs torch and transformers only.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel, BertPreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput

CLOSED = -1e4  #: logit of what is never emitted
#: The tensors that hold ids of tokens.
INTEGERS = ("own_token", "last_token", "part_token", "related_token")
NONE = -1  #: in them: no token


class LexicalBertConfig(BertConfig):
    model_type = "lexical_bert"

    def __init__(
        self,
        own_saturation: float = 0.9,
        own_length_power: float = 0.25,
        parts: int = 0,
        related: int = 0,
        related_power: float = 0.5,
        **settings: Any,
    ) -> None:
        """`own_saturation` s: a word's count c weighs c (1 + s) / (c + s), as in BM25.

        `own_length_power` p: in a text of n words it is divided by n^p, since a long text holds many by chance.

        `parts`: words for which a token may speak beside its own (전세금 also for 전세).

        `related`: words that the table names for each word; 0: there is no table. `related_power` q: what the own words
        of a text bring up is divided by (the sum of their weights)^q; at 1 it is a mean over them.
        """
        super().__init__(**settings)
        self.own_saturation = own_saturation
        self.own_length_power = own_length_power
        self.parts = parts
        self.related = related
        self.related_power = related_power


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


class OwnWords(NamedTuple):
    """What the tokens of a batch speak for: at each position its word, and its parts as further positions."""

    tokens: Tensor  #: [B, L x (1 + parts)] ids, `NONE` where there is none
    shares: Tensor  #: [B, L x (1 + parts)] how much of an occurrence it is, 0 where there is none
    length: int  #: L; the first L places are the words themselves

    @property
    def speaks(self) -> Tensor:
        """The positions that hold a word: [B, L]."""
        return self.tokens[:, : self.length] >= 0


class LexicalBertForMaskedLM(BertPreTrainedModel):
    """Logits whose SPLADE vector, `max over positions of log1p(relu(logit))`, has three parts.

    The words of the text weigh `own_weight x saturation(count) / length^power x importance`, where importance is
    `2 sigmoid(...)` of the hidden state. `own_token` says as which token a token is emitted (`##noun` as `noun`), -1
    for never; `part_token` for which words it speaks as well, `own_share` how much of an occurrence each is (a syllable
    that is a word of its own one time in four: a quarter). A text without any word is emitted by `last_token`.

    All other words weigh what the head gives them at the positions that hold a word, plus what the table says: each
    own word brings up its `related_token` by `related_weight`, times its weight and what the network finds that the
    text wants of it (`relating`). So a related word that does not fit the text, by the head, stays off.
    """

    config_class = LexicalBertConfig
    _tied_weights_keys = {}  # noqa: RUF012 - as transformers declares it

    def __init__(self, config: LexicalBertConfig) -> None:
        super().__init__(config)
        size = config.vocab_size
        self.bert = BertModel(config, add_pooling_layer=False)
        self.head = _Head(config)
        self.decoder = nn.Linear(config.hidden_size, size)
        self.importance = nn.Linear(config.hidden_size, 1)
        self.own_weight = nn.Parameter(torch.ones(size))
        self.register_buffer("own_token", torch.full((size,), NONE, dtype=torch.int32))
        self.own_token: Tensor
        if config.parts:
            self.register_buffer("last_token", torch.full((size,), NONE, dtype=torch.int32))
            self.register_buffer("part_token", torch.full((size, config.parts), NONE, dtype=torch.int32))
            self.register_buffer("own_share", torch.ones(size, 1 + config.parts))
            self.last_token: Tensor
            self.part_token: Tensor
            self.own_share: Tensor
        if config.related:
            self.relating = nn.Linear(config.hidden_size, 1)
            self.register_buffer("related_token", torch.full((size, config.related), NONE, dtype=torch.int32))
            self.register_buffer("related_weight", torch.zeros(size, config.related))
            self.related_token: Tensor
            self.related_weight: Tensor
        self.post_init()  # type: ignore[no-untyped-call]

    def get_output_embeddings(self) -> nn.Linear:
        return self.decoder

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        self.decoder = new_embeddings

    def own_words(self, input_ids: Tensor, attention_mask: Tensor) -> OwnWords:
        """For `input_ids` and `attention_mask` [B, L]."""
        real = attention_mask.bool()
        words = torch.where(real, self.own_token[input_ids].long(), NONE)
        if not self.config.parts:
            return OwnWords(words, (words >= 0).float(), words.shape[1])
        silent = (words < 0).all(1, keepdim=True)
        last = torch.where(real & silent, self.last_token[input_ids].long(), NONE)
        parts = torch.where(real.unsqueeze(2), self.part_token[input_ids].long(), NONE).permute(0, 2, 1).flatten(1)
        tokens = torch.cat([torch.where(silent, last, words), parts], 1)
        shares = self.own_share[input_ids].float().permute(0, 2, 1).flatten(1)
        return OwnWords(tokens, shares * (tokens >= 0), words.shape[1])

    def own_weights(self, states: Tensor, own: OwnWords) -> Tensor:
        """What the word of each place of `own` weighs in the vector, 0 where there is none: as `own.tokens`."""
        index = own.tokens.clamp(min=0)
        counts = torch.zeros(len(index), self.config.vocab_size, device=index.device)
        counts = counts.scatter_add(1, index, own.shares).gather(1, index)
        lengths = own.shares[:, : own.length].sum(1, keepdim=True).clamp(min=1)
        saturation = self.config.own_saturation
        frequency = counts * (1 + saturation) / (counts + saturation) * lengths**-self.config.own_length_power
        importance = 2 * torch.sigmoid(self.importance(states).squeeze(-1).float())
        importance = importance.repeat(1, index.shape[1] // own.length)
        return torch.relu(self.own_weight[index].float() * frequency * importance) * (own.tokens >= 0)

    def related_words(self, states: Tensor, own: OwnWords, weights: Tensor) -> tuple[Tensor, Tensor]:
        """What the table adds to the logits, by the `weights` of the `own` words: ids [B, L x related] and how much
        each place adds, 0 where there is none. A word that a text repeats counts as its mean over the places."""
        words, weights = own.tokens[:, : own.length], weights[:, : own.length]
        index = words.clamp(min=0)
        speaks = (words >= 0).float()
        counts = torch.zeros(len(index), self.config.vocab_size, device=index.device)
        counts = counts.scatter_add(1, index, speaks).gather(1, index).clamp(min=1)
        mean = weights / counts
        wanted = mean * 2 * torch.sigmoid(self.relating(states).squeeze(-1).float())
        wanted = wanted / mean.sum(1, keepdim=True).clamp(min=1e-6) ** self.config.related_power
        tokens = self.related_token[index].long()
        added = self.related_weight[index] * (wanted * speaks).unsqueeze(2)
        return tokens.clamp(min=0).flatten(1), torch.where(tokens >= 0, added, 0.0).flatten(1)

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
        own = self.own_words(input_ids, attention_mask)
        weights = self.own_weights(states, own)
        logits = self.decoder(self.head_states(states, input_ids))
        if self.config.related:
            related = torch.zeros_like(logits[:, 0], dtype=torch.float32)
            related = related.scatter_add(1, *self.related_words(states, own, weights))
            logits = logits + related.unsqueeze(1).to(logits.dtype)
        speaks = own.tokens >= 0
        present = torch.zeros(logits.shape[::2], device=logits.device)
        present = present.scatter_reduce(1, own.tokens.clamp(min=0), speaks.float(), "amax") > 0
        logits = logits.masked_fill(present.unsqueeze(1) | ~own.speaks.unsqueeze(2), CLOSED)
        places, spoken, known = (
            part.unflatten(1, (-1, own.length)).transpose(1, 2) for part in (own.tokens, torch.expm1(weights), speaks)
        )
        index = places.clamp(min=0)
        value = torch.where(known, spoken.to(logits.dtype), logits.gather(2, index))
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
