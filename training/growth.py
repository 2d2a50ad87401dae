"""A trained LexicalBert under another vocabulary, one of words, with a table of related words."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import normalize

from sparse_encoder.artifact import CLOSED_BIAS
from sparse_encoder.modeling_lexical_bert import INTEGERS, NONE, LexicalBertConfig, LexicalBertForMaskedLM
from training.config import RelatedConfig
from training.vocabulary import NEVER, SPECIAL_TOKENS, Roles
from training.words.cong import Morpheme
from training.words.parts import PARTS
from training.words.tables import WordTables

logger = logging.getLogger(__name__)

_READ_BY = 10  #: related words whose embeddings make a new piece's
_SURFACE = 0.4  #: of what its old pieces say, beside that
_EMITTED_BY = 8  #: related words whose rows in the head make a new word's
_LEAST_ROWS = 3  #: of them that must have one
_KEPT = 0.5  #: of an old word's own weight, beside what its new frequency says
#: A piece counts in a text by this power of its share, so nearly in full: names are found by their syllables.
_SHARE_POWER = 0.1
#: Words that the head may add. The others come up as own words or by the table: their row is zero and costs nothing.
_HEADED = re.compile(r"[가-힣]{2,}|[a-z]{3,}")
_SYLLABLE_RANK, _SYLLABLE_SHARE = 4_000, 0.6  #: a syllable may be added that is a frequent noun
_INHERITING_RANK = 10_000  #: a new word may be added that general Korean uses so often
_INHERITING_TAGS = frozenset({"NNG", "NNP", "XR"})
#: What stands for each piece or word: not to be taken over by place.
_BY_PIECE = frozenset({"bert.embeddings.word_embeddings.weight", "decoder.weight", "decoder.bias", "own_weight"})
_BY_TABLE = frozenset({*INTEGERS, "own_share", "related_weight"})


@dataclass(frozen=True, eq=False)
class WordKnowledge:
    """What is known of a vocabulary of words before a model is trained on it."""

    pieces: list[str]
    roles: Roles
    tables: WordTables
    related: sp.csr_matrix  #: [vocabulary, vocabulary] the table
    own_weights: Tensor  #: [vocabulary] what each piece should weigh on its own, by its frequency
    general: Mapping[str, Morpheme]  #: CoNg's vocabulary


@dataclass(frozen=True, eq=False)
class _Pieces:
    """The pieces of the new vocabulary that the old one has, by text."""

    old: Tensor  #: [vocabulary] id in the old vocabulary, -1 where it has none
    words: Tensor  #: [vocabulary] whether it was a word that the old model emits

    @classmethod
    def of(cls, pieces: list[str], tokenizer: Tokenizer, model: LexicalBertForMaskedLM) -> _Pieces:
        known = tokenizer.get_vocab()
        old = torch.tensor([known.get(piece, NONE) for piece in pieces])
        emitted = torch.zeros(model.config.vocab_size, dtype=torch.bool)
        emitted[model.own_token[model.own_token >= 0].long()] = True
        return cls(old, (old >= 0) & emitted[old.clamp(min=0)])


@torch.no_grad()
def grow(
    model: LexicalBertForMaskedLM, tokenizer: Tokenizer, known: WordKnowledge, settings: RelatedConfig
) -> LexicalBertForMaskedLM:
    """The model under the vocabulary of ``known``; ``tokenizer`` is the one it was trained with.

    A piece that both have keeps its embedding, a word also its row in the head. A new piece is read as its related
    words are, and a little as the old pieces that it was cut into. A frequent new word is added where its related words
    are; other new words come up by the table only. On its own a word weighs what ``known`` says, at the scale that the
    old words came to, an old one half what it weighed before.
    """
    size = len(known.pieces)
    config = {
        **model.config.to_dict(),
        "vocab_size": size,
        "parts": PARTS,
        "related": settings.words,
        "related_power": settings.power,
    }
    grown = LexicalBertForMaskedLM(LexicalBertConfig(**config))
    state, before = grown.state_dict(), model.state_dict()
    for name in state:
        if name.startswith("relating."):
            state[name] = before.get(name, torch.zeros_like(state[name]))
        elif name not in _BY_PIECE | _BY_TABLE:
            state[name] = before[name]
    shared = _Pieces.of(known.pieces, tokenizer, model)
    weight, bias = _head(model, known, shared, settings.closed)
    state |= {
        "bert.embeddings.word_embeddings.weight": _embeddings(model, tokenizer, known, shared),
        "decoder.weight": weight,
        "decoder.bias": bias,
        "own_weight": _own_weights(model, known, shared),
    }
    grown.load_state_dict(state | _tables(known, settings))
    logger.info(
        "vocabulary: %d of %d pieces are new, %d words emitted, %d of them also by the head",
        int((shared.old < 0).sum()),
        size,
        len(known.roles.emitted),
        int(weight.any(1).sum()),
    )
    return grown


def _row(table: sp.csr_matrix, word: int, count: int) -> list[tuple[int, float]]:
    """The ``count`` strongest of a row, strongest first."""
    start, stop = table.indptr[word : word + 2]
    columns, weights = table.indices[start:stop], table.data[start:stop]
    order = np.lexsort((columns, -weights))[:count]
    return [(int(columns[i]), float(weights[i])) for i in order]


def _embeddings(model: LexicalBertForMaskedLM, tokenizer: Tokenizer, known: WordKnowledge, shared: _Pieces) -> Tensor:
    table = model.bert.embeddings.word_embeddings.weight
    index = {piece: i for i, piece in enumerate(known.pieces)}
    mean = table[len(SPECIAL_TOKENS) :].mean(0)
    length = (table[len(SPECIAL_TOKENS) :] - mean).norm(dim=1).mean()
    out = table[shared.old.clamp(min=0)].clone()
    for i in (shared.old < 0).nonzero()[:, 0].tolist():
        piece = known.pieces[i]
        bare = piece.removeprefix("##")
        meaning = torch.zeros_like(mean)
        for word, weight in _row(known.related, index.get(bare, i), _READ_BY):
            inner = index.get(f"##{known.pieces[word]}", NONE) if piece != bare else NONE
            place = inner if inner != NONE and shared.old[inner] >= 0 else word
            if shared.old[place] >= 0:
                meaning += weight * (table[shared.old[place]] - mean)
        surface = table[tokenizer.encode(bare, add_special_tokens=False).ids]
        surface = surface.mean(0) - mean if len(surface) else torch.zeros_like(mean)
        vector = surface if not meaning.any() else normalize(meaning, dim=0) + _SURFACE * normalize(surface, dim=0)
        out[i] = mean + normalize(vector, dim=0) * length
    return out


def _head(model: LexicalBertForMaskedLM, known: WordKnowledge, shared: _Pieces, closed: float) -> tuple[Tensor, Tensor]:
    """The decoder's weight and bias."""
    old_weight, old_bias = model.decoder.weight, model.decoder.bias
    emitted = known.roles.emitted
    weight = torch.zeros(len(known.pieces), old_weight.shape[1])
    bias = torch.full((len(known.pieces),), CLOSED_BIAS)
    bias[emitted] = -closed
    for word in emitted.tolist():
        piece = known.pieces[word]
        if not may_be_added(piece, known.general.get(piece), float(known.tables.own_share[word, 0])):
            continue
        if shared.words[word]:
            weight[word], bias[word] = old_weight[shared.old[word]], old_bias[shared.old[word]]
        elif _inherits(known.general.get(piece)):
            row = _row(known.related, word, known.related.shape[1])
            kin = [(int(shared.old[j]), share) for j, share in row if shared.words[j]][:_EMITTED_BY]
            if len(kin) >= _LEAST_ROWS:
                rows = torch.tensor([j for j, _ in kin])
                shares = torch.tensor([share for _, share in kin])
                shares /= shares.sum()
                weight[word] = shares @ old_weight[rows]
                bias[word] = shares @ old_bias[rows]
    return weight, bias


def may_be_added(word: str, morpheme: Morpheme | None, share: float) -> bool:
    """Whether the head may add a word to a text; a syllable only if it is a frequent noun, of its own by ``share``."""
    if len(word) == 1:
        frequent = morpheme is not None and morpheme.tag == "NNG" and morpheme.rank < _SYLLABLE_RANK
        return frequent and share > _SYLLABLE_SHARE
    return _HEADED.fullmatch(word) is not None


def _inherits(morpheme: Morpheme | None) -> bool:
    return morpheme is not None and morpheme.rank < _INHERITING_RANK and morpheme.tag in _INHERITING_TAGS


def _own_weights(model: LexicalBertForMaskedLM, known: WordKnowledge, shared: _Pieces) -> Tensor:
    before, words = model.own_weight[shared.old[shared.words]], shared.words
    speaking = known.own_weights[words] > 0
    ratio = (before[speaking] / known.own_weights[words][speaking]).median() if bool(speaking.any()) else 1.0
    out = known.own_weights * ratio
    out[words] = _KEPT * before + (1 - _KEPT) * out[words]
    return out


def _tables(known: WordKnowledge, settings: RelatedConfig) -> dict[str, Tensor]:
    size = len(known.pieces)
    token = torch.full((size, settings.words), NONE, dtype=torch.int32)
    weight = torch.zeros(size, settings.words)
    for word in known.roles.emitted.tolist():
        row = _row(known.related, word, settings.words)
        token[word, : len(row)] = torch.tensor([j for j, _ in row], dtype=torch.int32)
        weight[word, : len(row)] = settings.scale * torch.tensor([value for _, value in row])
    last = known.roles.last or [NEVER] * size
    return {
        "own_token": torch.tensor(known.roles.emitted_as, dtype=torch.int32),
        "last_token": torch.tensor(last, dtype=torch.int32),
        "part_token": _tensor(known.tables.part_token),
        "own_share": _tensor(np.where(known.tables.own_share > 0, known.tables.own_share**_SHARE_POWER, 0)).float(),
        "related_token": token,
        "related_weight": weight,
    }


def _tensor(array: NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(np.array(array))
