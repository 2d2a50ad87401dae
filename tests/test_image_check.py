"""What `scripts.image_check` compares, without an image."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from scripts.image_check import CheckFailed, check_bill_of_materials, differences


def tree(root: Path) -> Path:
    (root / "a").mkdir(parents=True)
    (root / "a" / "file").write_text("same")
    (root / "link").symlink_to("a/file")
    for path in (root / "a" / "file", root / "a", root):
        os.utime(path, (0, 0))
    os.utime(root / "link", (0, 0), follow_symlinks=False)
    return root


def test_what_differs_between_two_trees_is_named(tmp_path: Path) -> None:
    first, second = tree(tmp_path / "1"), tree(tmp_path / "2")
    assert differences(first, second) == []
    (second / "a" / "file").write_text("other")
    (second / "a" / "file").chmod(0o600)
    os.utime(second / "a" / "file", (0, 0))
    (second / "link").unlink()
    (second / "link").symlink_to("a")
    os.utime(second / "link", (0, 0), follow_symlinks=False)
    (second / "new").touch()
    assert differences(first, second) == ["new: only in one", "a/file: mode, content", "link: target"]


def test_a_bill_of_materials_names_every_package_and_its_licence(tmp_path: Path) -> None:
    packages = tmp_path / "venv" / "lib" / "python3.11" / "site-packages"
    (packages / "some_package-1.0.dist-info").mkdir(parents=True)
    own = tmp_path / "sparse-encoder"
    own.mkdir()
    bill = {"components": [{"name": "Some.Package", "version": "1.0"}]}
    (own / "sbom.cdx.json").write_text(json.dumps(bill))
    (own / "licences.txt").write_text("some-package\n1.0\nMIT\nhttps://a.example\nThe text.\n")
    check_bill_of_materials(tmp_path)
    (own / "licences.txt").write_text("other\n1.0\nMIT\n")
    with pytest.raises(CheckFailed, match=r"licences\.txt has nothing of \['some-package'\]"):
        check_bill_of_materials(tmp_path)
    (packages / "forgotten-2.dist-info").mkdir()
    with pytest.raises(CheckFailed, match=r"differ in \[\('forgotten', '2'\)\]"):
        check_bill_of_materials(tmp_path)
