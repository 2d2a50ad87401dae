from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparse_encoder.artifact import (
    ArtifactError,
    ArtifactExistsError,
    Description,
    GoldenVector,
    Manifest,
    TrainingOrigin,
    read_artifact,
    read_manifest,
    write_artifact,
    write_golden,
)
from sparse_encoder.model import load_masked_lm
from sparse_encoder.tokenizer import Tokenizer
from tests.tiny import dense, reference_vector

ROOT = Path(__file__).parents[2]
DESCRIPTION = Description(
    version="ko-test-1",
    architecture="BertForMaskedLM",
    activation="log1p_relu",
    max_length_document=256,
    max_length_query=64,
    vocabulary_size=10,
    never_emitted_ids=(0, 1, 4),
    golden_tolerance=1e-3,
    evaluation={"ndcg@10": 0.5},
    training=TrainingOrigin(commit="abc", command="train", base="none", data_origin=("우리 문장",)),
)
GOLDEN = GoldenVector("손해배상", "query", (7, 2), (1.5, 0.25))


def fill(directory: Path) -> None:
    for name in ("README.md", "config.json", "tokenizer.json", "model.safetensors"):
        (directory / name).write_text(f"content of {name}")
    write_golden(directory / "golden.jsonl", [GOLDEN])


def write(target: Path, description: Description = DESCRIPTION) -> Path:
    return write_artifact(target, fill, lambda _: description)


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    return write(tmp_path / "artifact")


def test_what_is_written_is_read(artifact: Path) -> None:
    read = read_artifact(artifact)
    assert {name: getattr(read.manifest, name) for name in vars(DESCRIPTION)} == vars(DESCRIPTION)
    assert list(read.golden()) == [GOLDEN]
    assert read.manifest.files.keys() == {entry.name for entry in artifact.iterdir()} - {"manifest.json"}
    assert read.manifest == read_manifest(artifact)


def test_the_pooling_is_written_only_where_it_is_not_the_maximum(artifact: Path, tmp_path: Path) -> None:
    """So that software from before there was a choice reads what it can serve, and refuses the rest."""
    assert "pooling" not in json.loads((artifact / "manifest.json").read_text(encoding="utf-8"))
    assert read_manifest(artifact).pooling == "max"
    assert read_manifest(write(tmp_path / "sum", replace(DESCRIPTION, pooling="sum"))).pooling == "sum"


def test_nothing_but_the_artifact_is_left_behind(artifact: Path) -> None:
    assert list(artifact.parent.iterdir()) == [artifact]


def test_the_description_may_depend_on_what_was_written(tmp_path: Path) -> None:
    def describe(directory: Path) -> Description:
        return replace(DESCRIPTION, version=f"v{len(list(directory.iterdir()))}")

    assert read_manifest(write_artifact(tmp_path / "a", fill, describe)).version == "v5"


def test_a_real_checkpoint_gives_its_golden_vectors(tiny_artifact: Path) -> None:
    artifact = read_artifact(tiny_artifact)
    model, tokenizer = load_masked_lm(artifact.path), Tokenizer.from_file(artifact.path / "tokenizer.json")
    size = artifact.manifest.vocabulary_size
    assert size == len(tokenizer.vocabulary)
    for golden in artifact.golden():
        row = np.zeros(size, dtype=np.float32)
        row[list(golden.ids)] = golden.weights
        vector = reference_vector(model, tokenizer, golden.text, golden.input_type)
        np.testing.assert_allclose(dense(vector, size), row, atol=artifact.manifest.golden_tolerance)
        assert not set(golden.ids) & set(artifact.manifest.never_emitted_ids)
        assert 10 < len(golden.ids) < 100


def test_every_changed_byte_is_noticed(tiny_artifact: Path, tmp_path: Path) -> None:
    for name in sorted(read_manifest(tiny_artifact).files):
        copy = Path(shutil.copytree(tiny_artifact, tmp_path / name))
        content = bytearray((copy / name).read_bytes())
        content[len(content) // 2] ^= 1
        (copy / name).write_bytes(content)
        with pytest.raises(ArtifactError, match=f"{name} was changed after publishing"):
            read_artifact(copy)


def truncate(path: Path) -> None:
    (path / "model.safetensors").write_bytes(b"")


def remove(path: Path) -> None:
    (path / "model.safetensors").unlink()


def add(path: Path) -> None:
    (path / "more.safetensors").write_bytes(b"")


def link(path: Path) -> None:
    (path / "model.safetensors").rename(path.parent / "elsewhere")
    (path / "model.safetensors").symlink_to(path.parent / "elsewhere")


def link_manifest(path: Path) -> None:
    (path / "manifest.json").rename(path.parent / "elsewhere")
    (path / "manifest.json").symlink_to(path.parent / "elsewhere")


def pipe(path: Path) -> None:
    (path / "model.safetensors").unlink()
    os.mkfifo(path / "model.safetensors")


def add_folder(path: Path) -> None:
    (path / "folder").mkdir()


def remove_manifest(path: Path) -> None:
    (path / "manifest.json").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, r"model\.safetensors has 0 bytes instead of \d+: copy"),
        (remove, r"lacks \['model\.safetensors'\].*: copy"),
        (add, r"has \['more\.safetensors'\] beyond its manifest: copy"),
        (link, r"model\.safetensors is a link"),
        (link_manifest, r"manifest\.json is a link"),
        (pipe, r"model\.safetensors is a link, folder or device"),
        (add_folder, r"folder is a link, folder or device"),
        (remove_manifest, r"no readable manifest\.json .*: it is half written or no artifact; publish"),
    ],
)
def test_a_damaged_directory_is_refused(artifact: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(artifact)
    with pytest.raises(ArtifactError, match=message):
        read_artifact(artifact)


def test_a_missing_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="nowhere has no readable"):
        read_artifact(tmp_path / "nowhere")


def rehash(document: dict[str, Any], name: str) -> None:
    document["files"][name] = document["files"].pop("config.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format_version=2), "has format_version 2, this software reads 1: publish"),
        (lambda m: m.pop("format_version"), "has format_version None"),
        (lambda m: m.update(extra=1), r"unknown fields \['extra'\]"),
        (lambda m: m.pop("activation"), r"lacks the fields \['activation'\]"),
        (lambda m: m["training"].pop("commit"), r"training lacks the fields \['commit'\]"),
        (lambda m: m.update(activation="gelu"), "activation must be 'log1p_relu' or .* got 'gelu'"),
        (lambda m: m.update(pooling="mean"), "pooling must be 'max' or 'sum', got 'mean'"),
        (lambda m: m.update(architecture="GPT"), "architecture must be 'BertForMaskedLM' or .* got 'GPT'"),
        (lambda m: m.update(vocabulary_size="10"), "vocabulary_size must be int, got '10'"),
        (lambda m: m.update(vocabulary_size=True), "vocabulary_size must be int, got 'True'"),
        (lambda m: m.update(files=[]), r"files must be Mapping, got '\[\]'"),
        (lambda m: m.update(training="none"), "training must be TrainingOrigin, got 'none'"),
        (lambda m: m.update(never_emitted_ids=[4, 1]), "never_emitted_ids must ascend"),
        (lambda m: m.update(never_emitted_ids=[10]), "below vocabulary_size 10"),
        (lambda m: m.update(never_emitted_ids=[-1]), "never_emitted_ids must ascend"),
        (lambda m: m.update(golden_tolerance=0), "golden_tolerance must be positive"),
        (lambda m: m.update(max_length_query=2), "must be at least 3"),
        (lambda m: m.update(version="v1\r\nX-Evil: 1"), "version .* must be letters"),
        (lambda m: m.update(version="../v1"), "version .* must be letters"),
        (lambda m: m.update(tokenizer_sha256="0" * 64), "tokenizer_sha256 is not the hash"),
        (lambda m: m["files"].pop("tokenizer.json"), r"needs tokenizer\.json"),
        (lambda m: m["files"].pop("golden.jsonl"), r"needs golden\.jsonl"),
        (lambda m: m["files"].pop("model.safetensors"), "needs weights"),
        (lambda m: rehash(m, "../config.json"), r"names '\.\./config\.json', which is no plain file name"),
        (lambda m: rehash(m, "/etc/passwd"), "no plain file name"),
        (lambda m: rehash(m, ".."), "no plain file name"),
        (lambda m: rehash(m, "a\0b"), "no plain file name"),
        (lambda m: rehash(m, "sub/config.json"), "no plain file name"),
        (lambda m: rehash(m, "manifest.json"), "no plain file name"),
    ],
)
def test_a_wrong_manifest_is_refused(artifact: Path, change: Callable[[Any], object], message: str) -> None:
    manifest = json.loads((artifact / "manifest.json").read_text())
    change(manifest)
    (artifact / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=message):
        read_artifact(artifact)


@pytest.mark.parametrize("text", [b"", b"[]", b"null", b"{", b"\xff", b"[" * 100_000, b'{"format_version": NaN}'])
def test_a_manifest_that_is_no_object_is_refused(artifact: Path, text: bytes) -> None:
    (artifact / "manifest.json").write_bytes(text)
    with pytest.raises(ArtifactError, match=r"manifest\.json"):
        read_artifact(artifact)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "is empty"),
        ("{}", r"golden\.jsonl line 1 lacks the fields"),
        ("nonsense", r"golden\.jsonl line 1 is no JSON"),
        ('{"text": "a", "input_type": "passage", "ids": [], "weights": []}', "'document' or 'query', got 'passage'"),
        ('{"text": "a", "input_type": "query", "ids": [1], "weights": []}', "1 ids but 0 weights"),
        ('{"text": "a", "input_type": "query", "ids": [1], "weights": [NaN]}', "NaN is no JSON number"),
    ],
)
def test_wrong_golden_vectors_are_not_published(tmp_path: Path, line: str, message: str) -> None:
    def fill_badly(directory: Path) -> None:
        fill(directory)
        (directory / "golden.jsonl").write_text(line)

    with pytest.raises(ArtifactError, match=message):
        write_artifact(tmp_path / "artifact", fill_badly, lambda _: DESCRIPTION)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["README.md", "config.json", "tokenizer.json", "golden.jsonl", "model.safetensors"])
def test_an_incomplete_checkpoint_is_not_published(tmp_path: Path, name: str) -> None:
    def fill_badly(directory: Path) -> None:
        fill(directory)
        (directory / name).unlink()

    with pytest.raises(ArtifactError, match=r"an artifact needs"):
        write_artifact(tmp_path / "artifact", fill_badly, lambda _: DESCRIPTION)
    assert list(tmp_path.iterdir()) == []


def test_figures_that_are_no_numbers_are_not_published(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="evaluation figures are no JSON"):
        write(tmp_path / "artifact", replace(DESCRIPTION, evaluation={"ndcg@10": float("nan")}))
    assert list(tmp_path.iterdir()) == []


def test_an_existing_target_is_never_overwritten(artifact: Path) -> None:
    before = read_artifact(artifact)
    with pytest.raises(ArtifactExistsError, match="never overwritten: choose another path"):
        write(artifact, replace(DESCRIPTION, version="other"))
    assert read_artifact(artifact) == before


def test_a_target_that_appears_while_writing_is_never_overwritten(tmp_path: Path) -> None:
    target = tmp_path / "artifact"

    def fill_slowly(directory: Path) -> None:
        fill(directory)
        write(target)

    with pytest.raises(ArtifactExistsError, match="made by another process"):
        write_artifact(target, fill_slowly, lambda _: replace(DESCRIPTION, version="late"))
    assert read_artifact(target).manifest.version == DESCRIPTION.version
    assert list(tmp_path.iterdir()) == [target]


def test_a_failing_writer_leaves_nothing(tmp_path: Path) -> None:
    def fail(directory: Path) -> None:
        fill(directory)
        raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError, match="the disk is full"):
        write_artifact(tmp_path / "artifact", fail, lambda _: DESCRIPTION)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_killed_writer_leaves_nothing_that_is_read(tmp_path: Path) -> None:
    script = (
        "import os, pathlib\n"
        "from tests.sparse_encoder.test_artifact import DESCRIPTION, fill, write_artifact\n"
        "def fill_and_die(directory): fill(directory); os._exit(9)\n"
        f"write_artifact(pathlib.Path({str(tmp_path / 'artifact')!r}), fill_and_die, lambda _: DESCRIPTION)"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == 9
    (left,) = tmp_path.iterdir()
    assert left != tmp_path / "artifact"
    with pytest.raises(ArtifactError, match="half written"):
        read_artifact(left)


def test_everything_is_on_disk_before_the_name_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def record_fsync(descriptor: int) -> None:
        steps.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def record_rename(path: Path, target: Path) -> Path:
        steps.append("renamed")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(Path, "rename", record_rename)
    target = write(tmp_path / "artifact")
    before, after = steps[: steps.index("renamed")], steps[steps.index("renamed") + 1 :]
    assert set(before[:-1]) == {entry.name for entry in target.iterdir()}
    assert before[-1].endswith(".partial")
    assert after == [tmp_path.name]


def test_the_manifest_survives_json() -> None:
    document = json.loads(Manifest.from_json(MANIFEST_TEXT).to_json())
    assert document == json.loads(MANIFEST_TEXT)


# Format version 1 as published: never edit it; another format needs another version.
MANIFEST_TEXT = """
{
  "version": "ko-v0-20261124-ab12cd34", "architecture": "BertForMaskedLM", "activation": "log1p_relu",
  "max_length_document": 256, "max_length_query": 64, "vocabulary_size": 24000, "never_emitted_ids": [0, 1, 2],
  "golden_tolerance": 0.001, "evaluation": {"ndcg@10": {"법률": 0.5}},
  "training": {"commit": "ab12", "command": "python -m training train", "base": "none", "data_origin": ["위키백과"]},
  "format_version": 1, "created": "2026-11-24T00:00:00+00:00", "tokenizer_sha256": "11",
  "files": {
    "README.md": {"sha256": "44", "bytes": 4}, "config.json": {"sha256": "22", "bytes": 2},
    "golden.jsonl": {"sha256": "55", "bytes": 5}, "model.safetensors": {"sha256": "33", "bytes": 3},
    "tokenizer.json": {"sha256": "11", "bytes": 1}
  }
}
"""
