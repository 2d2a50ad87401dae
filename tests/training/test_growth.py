"""A trained model under a vocabulary of words: what it knew stays, what it did not know starts near what is like it."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from sparse_encoder.model import SpladeModel
from sparse_encoder.modeling_lexical_bert import LexicalBertConfig, LexicalBertForMaskedLM
from training.config import RelatedConfig
from training.growth import WordKnowledge, grow, may_be_added
from training.vocabulary import NEVER, SPECIAL_TOKENS, Roles, build_tokenizer
from training.words.cong import Morpheme
from training.words.tables import WordTables

OLD = [*SPECIAL_TOKENS, "혈당", "혈압", "식단", "인슐린", "당", "##뇨", "##병", "##을"]
OLD_ROLES = Roles([NEVER] * 5 + [5, 6, 7, 8, 9] + [NEVER] * 3)
#: The old ones in other places, 인슐린 gone; 당뇨병 is new and frequent, 희귀병 new and rare.
NEW = [*SPECIAL_TOKENS, "당뇨병", "희귀병", "혈압", "혈당", "식단", "당", "##뇨", "##병", "##을", "##당뇨병"]
ID = {piece: i for i, piece in enumerate(NEW)}
ROLES = Roles(
    [NEVER] * 5 + [5, 6, 7, 8, 9, 10, NEVER, NEVER, NEVER, 5],
    [NEVER] * 5 + [5, 6, 7, 8, 9, 10, 11, 12, NEVER, 5],
)
KIN = {"혈당": 1.0, "혈압": 0.5, "식단": 0.25}  #: the related words of 당뇨병
SHARED = ["혈압", "혈당", "식단", "당"]
SETTINGS = RelatedConfig(words=4, scale=2.0, power=0.25, closed=1.5)
GENERAL = {"당뇨병": Morpheme("당뇨병", "NNG", "NNG", 9_000), "희귀병": Morpheme("희귀병", "NNG", "NNG", 30_000)}


def old_model() -> LexicalBertForMaskedLM:
    torch.manual_seed(3)
    config = LexicalBertConfig(
        vocab_size=len(OLD),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.3,
    )
    model = LexicalBertForMaskedLM(config)
    with torch.no_grad():
        model.own_token.copy_(torch.tensor(OLD_ROLES.emitted_as))
        model.own_weight.copy_(torch.arange(len(OLD)) / 2)
        model.decoder.bias.copy_(torch.linspace(-1, 1, len(OLD)))
    model.train(False)
    return model


def knowledge(**changes: Any) -> WordKnowledge:
    table = sp.lil_matrix((len(NEW), len(NEW)), dtype=np.float32)
    for word, weight in KIN.items():
        table[ID["당뇨병"], ID[word]] = weight
    table[ID["희귀병"], ID["혈당"]] = 1.0
    part_token = np.full((len(NEW), 2), NEVER, np.int32)
    part_token[ID["당뇨병"], 0] = ID["당"]
    shares = np.ones((len(NEW), 3), np.float32)
    shares[ID["당뇨병"], 1], shares[ID["당"], 0] = 0.6, 0.3
    weights = torch.tensor([OLD.index(piece) / 2 if piece in OLD else 3.0 for piece in NEW])
    known = WordKnowledge(NEW, ROLES, WordTables(shares, part_token), sp.csr_matrix(table), weights, GENERAL)
    return replace(known, **changes)


def grown_from(model: LexicalBertForMaskedLM, known: WordKnowledge | None = None) -> LexicalBertForMaskedLM:
    grown = grow(model, build_tokenizer(OLD), known or knowledge(), SETTINGS)
    grown.train(False)
    return grown


@pytest.fixture(scope="module")
def grown() -> LexicalBertForMaskedLM:
    return grown_from(old_model())


def encode(model: LexicalBertForMaskedLM, roles: Roles, pieces: list[str], words: list[str]) -> dict[str, float]:
    ids = torch.tensor([[pieces.index(piece) for piece in ("[CLS]", *words, "[SEP]")]])
    with torch.no_grad():
        (vector,) = SpladeModel(model, roles.emitted)(ids, torch.ones_like(ids))
    return {pieces[i]: float(vector[i]) for i in vector.nonzero()[:, 0].tolist()}


def test_a_text_of_old_words_has_the_vector_that_it_had(grown: LexicalBertForMaskedLM) -> None:
    text = ["혈압", "식단", "##을"]  # without a row in the table
    old = encode(old_model(), OLD_ROLES, OLD, text)
    assert {"혈압", "식단"} < set(old)  # and what the head adds
    new = encode(grown, ROLES, NEW, text)
    for word in ("혈압", "혈당", "식단"):
        assert new.get(word, 0.0) == pytest.approx(old.get(word, 0.0), abs=1e-5)


def test_a_frequent_new_word_is_added_where_its_related_words_are_and_a_rare_one_by_the_table_alone(
    grown: LexicalBertForMaskedLM,
) -> None:
    old = old_model()
    share = torch.tensor(list(KIN.values())) / 1.75
    rows = [OLD.index(word) for word in KIN]
    torch.testing.assert_close(grown.decoder.weight[ID["당뇨병"]], share @ old.decoder.weight[rows])
    torch.testing.assert_close(grown.decoder.bias[ID["당뇨병"]], share @ old.decoder.bias[rows])
    assert not grown.decoder.weight[ID["희귀병"]].any()
    assert float(grown.decoder.bias[ID["희귀병"]].detach()) == -1.5
    assert float(grown.decoder.bias[ID["##을"]].detach()) == -1e4
    assert not grown.decoder.weight[ID["당"]].any()  # a syllable that hardly is a word
    frequent = {**GENERAL, "희귀병": Morpheme("희귀병", "NNG", "NNG", 9_000)}
    assert not grown_from(old, knowledge(general=frequent)).decoder.weight[ID["희귀병"]].any()  # one is too few


def centred(table: Tensor, vector: Tensor) -> Tensor:
    return vector - table[len(SPECIAL_TOKENS) :].mean(0)


def test_a_new_piece_is_read_as_its_related_words_and_a_little_as_its_old_pieces(
    grown: LexicalBertForMaskedLM,
) -> None:
    table = old_model().bert.embeddings.word_embeddings.weight.detach()
    new = grown.bert.embeddings.word_embeddings.weight.detach()
    meaning = sum(weight * centred(table, table[OLD.index(word)]) for word, weight in KIN.items())
    surface = centred(table, table[[OLD.index(piece) for piece in ("당", "##뇨", "##병")]].mean(0))
    assert isinstance(meaning, Tensor)
    expected = meaning / meaning.norm() + 0.4 * surface / surface.norm()
    for piece in ("당뇨병", "##당뇨병"):
        vector = centred(table, new[ID[piece]])
        assert float(cosine_similarity(vector, expected, dim=0)) == pytest.approx(1.0, abs=1e-5)
        lengths = torch.stack([centred(table, row).norm() for row in table[len(SPECIAL_TOKENS) :]])
        assert float(vector.norm()) == pytest.approx(float(lengths.mean()), rel=1e-4)
    torch.testing.assert_close(new[ID["혈압"]], table[OLD.index("혈압")])


def test_a_word_weighs_as_much_as_the_old_ones_came_to() -> None:
    model = old_model()
    with torch.no_grad():
        model.own_weight.mul_(2.0)  # as if training had raised all
    grown = grown_from(model)
    known = knowledge().own_weights
    torch.testing.assert_close(grown.own_weight[ID["당뇨병"]].detach(), 2.0 * known[ID["당뇨병"]])
    with torch.no_grad():
        model.own_weight[OLD.index("혈압")] += 4.0  # and one of its own
    raised = grown_from(model).own_weight.detach()
    assert float(raised[ID["혈압"]]) == pytest.approx(2.0 * float(known[ID["혈압"]]) + 2.0)


def test_the_tables_are_in_the_model(grown: LexicalBertForMaskedLM) -> None:
    assert (grown.config.parts, grown.config.related, grown.config.related_power) == (2, 4, 0.25)
    assert grown.own_token.tolist() == ROLES.emitted_as
    assert grown.last_token.tolist() == ROLES.last
    named = [NEW[i] for i in grown.related_token[ID["당뇨병"]].tolist() if i != NEVER]
    assert named == list(KIN)
    assert grown.related_weight[ID["당뇨병"]].tolist() == [2.0, 1.0, 0.5, 0.0]
    syllable, part = grown.own_share[ID["당"], 0], grown.own_share[ID["당뇨병"], 1]
    assert 0.8 < float(syllable) < float(part) < 1  # names are found by their pieces
    found = encode(grown, ROLES, NEW, ["당뇨병"])
    assert {"당뇨병", "당"} <= set(found)  # for which it speaks, too
    with torch.no_grad():
        grown.related_weight.zero_()
        without = encode(grown, ROLES, NEW, ["당뇨병"])
        grown.related_weight.copy_(grown_from(old_model()).related_weight)
    assert found["혈당"] > without.get("혈당", 0.0) + 0.2
    assert encode(grown, ROLES, NEW, ["##뇨"])["##뇨"] > 0  # nothing else speaks


def test_a_model_of_words_grows_again() -> None:
    first = grown_from(old_model())
    with torch.no_grad():
        first.relating.bias.fill_(0.5)
    known = knowledge()
    again = grow(first, build_tokenizer(NEW), known, SETTINGS)
    assert float(again.relating.bias.detach()) == 0.5
    for name in ("decoder.weight", "bert.embeddings.word_embeddings.weight", "related_weight", "own_share"):
        torch.testing.assert_close(again.state_dict()[name], first.state_dict()[name], msg=name)


@pytest.mark.parametrize(
    ("word", "rank", "share", "added"),
    [
        ("전세", 90_000, 1.0, True),
        ("gpt", 90_000, 1.0, True),
        ("ai", 9, 1.0, False),
        ("12", 9, 1.0, False),
        ("병", 9, 0.9, True),
        ("병", 9, 0.5, False),
        ("병", 5_000, 0.9, False),
    ],
)
def test_the_head_may_add_words_and_few_syllables(word: str, rank: int, share: float, added: bool) -> None:
    assert may_be_added(word, Morpheme(word, "NNG", "NNG", rank), share) is added
