"""The commands of training, as a user gives them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
RECIPE = "training/sample/recipe.toml"


def training(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "training", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


def recipe_with(path: Path, *changes: tuple[str, str]) -> Path:
    """The sample's recipe with some of its text replaced, written to ``path``."""
    text = (ROOT / RECIPE).read_text(encoding="utf-8")
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    path.write_text(text, encoding="utf-8")
    return path
