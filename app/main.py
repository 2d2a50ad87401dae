"""Puts the service together. The only module that knows the settings and the concrete encoder."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI

from app.api import Limits, Service, router
from app.checkpoints import Checkpoint, CheckpointError, load_checkpoint, open_artifact
from app.encoders.base import Encoder, EncoderError
from app.encoders.openvino_encoder import OpenVINOEncoder
from app.engine import Engine
from app.errors import install_error_handlers
from app.lifecycle import Lifecycle
from app.logs import configure_logging
from app.metrics import Metrics
from app.middleware import RequestMiddleware
from app.settings import Settings
from sparse_encoder.artifact import Artifact, ArtifactError

log = logging.getLogger(__name__)


def openvino_encoder(artifact: Artifact, threads: int) -> Encoder:
    """The encoder of the service; `threads` of the CPU, 0 for all."""
    return OpenVINOEncoder(artifact.path, artifact.manifest.never_emitted_ids, threads)


def create_app(
    settings: Settings | None = None, build_encoder: Callable[[Artifact, int], Encoder] = openvino_encoder
) -> FastAPI:
    """The application; without `settings` they come from the environment. The model is loaded when it starts."""
    settings = settings or Settings()
    configure_logging(settings.log_level)
    lifecycle, metrics = Lifecycle(), Metrics()

    def load() -> Checkpoint:
        with open_artifact(settings.model, settings.cache_dir) as artifact:
            return load_checkpoint(artifact, lambda artifact: build_encoder(artifact, settings.encoder_threads))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        try:
            checkpoint = await asyncio.to_thread(load)
            engine = Engine(
                checkpoint,
                metrics,
                max_batch_tokens=settings.max_batch_tokens,
                max_texts_in_flight=settings.max_texts_in_flight,
                request_timeout_seconds=settings.request_timeout_seconds,
            )
        except (ArtifactError, CheckpointError, EncoderError, ValueError) as error:
            log.error("refusing to start: %s", error)
            raise
        metrics.watch(version=checkpoint.manifest.version, texts_in_flight=lambda: engine.texts_in_flight)
        limits = Limits(**{name: getattr(settings, name) for name in Limits.__dataclass_fields__})
        app.state.service = Service(engine, limits, lifecycle, metrics)
        engine.start()
        log.info("ready", extra={"fields": {"version": checkpoint.manifest.version}})
        with lifecycle.drain_on_sigterm(settings.drain_seconds):
            yield
        await engine.stop()

    app = FastAPI(
        title="Sparse encoder",
        summary="Korean text to sparse vectors for OpenSearch",
        lifespan=lifespan,
        redirect_slashes=False,  # OpenSearch does not follow redirects
        redoc_url=None,
    )
    app.add_middleware(RequestMiddleware, lifecycle=lifecycle, metrics=metrics)
    app.include_router(router)
    install_error_handlers(app)
    return app
