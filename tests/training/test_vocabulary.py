"""The vocabulary: what kiwi calls a stem starts words, what it calls an ending is never emitted."""

import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from training.config import load_config
from training.data import vocabulary_texts
from training.lexical import blended, emitted_rows, idf, idf_of, own_weights
from training.vocabulary import (
    NEVER,
    SPECIAL_TOKENS,
    Roles,
    Segment,
    analyse,
    assign_roles,
    build_pieces,
    build_tokenizer,
    build_vocabulary,
)

RECIPE = Path(__file__).parents[2] / "training" / "sample" / "recipe.toml"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Roles]:
    config = load_config(RECIPE, data_root=RECIPE.parent)
    out = tmp_path_factory.mktemp("vocabulary")
    build_vocabulary(analyse(vocabulary_texts(config), workers=1), 1500, out)
    return Tokenizer.from_file(str(out / "tokenizer.json")), Roles.load(out / "roles.json")


def emitted(built: tuple[Tokenizer, Roles], text: str) -> list[str]:
    tokenizer, roles = built
    return [str(tokenizer.id_to_token(i)) for i in emitted_rows(tokenizer, roles, [text], 64)[0]]


def test_particles_and_endings_are_not_emitted(built: tuple[Tokenizer, Roles]) -> None:
    assert emitted(built, "보증금을 세입자에게") == ["보증금", "세입자"]


def test_a_noun_inside_a_compound_comes_out_as_itself() -> None:
    damage, compensation, particle = Segment("손해", True), Segment("배상", True), Segment("을", False)
    words = Counter({(damage, compensation, particle): 30, (compensation, particle): 20, (damage,): 20})
    pieces = build_pieces(words, 1000)
    roles, tokenizer = assign_roles(words, pieces), build_tokenizer(pieces)
    assert tokenizer.encode("손해배상을").tokens == ["[CLS]", "손해", "##배상", "##을", "[SEP]"]
    assert emitted((tokenizer, roles), "손해배상을") == ["손해", "배상"]
    assert tokenizer.token_to_id("##배상") in roles.never_emitted


def test_a_piece_that_swallows_the_particle_is_not_kept() -> None:
    noun, particle = Segment("보증금", True), Segment("을", False)
    odd = Segment("보증금을", True)  # the analyser errs now and then
    pieces = build_pieces(Counter({(noun, particle): 30, (noun,): 5, (odd,): 3}), 1000)
    assert "보증금" in pieces
    assert "보증금을" not in pieces


def test_special_tokens_and_punctuation_are_never_emitted(built: tuple[Tokenizer, Roles]) -> None:
    tokenizer, roles = built
    vocabulary = tokenizer.get_vocab()
    assert [roles.emitted_as[vocabulary[token]] for token in (*SPECIAL_TOKENS, ".", ",", "(")] == [NEVER] * 8
    assert [vocabulary[token] for token in SPECIAL_TOKENS] == [0, 1, 2, 3, 4]


def test_decomposed_text_gives_the_same_tokens(built: tuple[Tokenizer, Roles]) -> None:
    text = "집주인은 보증금을 돌려준다"
    assert built[0].encode(unicodedata.normalize("NFD", text)).ids == built[0].encode(text).ids


def test_roles_point_at_emitted_tokens(built: tuple[Tokenizer, Roles]) -> None:
    roles = built[1]
    targets = set(roles.emitted_as) - {NEVER}
    assert all(roles.emitted_as[target] == target for target in targets)
    assert targets | set(roles.never_emitted) == set(range(len(roles.emitted_as)))
    assert not targets & set(roles.never_emitted)


def test_rarer_words_weigh_more() -> None:
    values = idf([[5, 5, 6], [5], [5, 7]], 8)
    assert values[5] < values[6] == values[7] < values[0]
    assert own_weights(values, 2.0)[6] == pytest.approx(2 * values[6] ** 0.5)


@pytest.mark.parametrize("text", ["특별시ㆍ광역시", "특별시·광역시", "특별시‧광역시", "특별시∙광역시", "특별시×광역시"])
def test_middle_dots_and_symbols_part_words(text: str) -> None:
    tokenizer = build_tokenizer([*SPECIAL_TOKENS, "특별시", "광역시", "m", "##2"])
    assert tokenizer.encode(text, add_special_tokens=False).tokens == ["특별시", "광역시"]
    assert tokenizer.encode("㎡", add_special_tokens=False).tokens == ["m", "##2"]  # NFKC comes first


def test_a_word_that_is_rare_in_the_passages_only_is_not_taken_for_rare() -> None:
    few, many = idf_of(np.array([0, 0, 5]), 10), idf_of(np.array([0, 500, 1]), 1000)
    rare, usual, known = blended(few, many).tolist()
    assert rare == pytest.approx(float(few[0]))
    assert usual == pytest.approx(float(few[1] + many[1]) / 2)
    assert known == pytest.approx(float(few[2]))
