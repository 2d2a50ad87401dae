"""The routes that most clients use: `POST /encode`, and what the machines ask that watch the service."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from app.metrics import CONTENT_TYPE
from app.web.answering import answer
from app.web.bodies import parse, read_body
from app.web.routing import PlainRoute
from app.web.schemas import ENCODING_ERRORS, EXAMPLES, EncodeRequest, texts_body
from app.web.service import get_service

router = APIRouter()
encoding = APIRouter(route_class=PlainRoute)

WEIGHT = {"type": "number", "exclusiveMinimum": 0}
#: What stands in an answer for a text, by the formats word and the like, full, indices, and for one with an error.
ANSWERS = {
    "anyOf": [
        {"type": "object", "additionalProperties": WEIGHT},
        {"type": "array", "items": {"type": "object", "required": ["id", "word", "weight"]}},
        {"type": "object", "required": ["indices", "values"]},
        {"type": "null"},
    ]
}


@encoding.post("/query/encode", include_in_schema=False)
@encoding.post("/document/encode", include_in_schema=False)
@encoding.post(
    "/encode",
    summary="Texts to sparse vectors",
    response_class=Response,
    responses={
        200: {
            "description": "One object of token and weight for each text, in order; `{}` for a blank text. Other "
            "formats have other objects; a client that accepts application/msgpack gets the format indices in that.",
            "content": {
                "application/json": {"schema": {"type": "array", "items": ANSWERS}},
                "application/msgpack": {},
            },
        },
        **ENCODING_ERRORS,
    },
    openapi_extra=texts_body(EncodeRequest, EXAMPLES),
)
async def encode(request: Request) -> Response:
    """The tokens that describe each text for a search engine, each with its weight, heaviest first.

    The headers of the answer say which model version computed it (`X-Model-Version`), how many tokens were encoded
    (`X-Tokens`), and the milliseconds it took to tokenize, to wait, to encode and to write (`Server-Timing`).
    """
    service = get_service(request)
    return await answer(request, parse(await read_body(request, service.limits.max_body_bytes), EncodeRequest))


@router.get("/ping", summary="Would a request be answered now? As model servers are asked")
async def ping(request: Request) -> dict[str, str]:
    return await readyz(request)


@router.get("/livez", summary="Does the process answer?")
async def livez() -> dict[str, str]:
    return {"status": "alive"}


@router.get("/readyz", summary="Would a request be answered now?")
async def readyz(request: Request) -> dict[str, str]:
    """Not from SIGTERM on. If the last batch failed, a probe is encoded to find out."""
    return {"status": "ready", "version": await get_service(request).check()}


@router.get(
    "/metrics",
    summary="Prometheus metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(request: Request) -> Response:
    return Response(get_service(request).metrics.render(), media_type=CONTENT_TYPE)
