"""What many tests share. Heavy imports are inside the fixtures: a test that needs no model does not wait for torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

from sparse_encoder.tokenizer import Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


# Threads that wait for each other cost more than such small models are worth; on a busy machine, a hundred times more.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# No deadline, since no test asserts a time; the same examples in every run.
hypothesis.settings.register_profile("project", deadline=None, derandomize=True)
hypothesis.settings.load_profile("project")


@pytest.hookimpl(tryfirst=True)  # before xdist looks for the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Says which tests one process shall run, where several share the work: those that share what takes long to make.

    The longest first. The playground last: Playwright runs its loop in a greenlet of the main thread, after which
    Python 3.11 fails at times to parse a module.
    """
    order = {"trained": 0, "playground": 2}
    for item in items:
        item.add_marker(pytest.mark.xdist_group(_group(item)))
    items.sort(key=lambda item: order.get(_group(item), 0 if _group(item).startswith("opensearch ") else 1))


def _group(item: pytest.Item) -> str:
    assert isinstance(item, pytest.Function)
    if "live" in item.fixturenames:
        return f"opensearch {item.callspec.params['live']}"
    if "secured" in item.fixturenames:
        return "opensearch secured"
    if item.path.parent.name == "training" and "run" in item.fixturenames:
        return "trained"
    return item.path.stem.removeprefix("test_")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The loop of production; it is uvicorn's too."""
    return "asyncio"


@pytest.fixture(scope="session")
def tiny_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published artifact of a tiny random model (see tests/tiny.py). Read it; copy it to change it."""
    from tests.tiny import publish

    return publish(tmp_path_factory.mktemp("tiny") / "artifact")


@pytest.fixture(scope="session")
def tiny_model(tiny_artifact: Path) -> PreTrainedModel:
    """The torch model of `tiny_artifact`, in eval mode."""
    from sparse_encoder.model import load_masked_lm

    return load_masked_lm(tiny_artifact)


@pytest.fixture(scope="session")
def lexical_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a LexicalBert with parts and related words (see tests/lexical.py). Read it; copy it to change it."""
    from tests.lexical import publish

    return publish(tmp_path_factory.mktemp("lexical") / "artifact")


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_artifact: Path) -> Tokenizer:
    """The tokenizer of `tiny_artifact`."""
    return Tokenizer.from_file(tiny_artifact / "tokenizer.json")
