"""Routes of Hugging Face's text-embeddings-inference, for its clients: `POST /embed_sparse` and `GET /health`.

As there, an error is `{"error": message, "error_type": type}`, and a weight `{"index": token id, "value": weight}`.
"""

from __future__ import annotations

import json
from typing import Annotated, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field, PlainValidator

from app.errors import ERROR_TYPE, InvalidField, ServiceError, TextTooLong
from app.models.wire import write_index_values
from app.web.answering import answer
from app.web.bodies import parse, read_body
from app.web.schemas import EncodeRequest, ErrorAnswer, check_texts
from app.web.service import get_service

#: Its status and type for ours; everything else is a request that is wrong.
ERRORS: dict[int, tuple[int, str]] = {429: (429, "Overloaded"), 500: (424, "Backend"), 503: (503, "Unhealthy")}

router = APIRouter()


class EmbedSparseRequest(BaseModel):
    """The body of `POST /embed_sparse`; other fields are ignored, as there."""

    model_config = ConfigDict(frozen=True)

    inputs: Annotated[list[str], PlainValidator(check_texts, json_schema_input_type=list[str] | str)] = Field(
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
        **{status: {"model": TeiError | ErrorAnswer} for status in (400, 404, 413, 422, 424, 429, 503)},
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
        return await answer(request, EncodeRequest.model_validate(fields), write_index_values)
    except TextTooLong as error:
        return _error(request, error, 413, "Validation")
    except ServiceError as error:
        return _error(request, error, *ERRORS.get(error.status, (error.status, "Validation")))


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
