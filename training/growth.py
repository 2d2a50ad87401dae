"""A trained LexicalBert under a vocabulary that has more pieces than its own."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sparse_encoder.artifact import CLOSED_BIAS
from sparse_encoder.modeling_lexical_bert import LexicalBertConfig, LexicalBertForMaskedLM
from training.student import ridge
from training.vocabulary import Roles

logger = logging.getLogger(__name__)

_NEIGHBOURS = 8
_TABLES = ("bert.embeddings.word_embeddings.weight", "decoder.weight", "decoder.bias", "own_weight", "own_token")


@dataclass(frozen=True)
class PieceKnowledge:
    """What is known of each piece of a vocabulary before a model is trained on it."""

    own_weights: Tensor  #: [vocabulary] what it should weigh on its own
    word_vectors: Tensor  #: [vocabulary, teacher] the teacher's vector of its surface: what it means
    embeddings: Tensor  #: [vocabulary, teacher] the teacher's input embedding, a mean of its pieces': how it is read


@torch.no_grad()
def grow(model: LexicalBertForMaskedLM, roles: Roles, known: PieceKnowledge) -> LexicalBertForMaskedLM:
    """The model under the vocabulary of ``roles``, whose first pieces are the model's own: those stay as they are.

    A new piece gets the embedding that the linear map from the teacher's embeddings to the model's would give it. What
    emits it is the mean of what emits the eight old words nearest to it by ``known.word_vectors``, so it comes up where
    they do until training says otherwise. On its own it weighs what ``known`` says, at the scale that the old words
    came to.
    """
    own_weights, word_vectors, piece_embeddings = known.own_weights, known.word_vectors, known.embeddings
    old, size = model.config.vocab_size, len(roles.emitted_as)
    grown = LexicalBertForMaskedLM(LexicalBertConfig(**{**model.config.to_dict(), "vocab_size": size}))
    state = model.state_dict()
    tables = {name: state.pop(name) for name in _TABLES}
    rows = {name: torch.zeros((size, *table.shape[1:]), dtype=table.dtype) for name, table in tables.items()}
    for name, table in tables.items():
        rows[name][:old] = table
    embeddings, weight, bias, own, _ = rows.values()

    table, source = embeddings[:old].clone(), piece_embeddings - piece_embeddings[:old].mean(0)
    mean = table.mean(0)
    mapped = source @ ridge(source[:old], table - mean)
    embeddings[old:] = mean + mapped[old:] * ((table - mean).std() / mapped[:old].std())

    emitted = roles.emitted
    words, new = emitted[emitted < old], emitted[emitted >= old]
    vectors = normalize(word_vectors - word_vectors[words].mean(0), dim=1)
    nearest = words[(vectors[new] @ vectors[words].T).topk(_NEIGHBOURS).indices]
    weight[new], bias[old:] = weight[nearest].mean(1), CLOSED_BIAS
    bias[new] = bias[nearest].mean(1)

    spoken = words[own_weights[words] > 0]
    own[old:] = own_weights[old:] * (own[spoken] / own_weights[spoken]).median()
    rows["own_token"] = torch.tensor(roles.emitted_as, dtype=tables["own_token"].dtype)
    grown.load_state_dict(state | rows)
    logger.info("vocabulary: %d pieces more, %d of them emitted as themselves", size - old, len(new))
    return grown
