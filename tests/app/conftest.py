"""The service in this process (`client`), and its engine with an encoder that a test controls."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from app.encoders.openvino_encoder import OpenVINOEncoder
from app.main import create_app
from app.settings import Settings
from sparse_encoder.artifact import Artifact
from tests.app.controlled import ControlledEncoder


def openvino(artifact: Artifact) -> OpenVINOEncoder:
    return OpenVINOEncoder(artifact, "f32", threads=1)


@pytest.fixture
def settings(tiny_artifact: Path) -> Settings:
    """Small limits, so that a test can reach them."""
    return Settings(
        model=str(tiny_artifact),
        encoder_threads=1,
        max_texts_per_request=20,
        max_texts_in_flight=30,
        max_body_bytes=1_000_000,
        max_batch_tokens=128,
        log_level="error",
    )


@pytest.fixture
async def controlled(settings: Settings) -> AsyncIterator[tuple[httpx.AsyncClient, ControlledEncoder]]:
    """A client of the running service, and its encoder."""
    made: list[ControlledEncoder] = []

    def build(artifact: Artifact) -> ControlledEncoder:
        made.append(ControlledEncoder(openvino(artifact)))
        return made[0]

    app = create_app(settings, build)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            yield client, made[0]
        made[0].release()


@pytest.fixture
def client(controlled: tuple[httpx.AsyncClient, ControlledEncoder]) -> httpx.AsyncClient:
    return controlled[0]


@pytest.fixture
def encoder(controlled: tuple[httpx.AsyncClient, ControlledEncoder]) -> ControlledEncoder:
    return controlled[1]
