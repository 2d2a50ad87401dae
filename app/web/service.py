"""What the routes share: the parts of the service, its limits, and whether it would answer now."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import Request
from pydantic import SecretStr

from app.engine.engine import Engine
from app.engine.explaining import Explainer
from app.errors import ServiceError, Unavailable, UnknownVersion
from app.metrics import Metrics
from app.versions.resident import Resident, Versions
from app.versions.stored import Stored
from app.web.lifecycle import Lifecycle
from app.web.schemas import LongTexts


@dataclass(frozen=True, slots=True)
class Limits:
    """What a request may ask for, and what it gets if it does not ask."""

    max_texts_per_request: int
    max_characters_per_text: int
    max_body_bytes: int
    max_texts_in_flight: int
    max_batch_tokens: int
    request_timeout_seconds: float
    top_k_document: int
    top_k_query: int
    long_texts: LongTexts
    max_windows: int


@dataclass(frozen=True, slots=True)
class Service:
    """What the routes need; `main` puts it on `app.state.service`."""

    engine: Engine
    explainer: Explainer
    versions: Versions
    stored: Stored | None  #: None for a service of one model from no store
    limits: Limits
    lifecycle: Lifecycle
    metrics: Metrics
    admin_key: SecretStr | None
    log_texts: bool

    async def find(self, name: str | None) -> Resident:
        """The version that a request asks for, in memory; to be held at once.

        :raises UnknownVersion: if there is no version or alias `name`.
        :raises Unavailable: if it cannot be loaded, or not in time.
        """
        if name is None:
            return self.versions.serving
        if self.stored:
            return await self.stored.requested.find(name)
        if name != self.versions.serving.version:
            raise UnknownVersion(
                f"there is no version {name[:128]!r}: this service has no store, only {self.versions.serving.version}"
            )
        return self.versions.serving

    async def check(self) -> str:
        """The version served, if a request would be answered now: if its last batch failed, a probe finds out.

        :raises Unavailable: if not; from SIGTERM on as well.
        """
        if self.lifecycle.draining:
            raise Unavailable("the service is stopping")
        try:
            with self.versions.hold(self.versions.serving) as resident:
                await self.engine.check(resident.model)
                return resident.version
        except ServiceError as error:
            raise Unavailable(f"the encoder does not answer: {error.message}") from error


def get_service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service
