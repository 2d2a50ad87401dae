"""Checks that need no running service."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from app.models.loaded import ModelError, check_memory
from app.versions.watching import Snapshot
from sparse_encoder.artifact import read_artifact


def test_the_memory_message_has_both_figures(tiny_artifact: Path) -> None:
    manifest = read_artifact(tiny_artifact).manifest
    weights = manifest.files["model.safetensors"]
    manifest = replace(manifest, files={**manifest.files, "model.safetensors": replace(weights, bytes=200_000_000)})
    check_memory(manifest.weight_bytes, 540_000_000)
    with pytest.raises(ModelError, match=r"takes up to 540 MB, 539 MB are available: raise"):
        check_memory(manifest.weight_bytes, 539_400_000)


def test_an_unknown_version_is_not_answered_with_a_thousand_names() -> None:
    snapshot = Snapshot({}, tuple(f"v{n:04}" for n in range(1000)))
    with pytest.raises(Exception, match=r"versions: v0999, v0998, .*, v0980 and 980 older ones; aliases: none"):
        snapshot.resolve("w" * 10_000)
