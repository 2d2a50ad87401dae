"""A vocabulary of words: which get a piece, which old ones stay, as what each is emitted and for what it speaks."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from unicodedata import normalize

import pytest
from kiwipiepy import Kiwi
from tokenizers import Tokenizer

from training.config import Config, ConfigError, load_config
from training.extension import syllables
from training.spelling import spell
from training.vocabulary import (
    NEVER,
    SPECIAL_TOKENS,
    Roles,
    Segment,
    Word,
    assign_roles,
    build_pieces,
    build_tokenizer,
    load_words,
    save_words,
)
from training.words.candidates import (
    JAMO_RUNS,
    Candidate,
    Compounds,
    Evidence,
    everyday_words,
    find_candidates,
    letters,
)
from training.words.choice import Choice, choose_pieces, silent_nouns, weak_words
from training.words.cong import Morpheme, general_morphemes, neighbours, open_cong
from training.words.counts import TextCounts, count_texts, plain, prefix_counts
from training.words.parts import trusted, word_parts
from training.words.roles import UNKNOWN, Before, PieceUse, own_shares, word_roles
from training.words.tables import word_tables


def content(*surfaces: str) -> Word:
    return tuple(Segment(surface, True) for surface in surfaces)


TO, IS, OF = Segment("을", False), Segment("은", False), Segment("의", False)
WORDS: Counter[Word] = Counter(
    {
        (*content("전세"), IS): 40,
        content("전세", "금"): 30,
        (*content("당뇨", "병"), TO): 30,
        content("손해", "배상"): 30,
        content("슬", "개골"): 5,
        content("소", "고기"): 9,
        content("고기"): 9,
        (*content("병"), OF): 40,
        content("약"): 40,
        (Segment("은", False),): 90,
        content("변"): 30,
        (Segment("비", False),): 90,
    }
)


def morpheme(form: str, rank: int, tag: str = "NNG") -> dict[str, Morpheme]:
    return {form.lower(): Morpheme(form, tag, tag, rank)}


GENERAL = {
    **morpheme("전세", 3000),
    **morpheme("당뇨병", 9000),
    **morpheme("은비", 39_000),  # is cut into endings, which are silent
    **morpheme("끓이", 4000, "VV"),
    **morpheme("위하", 100, "VV"),
    **morpheme("서울", 200, "NNP"),
    **morpheme("부산물", 45_000),
    **morpheme("하늬", 45_000),
    **morpheme("위해", 900),
}
TEXTS = TextCounts(
    hangul={"전세금을": 60.0, "부산물이": 60.0, "당뇨병은": 60.0, "슬개골": 20.0, "손해배상은": 60.0},
    latin=Counter({"gpt": 20, "rare": 3, "mp3": 90, "5kg": 90, "코로나19": 60, "제3": 900}),
    acronyms=Counter({"GPT": 9, "5G": 60}),
    characters=Counter({"я": 90, "ß": 3, "國": 900, "囉": 5}),
    titles=frozenset({"손해배상", "슬개골", "전세금"}),
)


@pytest.fixture(scope="module")
def kiwi() -> Kiwi:
    return Kiwi(num_workers=1)


@pytest.fixture(scope="module")
def old() -> tuple[list[str], Roles]:
    pieces = build_pieces(WORDS, 1000)
    return pieces, assign_roles(WORDS, pieces)


@pytest.fixture(scope="module")
def evidence() -> Evidence:
    return Evidence(WORDS, TEXTS, GENERAL, everyday=("보이스피싱", "전세금", "AI"))


@pytest.fixture(scope="module")
def found(evidence: Evidence, kiwi: Kiwi) -> dict[str, Candidate]:
    return find_candidates(evidence, Compounds.of(WORDS), frozenset({"전세"}), kiwi)


def test_words_of_every_source_are_candidates(found: dict[str, Candidate]) -> None:
    assert {word: candidate.source for word, candidate in found.items()} == {
        "보이스피싱": "everyday",
        "전세금": "everyday",
        "ai": "everyday",
        "당뇨병": "general",
        "끓이": "general",
        "서울": "general",
        "위해": "general",
        "은비": "rarer general",
        "gpt": "abbreviations",
        "mp3": "with digits",
        "5g": "with digits",
        "코로나19": "with digits",
        "부산물": "rarer general",
        "하늬": "rarer general",
        **dict.fromkeys(("당뇨", "손해", "배상"), "corpora"),
        "손해배상": "compounds of words",
        "슬개골": "compounds of syllables",
    }
    assert list(found)[:3] == ["ai", "보이스피싱", "전세금"]  # the best first, and by letter where they are alike
    assert found["부산물"].score > found["하늬"].score  # the corpora write it


def test_an_everyday_word_of_two_words_that_have_pieces_needs_none(evidence: Evidence, kiwi: Kiwi) -> None:
    asked = replace(evidence, everyday=("배추만두",))
    known = frozenset({"배추", "만두"})
    assert "배추만두" in find_candidates(asked, Compounds(), frozenset(), kiwi)
    assert "배추만두" not in find_candidates(asked, Compounds(), known, kiwi)


def test_the_words_of_everyday_are_ours_and_whole() -> None:
    words = everyday_words()
    assert len(words) == len(set(words)) > 1900
    assert {"보이스피싱", "층간소음"} <= set(words)
    assert all(len(word) > 1 and word == word.strip() for word in words)


def test_letters_are_those_of_the_texts_whole_alphabets_and_laughing() -> None:
    found = letters(TEXTS.characters)
    assert {"я", "國", "α", "の", "ᄏ", *JAMO_RUNS} <= set(found)
    assert not {"ß", "囉"} & set(found)


@pytest.fixture(scope="module")
def choice(old: tuple[list[str], Roles], evidence: Evidence, kiwi: Kiwi) -> Choice:
    pieces, roles = old
    return choose_pieces(pieces, Before.of(pieces, roles), evidence, Compounds.of(WORDS), kiwi, most=4000)


def emitted_count(choice: Choice, old: tuple[list[str], Roles]) -> int:
    use = PieceUse.of(WORDS, frozenset(choice.pieces))
    return len(word_roles(choice.pieces, Before.of(*old), use, GENERAL, TEXTS.characters).emitted)


def test_old_pieces_stay_in_their_order_and_new_words_follow(choice: Choice, old: tuple[list[str], Roles]) -> None:
    pieces, _ = old
    assert choice.pieces[: len(pieces)] == pieces
    assert choice.dropped == []
    assert {"당뇨병", "보이스피싱", "끓이", "gpt", "mp3", "슬개골", "꽹"} <= set(choice.pieces)
    assert {f"##{syllable}" for syllable in syllables()} <= set(choice.pieces)
    assert len(choice.pieces) == len(set(choice.pieces))


@pytest.mark.parametrize("fewer", [0, 3])
def test_no_more_words_are_emitted_than_there_is_room_for(
    choice: Choice, old: tuple[list[str], Roles], evidence: Evidence, kiwi: Kiwi, fewer: int
) -> None:
    pieces, roles = old
    most = emitted_count(choice, old) - fewer
    tight = choose_pieces(pieces, Before.of(pieces, roles), evidence, Compounds.of(WORDS), kiwi, most)
    assert emitted_count(tight, old) == most
    assert "은비" in tight.new  # a noun that would be silent is never left out
    left_out = set(choice.new) - set(tight.new)
    assert len(left_out) == fewer
    assert not left_out & {"보이스피싱", "당뇨병"}


def test_what_mostly_lies_across_a_border_of_stem_and_ending_is_no_word(
    old: tuple[list[str], Roles], evidence: Evidence, kiwi: Kiwi
) -> None:
    crossing = replace(evidence, general={**GENERAL, **morpheme("전세은", 5000)})
    pieces, roles = old
    chosen = choose_pieces(pieces, Before.of(pieces, roles), crossing, Compounds.of(WORDS), kiwi, most=4000)
    assert "전세은" not in chosen.pieces


def test_old_words_that_nobody_writes_go() -> None:
    before = Before({"전세": "전세", "갈퀴질": "갈퀴질", "당뇨병": "당뇨병", "##갈퀴질": "갈퀴질"})
    hangul = {"전세는": 2_000_000.0}
    evidence = Evidence(WORDS, replace(TEXTS, hangul=hangul), GENERAL)
    assert weak_words(before, evidence, Counter()) == {"갈퀴질"}  # 당뇨병 is general Korean
    assert weak_words(before, evidence, Counter({"갈퀴질": 3})) == set()
    small = Evidence(WORDS, TEXTS, GENERAL)
    assert weak_words(before, small, Counter()) == set()  # few texts say nothing


def test_a_noun_is_silent_if_none_of_its_pieces_speaks(evidence: Evidence) -> None:
    before = Before({"은": None, "##비": None, "당": "당", "##뇨": None, "##병": "병"})
    assert silent_nouns(evidence, before.emits, before) == ["전세", "은비", "위해", "서울"]  # 은비 by its pieces
    assert silent_nouns(evidence, [*before.emits, "은비"], before) == ["전세", "위해", "서울"]


def roles_of(
    pieces: list[str], before: dict[str, str | None], use: PieceUse | None = None
) -> tuple[dict[str, str], ...]:
    nothing = PieceUse(Counter(), Counter(), Counter())
    roles = word_roles(pieces, Before(before), use or nothing, GENERAL, TEXTS.characters)
    return tuple(
        {piece: pieces[i] for piece, i in zip(pieces, part, strict=True) if i != NEVER}
        for part in (roles.emitted_as, roles.last)
    )


def test_roles_of_old_and_new_pieces() -> None:
    before: dict[str, str | None] = {
        **dict.fromkeys(SPECIAL_TOKENS),
        "병": "병",
        "##병": "병",
        "은": None,
        "##은": None,
        "##니다": "##니다",  # an ending that had gone out as itself
        "서울": None,  # a noun that was silent
        "위해": None,  # looks like one
        "國": "國",
        "囉": "囉",
        "!": None,
    }
    new = ["당뇨병", "##당뇨병", "##고는", "고는"]
    use = PieceUse(Counter({"당뇨병": 5}), Counter({"##고는": 5}), Counter())
    emitted, last = roles_of([*before, *new], before, use)
    assert emitted == {
        **{"병": "병", "##병": "병", "서울": "서울", "國": "國", "당뇨병": "당뇨병", "##당뇨병": "당뇨병"},
        "고는": "고는",
    }
    silent = {"은": "은", "##은": "은", "##니다": "##니다", "위해": "위해", "囉": UNKNOWN, UNKNOWN: UNKNOWN}
    assert last == emitted | silent | {"##고는": "고는"}
    assert "!" not in last
    assert "[CLS]" not in last


def test_no_text_with_a_letter_or_digit_is_empty(choice: Choice, old: tuple[list[str], Roles]) -> None:
    use = PieceUse.of(WORDS, frozenset(choice.pieces))
    roles = word_roles(choice.pieces, Before.of(*old), use, GENERAL, TEXTS.characters)
    tokenizer = build_tokenizer(choice.pieces, strip_accents=True)
    texts = [
        *syllables(),
        "은은",
        "하다",
        "ㅋㅋ",
        "C++",
        "3·1절",
        "Café",
        "Привет",
        "뷁",
        "1️⃣",
        "囉",
        "ㅠㅠㅠㅠ",
        "한글날은",
    ]
    for text in texts:
        ids = tokenizer.encode(text).ids
        own = [roles.emitted_as[i] for i in ids if roles.emitted_as[i] != NEVER]
        assert own or [roles.last[i] for i in ids if roles.last[i] != NEVER], text
    for text in ("!", "…", "❤️"):
        assert all(roles.last[i] == NEVER for i in tokenizer.encode(text).ids), text


def test_accents_and_combining_marks_are_no_part_of_a_word() -> None:
    tokenizer = build_tokenizer([*SPECIAL_TOKENS, "cafe", "##é", "손해", "ᄏᄏ"], strip_accents=True)
    assert tokenizer.encode("Café").tokens[1:-1] == ["cafe"]
    assert tokenizer.encode("cafe\u0301").tokens[1:-1] == ["cafe"]
    assert tokenizer.encode("❤\ufe0f손해").tokens[1:-1] == ["손해"]
    assert tokenizer.encode("ㅋㅋ").tokens[1:-1] == ["ᄏᄏ"]
    for text in ("Café Ünï", "ＧＰＴ", "ㅋㅋ 가나다", "が"):
        normalizer = tokenizer.normalizer
        assert normalizer is not None
        assert normalizer.normalize_str(text) == plain(text)  # what is counted is what is read


def test_a_syllable_that_is_seldom_a_word_says_little() -> None:
    pieces = ["당뇨", "##병", "병", "##뷁", "##은"]
    words = Counter({content("당뇨", "병"): 10, (*content("당뇨"), Segment("병", False)): 10, content("당뇨병"): 40})
    use = PieceUse.of(words, frozenset(pieces))
    shares = dict(zip(pieces, own_shares(pieces, Roles([0, 2, 2, 3, NEVER]), use).tolist(), strict=True))
    assert shares["##뷁"] == pytest.approx(0.3)  # never seen
    assert shares["##은"] == 1.0  # never emitted
    assert 0.15 < shares["##병"] < 0.5  # 21 of 61
    assert shares["당뇨"] == pytest.approx(0.5 + 0.5 * 21 / 61)


NEAR = {"전세금": frozenset({"전세", "월세"}), "부동산": frozenset({"부동산업"})}


@pytest.mark.parametrize(
    ("word", "cut", "parts"),
    [
        ("손해배상", ("손해", "배상"), ("손해", "배상")),
        ("전세금", (), ("전세",)),  # a neighbour
        ("고속도로", (), ()),  # neither cut so nor near
        ("부동산업", (), ("부동산",)),  # its neighbour
        ("신제품", ("신", "제품"), ("제품",)),  # after a syllable
        ("대통령", ("대", "통령"), ()),  # 통령 is no word
        ("배상", ("배", "상"), ()),  # too short
    ],
)
def test_parts_are_words_that_belong_to_the_meaning(word: str, cut: tuple[str, ...], parts: tuple[str, ...]) -> None:
    words = {"손해", "배상", "전세", "고속", "도로", "부동산", "제품", word}
    assert word_parts(words, word, cut, NEAR) == parts


def test_a_piece_within_words_speaks_for_the_parts_of_its_word() -> None:
    pieces = ["전세금", "##전세금", "전세", "##은"]
    tables = word_tables(
        pieces,
        Roles([0, 0, 2, NEVER]),
        own_shares(pieces, Roles([0, 0, 2, NEVER]), PieceUse.of(Counter(), frozenset())),
        {"전세금": ("전세", "금")},
        {},
    )
    assert tables.parts() == {0: [2], 1: [2]}
    assert tables.own_share[1].tolist() == pytest.approx([1.0, 0.6, 1.0])
    assert tables.own_share[2].tolist() == [1.0, 1.0, 1.0]


def test_neighbours_that_are_too_near_say_nothing() -> None:
    rows = {"가": [("나", 0.9), ("다", 0.7)], "나": [("없", 0.9), ("다", 0.7)]}
    assert trusted(rows, {"가", "나", "다"}) == {"나": [("다", 0.7)]}


@pytest.mark.timeout(120)
def test_cong_knows_what_is_frequent_and_what_is_near() -> None:
    cong = open_cong()
    general = general_morphemes(cong)
    assert general["사람"].rank < 1000 < general["당뇨병"].rank < 20_000
    near = neighbours(cong, {"당뇨병": general["당뇨병"], "뷁뷁": Morpheme("뷁뷁", "NNG", "NNG", 1)})
    words = [word for word, _ in near["당뇨병"]]
    assert {"당뇨", "인슐린"} <= set(words[:10])
    assert "당뇨병" not in words
    assert "뷁뷁" not in near


def test_texts_are_counted_by_corpus(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"t": "전세 사기", "x": "전세 GPT 5G 코로나19 [1] 코로나19"}\n{"t": null, "x": "Café 전세"}\n',
        encoding="utf-8",
    )
    (tmp_path / "b.txt").write_text("전세 gpt\n\n", encoding="utf-8")
    (tmp_path / "terms.tsv").write_text("term\trelated\n인공지능\tAI\n", encoding="utf-8")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        'name = "x"\n[[data.terms]]\npath = "terms.tsv"\n'
        '[[data.corpora]]\nname = "a"\npath = "a.jsonl"\nfields = ["t", "x"]\ntitle = "t"\n'
        '[[data.corpora]]\nname = "b"\npath = "b.txt"\nweight = 0.5\n',
        encoding="utf-8",
    )
    counts = count_texts(load_config(recipe, data_root=tmp_path))
    assert counts.hangul == {"전세": 3.5, "사기": 1.0, "코로나": 2.0}
    assert counts.latin == {"gpt": 2, "5g": 1, "코로나19": 1, "cafe": 1}
    assert counts.acronyms == {"GPT": 1, "5G": 1}
    assert counts.terms == {"ai": 1}
    assert counts.titles == {"전세 사기"}
    assert counts.characters["e"] == 1


def test_prefixes_are_counted_in_runs() -> None:
    assert prefix_counts({"전세금을": 2.0, "전세": 1.0, "월전세": 9.0}, ["전세", "전세금"]) == {
        "전세": 3.0,
        "전세금": 2.0,
    }


def test_words_are_kept_as_they_were(tmp_path: Path) -> None:
    save_words(WORDS, tmp_path / "words.txt")
    assert load_words(tmp_path / "words.txt") == WORDS


WORDY = 'name = "x"\n[vocabulary]\nwords = 9\n[model]\nstart = "{start}"\ncheckpoint = "c"\n'
CORPUS = '[[data.corpora]]\nname = "a"\npath = "a.txt"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (WORDY.format(start="fresh"), r'vocabulary\.words: needs model\.start = "checkpoint"'),
        (WORDY.format(start="checkpoint"), r"vocabulary\.words: name the texts"),
        (WORDY.format(start="checkpoint") + CORPUS, r"related\.corpora: give weights to a.*found none"),
        (
            WORDY.format(start="checkpoint") + CORPUS + "[related.corpora.b]\n",
            r"related\.corpora: give weights to a.*found b",
        ),
        (
            WORDY.format(start="checkpoint").replace("words = 9", "extend = true"),
            r"vocabulary\.extend: use vocabulary\.words",
        ),
        (WORDY.format(start="checkpoint").replace("= 9", "= 40000"), r"vocabulary\.words.*32768"),
        (f'name = "x"\n{CORPUS}title = "t"\n', "name it among the fields"),
        ('name = "x"\n[model]\nstart = "fresh"\n[loss]\nformer = 1.0\n', "loss.former: needs model.start"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, text: str, message: str) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        load_config(recipe)


def test_the_recipe_of_words_is_whole() -> None:
    config: Config = load_config(Path(__file__).parents[2] / "training" / "recipes" / "words.toml")
    assert config.vocabulary.words == 32_768
    assert list(config.related.corpora) == ["wiki", "law", "reviews"]


def test_a_syllable_without_a_piece_is_read_letter_by_letter_and_costs_no_word() -> None:
    letters = [piece for letter in normalize("NFD", "뷁뱁") for piece in (letter, f"##{letter}")]
    pieces = [*SPECIAL_TOKENS, *letters, "아", "##아", "이", "뱁새", "##이"]
    tokenizer = build_tokenizer(pieces, strip_accents=True)
    assert tokenizer.encode("아뷁이 뱁새").tokens[1:-1] == ["아", "##ᄇ", "##ᅰ", "##ᆰ", "##이", "뱁새"]
    assert tokenizer.encode("아뷁이 뱁새").offsets[1:-1] == [(0, 1), (1, 2), (1, 2), (1, 2), (2, 3), (4, 6)]
    assert tokenizer.encode("아").tokens[1:-1] == ["아"]
    assert tokenizer.encode("붹").tokens[1:-1] == ["[UNK]"]  # one of its letters is no piece
    spell(tokenizer, [*pieces, "뱁", "##뱁"])
    assert tokenizer.normalizer.normalize_str("뱁뷁") == "뱁" + normalize("NFD", "뷁")
    again = Tokenizer.from_str(tokenizer.to_str())
    assert again.encode("뷁").ids == tokenizer.encode("뷁").ids
