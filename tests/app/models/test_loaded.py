from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from app.models import loaded as models
from app.models.loaded import (
    USUAL_BAND,
    LoadedModel,
    ModelError,
    answered_bands,
    check_golden,
    load_model,
    open_artifact,
)
from sparse_encoder.artifact import GOLDEN, Artifact, ArtifactError, file_record, read_artifact
from sparse_encoder.packed import SCALE, pack
from tests.app.conftest import openvino


def load(artifact: Artifact) -> LoadedModel:
    model = load_model(artifact, openvino)
    check_golden(model)
    return model


@pytest.fixture
def altered(tiny_artifact: Path, tmp_path: Path) -> Callable[[str, Callable[[str], str]], Path]:
    """A copy of the artifact with one file changed and the manifest made to agree with it."""

    def alter(name: str, change: Callable[[str], str]) -> Path:
        copy = tmp_path / "altered"
        shutil.copytree(tiny_artifact, copy)
        (copy / name).write_text(change((copy / name).read_text(encoding="utf-8")), encoding="utf-8")
        manifest = json.loads((copy / "manifest.json").read_text(encoding="utf-8"))
        record = file_record(copy / name)
        manifest["files"][name] = {"sha256": record.sha256, "bytes": record.bytes}
        if name == "tokenizer.json":
            manifest["tokenizer_sha256"] = record.sha256
        (copy / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
        return copy

    return alter


@pytest.fixture
def embedded(tiny_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny model in the place of the one that the package carries."""
    packed = pack(tiny_artifact, tmp_path / "embedded")
    monkeypatch.setattr(models, "EMBEDDED", packed)
    return packed


@pytest.mark.parametrize(
    ("evaluation", "query"),
    [
        ({"prune": {"gate": {"active_query": [4.0, 64], "active_document": [8, 256]}}}, (4.0, 64.0)),
        ({"prune": {"gate": {"active_query": [1, 2, 3], "active_document": [8, 256]}}}, USUAL_BAND),
        ({"prune": {"gate": {"active_query": "no", "active_document": [8, 256]}}}, USUAL_BAND),
    ],
)
def test_the_band_of_tokens_is_the_publishers(
    tiny_artifact: Path, evaluation: dict[str, object], query: tuple[float, float]
) -> None:
    manifest = read_artifact(tiny_artifact).manifest
    assert answered_bands(replace(manifest, evaluation=evaluation)) == {"document": (8.0, 256.0), "query": query}
    others: list[dict[str, object]] = [{}, {"prune": None}, {"prune": {"gate": []}}]
    for other in others:
        bands = answered_bands(replace(manifest, evaluation=other))
        assert bands == {"document": USUAL_BAND, "query": USUAL_BAND}


def test_an_artifact_that_reproduces_its_golden_vectors_is_loaded(tiny_artifact: Path) -> None:
    model = load(read_artifact(tiny_artifact))
    assert model.manifest.version == "tiny-v1"
    assert (model.max_length("query"), model.max_length("document")) == (32, 64)


def test_one_golden_weight_that_is_off_is_refused_with_the_line_and_the_token(
    altered: Callable[[str, Callable[[str], str]], Path],
) -> None:
    def raise_one_weight(golden: str) -> str:
        lines = [json.loads(line) for line in golden.splitlines()]
        lines[2]["weights"][0] += 0.01
        return "".join(json.dumps(line) + "\n" for line in lines)

    artifact = read_artifact(altered("golden.jsonl", raise_one_weight))
    with pytest.raises(ModelError, match=r"tiny-v1 does not reproduce line 3 .* '.+' is -0\.01 off"):
        load(artifact)


def test_a_golden_token_that_is_missing_is_refused(altered: Callable[[str, Callable[[str], str]], Path]) -> None:
    def drop_one_token(golden: str) -> str:
        lines = [json.loads(line) for line in golden.splitlines()]
        del lines[0]["ids"][0], lines[0]["weights"][0]
        return "".join(json.dumps(line) + "\n" for line in lines)

    artifact = read_artifact(altered("golden.jsonl", drop_one_token))
    with pytest.raises(ModelError, match="line 1 of its golden"):
        load(artifact)


def test_another_tokenizer_is_refused(altered: Callable[[str, Callable[[str], str]], Path]) -> None:
    artifact = read_artifact(
        altered("tokenizer.json", lambda text: text.replace('"lowercase": true', '"lowercase": false'))
    )
    with pytest.raises(ModelError, match="does not reproduce line"):
        load(artifact)


def test_a_file_that_is_no_tokenizer_is_refused(altered: Callable[[str, Callable[[str], str]], Path]) -> None:
    artifact = read_artifact(altered("tokenizer.json", lambda _: "{}"))
    with pytest.raises(ModelError, match="the tokenizer of tiny-v1 cannot be used"):
        load(artifact)


def test_the_embedded_model_is_served_as_it_is_packed(embedded: Path) -> None:
    before = {file.name: file.stat().st_mtime_ns for file in embedded.iterdir()}
    check_golden(load(open_artifact(None)))
    assert {file.name: file.stat().st_mtime_ns for file in embedded.iterdir()} == before


def test_a_damaged_embedded_model_is_refused(embedded: Path) -> None:
    (embedded / "golden.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"golden\.jsonl is missing or was changed: install the package again"):
        open_artifact(None)


def test_weights_that_were_changed_do_not_reproduce_the_golden_vectors(embedded: Path) -> None:
    (file,) = embedded.glob("packed-*.safetensors")
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith(SCALE))
    save_file({**tensors, name: tensors[name] * 2}, file)
    with pytest.raises(ModelError, match="does not reproduce line"):
        check_golden(load(open_artifact(None)))


@pytest.mark.parametrize("token_id", [-1, 10**6])
def test_a_golden_vector_of_a_token_that_does_not_exist_is_refused(
    tiny_artifact: Path, tmp_path: Path, token_id: int
) -> None:
    artifact = replace(read_artifact(tiny_artifact), path=tmp_path / "copy")
    shutil.copytree(tiny_artifact, artifact.path)
    lines = (artifact.path / GOLDEN).read_text(encoding="utf-8").splitlines()
    golden = json.loads(lines[1])
    lines[1] = json.dumps({**golden, "ids": [token_id, *golden["ids"][1:]]})
    (artifact.path / GOLDEN).write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(ArtifactError, match=rf"golden.jsonl line 2 has the token id {token_id}, the vocabulary has"):
        load(artifact)


def test_without_any_model_the_message_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(models, "EMBEDDED", tmp_path / "none")
    with pytest.raises(ModelError, match="--model DIRECTORY"):
        open_artifact(None)
