from __future__ import annotations

from pathlib import Path

import pytest
from transformers import dynamic_module_utils


@pytest.fixture(autouse=True)
def _modules_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers copies a checkpoint's code there before it runs it; elsewhere that is in the user's home."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
