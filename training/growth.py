"""A trained LexicalBert under a vocabulary that has more pieces than its own."""

from __future__ import annotations

import logging

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sparse_encoder.artifact import CLOSED_BIAS
from sparse_encoder.modeling_lexical_bert import OWN_TOKEN, LexicalBertConfig, LexicalBertForMaskedLM
from training.student import ridge
from training.vocabulary import Roles

logger = logging.getLogger(__name__)

_NEIGHBOURS = 8
_TABLES = ("bert.embeddings.word_embeddings.weight", "decoder.weight", "decoder.bias", "own_weight", OWN_TOKEN)


@torch.no_grad()
def grow(
    model: LexicalBertForMaskedLM, roles: Roles, own_weights: Tensor, word_vectors: Tensor, piece_embeddings: Tensor
) -> LexicalBertForMaskedLM:
    """The model under the vocabulary of ``roles``, whose first pieces are the model's own: those stay as they are.

    A new piece gets the embedding that the linear map from the teacher's embeddings [vocabulary, teacher] to the
    model's would give it. What emits it is the mean of what emits the eight old words nearest to it by
    ``word_vectors`` [vocabulary, teacher], so it comes up where they do until training says otherwise. On its own it
    weighs ``own_weights`` [vocabulary], at the scale that the old words came to.
    """
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
    rows[OWN_TOKEN] = torch.tensor(roles.emitted_as, dtype=tables[OWN_TOKEN].dtype)
    grown.load_state_dict(state | rows)
    logger.info("vocabulary: %d pieces more, %d of them emitted as themselves", size - old, len(new))
    return grown
