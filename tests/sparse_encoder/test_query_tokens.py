from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from sparse_encoder.artifact import ArtifactError
from sparse_encoder.lexical_tables import NONE, LexicalTables
from sparse_encoder.query_tokens import MAX_QUERY_WEIGHT, NEVER, QUERY_TOKENS, QueryTokens, RelatedWords

TOKENS = QueryTokens(True, np.array([NEVER, 1, 1, 3], np.int32), np.array([0, 2.5, 0, 1.25], np.float32))


def test_each_token_counts_once_under_the_id_it_is_emitted_as() -> None:
    vector = TOKENS.vector([0, 2, 3, 1, 2, 0])
    assert (vector.ids.tolist(), vector.weights.tolist()) == ([1, 3], [2.5, 1.25])
    assert len(TOKENS.vector([0, 0])) == 0


def test_what_is_written_is_read(tmp_path: Path) -> None:
    assert QueryTokens.read(tmp_path, 4) is None
    TOKENS.write(tmp_path)
    tokens = QueryTokens.read(tmp_path, 4)
    assert tokens is not None
    assert tokens.default
    assert tokens.emitted_as.tolist() == TOKENS.emitted_as.tolist()
    assert tokens.weights.tolist() == TOKENS.weights.tolist()
    with pytest.raises(ArtifactError, match="is for 4 tokens, the vocabulary has 5"):
        QueryTokens.read(tmp_path, 5)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"weights": [0, 65, 0, 1]}, r"outside \(0, 64\]"),
        ({"weights": [0, 0, 0, 1]}, r"outside \(0, 64\]"),
        ({"weights": [0, float("nan"), 0, 1]}, r"outside \(0, 64\]"),
        ({"weights": [1]}, "an emitted id below the vocabulary's size"),
        ({"emitted_as": [0, 1, 2, 4]}, "an emitted id below the vocabulary's size"),
        ({"emitted_as": [0, -2, 2, 1]}, "an emitted id below the vocabulary's size"),
        ({"emitted_as": ["a"]}, "no table of query tokens"),
        ({"emitted_as": None}, "no table of query tokens"),
    ],
)
def test_a_wrong_table_is_refused(tmp_path: Path, changed: dict[str, object], message: str) -> None:
    TOKENS.write(tmp_path)
    document = json.loads((tmp_path / QUERY_TOKENS).read_text(encoding="utf-8"))
    (tmp_path / QUERY_TOKENS).write_text(json.dumps(document | changed), encoding="utf-8")
    with pytest.raises(ArtifactError, match=message):
        QueryTokens.read(tmp_path, 4)


#: Tokens: 0 special; 1, 2 words, 2 with the part 3; 4 speaks as 5 in a text without a word; 6 is 1 by another name.
TABLES = LexicalTables(
    own_token=np.array([NONE, 1, 2, 3, NONE, 5, 1], np.int32),
    last_token=np.array([NONE, NONE, NONE, NONE, 5, NONE, NONE], np.int32),
    part_token=np.array([[NONE], [NONE], [3], [NONE], [NONE], [NONE], [NONE]], np.int32),
    own_share=np.array([[1, 1], [1, 1], [0.8, 0.5], [1, 1], [1, 1], [1, 1], [0.5, 1]], np.float32),
    related_token=np.array([[NONE] * 2, [5, 2], [5, 3], [NONE] * 2, [NONE] * 2, [2, NONE], [NONE] * 2], np.int32),
    related_weight=np.array([[0, 0], [0.6, 0.4], [1, 1], [0, 0], [0, 0], [0.2, 0], [0, 0]], np.float32),
)
WEIGHTS = np.array([0, 2, 4, 3, 0, 1, 0], np.float32)


def expanded(factor: float = 2.0, words: float = 1.0) -> QueryTokens:
    related = RelatedWords(factor, words, TABLES)
    return QueryTokens(False, TABLES.own_token, WEIGHTS, related)


def as_pairs(tokens: QueryTokens, ids: list[int]) -> dict[int, float]:
    vector = tokens.vector(ids)
    return dict(zip(vector.ids.tolist(), vector.weights.tolist(), strict=True))


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([0, 1, 0], {1: 2, 5: 2 * 0.6, 2: 2 * 0.4}),
        ([1, 1, 6], {1: 2, 5: 2 * 0.6, 2: 2 * 0.4}),  # once, at its largest share
        ([6], {1: 1, 5: 2 * 0.6, 2: 2 * 0.4}),
        ([2], {2: 4 * 0.8, 3: 3 * 0.5, 5: 2}),  # a part is a word of the query too: nothing is added to it
        ([2, 3], {2: 4 * 0.8, 3: 3, 5: 2 / 2 * 4 / 3.5}),  # two words: half of it, by their weights over the mean
        ([1, 2], {1: 2, 2: 4 * 0.8, 3: 1.5, 5: 2 / 2 * (0.6 * 2 / 3 + 4 / 3)}),
        ([0, 4, 0], {5: 1, 2: 2 * 0.2}),
        ([1, 4], {1: 2, 5: 2 * 0.6, 2: 2 * 0.4}),  # a last resort is silent beside a word
        ([0, 0], {}),
    ],
)
def test_related_words_and_parts_are_looked_up(ids: list[int], expected: dict[int, float]) -> None:
    assert as_pairs(expanded(), ids) == pytest.approx(expected)


def test_related_words_step_back_in_a_query_of_more_words_than_it_says() -> None:
    assert as_pairs(expanded(words=2.0), [1, 2])[5] == pytest.approx(2 * (0.6 * 2 / 3 + 4 / 3))
    assert as_pairs(expanded(words=2.0), [1, 2, 3])[5] == pytest.approx(2 * 2 / 3 * (0.6 * 2 / 3 + 4 / 3))


def test_a_related_word_is_never_heavier_than_opensearch_takes() -> None:
    assert as_pairs(expanded(factor=1000.0), [1])[5] == MAX_QUERY_WEIGHT


def test_what_is_written_with_related_words_is_read_with_the_tables_of_the_weights(
    lexical_artifact: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(lexical_artifact, tmp_path / "artifact"))
    tables = LexicalTables.read(copy)
    size = len(tables.own_token)
    plain = QueryTokens.read(copy, size)
    assert plain is not None
    assert plain.related is None
    weights = np.full(size, 1.5, np.float32)
    QueryTokens(True, plain.emitted_as, weights, RelatedWords(0.5, 1.0, tables)).write(copy)
    document = json.loads((copy / QUERY_TOKENS).read_text(encoding="utf-8"))
    assert document["related"] == {"factor": 0.5, "words": 1.0}
    tokens = QueryTokens.read(copy, size)
    assert tokens is not None
    assert tokens.related is not None
    token, word = next(
        (token, word)
        for token, word in enumerate(tables.own_token.tolist())
        if word != NONE and (tables.related_token[word] != NONE).any()
    )
    assert set(tables.related_token[word].tolist()) - {-1} <= set(as_pairs(tokens, [token]))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"related": {"factor": 0, "words": 1}}, "both must be positive"),
        ({"related": {"factor": float("nan"), "words": 1}}, "both must be positive"),
        ({"related": {"factor": 1}}, "is no table of query tokens"),
        ({"related": [1, 2]}, "is no table of query tokens"),
    ],
)
def test_wrong_constants_are_refused(
    lexical_artifact: Path, tmp_path: Path, change: dict[str, object], reason: str
) -> None:
    copy = Path(shutil.copytree(lexical_artifact, tmp_path / "artifact"))
    document = json.loads((copy / QUERY_TOKENS).read_text(encoding="utf-8"))
    (copy / QUERY_TOKENS).write_text(json.dumps(document | change), encoding="utf-8")
    with pytest.raises(ArtifactError, match=reason):
        QueryTokens.read(copy, len(document["weights"]))


def test_a_model_without_a_table_brings_no_related_words(tiny_artifact: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_artifact, tmp_path / "artifact"))
    document = json.loads((copy / QUERY_TOKENS).read_text(encoding="utf-8"))
    document["related"] = {"factor": 1, "words": 1}
    (copy / QUERY_TOKENS).write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(ArtifactError, match="has no table of related words"):
        QueryTokens.read(copy, len(document["weights"]))


def test_a_word_that_a_query_may_hold_needs_a_weight() -> None:
    weights = WEIGHTS.copy()
    weights[5] = 0  # the last resort of token 4
    with pytest.raises(ArtifactError, match="weight outside"):
        QueryTokens(False, np.array([NEVER, 1, 2, 3, NEVER, NEVER, 1]), weights, RelatedWords(1, 1, TABLES))
