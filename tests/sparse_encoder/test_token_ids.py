from __future__ import annotations

import json
from pathlib import Path

import pytest

from sparse_encoder.artifact import TOKEN_IDS, ArtifactError
from sparse_encoder.token_ids import MAX_TOKEN_IDS, assign_token_ids, read_token_ids, write_token_ids

LARGE = [f"t{number}" for number in range(50_000)]


def test_a_small_vocabulary_needs_no_table(tmp_path: Path) -> None:
    write_token_ids(tmp_path, LARGE[:MAX_TOKEN_IDS], [], {})
    assert read_token_ids(tmp_path) == {}
    assert list(tmp_path.iterdir()) == []


def test_a_large_vocabulary_gets_ids_for_what_can_be_emitted(tmp_path: Path) -> None:
    write_token_ids(tmp_path, LARGE, range(25_000), {})
    table = read_token_ids(tmp_path)
    assert table.keys() == set(LARGE[25_000:])
    assert sorted(table.values()) == list(range(25_000))


def test_a_token_keeps_its_id_and_a_free_one_goes_to_a_new_token() -> None:
    first = assign_token_ids(["가", "나", "다"], {})
    second = assign_token_ids(["다", "라", "가"], first)
    assert second == {**first, "라": 3}
    assert assign_token_ids(["마"], {"가": 0, "다": 2}) == {"가": 0, "다": 2, "마": 1}


def test_too_many_tokens_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="50,000 tokens can be emitted and 0 ids were given away"):
        write_token_ids(tmp_path, LARGE, [], {})
    full = {token: number for number, token in enumerate(LARGE[:MAX_TOKEN_IDS])}
    with pytest.raises(ArtifactError, match="1 tokens can be emitted and 32,768 ids were given away"):
        assign_token_ids(["new"], full)


@pytest.mark.parametrize("table", [{"a": 32_768}, {"a": -1}, {"a": 1, "b": 1}, {"a": "1"}, {"a": True}, ["a"], "no"])
def test_a_wrong_table_is_refused(tmp_path: Path, table: object) -> None:
    (tmp_path / TOKEN_IDS).write_text(json.dumps(table), encoding="utf-8")
    with pytest.raises(ArtifactError, match="publish"):
        read_token_ids(tmp_path)
