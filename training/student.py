"""The start of the encoder: e5-small under a new vocabulary, its own words weighed by construction.

A sparse encoder must first of all keep the words of a text, each with a weight of its own; a network that has to learn
that spends its capacity on it. So the model is a ``LexicalBert``: a text's own words start at about the weight that
BM25 would give them, and the head starts with the teacher's vectors of the words, so that an untrained model already
adds some related ones and training improves on that.
"""

from __future__ import annotations

import logging

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor
from transformers import BertModel

from sparse_encoder.artifact import CLOSED_BIAS
from sparse_encoder.model import SpladeModel
from sparse_encoder.modeling_lexical_bert import LexicalBertConfig, LexicalBertForMaskedLM
from training.batches import pad
from training.vocabulary import Roles

logger = logging.getLogger(__name__)

_HEAD_SCALE = 0.7  #: input of the head's activation; with the shift below GELU works in its linear part
_HEAD_SHIFT = 4.0
_SKIP_SHARE = 0.5  #: of each token itself, beside its state, in the head's input
_RIDGE = 0.1  #: of the mean variance, added to each dimension's when a linear map is fitted
_DECODER_NORM = 0.75


def mean_piece_embeddings(teacher: BertModel, teacher_tokenizer: Tokenizer, pieces: list[str]) -> Tensor:
    """For each new token the mean of the teacher's embeddings of its pieces: [vocabulary, 384]."""
    table = teacher.get_input_embeddings().weight.detach()
    special = {"[PAD]": "<pad>", "[UNK]": "<unk>", "[CLS]": "<s>", "[SEP]": "</s>", "[MASK]": "<unk>"}
    out = torch.zeros((len(pieces), table.shape[1]))
    for i, piece in enumerate(pieces):
        if piece in special:
            out[i] = table[teacher_tokenizer.token_to_id(special[piece])]
            continue
        encoding = teacher_tokenizer.encode(piece.removeprefix("##"), add_special_tokens=False)
        ids = encoding.ids
        if len(ids) > 1 and piece.startswith("##") and encoding.tokens[0] == "▁":
            ids = ids[1:]
        out[i] = table[ids].mean(0)
    return out


@torch.no_grad()
def start_from_e5(
    teacher: BertModel, teacher_tokenizer: Tokenizer, pieces: list[str], roles: Roles, *, seed: int
) -> LexicalBertForMaskedLM:
    """e5-small's layers under the new vocabulary; the head is still random."""
    torch.manual_seed(seed)
    old = teacher.config
    model = LexicalBertForMaskedLM(
        LexicalBertConfig(
            vocab_size=len(pieces),
            hidden_size=old.hidden_size,
            num_hidden_layers=old.num_hidden_layers,
            num_attention_heads=old.num_attention_heads,
            intermediate_size=old.intermediate_size,
            max_position_embeddings=old.max_position_embeddings,
            type_vocab_size=old.type_vocab_size,
            layer_norm_eps=old.layer_norm_eps,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            pad_token_id=0,
            tie_word_embeddings=False,
        )
    )
    words = "embeddings.word_embeddings.weight"
    state = {name: value for name, value in teacher.state_dict().items() if name != words}
    model.bert.load_state_dict({**state, words: mean_piece_embeddings(teacher, teacher_tokenizer, pieces)})
    own_words_start(model, roles)
    return model


@torch.no_grad()
def own_words_start(model: LexicalBertForMaskedLM, roles: Roles) -> None:
    """Says as what each token is emitted; every word is as important as its weight says."""
    model.own_token.copy_(torch.tensor(roles.emitted_as))
    model.importance.weight.zero_()
    model.importance.bias.zero_()


@torch.no_grad()
def install_head(
    model: SpladeModel,
    word_vectors: NDArray[np.floating],
    own_weights: Tensor,
    sample: list[list[int]],
    *,
    start_active: int,
    skip: bool,
) -> dict[str, float]:
    """Set the head of a LexicalBert so that it already works untrained: related words by the teacher's vectors.

    ``word_vectors`` [vocabulary, hidden] are the teacher's vectors of the tokens' surfaces, ``own_weights``
    [vocabulary] what each token should weigh on its own, ``sample`` token ids of some texts, of which each shall get
    about ``start_active`` other words; ``skip``: the head sees each token itself as well. Returns what was measured.
    """
    assert model.emitted is not None
    mlm: LexicalBertForMaskedLM = model.mlm
    emitted = model.emitted
    mlm.own_weight.copy_(own_weights)
    vectors = torch.from_numpy(np.asarray(word_vectors, np.float32))
    vectors = torch.nn.functional.normalize(vectors - vectors[emitted].mean(0), dim=1)

    # 1. The head's input: states and tokens at one scale, in the teacher's space.
    batches = [pad(sample[i : i + 64]) for i in range(0, len(sample), 64)]
    states = [model.hidden_states(batch.input_ids, batch.attention_mask) for batch in batches]
    speaks = [mlm.own_words(batch.input_ids, batch.attention_mask).speaks for batch in batches]
    spoken = torch.cat([part[mask] for part, mask in zip(states, speaks, strict=True)])
    mean = spoken.mean(0)
    scale = _HEAD_SCALE / spoken.sub(mean).std()
    head = mlm.head
    head.dense.weight.copy_(torch.eye(len(mean)) * scale)
    tokens = (mlm.own_token >= 0).nonzero()[:, 0]
    table = mlm.bert.embeddings.word_embeddings.weight[tokens]
    head.dense.bias.copy_(_HEAD_SHIFT - mean * scale)
    head.skip.weight.zero_()
    if skip:
        past = ridge(table - table.mean(0), vectors[tokens])
        past *= _SKIP_SHARE * _HEAD_SCALE / ((table - table.mean(0)) @ past).std()
        head.skip.weight.copy_(past.T)
        head.dense.bias.sub_(table.mean(0) @ past)
    head.LayerNorm.weight.fill_(1.0)
    head.LayerNorm.bias.zero_()

    # 2. The decoder: the teacher's word vectors.
    weight, bias = mlm.decoder.weight, mlm.decoder.bias
    weight.zero_()
    weight[emitted] = vectors[emitted] * _DECODER_NORM
    bias.fill_(CLOSED_BIAS)
    bias[emitted] = 0.0

    # 3. The bias of each word: so far above its usual maximum that about ``start_active`` words are added to a text.
    maxima = torch.cat(
        [
            model.max_logits(part, batch.input_ids, batch.attention_mask)
            for part, batch in zip(states, batches, strict=True)
        ]
    )
    maxima = maxima[torch.isfinite(maxima).all(1)]  # a text without a word has none
    usual, spread = maxima.mean(0), maxima.std(0)
    low, high = 0.0, 10.0
    for _ in range(30):
        steps = (low + high) / 2
        active = float((maxima > usual + steps * spread).sum(1).float().mean())
        low, high = (steps, high) if active > start_active else (low, steps)
    bias[emitted] = -(usual + steps * spread)
    return {"bias steps": steps, "active": active}


@torch.no_grad()
def without_skip(mlm: LexicalBertForMaskedLM) -> None:
    """The head sees the states only, from now on; what the tokens themselves gave it on average stays in its bias."""
    if mlm.head.skip.weight.any():
        logger.warning("model.skip is false: the head, which saw each token itself, from now on sees its state only")
    tokens = (mlm.own_token >= 0).nonzero()[:, 0]
    mean = mlm.bert.embeddings.word_embeddings.weight[tokens].mean(0)
    mlm.head.dense.bias.add_(mlm.head.skip(mean))
    mlm.head.skip.weight.zero_().requires_grad_(False)


def ridge(inputs: Tensor, targets: Tensor) -> Tensor:
    """The linear map [from, to] by which centred ``inputs`` [n, from] come nearest to ``targets`` [n, to]."""
    covariance = inputs.T @ inputs
    covariance += torch.eye(len(covariance)) * covariance.diagonal().mean() * _RIDGE
    solution: Tensor = torch.linalg.solve(covariance, inputs.T @ targets)
    return solution
