"""The encoder in pipelines of others; in one of Ray Data, see test_on_ray.py."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from app.bulk import Encode, ModelChoice, VectorChoice
from app.models.loaded import load_model
from sparse_encoder.artifact import read_artifact
from tests.app.conftest import openvino
from tests.tiny import SENTENCES


def test_columns_of_vectors(tiny_artifact: Path) -> None:
    encode = Encode(["text"], ModelChoice(model=str(tiny_artifact), precision="f32", threads=1), VectorChoice(top_k=5))
    table = encode(pa.table({"n": [1, 2, 3], "text": [SENTENCES[0], None, "ㆍㆍ"]}))
    assert table.column_names == ["n", "text", "text_tokens", "text_sparse"]
    first, second, third = table["text_sparse"].to_pylist()
    model = load_model(read_artifact(tiny_artifact), openvino)
    expected = model.vector(SENTENCES[0], "document").prune(top_k=5).to_words(model.tokenizer.vocabulary)
    assert {pair["token"]: pair["weight"] for pair in first} == pytest.approx(expected, abs=1e-3)
    assert (second, third) == ([], [])
    assert encode(table.slice(0, 0)).num_rows == 0
    with pytest.raises(ValueError, match="there is no column text, but n"):
        encode(pa.table({"n": [1]}))
    with pytest.raises(ValueError, match="the column text holds int, not texts"):
        encode(pa.table({"text": [1]}))
