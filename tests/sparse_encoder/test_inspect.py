"""What `inspect` and `convert` say and do on the command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sparse_encoder.__main__ import main
from sparse_encoder.artifact import read_artifact
from sparse_encoder.checkpoint.reference import REFERENCE
from tests import foreign
from tests.app.server import ROOT

pytestmark = pytest.mark.slow

WITHOUT_TORCH = """
import sys
for name in ("torch", "transformers"):
    sys.modules[name] = None
from sparse_encoder.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def inspected(model: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    capsys.readouterr()
    assert main(["inspect", str(model)]) == 0
    lines = capsys.readouterr().out.splitlines()
    return dict(line.split(": ", 1) for line in lines)


def test_a_checkpoint_of_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = inspected(foreign.v1_wrapper(tmp_path / "model"), capsys)
    assert (
        said["kind"] == "transformers, SPLADEModel (its own code is not run), in a wrapper ('model.' before each name)"
    )
    assert said["architecture"] == "ModernBertForMaskedLM, 813 x 32 embeddings"
    assert said["weights"] == "29 tensors, F32"
    assert said["weight of a token"] == "log1p_relu, max over positions"
    assert said["vocabulary"] == "813 tokens, 808 can be emitted: 700 Hangul, 55 Latin, 32 other, 21 digits"
    assert said["never emitted"] == "0 [UNK] 1 [CLS] 2 [SEP] 3 [MASK] 812 [PAD]"
    assert said["lengths"] == "64 tokens for documents, 64 for queries"
    assert said["queries"] == "by the encoder"
    assert "MB of weights in f32, up to" in said["memory"]
    assert said["sample"].startswith("손해배상 → ")
    assert said["sample"].count(",") == 11
    assert said["will be served"] == "yes"


def test_inference_free_queries_half_precision_and_byte_level_tokens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert inspected(foreign.routed(tmp_path / "routed"), capsys)["queries"] == "inference-free by default"
    assert inspected(foreign.half(tmp_path / "half"), capsys)["weights"].endswith("tensors, BF16")
    vocabulary = inspected(foreign.roberta(tmp_path / "roberta"), capsys)["vocabulary"]
    assert " Hangul" in vocabulary  # the bytes are put together, not counted as the letters that stand for them


def test_an_artifact(tiny_artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = inspected(tiny_artifact, capsys)
    manifest = read_artifact(tiny_artifact).manifest
    assert said["kind"] == f"an artifact of this project, tiny-v1 of {manifest.created}"
    assert said["lengths"] == "64 tokens for documents, 32 for queries"
    assert said["sample"].startswith("손해배상 → ")
    assert said["will be served"] == "yes"


def test_an_artifact_is_not_converted(tiny_artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(tiny_artifact), str(tmp_path / "out")]) == 1
    assert "is an artifact already: serve it as it is" in capsys.readouterr().err


def test_convert_takes_what_the_user_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, out = foreign.bert(tmp_path / "model"), tmp_path / "out"
    options = ["--activation", "log1p_log1p_relu", "--pooling", "sum", "--max-length-query", "16"]
    assert main(["convert", str(model), str(out), *options]) == 0
    manifest = read_artifact(out).manifest
    assert capsys.readouterr().out == f"{out}: {manifest.version}\n"
    assert (manifest.activation, manifest.pooling) == ("log1p_log1p_relu", "sum")
    assert (manifest.max_length_document, manifest.max_length_query) == (64, 16)
    assert manifest.evaluation == {"golden_vectors": REFERENCE.name}
    assert main(["convert", str(model), str(out)]) == 1
    assert "exists and is never overwritten" in capsys.readouterr().err


def test_without_torch_inspect_has_no_sample_and_convert_names_what_to_install(tmp_path: Path) -> None:
    model = foreign.bert(tmp_path / "model")

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        command = (sys.executable, "-W", "error", "-c", WITHOUT_TORCH, *command)
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    done = run("inspect", str(model))
    assert (done.returncode, done.stderr) == (0, "")
    assert (
        "sample: none, torch and transformers are not installed (the extra train)\nwill be served: yes" in done.stdout
    )
    done = run("convert", str(model), str(tmp_path / "out"))
    assert done.returncode == 1
    assert "install them, or give the checkpoint to the service (--model)" in done.stderr
    done = run("inspect", str(foreign.no_tokenizer_json(tmp_path / "old")))
    assert "has no tokenizer.json, and making one from its vocabulary takes transformers" in done.stderr
