"""SPLADE in torch: the definition that training uses and that every other implementation is checked against.

Formula (SPLADE v2, Formal et al. 2021, arXiv:2109.10086): ``w_j = max_t log(1 + relu(logit_tj))`` over unmasked
positions t. Both functions are monotone, so the maximum may come first and the logarithm is taken once per vocabulary
entry: the values are the same, and no array of batch x length x vocabulary is ever needed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForMaskedLM, PreTrainedModel
from transformers.activations import ACT2FN

from sparse_encoder.architectures import ARCHITECTURES, Architecture
from sparse_encoder.fields import Fields
from sparse_encoder.layouts import layout
from sparse_encoder.modeling_lexical_bert import LexicalBertConfig, LexicalBertForMaskedLM, OwnWords, put_own_words

_TILE_TOKENS = 160  #: positions whose logits exist at a time; 160 x 24,000 in bf16 stay near the cache


class MaxLogits(torch.autograd.Function):
    """``z[b, v] = max over unmasked t of hidden[b, t] . weight[v] + bias[v]`` without keeping the logits.

    The gradient of a maximum reaches one position only, and behind ``relu`` few words have any: the backward pass finds
    their positions again instead of storing them.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, mask: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
        """hidden [batch, length, size], mask [batch, length] (bool), weight [words, size] -> [batch, words]."""
        lengths: list[int] = mask.sum(1).tolist()
        packed = hidden[mask].to(dtype)
        columns = weight.to(dtype)
        out = torch.full((len(lengths), len(columns)), -torch.inf, device=hidden.device)
        row = start = 0
        while row < len(lengths):
            stop, tokens = row + 1, lengths[row]
            while stop < len(lengths) and tokens + lengths[stop] <= _TILE_TOKENS:
                tokens += lengths[stop]
                stop += 1
            logits = packed[start : start + tokens] @ columns.T
            for part in torch.split(logits, lengths[row:stop]):
                if len(part):
                    out[row] = part.amax(0)
                row += 1
            start += tokens
        out += bias
        ctx.save_for_backward(packed, mask, columns)
        ctx.lengths = lengths
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, Tensor, Tensor, None]:
        packed, mask, columns = ctx.saved_tensors
        (gradient,) = gradients
        wanted = gradient != 0
        packed_gradient = torch.zeros(packed.shape, device=packed.device)
        weight_gradient = torch.zeros(columns.shape, device=packed.device)
        bias_gradient = gradient.sum(0)
        start = 0
        for row, length in enumerate(ctx.lengths):
            active = wanted[row].nonzero()[:, 0]
            if len(active):
                tokens = packed[start : start + length]
                entries = columns[active]
                at = (tokens @ entries.T).argmax(0)
                value = gradient[row, active].unsqueeze(1)
                packed_gradient[start : start + length].index_add_(0, at, value * entries.float())
                weight_gradient.index_add_(0, active, value * tokens[at].float())
            start += length
        hidden_gradient = torch.zeros((*mask.shape, packed.shape[1]), device=packed.device)
        hidden_gradient[mask] = packed_gradient
        return hidden_gradient, None, weight_gradient, bias_gradient, None


def architecture_of(mlm: nn.Module) -> Architecture:
    """Raises ``ValueError`` if it is not in the table."""
    name = type(mlm).__name__
    for architecture in ARCHITECTURES:
        if architecture == name:
            return architecture
    raise ValueError(f"{name} is not known; known are {', '.join(ARCHITECTURES)}")


def _signed(logits: Tensor) -> Tensor:
    return torch.where(logits > 0, torch.log1p(torch.relu(logits)), logits)


def is_lexical_bert(path: Path | str) -> bool:
    """Whether the checkpoint in the directory ``path`` is a LexicalBert; false if nothing is there."""
    config = Path(path) / "config.json"
    return config.is_file() and json.loads(config.read_bytes()).get("model_type") == LexicalBertConfig.model_type


def load_masked_lm(path: Path | str, **settings: Any) -> PreTrainedModel:
    """A transformers checkpoint in f32 and evaluation mode; a LexicalBert by our own class, no code of the checkpoint.

    ``settings`` go to ``from_pretrained``; raises what it raises.
    """
    kind: Any = LexicalBertForMaskedLM if is_lexical_bert(path) else AutoModelForMaskedLM
    model: PreTrainedModel = kind.from_pretrained(str(path), dtype=torch.float32, **settings).eval()
    return model


class SpladeModel(nn.Module):
    """A masked-LM of a known architecture as a sparse encoder; the own words of a LexicalBert weigh what it says.

    ``emitted`` lists the ids that can leave the model; the others are not computed (their weight is zero). Without it
    every id is computed.
    """

    def __init__(self, mlm: PreTrainedModel, emitted: Tensor | None = None) -> None:
        """Raises ``ValueError`` if the architecture of ``mlm`` is not known."""
        super().__init__()
        self.lexical = isinstance(mlm, LexicalBertForMaskedLM)
        self.architecture = architecture_of(mlm)
        self._layers = layout(self.architecture, Fields(mlm.config.to_dict())).layers
        self.mlm: Any = mlm  # whose attributes depend on its family
        self.register_buffer("emitted", emitted, persistent=False)
        self.emitted: Tensor | None
        column = torch.arange(mlm.config.vocab_size)
        if emitted is not None:
            column = torch.full_like(column, -1)
            column[emitted] = torch.arange(len(emitted))
        self.register_buffer("column", column, persistent=False)
        self.column: Tensor  #: of the vectors, for each token; -1 = none
        chosen = torch.arange(mlm.config.vocab_size) if emitted is None else emitted
        has_row = self.decoder.weight.detach()[chosen].any(1) if self.lexical else torch.ones(len(chosen)).bool()
        self.register_buffer("headed", None if has_row.all() else has_row.nonzero()[:, 0], persistent=False)
        self.headed: Tensor | None  #: columns that the head computes, where it has no row for the others; None = all

    @classmethod
    def from_pretrained(cls, path: Path | str, never_emitted: list[int] | None = None) -> SpladeModel:
        """Load a transformers checkpoint (f32, evaluation mode); ``never_emitted`` ids are skipped, not masked."""
        mlm = load_masked_lm(path)
        if never_emitted is None:
            return cls(mlm)
        keep = torch.ones(mlm.config.vocab_size, dtype=torch.bool)
        keep[never_emitted] = False
        return cls(mlm, keep.nonzero()[:, 0])

    @property
    def decoder(self) -> nn.Linear:
        """The last layer, one row a vocabulary entry. In many checkpoints its weight is the input embedding itself."""
        decoder: nn.Linear = self.mlm.get_output_embeddings()
        return decoder

    def hidden_states(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The encoder's last hidden state: [batch, length, hidden]."""
        states: Tensor = self.mlm.base_model(input_ids=input_ids, attention_mask=attention_mask)[0]
        return states.float()

    def _head(self, states: Tensor) -> Tensor:
        """What stands between the last hidden state and the decoder."""
        dense, norm = (self.mlm.get_submodule(name) for name in (self._layers.head_dense, self._layers.head_norm))
        out: Tensor = norm(ACT2FN[self._layers.head_activation](dense(states)))
        return out

    def max_logits(
        self, states: Tensor, input_ids: Tensor, attention_mask: Tensor, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Maximal logit over unmasked positions for the emitted ids, of a LexicalBert over those that speak and without
        its own words: [batch, emitted] (all ids without ``emitted``).

        ``dtype``: of the product with the decoder; bfloat16 is what training uses.
        """
        rows = torch.arange(len(self.column), device=self.column.device) if self.emitted is None else self.emitted
        computed = rows if self.headed is None else rows[self.headed]
        weight, bias = self.decoder.weight[computed], self.decoder.bias[computed]
        if self.lexical:
            mask = self.mlm.own_words(input_ids, attention_mask).speaks
            transformed = self.mlm.head_states(states, input_ids).float()
        else:
            mask = attention_mask.bool()
            transformed = self._head(states).float()
        result: Tensor = MaxLogits.apply(transformed, mask, weight, bias, dtype)  # type: ignore[no-untyped-call]
        if self.headed is None:
            return result
        # A text in which nothing speaks has no word at all.
        constant = torch.where(mask.any(1, keepdim=True), self.decoder.bias[rows], -torch.inf)
        return constant.index_copy(1, self.headed, result)

    def signed_weights(
        self, states: Tensor, input_ids: Tensor, attention_mask: Tensor, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """``weights`` before ``relu``: ``log1p(z)`` for a logit above zero and z itself below, both of slope 1 at zero;
        a loss that is to wake a word acts on this. [batch, emitted] (all ids without ``emitted``)."""
        logits = self.max_logits(states, input_ids, attention_mask, dtype)
        if not self.lexical:
            return _signed(logits)
        own = self.mlm.own_words(input_ids, attention_mask)
        weights = self.mlm.own_weights(states, own)
        if self.mlm.config.related:
            logits = logits + self._related(states, own, weights)
        return put_own_words(_signed(logits), weights, own.tokens, self.column)

    def _related(self, states: Tensor, own: OwnWords, weights: Tensor) -> Tensor:
        tokens, added = self.mlm.related_words(states, own, weights)
        columns = self.column[tokens]
        size = len(self.column) if self.emitted is None else len(self.emitted)
        empty = torch.zeros((len(tokens), size), device=tokens.device)
        return empty.scatter_add(1, columns.clamp(min=0), added * (columns >= 0))

    def related(self, states: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """What the table of a LexicalBert adds to the logits: [batch, emitted] (all ids without ``emitted``)."""
        own = self.mlm.own_words(input_ids, attention_mask)
        return self._related(states, own, self.mlm.own_weights(states, own))

    def weights(
        self, states: Tensor, input_ids: Tensor, attention_mask: Tensor, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """The vectors, from ``hidden_states``: [batch, emitted] (all ids without ``emitted``)."""
        return torch.relu(self.signed_weights(states, input_ids, attention_mask, dtype))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Weights of a batch: [batch, vocabulary]."""
        weights = self.weights(self.hidden_states(input_ids, attention_mask), input_ids, attention_mask)
        if self.emitted is None:
            return weights
        full = weights.new_zeros((len(weights), self.mlm.config.vocab_size))
        return full.index_copy(1, self.emitted, weights)
