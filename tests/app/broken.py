"""Artifacts that are broken in one way each, as a bad disk, a bad publisher or a bad training would leave them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from sparse_encoder.artifact import file_record

WEIGHTS = "model.safetensors"


def copy(source: Path, target: Path, version: str, change: Callable[[Path], None] = lambda _: None) -> Path:
    """The artifact `source` as another version, with whatever `change` does to it, at `target`; hashes are right."""
    shutil.copytree(source, target)
    change(target)
    manifest = json.loads((target / "manifest.json").read_text(encoding="utf-8"))
    manifest["version"] = version
    for name in manifest["files"]:
        record = file_record(target / name)
        manifest["files"][name] = {"sha256": record.sha256, "bytes": record.bytes}
    manifest["tokenizer_sha256"] = manifest["files"]["tokenizer.json"]["sha256"]
    (target / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return target


def _wrong_hash(directory: Path) -> None:
    content = bytearray((directory / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (directory / WEIGHTS).write_bytes(content)


def _truncated(directory: Path) -> None:
    content = (directory / WEIGHTS).read_bytes()
    (directory / WEIGHTS).write_bytes(content[: len(content) // 2])


def _unknown_format(directory: Path) -> None:
    manifest = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
    (directory / "manifest.json").write_text(json.dumps({**manifest, "format_version": 99}), encoding="utf-8")


def _golden_mismatch(directory: Path) -> None:
    lines = [json.loads(line) for line in (directory / "golden.jsonl").read_text(encoding="utf-8").splitlines()]
    lines[0]["weights"][0] += 0.5
    (directory / "golden.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def _nan_weights(directory: Path) -> None:
    weights = load_file(directory / WEIGHTS)
    weights["cls.predictions.transform.dense.weight"][:] = np.nan
    save_file(weights, directory / WEIGHTS)


def _other_tokenizer(directory: Path) -> None:
    text = (directory / "tokenizer.json").read_text(encoding="utf-8")
    assert '"lowercase": true' in text
    (directory / "tokenizer.json").write_text(text.replace('"lowercase": true', '"lowercase": false'), encoding="utf-8")


def _other_architecture(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    (directory / "config.json").write_text(json.dumps({**config, "hidden_act": "tan"}), encoding="utf-8")


#: What is broken -> (done to the files before or after the manifest was written, the stage that finds it, its reason)
BROKEN: dict[str, tuple[Callable[[Path], None], bool, str, str]] = {
    "wrong hash": (_wrong_hash, True, "fetch", "sha256 differs"),
    "truncated file": (_truncated, True, "fetch", "bytes instead of"),
    "unknown format": (_unknown_format, True, "fetch", "format_version 99"),
    "other tokenizer": (_other_tokenizer, False, "vocabulary", "documents indexed before would no longer match"),
    "other architecture": (_other_architecture, False, "load", "hidden_act 'tan'"),
    "golden mismatch": (_golden_mismatch, False, "golden", "does not reproduce line 1"),
    "NaN weights": (_nan_weights, False, "load", "holds NaN or infinity"),
}


def put_broken(store: Path, source: Path, version: str, kind: str) -> None:
    """Puts a broken copy of `source` into the store's directory as `version`; a publisher would have refused it."""
    change, after, _, _ = BROKEN[kind]
    target = store / "versions" / version
    target.parent.mkdir(parents=True, exist_ok=True)
    hidden = target.with_name(f".{version}.partial")
    copy(source, hidden, version, (lambda _: None) if after else change)
    if after:
        change(hidden)
    hidden.rename(target)
