"""The encoder in pipelines of others."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from app.bulk import Encode, ModelChoice, VectorChoice
from app.models.loaded import load_model
from sparse_encoder.artifact import read_artifact
from tests.app.conftest import openvino
from tests.tiny import SENTENCES

PIPELINE = """
import sys
import ray
from app.bulk import Encode, ModelChoice

ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=100_000_000)
ds = ray.data.from_items([{"id": n, "text": f"손해배상 청구 {n}"} for n in range(40)])
model = ModelChoice(model=sys.argv[1], precision="f32", threads=1)
ds = ds.map_batches(Encode, batch_format="pyarrow", batch_size=8, concurrency=1, fn_constructor_kwargs={"model": model})
rows = ds.take_all()
assert len(rows) == 40, len(rows)
assert all(row["text_sparse"][0]["weight"] > 0 for row in rows), rows[0]
"""


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


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_in_a_pipeline_of_ray_data(tiny_artifact: Path) -> None:
    done = subprocess.run([sys.executable, "-c", PIPELINE, tiny_artifact], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
