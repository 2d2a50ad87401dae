"""The service answers as its own description says, whatever is asked of it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from app.settings import Settings
from tests.app.server import running
from tests.app.web.test_access import bearer, entry, serving

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
EXAMPLES = 20  #: of requests that fit the description, and as many that do not, for each route


async def test_a_head_request_is_answered_like_a_get_without_the_body(settings: Settings) -> None:
    async with serving(settings) as client:
        for path in ("/livez", "/readyz", "/health", "/info", "/metrics", "/docs", "/openapi.json"):
            got, response = await client.get(path), await client.head(path)
            assert (response.status_code, response.content) == (got.status_code, b"")
            assert response.headers.get("content-type") == got.headers.get("content-type")
        assert (await client.head("/encode")).status_code == 405
        assert (await client.head("/no/such/path")).status_code == 404


async def test_a_weight_that_no_token_has_leaves_none(settings: Settings) -> None:
    async with serving(settings) as client:
        for weight in (1e308, 3.5e38):
            response = await client.post("/encode", json={"texts": ["손해배상"], "min_weight": weight})
            assert (response.status_code, response.json()) == (200, [{}])


async def test_a_number_is_no_answer_to_whether_a_text_is_cut(settings: Settings) -> None:
    async with serving(settings) as client:
        for path, name in (("/encode", "texts"), ("/embed_sparse", "inputs")):
            response = await client.post(path, json={name: ["가"], "truncate": 0})
            assert response.status_code == 422


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_every_answer_is_one_that_is_described(tiny_artifact: Path) -> None:
    """What fits the description and what does not, for each route: a minute in all."""
    flags = ("--port", "0", "--model", str(tiny_artifact), "--encoder-threads", "1")
    keys = {"SPARSE_ENCODER_API_KEYS": entry("search", "right"), "SPARSE_ENCODER_ADMIN_KEY": "right"}
    with running("-m", "app", *flags, **keys) as server:
        schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json", headers=bearer("right"))
        asked: set[str] = set()
        for found in schema.get_all_operations():
            assert isinstance(found, Ok)
            operation = found.ok()
            for mode in GenerationMode:

                @hypothesis.given(operation.as_strategy(generation_mode=mode))
                @hypothesis.settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
                def ask(case: schemathesis.Case[Any]) -> None:
                    case.call_and_validate(headers=bearer("right"), checks=CHECKS)
                    asked.add(case.operation.path)

                with contextlib.suppress(Unsatisfiable):  # nothing can be wrong about a route that takes nothing
                    ask()
    assert len(asked) >= 10
