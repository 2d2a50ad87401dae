"""A tiny LexicalBert with everything that one may have: parts, a last resort, related words, words without a row."""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path

import torch

from sparse_encoder.modeling_lexical_bert import NONE, LexicalBertConfig, LexicalBertForMaskedLM
from sparse_encoder.packed import dequantise, quantise
from sparse_encoder.tokenizer import Tokenizer
from tests import tiny

LONGEST = 512  #: positions, more than a text may have: so many repeats of a word show how it is counted


def publish(target: Path, version: str = "lexical-v1", *, seed: int = 20) -> Path:
    """Writes the artifact at `target`: that of `tests.tiny` in this architecture."""
    model = build_model(Tokenizer(tiny.build_tokenizer()), seed)
    return tiny.write(target, model, version, "LexicalBertForMaskedLM")


def build_model(tokenizer: Tokenizer, seed: int = 20) -> LexicalBertForMaskedLM:
    """Letters and digits speak as a last resort only; all other words as `tests.tiny.build_query_tokens` says."""
    config = LexicalBertConfig(
        vocab_size=len(tokenizer.vocabulary),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=LONGEST,
        initializer_range=0.15,
        tie_word_embeddings=False,
        parts=2,
        related=8,
        related_power=0.5,
    )
    own = tiny.build_query_tokens(tuple(tokenizer.vocabulary)).emitted_as.tolist()
    last = [NONE] * len(own)
    for token_id, token in enumerate(tokenizer.vocabulary):
        if token.removeprefix("##") in {*string.ascii_lowercase, *string.digits}:
            last[token_id], own[token_id] = own[token_id], NONE
    never = tiny.never_emitted_ids(tuple(tokenizer.vocabulary))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = LexicalBertForMaskedLM(config)
        model.train(False)
        fill_tables(model, own, last)
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.copy_(torch.from_numpy(dequantise(*quantise(parameter.numpy()))))
        model.own_weight.uniform_(1, 3)
        model.decoder.bias.fill_(-1)
        model.decoder.bias[list(never)] = tiny.CLOSED
    return model


@torch.no_grad()
def fill_tables(model: LexicalBertForMaskedLM, own: Sequence[int], last: Sequence[int]) -> None:
    """Gives each token its word `own`, `last` where a text has none, and at random all that the config asks for:
    some parts and related words, less than whole shares, and every third word without a row."""
    model.own_token.copy_(torch.tensor(own))
    words = model.own_token[model.own_token >= 0].unique()

    def some(shape: torch.Size) -> torch.Tensor:
        tokens = words[torch.randint(len(words), shape)]
        return torch.where(torch.rand(shape) < 0.5, tokens, NONE)

    model.decoder.weight[words[::3].long()] = 0
    if model.config.parts:
        model.last_token.copy_(torch.tensor(last))
        model.part_token.copy_(some(model.part_token.shape))
        model.own_share.uniform_(0.2, 1)
    if model.config.related:
        model.related_token.copy_(some(model.related_token.shape))
        model.related_weight.uniform_(0.5, 4)
