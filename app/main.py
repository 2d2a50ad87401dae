"""Puts the service together. The only module that knows the settings and the concrete encoder."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from pydantic import ValidationError
from pydantic_settings import SettingsError

from app.cgroups import cpu_quota, threads_within, usable_cpus
from app.encoders.base import Encoder, EncoderError
from app.encoders.openvino_encoder import OpenVINOEncoder
from app.encoders.select import build_encoder as select_encoder
from app.engine.admission import Admission
from app.engine.budget import Budget, measure
from app.engine.engine import Engine
from app.engine.explaining import Explainer
from app.engine.pace import Pace
from app.errors import install_error_handlers
from app.logs import configure_logging
from app.metrics import Metrics
from app.models.conversion import open_model
from app.models.loaded import Load, LoadedModel, ModelError, check_golden, default_cache_dir, load_model, peak_bytes
from app.models.memory import available_bytes, settled
from app.settings import Settings, complaint
from app.versions.gates import Rules
from app.versions.resident import Versions
from app.versions.stored import Stored, StoreSettings
from app.web import admin, api, explain, info, tei
from app.web.access import ApiKeys
from app.web.lifecycle import Lifecycle
from app.web.middleware import AccessMiddleware, RequestMiddleware
from app.web.pages import add_pages
from app.web.schemas import ERRORS
from app.web.service import Limits, Service
from sparse_encoder.artifact import Artifact, ArtifactError
from sparse_encoder.checkpoint.source import Choices
from sparse_encoder.store import StoreError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

#: What pages of the origins allowed may send and see.
CORS: Mapping[str, Any] = {
    "allow_methods": ["GET", "POST"],
    "allow_headers": ["Authorization", "Content-Type", "X-Input-Type", "X-Model-Version", "X-Request-Id"],
    "expose_headers": ["Retry-After", "Server-Timing", "X-Model-Version", "X-Request-Id", "X-Text-Errors", "X-Tokens"],
}

log = logging.getLogger(__name__)


def create_app(settings: Settings | None = None, build_encoder: Callable[[Artifact], Encoder] | None = None) -> FastAPI:
    """The application; without `settings` they come from the environment. The model is loaded when it starts.

    `build_encoder` makes the encoder of each model; without it, the settings choose.
    """
    try:
        settings = settings or Settings()
    except (ValidationError, SettingsError) as error:
        raise SystemExit(f"wrong settings:\n{complaint(error)}") from None
    lifecycle, metrics = Lifecycle(), Metrics(settings.request_timeout_seconds)
    configure_logging(settings.log_level, metrics.dropped_log_lines.inc)
    threads = _encoder_threads(settings)
    build = build_encoder or partial(
        select_encoder,
        device=settings.device,
        precision=settings.precision,
        threads=threads,
        cache_dir=_cache_dir(settings),
        is_room=lambda weight_bytes: peak_bytes(weight_bytes) <= available_bytes(),
    )
    load = partial(load_model, build_encoder=build, dotted_tokens=settings.dotted_tokens)
    try:
        keys, admin_key = ApiKeys(settings.api_keys, settings.api_keys_file), settings.the_admin_key()
    except ValueError as error:
        raise SystemExit(f"wrong settings: {error}") from error

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        versions = Versions(metrics, settings.max_resident_versions)
        stored = None
        try:
            if settings.store:
                stored = Stored(_store_settings(settings, settings.store), load, versions, metrics)
                await stored.start()
            else:
                versions.serve(await asyncio.to_thread(_open_and_load, settings, load, threads))
        except (ArtifactError, ModelError, EncoderError, StoreError) as error:
            log.error("refusing to start: %s", error)
            raise
        if settings.max_batch_tokens is None:
            budget = await asyncio.to_thread(measure, versions.serving.model)
        else:
            budget = Budget(settings.max_batch_tokens, None)
        admission = Admission(settings.max_texts_in_flight, settings.request_timeout_seconds, Pace(*budget))
        engine = Engine(
            metrics,
            admission,
            max_batch_tokens=budget.batch_tokens,
            query_cache_size=settings.query_cache_size,
            longest_run_seconds=settings.longest_run_seconds,
        )
        metrics.watch(
            texts_in_flight=lambda: engine.statistics().texts_in_flight,
            clients_in_flight=lambda: admission.clients,
            largest_client_share=lambda: admission.largest_share,
            queue_tokens=lambda: engine.statistics().queued_tokens,
            device_memory_bytes=lambda: versions.serving.model.encoder.device_memory_bytes(),
        )
        chosen = {**settings.model_dump(), "max_batch_tokens": budget.batch_tokens}
        limits = Limits(**{name: chosen[name] for name in Limits.__dataclass_fields__})
        explainer = Explainer(engine, admission)
        app.state.service = Service(
            engine, explainer, versions, stored, limits, lifecycle, metrics, admin_key, settings.log_texts
        )
        engine.start()
        log.info("ready", extra={"fields": {"version": versions.serving.version}})
        chores = [asyncio.create_task(chore) for chore in (keys.watch(), versions.give_back_memory())]
        with settled(), lifecycle.drain_on_sigterm(settings.drain_seconds):
            yield
        for chore in chores:
            chore.cancel()
        if stored:
            await stored.stop()
        explainer.stop()
        await engine.stop()
        if tracing:
            await asyncio.to_thread(tracing.shutdown)

    app = FastAPI(
        title="Sparse encoder",
        summary="Korean text to sparse vectors for OpenSearch",
        lifespan=lifespan,
        redirect_slashes=False,  # OpenSearch does not follow redirects
        docs_url=None,
        redoc_url=None,
        responses=ERRORS,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # there are `metrics`, `logs` and `tracing`
    )
    app.state.metrics = metrics
    app.add_middleware(AccessMiddleware, keys=keys)
    app.add_middleware(RequestMiddleware, lifecycle=lifecycle, metrics=metrics)
    if settings.cors_origins:
        app.add_middleware(CORSMiddleware, allow_origins=re.split(r"[\s,]+", settings.cors_origins.strip()), **CORS)
    tracing = _add_tracing(app, settings.otlp_endpoint) if settings.otlp_endpoint else None
    app.include_router(api.encoding)
    app.include_router(api.router)
    app.include_router(explain.router)
    app.include_router(info.router)
    app.include_router(tei.router)
    app.include_router(admin.router)
    add_pages(app, playground=settings.playground == "on")
    install_error_handlers(app)
    return app


def _add_tracing(app: FastAPI, endpoint: str) -> TracerProvider:
    try:
        from app.web.tracing import TracingMiddleware, exporting_to
    except ModuleNotFoundError as error:
        raise SystemExit(f"--otlp-endpoint needs the extra otel ({error}): pip install -e '.[otel]'") from error
    provider = exporting_to(endpoint)
    app.add_middleware(TracingMiddleware, provider=provider)
    return provider


def _encoder_threads(settings: Settings) -> int:
    """As set, or as many as the container's CPU quota lets compute; 0 for one a core."""
    cpus, quota = usable_cpus(), cpu_quota()
    threads = settings.encoder_threads or threads_within(quota, cpus)
    fields = {"cpus": cpus, "cpu_quota": quota, "encoder_threads": threads or "one a core"}
    log.info("processors found", extra={"fields": fields})
    if quota is not None and settings.encoder_threads > quota:
        log.warning(
            "%d encoder threads have %g CPUs, by the container's quota, and will be stopped in turn: lower "
            "--encoder-threads, or leave it out",
            settings.encoder_threads,
            quota,
        )
    return threads


def _open_and_load(settings: Settings, load: Load, threads: int) -> LoadedModel:
    choices = Choices(max_length_document=settings.max_length_document, max_length_query=settings.max_length_query)
    exact = partial(OpenVINOEncoder, precision="f32", threads=threads)
    artifact = open_model(settings.model, _cache_dir(settings), choices, exact, settings.query_model)
    model = load(artifact)
    check_golden(model)
    return model


def _store_settings(settings: Settings, url: str) -> StoreSettings:
    return StoreSettings(
        url=url,
        alias=settings.alias,
        poll_seconds=settings.poll_seconds,
        cache_dir=_cache_dir(settings),
        request_timeout_seconds=settings.request_timeout_seconds,
        rules=_rules(settings),
    )


def _cache_dir(settings: Settings) -> Path:
    return (settings.cache_dir or default_cache_dir()).absolute()


def _rules(settings: Settings) -> Rules:
    return Rules(**{name: getattr(settings, name) for name in Rules.__dataclass_fields__})
