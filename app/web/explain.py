"""`POST /explain`: why vectors are as they are, and why a document has its score for a query."""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from app.encoders.explaining import Reason
from app.engine.explaining import Explained, Wanted
from app.errors import InvalidField, TooLarge
from app.models.loaded import LoadedModel
from app.models.scoring import as_sent, shared_words
from app.models.wire import Keys
from app.web.answering import (
    asked_version,
    cut_text,
    input_type_of,
    keys_of,
    most_tokens,
    table_of,
    texts_of,
    unless_client_leaves,
    windows_of,
)
from app.web.bodies import check_size, parse, read_body
from app.web.middleware import Client, client_of
from app.web.routing import PlainRoute
from app.web.schemas import ENCODING_ERRORS, EXPLAIN_EXAMPLES, ExplainRequest, TextsRequest, texts_body
from app.web.service import Service, get_service
from sparse_encoder.artifact import InputType
from sparse_encoder.query_tokens import MAX_QUERY_WEIGHT
from sparse_encoder.vector import SparseVector

router = APIRouter(route_class=PlainRoute)
log = logging.getLogger(__name__)

MOST_TEXTS = 32  #: of one request, with its query: each takes a run of the encoder for itself
MOST_PRUNED = 100  #: words that are named of those that the bounds of the request leave out, the heaviest
SHARE = {"type": "object", "required": ["token", "share"]}
WORD = {
    "type": "object",
    "required": ["id", "word", "key", "weight", "own", "tokens", "head", "related"],
    "properties": {
        "key": {
            "type": "string",
            "description": "What a document calls it: the word, or the id in a sparse_vector field.",
        },
        "own": {"type": "boolean", "description": "A word of the text itself; else a related one."},
        "tokens": {
            "type": "array",
            "items": SHARE,
            "description": "Which of the text's tokens brought it, and how much of it.",
        },
        "head": {"description": "The logit of the model's head, and the token where it is the largest."},
        "related": {"description": "Own words that bring it up by the table of related words, and what each adds."},
    },
}
EXPLANATION = {
    "type": ["object", "null"],
    "required": ["words", "tokens", "left_out", "cut", "largest_difference"],
    "properties": {
        "words": {"type": "array", "items": WORD},
        "tokens": {
            "type": "array",
            "items": {"type": "object", "required": ["id", "token", "start", "stop", "window", "silent"]},
            "description": "Of the text as the model reads it; start and stop are characters (code points) of the text "
            "as it was sent.",
        },
        "left_out": {"type": "object", "required": ["pruned", "pruned_words", "unwritable"]},
        "cut": {"type": ["object", "null"], "description": "The characters that the model does not read."},
        "largest_difference": {
            "type": "number",
            "description": "Between a weight and what its explanation comes to: the rounding of the encoder.",
        },
    },
}
ANSWER = {
    "type": "object",
    "required": ["version", "query", "texts", "scores"],
    "properties": {
        "version": {"type": "string"},
        "query": EXPLANATION,
        "texts": {"type": "array", "items": EXPLANATION},
        "scores": {
            "type": ["array", "null"],
            "items": {"type": ["object", "null"], "required": ["score", "words"]},
            "description": "With a query, one for each text.",
        },
    },
}


@router.post(
    "/explain",
    summary="Why vectors and scores are as they are",
    response_class=Response,
    responses={
        200: {
            "description": "For each text the words of its vector, each with what brought it; with a query also the "
            "scores that OpenSearch computes, and what each shared word adds.",
            "content": {"application/json": {"schema": ANSWER}},
        },
        **ENCODING_ERRORS,
    },
    openapi_extra=texts_body(ExplainRequest, EXPLAIN_EXAMPLES),
)
async def explain(request: Request) -> Response:
    """The vectors that `/encode` gives, with the tokens of the text that brought each word, and in what shares.

    One text after the other, in a thread of its own: for people who look at a few texts, not for many.
    """
    service = get_service(request)
    asked = parse(await read_body(request, service.limits.max_body_bytes), ExplainRequest)
    asked = asked.model_copy(update={"input_type": input_type_of(request, asked.input_type)})
    if asked.query is not None and asked.input_type == "query":
        raise InvalidField("texts are documents where there is a query: leave input_type out", "input_type")
    if service.log_texts:
        fields = {"texts": asked.texts, "query": asked.query, "input_type": asked.input_type}
        log.info("texts", extra={"fields": fields})
    texts, refused = texts_of(asked, service)
    if len(texts) + (asked.query is not None) > MOST_TEXTS:
        raise TooLarge(
            f"{len(texts)} texts in one request, at most {MOST_TEXTS} are explained at once, the query included: send "
            "them in parts",
            "texts",
        )
    work = _answer(service, asked, texts, refused, asked_version(request, asked.version), client_of(request.scope))
    return await unless_client_leaves(request, work)


async def _answer(
    service: Service, asked: ExplainRequest, texts: list[str], refused: set[int], version: str | None, client: Client
) -> Response:
    with service.versions.hold(await service.find(version)) as resident:
        model = resident.model
        keys = keys_of(model, "sparse_vector" if asked.rounding == "sparse_vector" else "word", "rounding")
        query: Explained | None = None
        if asked.query is not None:
            text = cut_text(asked.query, service) if asked.truncate == "end" else asked.query
            check_size([text], 1, service.limits.max_characters_per_text)
            as_query = asked.model_copy(
                update={
                    "input_type": "query",
                    "top_k": asked.query_top_k,
                    "min_weight": asked.query_min_weight,
                    "long_texts": None,
                    "on_error": "error",
                }
            )
            wanted = _wanted(as_query, service, model)
            asked = asked.model_copy(update={"query_encoding": None})
            (query,) = await service.explainer.explain(model, [text], wanted, *client)
        explained = await service.explainer.explain(model, texts, _wanted(asked, service, model), *client)
        body: dict[str, Any] = {
            "version": resident.version,
            "query": None if query is None else _explanation(query, asked.query or "", model, keys, "query"),
            "texts": [],
            "scores": None if query is None else [],
        }
        kind: InputType = "query" if asked.input_type == "query" else "document"
        for index, (whole, found) in enumerate(zip(asked.texts, explained, strict=True)):
            there = None if index in refused else found
            body["texts"].append(None if there is None else _explanation(there, whole or "", model, keys, kind))
            if query is not None:
                body["scores"].append(None if there is None else _score(query, there, asked, model, keys))
            await asyncio.sleep(0)
        return Response(json.dumps(body), 200, {"X-Model-Version": resident.version}, "application/json")


def _wanted(asked: TextsRequest, service: Service, model: LoadedModel) -> Wanted:
    return Wanted(
        input_type="query" if asked.input_type == "query" else "document",
        query_tokens=table_of(asked, model),
        truncate=asked.truncate == "end",
        max_windows=windows_of(asked, service.limits),
        top_k=most_tokens(asked, service.limits, model.manifest),
        min_weight=asked.min_weight,
        lenient=asked.on_error == "null",
    )


def _explanation(
    explained: Explained, text: str, model: LoadedModel, keys: Keys, input_type: InputType
) -> dict[str, Any]:
    vocabulary, kept = model.tokenizer.vocabulary, explained.kept
    sent = as_sent(kept.weights, _most(input_type)).tolist()
    words = list(zip(kept.ids.tolist(), sent, explained.reasons, strict=True))
    pruned = explained.vector.ids[len(kept) :]
    pruned_weights = as_sent(explained.vector.weights[len(kept) :][:MOST_PRUNED], _most(input_type)).tolist()
    whole = kept.weights.tolist()
    differences = (abs(reason.weight - weight) for reason, weight in zip(explained.reasons, whole, strict=True))
    return {
        "words": [
            {"id": id_, "word": vocabulary[id_], "key": name, "weight": _short(weight), **_reason(reason, vocabulary)}
            for id_, weight, reason in words
            if (name := _name(keys[id_])) is not None
        ],
        "tokens": _tokens(explained, model),
        "left_out": {
            "pruned": [
                {"id": id_, "word": vocabulary[id_], "weight": _short(weight)}
                for id_, weight in zip(pruned[:MOST_PRUNED].tolist(), pruned_weights, strict=True)
            ],
            "pruned_words": len(pruned),
            "unwritable": [
                {"id": id_, "word": vocabulary[id_], "weight": _short(weight)}
                for id_, weight, _ in words
                if keys[id_] is None
            ],
        },
        "cut": _cut(explained, text),
        "largest_difference": _short(max(differences, default=0.0)),
    }


def _name(key: str | None) -> str | None:
    """As a program reads it that parses the answer."""
    return None if key is None else str(json.loads(key.removesuffix(":")))


def _reason(reason: Reason, vocabulary: Sequence[str]) -> dict[str, Any]:
    return {
        "own": reason.own,
        "tokens": [{"token": position, "share": _short(share)} for position, share in reason.shares],
        "head": None if reason.head is None else {"token": reason.at, "logit": _short(reason.head)},
        "related": [{"id": by, "word": vocabulary[by], "logit": _short(adds)} for by, adds in reason.related],
    }


def _tokens(explained: Explained, model: LoadedModel) -> list[dict[str, Any]]:
    """`silent`: why a token is no word of the vector itself; its position may have brought others all the same."""
    own = {at for reason in explained.reasons if reason.own for at, _ in reason.shares}
    tokens: list[dict[str, Any]] = []
    for index, (window, piece) in enumerate(explained.tokens):
        silent = None
        if piece.start is None:
            silent = "special"
        elif index not in own and model.never_emits(piece.id):
            silent = "never_emitted"
        tokens.append(
            {
                "id": piece.id,
                "token": piece.token,
                "start": piece.start,
                "stop": piece.stop,
                "window": window,
                "silent": silent,
            }
        )
    return tokens


def _cut(explained: Explained, text: str) -> Mapping[str, int] | None:
    read = max((piece.stop for _, piece in explained.tokens if piece.stop is not None), default=0)
    return {"start": read, "stop": len(text)} if text[read:].strip() else None


def _score(
    query: Explained, document: Explained, asked: ExplainRequest, model: LoadedModel, keys: Keys
) -> dict[str, Any]:
    shared = shared_words(
        _sent(query.kept, "query", keys),
        _sent(document.kept, "document", keys),
        asked.rounding,
        (asked.quantization_ceiling_ingest, asked.quantization_ceiling_search),
    )
    score = sum(word.adds for word in shared)
    return {
        "score": _short(score),
        "words": [
            {
                "id": word.id,
                "word": model.tokenizer.vocabulary[word.id],
                "query": _short(word.query),
                "document": _short(word.document),
                "adds": _short(word.adds),
            }
            for word in shared
        ],
    }


def _sent(vector: SparseVector, input_type: InputType, keys: Keys) -> SparseVector:
    """`vector` as OpenSearch gets it."""
    there = [index for index, id_ in enumerate(vector.ids.tolist()) if keys[id_] is not None]
    return SparseVector(vector.ids[there], as_sent(vector.weights[there], _most(input_type)))


def _most(input_type: InputType) -> float:
    return MAX_QUERY_WEIGHT if input_type == "query" else math.inf


def _short(value: float) -> float:
    return float(f"{value:.6g}")
