"""Routes of Hugging Face's text-embeddings-inference, for its clients: `POST /embed_sparse`, `POST /tokenize` and
`GET /health`.

As there, an error is `{"error": message, "error_type": type}`, and a weight `{"index": token id, "value": weight}`.
"""

from __future__ import annotations

import asyncio
import json
from typing import Annotated, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field, PlainValidator

from app.errors import ERROR_TYPE, InvalidField, ServiceError, TextTooLong
from app.models.wire import JSON, Form, write_index_values
from app.web.answering import answer, asked_version, input_type_of
from app.web.bodies import check_size, parse, read_body
from app.web.routing import PlainRoute
from app.web.schemas import EncodeRequest, ErrorAnswer, check_texts
from app.web.service import get_service
from sparse_encoder.tokenizer import Piece

#: Its status and type for ours; everything else is a request that is wrong.
ERRORS: dict[int, tuple[int, str]] = {429: (429, "Overloaded"), 500: (424, "Backend"), 503: (503, "Unhealthy")}

router = APIRouter(route_class=PlainRoute)


class EmbedSparseRequest(BaseModel):
    """The body of `POST /embed_sparse`; other fields are ignored, as there."""

    model_config = ConfigDict(frozen=True)

    inputs: Annotated[list[str | None], PlainValidator(check_texts, json_schema_input_type=list[str] | str)] = Field(
        description="One text, or a list of them."
    )
    truncate: bool | None = Field(
        None, strict=True, description="Cut a text that is too long (default), or answer 413."
    )
    truncation_direction: Literal["right", "Right"] = Field("right", description="Only the end can be cut off.")
    prompt_name: Literal["query", "document", "passage"] | None = Field(
        None,
        description="What the texts are; documents if nothing is said. May also be ?input_type=, X-Input-Type, or the "
        "beginning of the path: /query/embed_sparse.",
    )


class TokenizeRequest(BaseModel):
    """The body of `POST /tokenize`; other fields are ignored, as there."""

    model_config = ConfigDict(frozen=True)

    inputs: Annotated[list[str | None], PlainValidator(check_texts, json_schema_input_type=list[str] | str)] = Field(
        description="One text, or a list of them."
    )
    add_special_tokens: bool = Field(True, strict=True, description="Those that the model reads around each text.")
    prompt_name: Literal["query", "document", "passage"] | None = Field(
        None, description="What the texts are, for models that read a prompt before them."
    )


class TeiToken(BaseModel):
    id: int
    text: str
    special: bool
    start: int | None = Field(description="Characters before it, of the text in normal form C.")
    stop: int | None


class TeiWeight(BaseModel):
    index: int
    value: float


class TeiError(BaseModel):
    error: str
    error_type: str


@router.post("/query/embed_sparse", include_in_schema=False)
@router.post("/document/embed_sparse", include_in_schema=False)
@router.post(
    "/embed_sparse",
    summary="Texts to sparse vectors, as text-embeddings-inference answers",
    response_class=Response,
    responses={
        200: {
            "description": "A list for each text, in order, of its token ids with weights.",
            "content": {
                "application/json": {
                    "schema": {"type": "array", "items": {"type": "array", "items": TeiWeight.model_json_schema()}},
                    "example": [[{"index": 1012, "value": 0.98}]],
                }
            },
        },
        **{status: {"model": TeiError | ErrorAnswer} for status in (400, 404, 413, 415, 422, 424, 429, 503)},
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": EmbedSparseRequest.model_json_schema()}},
        }
    },
)
async def embed_sparse(request: Request) -> Response:
    """The same vectors as those of `/encode`, by the token ids of the model's tokenizer."""
    try:
        asked = parse(await read_body(request, get_service(request).limits.max_body_bytes), EmbedSparseRequest)
        if not asked.inputs:
            return _error(request, InvalidField("`inputs` cannot be empty", "inputs"), 400, "Empty")
        fields = {
            "texts": asked.inputs,
            "input_type": asked.prompt_name,
            "truncate": "error" if asked.truncate is False else "end",
            "sparse_embedding_format": "token_id",
        }
        answered = await answer(request, EncodeRequest.model_validate(fields), Form(JSON, write_index_values))
        answered.headers["X-Compute-Tokens"] = answered.headers["X-Tokens"]
        answered.headers["X-Compute-Characters"] = str(sum(len(text or "") for text in asked.inputs))
        return answered
    except TextTooLong as error:
        return _error(request, error, 413, "Validation")
    except ServiceError as error:
        return _error(request, error, *ERRORS.get(error.status, (error.status, "Validation")))


@router.post("/query/tokenize", include_in_schema=False)
@router.post("/document/tokenize", include_in_schema=False)
@router.post(
    "/tokenize",
    summary="Texts to the tokens that the model reads, as text-embeddings-inference answers",
    response_class=Response,
    responses={
        200: {
            "description": "A list for each text, in order, of its tokens; X-Tokens says how many there are in all.",
            "content": {
                "application/json": {
                    "schema": {"type": "array", "items": {"type": "array", "items": TeiToken.model_json_schema()}}
                }
            },
        },
        **{status: {"model": TeiError | ErrorAnswer} for status in (400, 404, 413, 415, 422, 503)},
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": TokenizeRequest.model_json_schema()}},
        }
    },
)
async def tokenize(request: Request) -> Response:
    """Whole texts, none of them cut."""
    try:
        service = get_service(request)
        asked = parse(await read_body(request, service.limits.max_body_bytes), TokenizeRequest)
        texts = [text or "" for text in asked.inputs]
        check_size(texts, service.limits.max_texts_per_request, service.limits.max_characters_per_text)
        input_type = input_type_of(request, asked.prompt_name)
        with service.versions.hold(await service.find(asked_version(request, None))) as resident:
            found = await service.engine.pieces(resident.model, texts, input_type, special=asked.add_special_tokens)
            headers = {"X-Model-Version": resident.version, "X-Tokens": str(sum(map(len, found)))}
        body = await asyncio.to_thread(_write_tokens, found)
        return Response(body, 200, headers, JSON)
    except ServiceError as error:
        return _error(request, error, *ERRORS.get(error.status, (error.status, "Validation")))


def _write_tokens(found: list[list[Piece]]) -> str:
    return json.dumps(
        [
            [
                {
                    "id": piece.id,
                    "text": piece.text,
                    "special": piece.start is None,
                    "start": piece.start,
                    "stop": piece.stop,
                }
                for piece in pieces
            ]
            for pieces in found
        ]
    )


@router.get(
    "/health",
    summary="Would a request be answered now? As text-embeddings-inference answers",
    response_class=Response,
    responses={200: {"description": "Yes; without a body."}, 503: {"model": TeiError}},
)
async def health(request: Request) -> Response:
    try:
        await get_service(request).check()
    except ServiceError as error:
        return _error(request, error, 503, "Unhealthy")
    return Response()


def _error(request: Request, error: ServiceError, status: int, error_type: str) -> Response:
    request.scope[ERROR_TYPE] = error.type
    body = json.dumps({"error": error.message, "error_type": error_type})
    return Response(body, status, dict(error.headers), "application/json")
