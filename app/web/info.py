"""`GET /info`: what is served, its limits and figures, and what clients of text-embeddings-inference ask for."""

from __future__ import annotations

from dataclasses import asdict

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from app import __version__
from app.engine.engine import TOKENISER_THREADS
from app.web.service import Service, get_service

#: Its names for precisions.
DTYPES = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}

router = APIRouter()


@router.get("/info", summary="Model, versions, limits and device")
async def info(request: Request) -> JSONResponse:
    service = get_service(request)
    model = service.versions.serving.model
    manifest, tokens = model.manifest, model.query_tokens
    statistics = service.engine.statistics()
    return JSONResponse(
        {
            "model": {
                "version": manifest.version,
                "created": manifest.created,
                "architecture": manifest.architecture,
                "activation": manifest.activation,
                "pooling": manifest.pooling,
                "query_encoder": manifest.query_encoder and asdict(manifest.query_encoder),
                "vocabulary_size": manifest.vocabulary_size,
                "max_length_document": manifest.max_length_document,
                "max_length_query": manifest.max_length_query,
                "prompts": {"document": manifest.prompt_document, "query": manifest.prompt_query},
                "max_active_tokens": manifest.max_active_tokens or None,
                "tokenizer_sha256": manifest.tokenizer_sha256,
                "query_encodings": ["model", "inference_free"] if tokens else ["model"],
                "default_query_encoding": "inference_free" if tokens and tokens.default else "model",
                "evaluation": dict(manifest.evaluation),
            },
            "versions": {"serving": manifest.version, **(service.stored.describe() if service.stored else {})},
            "device": model.encoder.device,
            "limits": {**asdict(service.limits), "tokens_per_request": statistics.tokens_in_time},
            "tokens_per_second": statistics.tokens_per_second,
            **_as_text_embeddings_inference(service),
        }
    )


def _as_text_embeddings_inference(service: Service) -> dict[str, object]:
    model, limits = service.versions.serving.model, service.limits
    manifest, precision = model.manifest, model.encoder.device.split()[-1]
    return {
        "model_id": manifest.version,
        "model_sha": None,
        "model_dtype": DTYPES.get(precision, precision),
        "model_type": {"embedding": {"pooling": "splade"}},
        "max_concurrent_requests": limits.max_texts_in_flight,
        "max_input_length": manifest.max_length_document,
        "max_batch_tokens": limits.max_batch_tokens,
        "max_batch_requests": None,
        "max_client_batch_size": limits.max_texts_per_request,
        "auto_truncate": True,
        "tokenization_workers": TOKENISER_THREADS,
        "version": __version__,
        "sha": None,
        "docker_label": None,
    }
