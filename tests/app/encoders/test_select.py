"""Which encoder and precision a user gets."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from app.encoders.base import EncoderError, OutOfMemory, Precision, TokenBatch
from app.encoders.openvino_encoder import has_bfloat16
from app.encoders.select import build_encoder, cpu_precision
from app.encoders.torch_encoder import TorchEncoder
from sparse_encoder.artifact import read_artifact


@pytest.mark.parametrize(
    ("flags", "chosen"),
    [
        ({"avx512f", "avx512_vnni", "amx_tile", "amx_bf16", "amx_int8"}, "bf16"),
        ({"avx512f", "avx512_vnni"}, "int8"),
        ({"avx2", "avx_vnni"}, "int8"),
        ({"avx2"}, "f32"),
        (set(), "f32"),
    ],
)
def test_auto_takes_what_the_processor_is_good_at(flags: set[str], chosen: str) -> None:
    assert cpu_precision("auto", flags) == chosen


@pytest.mark.parametrize("precision", ["f32", "int8", "int8-static"])
def test_a_choice_is_kept_whatever_the_processor(precision: Precision) -> None:
    assert cpu_precision(precision, set()) == precision


def test_what_a_cpu_cannot_do_is_refused() -> None:
    with pytest.raises(EncoderError, match="a CPU does not compute in f16"):
        cpu_precision("f16", {"amx_bf16"})
    if has_bfloat16():
        assert cpu_precision("bf16", set()) == "bf16"
    else:
        with pytest.raises(EncoderError, match="no bf16 instructions"):
            cpu_precision("bf16", set())


def test_without_a_gpu_auto_is_the_cpu(tiny_artifact: Path, tmp_path: Path) -> None:
    encoder = build_encoder(read_artifact(tiny_artifact), "auto", "f32", 1, tmp_path)
    assert encoder.device == "CPU f32"


@pytest.mark.parametrize(
    ("device", "precision", "reason"),
    [
        ("cuda", "auto", "--device cuda cannot be used"),
        ("cuda:3", "bf16", "--device cuda:3 cannot be used"),
        ("mps", "f16", "--device mps cannot be used"),
        ("cuda", "int8", "torch does not compute in int8 here"),
    ],
)
def test_a_device_that_is_not_there_is_refused(
    device: str, precision: Precision, reason: str, tiny_artifact: Path, tmp_path: Path
) -> None:
    with pytest.raises(EncoderError, match=reason):
        build_encoder(read_artifact(tiny_artifact), device, precision, 1, tmp_path)


def test_a_gpu_without_torch_is_refused_with_the_extra_to_install(
    tiny_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EncoderError, match="install the extra `torch`"):
        build_encoder(read_artifact(tiny_artifact), "cuda", "auto", 1, tmp_path)
    assert build_encoder(read_artifact(tiny_artifact), "auto", "f32", 1, tmp_path).device == "CPU f32"


def test_torch_out_of_memory_is_the_contracts_own_error_and_passes(
    tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    encoder = TorchEncoder(read_artifact(tiny_artifact), "cpu", "f32")
    batch = TokenBatch.pad([[2, 50, 60, 3]], 0)
    before = encoder.encode(batch)[0]

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(encoder._model, "forward", full)
        with pytest.raises(OutOfMemory, match="CUDA out of memory"):
            encoder.encode(batch)
    assert encoder.encode(batch)[0].ids.tolist() == before.ids.tolist()


def test_static_int8_is_quantised_once(tiny_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = read_artifact(tiny_artifact)
    first = build_encoder(artifact, "cpu", "int8-static", 1, tmp_path)
    files = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.xml")}
    monkeypatch.setitem(sys.modules, "nncf", None)  # what is there already needs no NNCF
    again = build_encoder(artifact, "cpu", "int8-static", 1, tmp_path)
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.xml")} == files
    batch = TokenBatch.pad([[2, 50, 60, 3]], 0)
    assert again.encode(batch)[0].ids.tolist() == first.encode(batch)[0].ids.tolist()
    with pytest.raises(EncoderError, match="install the extra `quantise`"):
        build_encoder(artifact, "cpu", "int8-static", 1, tmp_path / "other")
