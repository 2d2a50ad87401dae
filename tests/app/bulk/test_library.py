"""The encoder in pipelines of others: the example for Spark as it stands; for Ray Data, see test_on_ray.py."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from app.bulk import Encode, ModelChoice, VectorChoice, library
from app.bulk.encoding import load
from app.models.loaded import LoadedModel, load_model
from scripts.opensearch_parts import find_jdk
from sparse_encoder.artifact import Artifact, read_artifact
from tests.app.conftest import openvino
from tests.app.server import ROOT
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


def test_a_model_is_loaded_once_in_a_process(tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[ModelChoice] = []

    def counted(choice: ModelChoice, artifact: Artifact) -> LoadedModel:
        loaded.append(choice)
        return load(choice, artifact)

    monkeypatch.setattr(library, "load", counted)
    monkeypatch.setattr(library, "_kept", {})
    choice = ModelChoice(model=str(tiny_artifact), precision="f32", threads=1)
    for vectors in (VectorChoice(), VectorChoice(), VectorChoice(input_type="query", top_k=5)):
        Encode(model=choice, vectors=vectors)
    assert loaded == [choice]
    Encode(model=replace(choice, precision="int8"))
    assert len(loaded) == 2
    Encode(model=choice)
    assert len(loaded) == 3


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_example_for_spark(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "serving" / "bulk.md").read_text(encoding="utf-8")
    (example,) = (code for code in re.findall(r"^```python\n(.*?)^```", page, re.M | re.S) if "pyspark" in code)
    assert example.count('"/shared/') == 2
    (tmp_path / "example.py").write_text(example.replace('"/shared/', f'"{tmp_path}/'), encoding="utf-8")
    table = pa.table({"id": [f"d{n}" for n in range(40)], "text": [*SENTENCES[:9], None] * 4, "year": list(range(40))})
    (tmp_path / "documents").mkdir()
    for part in range(2):
        pq.write_table(table.slice(20 * part, 20), tmp_path / "documents" / f"{part}.parquet")
    environment = {
        **os.environ,
        "JAVA_HOME": str(find_jdk("2.19.1")),
        "PYSPARK_PYTHON": sys.executable,
        "PYSPARK_SUBMIT_ARGS": "--master local[4] --conf spark.ui.enabled=false pyspark-shell",
        "SPARK_LOCAL_IP": "127.0.0.1",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "example.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr
    found = {row["id"]: row for row in pq.read_table(tmp_path / "vectors").to_pylist()}
    assert sorted(found) == sorted(table["id"].to_pylist())
    plain = Encode(["text"], ModelChoice(threads=4))(table.drop_columns("year")).to_pylist()
    for row in plain:
        there = found[row["id"]]
        assert (there["text"], there["text_tokens"]) == (row["text"], row["text_tokens"])
        theirs = {pair["token"]: pair["weight"] for pair in there["text_sparse"]}
        ours = {pair["token"]: pair["weight"] for pair in row["text_sparse"]}
        for token in theirs.keys() | ours.keys():
            # What else is in a batch moves a weight a little where products are rounded; one may come or go.
            assert theirs.get(token, 0) == pytest.approx(ours.get(token, 0), abs=0.1)
