from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sparse_encoder.artifact import ArtifactError
from sparse_encoder.query_tokens import NEVER, QUERY_TOKENS, QueryTokens

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
