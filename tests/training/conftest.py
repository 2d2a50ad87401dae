"""What the tests of training share: one run of the whole line on the sample; read it, or copy its stages to go on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from transformers import dynamic_module_utils

from sparse_encoder.artifact import Artifact
from sparse_encoder.store import Store
from tests.training.commands import RECIPE, training

BEFORE_TRAINING = ("vocabulary", "lexical", "start")  #: what the stages before training leave of the sample


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run")
    places = ["--run", str(run), "--store", f"{run}/store", "--pack", f"{run}/packed"]
    done = training("run", RECIPE, *places, "--alias", "stable")
    assert done.returncode == 0, done.stderr[-3000:]
    return run


@pytest.fixture(scope="session")
def artifact(run: Path) -> Artifact:
    store = Store(str(run / "store"))
    return store.fetch(store.resolve("stable"), run / "cache")


@pytest.fixture
def prepared(run: Path, tmp_path: Path) -> Path:
    """A run of the sample that has only training before it."""
    for name in BEFORE_TRAINING:
        shutil.copytree(run / name, tmp_path / "prepared" / name)
    return tmp_path / "prepared"


@pytest.fixture(autouse=True)
def _modules_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers copies a checkpoint's code there before it runs it; elsewhere that is in the user's home."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
