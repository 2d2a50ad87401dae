"""What a vocabulary lacks: words that would be silent get a piece."""

from collections import Counter
from unicodedata import normalize

import pytest
from tokenizers import Tokenizer

from tests.training.test_vocabulary import emitted
from training.extension import extend, syllables
from training.vocabulary import Roles, Segment, Word, assign_roles, build_pieces, build_tokenizer

MERCURY, WATER, TOPIC = Segment("수은", True), Segment("물", True), Segment("은", False)
SOLD, MEAT, COW = Segment("팔다", True), Segment("고기", True), Segment("소", True)
#: 수, 은, 고 and 기 are endings far more often than words here, as in running text.
COMMON: Counter[Word] = Counter(
    {
        **{(WATER, Segment(ending, False)): 90 for ending in ("은", "수", "고", "기", "에서")},
        **{(Segment(ending, False),): 90 for ending in ("은", "수", "고", "기", "에서")},
        (WATER,): 50,
        (COW,): 50,
        (SOLD,): 5,
    }
)
RARE: Counter[Word] = Counter(
    {
        (MERCURY, TOPIC): 3,
        (COW, MEAT): 4,
        (MEAT,): 1,
        (Segment("수기", True),): 1,  # once is too little
        (Segment("은고기", True),): 5,  # not one noun
        (Segment("수고", True),): 5,  # a noun, but oftener an ending
        (Segment("수고", False),): 9,
        (Segment("기수", True),): 5,  # a noun, but oftener a stem and an ending
        (COW, Segment("기수", True)): 5,
        (Segment("기", True), Segment("수", False)): 20,
    }
)


@pytest.fixture(scope="module")
def before() -> tuple[Tokenizer, Roles]:
    pieces = build_pieces(COMMON, 1000)
    return build_tokenizer(pieces), assign_roles(COMMON, pieces)


@pytest.fixture(scope="module")
def after(before: tuple[Tokenizer, Roles]) -> tuple[Tokenizer, Roles]:
    return extend(*before, COMMON + RARE)


def test_a_noun_of_ending_syllables_gets_a_piece(
    before: tuple[Tokenizer, Roles], after: tuple[Tokenizer, Roles]
) -> None:
    assert emitted(before, "수은은") == []
    assert emitted(after, "수은은") == ["수은"]
    assert after[0].encode("수은은").tokens[1:-1] == ["수은", "##은"]


def test_a_syllable_that_gets_a_piece_is_no_longer_spelt(before: tuple[Tokenizer, Roles]) -> None:
    pieces = sorted(before[0].get_vocab(), key=before[0].get_vocab().__getitem__)
    letters = [form for letter in normalize("NFD", "뱁뷁") for form in (letter, f"##{letter}")]
    known = list(dict.fromkeys([*pieces, *letters]))
    spelling = build_tokenizer(known)
    assert spelling.encode("뱁").tokens[1:-1] == ["ᄇ", "##ᅢ", "##ᆸ"]
    roles = Roles([*before[1].emitted_as, *range(len(pieces), len(known))])
    extended, _ = extend(spelling, roles, COMMON + RARE)
    assert extended.encode("뱁").tokens[1:-1] == ["뱁"]
    assert extended.encode("뷁").tokens[1:-1] == ["ᄇ", "##ᅰ", "##ᆰ"]


def test_a_noun_within_words_comes_out_as_itself(
    before: tuple[Tokenizer, Roles], after: tuple[Tokenizer, Roles]
) -> None:
    assert emitted(before, "소고기") == ["소"]
    assert emitted(after, "소고기") == ["소", "고기"]
    assert emitted(after, "고기") == ["고기"]


@pytest.mark.parametrize("text", ["수기", "은고기", "수고", "기수", "소기수"])
def test_endings_rare_words_and_what_is_no_noun_get_none(after: tuple[Tokenizer, Roles], text: str) -> None:
    assert not {"수기", "은고기", "수고", "기수"} & set(emitted(after, text))


def test_no_word_of_modern_syllables_is_unknown(
    before: tuple[Tokenizer, Roles], after: tuple[Tokenizer, Roles]
) -> None:
    assert len(syllables()) == 2350
    assert before[0].encode("꽹과리").tokens[1] == "[UNK]"
    assert "꽹" in emitted(after, "꽹과리")
    text = " ".join(a + b for a, b in zip(syllables(), reversed(syllables()), strict=True))
    assert "[UNK]" not in after[0].encode(text).tokens


def test_older_pieces_keep_their_ids_and_roles(before: tuple[Tokenizer, Roles], after: tuple[Tokenizer, Roles]) -> None:
    size = before[0].get_vocab_size()
    assert after[0].get_vocab_size() == len(after[1].emitted_as) > size
    assert [after[0].id_to_token(i) for i in range(size)] == [before[0].id_to_token(i) for i in range(size)]
    assert after[1].emitted_as[:size] == before[1].emitted_as
    assert after[0].encode("물은 소에서").ids == before[0].encode("물은 소에서").ids
