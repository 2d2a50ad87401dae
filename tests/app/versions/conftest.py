"""Versions that can replace each other, and a store that has the first."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from sparse_encoder.store import Store
from tests.tiny import publish


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Artifacts of which the first four can replace each other."""
    root = tmp_path_factory.mktemp("published")
    variants: dict[str, dict[str, Any]] = {f"v{n}": {"bias_shift": 0.05 * n} for n in range(1, 5)}
    variants["worse"] = {"seed": 7}
    variants["talkative"] = {"bias_shift": 30.0}
    return {version: publish(root / version, version, **variant) for version, variant in variants.items()}


@pytest.fixture
def store(tmp_path: Path, published: dict[str, Path]) -> Store:
    made = Store(str(tmp_path / "store"))
    made.publish(published["v1"], aliases=["stable"], by="test")
    return made


@pytest.fixture
def show_logs(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    monkeypatch.setattr("app.main.configure_logging", lambda *_: None)
    monkeypatch.setattr(logging.getLogger("app"), "propagate", True)
    caplog.set_level(logging.INFO, "app")
    return caplog
