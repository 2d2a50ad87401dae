"""What is published loads in four ways, which give the same vectors."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from app.encoders.openvino_encoder import OpenVINOEncoder
from app.models.loaded import load_model
from sparse_encoder.artifact import Artifact, read_artifact, read_manifest, write_artifact
from tests.training.ways import check_ways
from training.card import model_card
from training.loaders import add_loaders

pytestmark = pytest.mark.slow

#: The loop of the card of v1.
TOP_20 = """
top_values, top_indices = sparse_repr[0].topk(20)
for value, index in zip(top_values, top_indices):
    if value.item() > 0:
        print(f"{tokenizer.decode([index.item()]).strip()}: {value.item():.4f}")
"""


@pytest.fixture(scope="module", params=["tiny_artifact", "lexical_artifact"])
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """As `training publish` writes it."""
    source: Path = request.getfixturevalue(request.param)
    manifest = read_manifest(source)

    def fill(directory: Path) -> None:
        for name in manifest.files:
            shutil.copyfile(source / name, directory / name)
        add_loaders(directory, manifest.architecture)
        card = model_card(manifest, {"손해배상": {"손해": 1.5}}, "It is random.")
        (directory / "README.md").write_text(card, encoding="utf-8")

    return read_artifact(write_artifact(tmp_path_factory.mktemp("published") / "artifact", fill, lambda _: manifest))


def test_every_way_gives_the_same_vectors(published: Artifact) -> None:
    check_ways(published)


def test_the_loop_of_the_card_of_v1_runs_on_what_the_class_returns(
    published: Artifact, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(published.path, trust_remote_code=True)
    model = AutoModel.from_pretrained(published.path, trust_remote_code=True).eval()
    with torch.no_grad():
        sparse_repr, _ = model(**tokenizer("손해배상", return_tensors="pt"))
    exec(TOP_20, {"sparse_repr": sparse_repr, "tokenizer": tokenizer})
    lines = capsys.readouterr().out.splitlines()
    checkpoint = load_model(published, lambda served: OpenVINOEncoder(served, "f32", threads=1))
    vector = checkpoint.vector("손해배상", "document").prune(top_k=20)
    weights = [float(line.rpartition(": ")[2]) for line in lines]
    np.testing.assert_allclose(weights, vector.weights, atol=1.5e-4)  # printed with four decimals


@pytest.mark.parametrize("published", ["lexical_artifact"], indirect=True)  # the shape of the embedded one
def test_every_snippet_of_the_card_runs_as_written(published: Artifact, tmp_path: Path) -> None:
    card = (published.path / "README.md").read_text(encoding="utf-8")
    snippets = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(snippets) == 3
    for number, snippet in enumerate(snippets):
        script = tmp_path / f"snippet{number}.py"
        script.write_text(snippet.replace("path/to/this/directory", str(published.path)), encoding="utf-8")
        environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            [sys.executable, script], env=environment, capture_output=True, text=True, check=False, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.strip()


def test_the_card_has_a_header_and_every_part(published: Artifact) -> None:
    card = (published.path / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlanguage: ko\nlicense: apache-2.0\n")
    for part in ("Use", "Examples", "Figures", "Training", "Limits", "Citation"):
        assert f"\n## {part}\n" in card
    assert "{" not in card
