from __future__ import annotations

import unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.models import WordPiece
from transformers import AutoTokenizer

import app
from sparse_encoder.tokenizer import (
    FIRST_CHARACTERS,
    LAST_CHARACTERS,
    MOST_UNFOLDED,
    WINDOW_OVERLAP,
    TokenisedText,
    Tokenizer,
    beginning,
    normalise,
    places_in,
    unfolded,
    window_step,
)
from tests.tiny import SENTENCES, build_tokenizer

TOKENIZER = Tokenizer(build_tokenizer())
ANY_STRING = st.text(st.characters(codec=None, exclude_categories=()))  # lone surrogates too


def tokens(text: TokenisedText) -> list[str]:
    return [TOKENIZER.vocabulary[id_] for id_ in text.ids]


def encode(text: str, max_length: int = 64) -> TokenisedText:
    return TOKENIZER.encode_batch([text], max_length)[0]


def test_words_split_into_stem_and_particle() -> None:
    text = encode("부동산 계약은")
    assert tokens(text) == ["[CLS]", "부동산", "계약", "##은", "[SEP]"]
    assert (text.truncated, text.content_tokens) == (False, 3)


@pytest.mark.parametrize("text", SENTENCES)
def test_decomposed_hangul_is_composed_hangul(text: str) -> None:
    decomposed = unicodedata.normalize("NFD", text)
    assert decomposed != text
    assert encode(decomposed) == encode(text)


def test_normalisation_does_not_depend_on_the_file() -> None:
    backend = build_tokenizer()
    backend.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True, strip_accents=False)
    decomposed = unicodedata.normalize("NFD", SENTENCES[0])
    assert Tokenizer(backend).encode_batch([decomposed], 64)[0] == encode(SENTENCES[0])


def test_truncation_keeps_the_beginning_and_the_closing_token() -> None:
    whole, cut = encode(SENTENCES[0]), encode(SENTENCES[0], max_length=6)
    assert cut.ids == [*whole.ids[:5], whole.ids[-1]]
    assert (whole.truncated, cut.truncated, cut.content_tokens) == (False, True, 4)


def test_a_text_that_just_fits_is_not_truncated() -> None:
    length = len(encode(SENTENCES[0]).ids)
    assert encode(SENTENCES[0], length) == encode(SENTENCES[0])
    assert encode(SENTENCES[0], length - 1).truncated


@pytest.mark.parametrize("text", [" ".join(SENTENCES) * 150, "가" * 100_000, "손해 " * 40_000])
def test_a_text_of_100_000_characters_is_cut(text: str) -> None:
    assert len(text) >= 100_000
    result = encode(text)
    assert len(result.ids) <= 64
    assert tokens(result)[-1] == "[SEP]"


@pytest.mark.parametrize("text", ["", " \t\n", "\0", "\u200b", "\ud800", "😀", "😀 뷁"])
def test_a_text_without_a_known_token_is_blank(text: str) -> None:
    assert encode(text).content_tokens == 0


def test_a_lone_surrogate_counts_as_the_replacement_character() -> None:
    assert encode("부동산\ud800 계약\udfff은") == encode("부동산\ufffd 계약\ufffd은")
    assert normalise("\ud800가\udfff") == "\ufffd가\ufffd"


@given(st.integers(1, 700), st.integers(2, 60), st.integers(2, 40))
def test_windows_cover_a_text_evenly_and_are_as_few_as_will_do(tokens: int, room: int, most: int) -> None:
    step = window_step(tokens, room, most)
    overlap = int(room * WINDOW_OVERLAP)
    assert 1 <= step <= room
    if tokens <= room:
        return
    assert step <= max(1, room - overlap)
    steps = min(most - 1, -(-(tokens - room) // step))
    covered = min(tokens, room + steps * step)
    last = covered - steps * step
    if covered == tokens:
        assert room - steps < last <= room  # no short one at the end
        assert (steps - 1) * max(1, room - overlap) + room < tokens  # one window fewer would not do
    else:
        assert step == max(1, room - overlap)


def test_a_long_text_comes_in_windows_with_special_tokens_around_each() -> None:
    text = " ".join(SENTENCES)
    content = encode(text, 100_000).ids[1:-1]
    (windows,) = TOKENIZER.encode_windows([text], 64, 32)
    assert len(windows) > 3
    step = window_step(len(content), 62, 32)
    for number, window in enumerate(windows):
        start = number * step
        assert window.ids == [encode("").ids[0], *content[start : start + 62], encode("").ids[-1]]
        assert window.content_tokens == 62 - window.ids.count(TOKENIZER.vocabulary.index("[UNK]")) or number
    assert not any(window.truncated for window in windows)
    (short, cut) = TOKENIZER.encode_windows([SENTENCES[0], text], 64, 2)
    assert short == [encode(SENTENCES[0])]
    assert [window.truncated for window in cut] == [False, True]
    assert TOKENIZER.encode_windows([text], 64, 1)[0] == [encode(text)]


@given(st.lists(ANY_STRING, max_size=5))
def test_any_string_gets_an_answer(texts: list[str]) -> None:
    results = TOKENIZER.encode_batch(texts, 16)
    assert [encode(text, 16) for text in texts] == results
    for result in results:
        assert tokens(result)[0] == "[CLS]"
        assert tokens(result)[-1] == "[SEP]"
        assert result.content_tokens <= len(result.ids) - 2 <= 14


def test_the_order_of_the_texts_is_kept() -> None:
    assert TOKENIZER.encode_batch(SENTENCES, 64) == [encode(sentence) for sentence in SENTENCES]


def test_threads_with_different_lengths_do_not_disturb_each_other() -> None:
    lengths = [3, 64] * 50
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda length: TOKENIZER.encode_batch(SENTENCES, length), lengths))
    expected = {length: TOKENIZER.encode_batch(SENTENCES, length) for length in set(lengths)}
    assert results == [expected[length] for length in lengths]


def test_transformers_reads_the_same_tokenizer(tiny_artifact: Path) -> None:
    theirs = AutoTokenizer.from_pretrained(tiny_artifact)
    ours = Tokenizer.from_file(tiny_artifact / "tokenizer.json")
    expected = theirs(SENTENCES, truncation=True, max_length=16)["input_ids"]
    assert [text.ids for text in ours.encode_batch(SENTENCES, 16)] == expected
    assert ours.pad_id == theirs.pad_token_id
    assert list(ours.vocabulary) == theirs.convert_ids_to_tokens(list(range(len(theirs))))


def test_truncation_and_padding_of_the_file_do_not_count() -> None:
    backend = build_tokenizer()
    backend.enable_truncation(4)
    backend.enable_padding(length=50)
    assert Tokenizer(backend).encode_batch([SENTENCES[0]], 64) == [encode(SENTENCES[0])]


@pytest.mark.parametrize("max_length", [2, 0, -1])
def test_a_length_without_room_is_refused(max_length: int) -> None:
    with pytest.raises(ValueError, match=f"must exceed the 2 special tokens, got {max_length}"):
        encode("계약", max_length)


def test_an_id_that_no_token_has_is_an_empty_token() -> None:
    tokenizer = Tokenizer(tokenizers.Tokenizer(WordPiece({"[PAD]": 0, "[UNK]": 5, "가": 2}, unk_token="[UNK]")))
    assert list(tokenizer.vocabulary) == ["[PAD]", "", "가", "", "", "[UNK]"]
    with pytest.raises(ValueError, match="the id 4000000000, expected less than"):
        Tokenizer(tokenizers.Tokenizer(WordPiece({"[PAD]": 0, "[UNK]": 4_000_000_000}, unk_token="[UNK]")))


def test_a_vocabulary_without_padding_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no \[PAD\] token"):
        Tokenizer(tokenizers.Tokenizer(WordPiece({"[UNK]": 0}, unk_token="[UNK]")))


@pytest.mark.parametrize("content", ["", "{}", "no json"])
def test_what_is_no_tokenizer_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a readable tokenizer"):
        Tokenizer.from_file(tmp_path / "tokenizer.json")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.json"):
        Tokenizer.from_file(tmp_path / "nowhere.json")


# Long texts


EMBEDDED = Tokenizer.from_file(Path(app.__file__).parent / "embedded" / "tokenizer.json")
PIECES = ["손해배상", "청구를", "a", "the", "1234", "ﷺ", "㈜회사", "㍿", "❤️", "résumé", "漢字", "한"]
GAPS = ["", " ", " ", "\n", " " * 50, "\u3000"]


@given(st.lists(st.tuples(st.sampled_from(PIECES), st.sampled_from(GAPS)), max_size=50), st.integers(1, 10))
def test_a_beginning_has_the_tokens_of_the_whole(words: list[tuple[str, str]], times: int) -> None:
    text = "".join(word + gap for word, gap in words) * times
    for max_length in (3, 20):
        (ours,) = EMBEDDED.encode_batch([text], max_length)
        whole = EMBEDDED._backend.encode(normalise(text))
        assert ours.truncated == (len(whole.ids) > max_length)
        assert ours.ids == ([*whole.ids[: max_length - 1], whole.ids[-1]] if ours.truncated else whole.ids)


def what_is_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    read: list[str] = []

    def noted(text: str) -> str:
        read.append(text)
        return normalise(text)

    monkeypatch.setattr("sparse_encoder.tokenizer.normalise", noted)
    return read


def test_of_a_text_that_unfolds_only_as_much_is_read_as_has_the_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    assert max(map(unfolded, map(chr, range(0x110000)))) == MOST_UNFOLDED
    read = what_is_read(monkeypatch)
    (text,) = EMBEDDED.encode_batch(["\ufdfa" * 1_000_000], 512)
    assert (text.truncated, len(text.ids)) == (True, 512)
    assert sum(map(unfolded, read)) <= FIRST_CHARACTERS * 510


@pytest.mark.parametrize("text", [" " * 999_999 + "가", "a" * 1_000_000, "\ufdf2" * 1_000_000])
def test_a_text_of_hardly_any_tokens_is_read_up_to_a_limit(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    read = what_is_read(monkeypatch)
    (result,) = EMBEDDED.encode_batch([text], 512)
    assert result.truncated
    assert max(map(unfolded, read)) <= LAST_CHARACTERS * 510
    assert len(read) == 3


def test_white_space_at_the_end_is_no_end_that_is_lost() -> None:
    (text,) = EMBEDDED.encode_batch(["손해배상" + " " * 100_000], 512)
    assert not text.truncated


@given(ANY_STRING, st.integers(1, 100))
def test_a_beginning_is_one(text: str, most: int) -> None:
    begun = beginning(text, most)
    assert text.startswith(begun)
    assert unfolded(begun) <= most or len(begun) == 1
    assert begun or not text


@given(ANY_STRING)
def test_every_character_of_the_normal_form_has_its_place(text: str) -> None:
    whole = normalise(text)
    places = list(places_in(text, len(whole)))
    assert len(places) == len(whole) + 1
    assert places == sorted(places)
    assert (places[0], places[-1]) == (0, len(text))
    for start in range(len(whole)):  # what stands between two places comes to what stands between two characters
        if places[start] != places[start + 1]:
            first = places.index(places[start])
            assert normalise(text[places[start] : places[start + 1]]) == whole[first : start + 1]


@given(
    st.lists(st.sampled_from(["손해배상", "청구\u0301", "cafe\u0301", "각", "\ud800", "3.5", "😀", " "])), st.booleans()
)
def test_tokens_are_found_where_they_stand_in_the_text_as_it_was_given(words: list[str], decomposed: bool) -> None:
    text = " ".join(words)
    text = unicodedata.normalize("NFD", text) if decomposed else text
    windows = TOKENIZER.located_windows(text, 12, 3)
    assert [[piece.id for piece in window] for window in windows] == [
        window.ids for window in TOKENIZER.encode_windows([text], 12, 3)[0]
    ]
    for piece in (piece for window in windows for piece in window):
        if piece.start is None or piece.stop is None:
            assert piece.token in ("[CLS]", "[SEP]")
            continue
        assert piece.text == text[piece.start : piece.stop]
        if piece.token != "[UNK]":
            assert normalise(piece.text) == piece.token.removeprefix("##")


def test_of_a_long_text_only_the_places_that_are_read_are_looked_for() -> None:
    assert len(places_in(unicodedata.normalize("NFD", "각") * 100_000, 10)) < 20
