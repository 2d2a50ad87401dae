"""What happens to a model that is taken into memory; how versions leave is in `test_stored`."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from app.metrics import Metrics
from app.models.loaded import LoadedModel, load_model
from app.versions import resident as versions
from app.versions.resident import Versions
from sparse_encoder.artifact import read_artifact
from tests.app.conftest import openvino
from tests.app.controlled import ControlledEncoder


@pytest.fixture
def encoder(tiny_artifact: Path) -> ControlledEncoder:
    return ControlledEncoder(openvino(read_artifact(tiny_artifact)))


@pytest.fixture
def model(tiny_artifact: Path, encoder: ControlledEncoder) -> LoadedModel:
    return load_model(read_artifact(tiny_artifact), lambda artifact: encoder)


async def background() -> None:
    """Returns when what was left to threads is done."""
    await asyncio.get_running_loop().shutdown_default_executor()


async def test_an_encoder_is_specialised_once_while_it_serves(model: LoadedModel, encoder: ControlledEncoder) -> None:
    served = Versions(Metrics(), max_resident=2)
    served.serve(model)
    assert served.serving.model is model
    await background()
    assert encoder.specialised.is_set()
    encoder.specialised.clear()
    served.serve(model)
    assert not encoder.specialised.is_set()


async def test_one_that_cannot_be_specialised_serves_as_it_is(
    model: LoadedModel, encoder: ControlledEncoder, caplog: pytest.LogCaptureFixture
) -> None:
    encoder.fails = True
    served = Versions(Metrics(), max_resident=2)
    served.serve(model)
    await background()
    assert "short queries have no graph of their own" in caplog.text
    assert "RuntimeError: no graph of its own" in caplog.text
    encoder.fails = False
    assert len(model.vector("손해배상", "query"))


async def test_nothing_is_specialised_where_memory_is_short(
    model: LoadedModel,
    encoder: ControlledEncoder,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.INFO, "app")
    monkeypatch.setattr(versions, "available_bytes", lambda: model.manifest.weight_bytes)
    Versions(Metrics(), max_resident=2).serve(model)
    await background()
    assert not encoder.specialised.is_set()
    assert "memory is short" in caplog.text


async def test_memory_is_given_back_again_and_again_whatever_an_encoder_says(
    model: LoadedModel,
    encoder: ControlledEncoder,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(versions, "GIVE_BACK_SECONDS", 0.001)
    served = Versions(Metrics(), max_resident=2)
    served.serve(model)
    chore = asyncio.create_task(served.give_back_memory())
    for fails in (True, False):
        encoder.fails = fails
        encoder.gave_back.clear()
        await asyncio.to_thread(encoder.gave_back.wait)
    chore.cancel()
    await background()
    assert "its memory cannot be given back" in caplog.text
