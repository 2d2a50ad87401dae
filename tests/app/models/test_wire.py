from __future__ import annotations

import json
import math

import msgpack
import pytest

from app.models.wire import form_of, keys_of_formats, sparse_vector_keys, token_id_keys, word_keys, write_vector
from sparse_encoder.vector import SparseVector

VOCABULARY = ["손해", "배상", "😀", 'quo"te\\', "a.b", ".", " ", "", "\n", "나라"]


def write(weights: dict[int, float], max_weight: float = math.inf) -> bytes:
    return write_vector(
        SparseVector.from_pairs(list(weights), list(weights.values())), word_keys(VOCABULARY, "drop"), max_weight
    )


def test_keys_are_ascii_and_astral_characters_surrogate_pairs() -> None:
    assert write({0: 2.0, 2: 1.0}) == rb'{"\uc190\ud574":2,"\ud83d\ude00":1}'


def test_quotes_and_backslashes_survive() -> None:
    assert json.loads(write({3: 1.5})) == {'quo"te\\': 1.5}


@pytest.mark.parametrize(
    ("weight", "written"),
    [(1.234567, 1.2346), (0.000123456, 0.00012346), (12.345678, 12.346), (3.0, 3), (1.1754944e-38, 1.1755e-38)],
)
def test_weights_have_five_significant_digits(weight: float, written: float) -> None:
    assert json.loads(write({0: weight})) == {"손해": written}


def test_the_heaviest_token_comes_first() -> None:
    assert list(json.loads(write({0: 0.5, 1: 2.5, 9: 1.5}))) == ["배상", "나라", "손해"]


def test_blank_and_dotted_tokens_are_never_written() -> None:
    assert json.loads(write(dict.fromkeys(range(len(VOCABULARY)), 1.0))).keys() == {
        "손해",
        "배상",
        "😀",
        'quo"te\\',
        "나라",
    }


def test_weights_are_capped() -> None:
    assert json.loads(write({0: 100.0, 1: 64.1, 9: 63.9}, max_weight=64.0)) == {"손해": 64, "배상": 64, "나라": 63.9}


def test_an_empty_vector_is_an_empty_object() -> None:
    assert write({}) == b"{}"


def test_token_ids_are_written_as_strings() -> None:
    vector = SparseVector.from_pairs([4, 9], [1.0, 2.0])
    assert write_vector(vector, token_id_keys(VOCABULARY), math.inf) == b'{"9":2,"4":1}'


def test_ids_of_a_sparse_vector_field_come_from_the_table_of_the_model() -> None:
    vector, table = SparseVector.from_pairs([0, 1, 9], [1.0, 2.0, 3.0]), {"손해": 7, "나라": 2}
    keys = keys_of_formats(VOCABULARY, table, "drop")
    assert write_vector(vector, keys["sparse_vector"], math.inf) == b'{"2":3,"7":1}'
    assert write_vector(vector, keys["token_id"], math.inf) == b'{"9":3,"1":2,"0":1}'


@pytest.mark.parametrize(("size", "fits"), [(32_768, True), (32_769, False)])
def test_a_sparse_vector_field_holds_no_larger_vocabulary_without_a_table(size: int, fits: bool) -> None:
    vocabulary = [f"w{number}" for number in range(size)]
    assert (sparse_vector_keys(vocabulary, {}) is not None) is fits
    assert sparse_vector_keys(vocabulary, {"w1": 0}) is not None
    assert len(token_id_keys(vocabulary)) == size


def test_other_forms_of_the_same_vector() -> None:
    vector = SparseVector.from_pairs([0, 4, 2], [1.25, 0.5, 70.0])
    form = form_of("full", False, "*/*")
    assert json.loads(form.write(vector, VOCABULARY, 64.0)) == [
        {"id": 2, "word": "😀", "weight": 64},
        {"id": 0, "word": "손해", "weight": 1.25},
        {"id": 4, "word": "a.b", "weight": 0.5},
    ]
    lists = {"indices": [2, 0, 4], "values": [64, 1.25, 0.5]}
    words = {**lists, "tokens": ["😀", "손해", "a.b"]}
    for tokens, expected in ((False, lists), (True, words)):
        written, packed = form_of("indices", tokens, ""), form_of("indices", tokens, "text/html, application/msgpack")
        assert json.loads(written.join([written.write(vector, VOCABULARY, 64.0), None])) == [expected, None]
        assert msgpack.unpackb(packed.join([packed.write(vector, VOCABULARY, 64.0), None])) == [expected, None]


def test_dots_can_be_replaced_unless_that_is_another_token() -> None:
    vocabulary = ["3.5", "a.b", "a\u2024b", ".", ".\u2024", "\u2024."]
    keys = word_keys(vocabulary, "replace")
    assert [json.loads(f"{{{key}1}}") if key else None for key in keys] == [
        {"3\u20245": 1},
        None,
        {"a\u2024b": 1},
        {"\u2024": 1},
        None,
        None,
    ]
