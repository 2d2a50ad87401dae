"""From a request that was read to the bytes of its answer: one version, one call of the engine."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import Response

from app.errors import ClientGone, InvalidField
from app.models.loaded import LoadedModel
from app.models.wire import JSON, Form, Keys, form_of
from app.web.bodies import check_size
from app.web.middleware import CLIENT, Client, client_of
from app.web.schemas import EncodeRequest, TextsRequest
from app.web.service import Limits, Service, get_service
from sparse_encoder.artifact import InputType, Manifest
from sparse_encoder.query_tokens import MAX_QUERY_WEIGHT, QueryTokens
from sparse_encoder.token_ids import MAX_TOKEN_IDS
from sparse_encoder.vector import SparseVector

#: Each token of a query is a clause, of which Lucene takes 1,024 in all: so many leave room for a hybrid query over
#: several fields.
MAX_QUERY_TOKENS = 256
#: Vectors written before other requests get a turn on the event loop, which is about 2 ms.
VECTORS_AT_ONCE = 32
#: An answer that takes no longer is not worth the task that would see whether the client is still there.
QUICK_SECONDS = 0.05

#: All clients without a key, in a metric: each address would be a time series.
WITHOUT_KEY = "-"
#: By what clients call them.
INPUT_TYPES: Mapping[str, InputType] = {"query": "query", "document": "document", "passage": "document"}

log = logging.getLogger(__name__)

T = TypeVar("T")


async def answer(request: Request, asked: EncodeRequest, form: Form | None = None) -> Response:
    """The vectors of the texts in the `form` that is asked for, or in this one; the work ends if the client leaves.

    :raises ServiceError: as the errors of the service say.
    """
    service = get_service(request)
    asked = asked.model_copy(update={"input_type": input_type_of(request, asked.input_type)})
    if service.log_texts:
        log.info("texts", extra={"fields": {"texts": asked.texts, "input_type": asked.input_type}})
    form = form or _form(request, asked)
    if form.media_type != JSON:
        asked = asked.model_copy(update={"sparse_embedding_format": "indices"})
    texts, refused = texts_of(asked, service)
    service.metrics.client_texts.labels(request.scope.get(CLIENT, WITHOUT_KEY)).inc(len(texts))
    work = _answer(
        service, asked, texts, refused, asked_version(request, asked.version), client_of(request.scope), form
    )
    return await unless_client_leaves(request, work)


def _form(request: Request, asked: EncodeRequest) -> Form:
    form = form_of(asked.sparse_embedding_format, asked.return_tokens, request.headers.get("accept", "").lower())
    if (
        form.media_type != JSON
        and "sparse_embedding_format" in asked.model_fields_set
        and (asked.sparse_embedding_format != "indices")
    ):
        raise InvalidField(
            f"{form.media_type} holds the format indices, not {asked.sparse_embedding_format}: ask for that one, or "
            "for JSON in Accept",
            "sparse_embedding_format",
        )
    if form.media_type == JSON and asked.return_tokens and asked.sparse_embedding_format != "indices":
        raise InvalidField(
            "return_tokens is for the format indices; word and full have the tokens already: leave it out, or ask for "
            "indices",
            "return_tokens",
        )
    return form


def texts_of(asked: TextsRequest, service: Service) -> tuple[list[str], set[int]]:
    """The texts, blank in place of those that cannot be encoded; and the places of these.

    One of too many characters loses its end, which no model would read, so that it costs those beside it nothing.

    :raises TooLarge: if there are too many, or one that must not lose its end is too long, unless the request takes
        null for an answer.
    """
    limits = service.limits
    texts = ["" if text is None else text for text in asked.texts]
    refused = {index for index, text in enumerate(asked.texts) if text is None}
    if asked.truncate == "end":
        texts = [cut_text(text, service) for text in texts]
    elif asked.on_error == "null":
        refused |= {index for index, text in enumerate(texts) if len(text) > limits.max_characters_per_text}
        texts = ["" if index in refused else text for index, text in enumerate(texts)]
    check_size(texts, limits.max_texts_per_request, limits.max_characters_per_text)
    return texts, refused


def cut_text(text: str, service: Service) -> str:
    """As many characters of `text` as are taken; counted, if that is not all of it."""
    most = service.limits.max_characters_per_text
    if len(text) > most:
        service.metrics.cut_texts.inc()
        return text[:most]
    return text


async def _answer(
    service: Service,
    asked: EncodeRequest,
    texts: list[str],
    refused: set[int],
    version: str | None,
    client: Client,
    form: Form,
) -> Response:
    """From admission to the bytes of the answer with one model, whatever is served meanwhile."""
    input_type: InputType = "query" if asked.input_type == "query" else "document"
    with service.versions.hold(await service.find(version)) as resident:
        keys = keys_of(resident.model, asked.sparse_embedding_format, "sparse_embedding_format")
        query_tokens = table_of(asked, resident.model)
        encoded = await service.engine.encode(
            resident.model,
            texts,
            input_type,
            query_tokens,
            client=client.name,
            weight=client.weight,
            truncate=asked.truncate == "end",
            max_windows=windows_of(asked, service.limits),
            lenient=asked.on_error == "null",
        )
        refused |= encoded.failed
        vectors = [None if index in refused else vector for index, vector in enumerate(encoded.vectors)]
        started = time.perf_counter()
        top_k = most_tokens(asked, service.limits, resident.model.manifest)
        body, answered_tokens = await _write(asked, top_k, vectors, form, keys)
        write_seconds = time.perf_counter() - started
        service.metrics.count_answer(
            input_type,
            [len(vector) for vector in vectors if vector is not None],
            answered_tokens if query_tokens is None else None,
            write_seconds,
        )
        headers = {
            "X-Model-Version": resident.version,
            "X-Tokens": str(encoded.tokens),
            "Server-Timing": ", ".join(
                f"{stage};dur={seconds * 1000:.2f}"
                for stage, seconds in (
                    ("tokenize", encoded.tokenize_seconds),
                    ("queue", encoded.queue_seconds),
                    ("encode", encoded.encode_seconds),
                    ("write", write_seconds),
                )
            ),
        }
        if asked.on_error == "null":
            headers["X-Text-Errors"] = str(vectors.count(None))
        return Response(body, 200, headers, form.media_type)


def input_type_of(request: Request, given: str | None) -> InputType:
    """What the texts are: as the body (`given`), the path, the query string or a header says; documents if none does.

    :raises InvalidField: if one of them says something else, or two of them differ.
    """
    side = request.scope["path"].strip("/").partition("/")[0]
    said = {
        "the body": given,
        "the path": side if side in INPUT_TYPES else None,
        "?input_type=": request.query_params.get("input_type"),
        "X-Input-Type": request.headers.get("x-input-type"),
    }
    types = {where: INPUT_TYPES.get(what.lower()) for where, what in said.items() if what is not None}
    for where, kind in types.items():
        if kind is None:
            raise InvalidField(f"{where} names the input type {said[where]!r}: it is query or document", "input_type")
    if len(set(types.values())) > 1:
        raise InvalidField(f"{' and '.join(types)} name different input types: give one, or the same", "input_type")
    return next(filter(None, types.values()), "document")


def asked_version(request: Request, given_by_body: str | None) -> str | None:
    """The version or alias that the body, the query string or a header names.

    :raises InvalidField: if they name different ones.
    """
    given = {given_by_body, request.query_params.get("version"), request.headers.get("x-model-version")} - {None}
    if len(given) > 1:
        raise InvalidField(
            "the body, ?version= and X-Model-Version name different versions: give one, or the same", "version"
        )
    return given.pop() if given else None


def keys_of(model: LoadedModel, format_: str, field: str) -> Keys:
    """:raises InvalidField: names `field`, if the vectors of `model` cannot be written in `format_`."""
    keys = model.keys.get(format_)
    if keys is None:
        raise InvalidField(
            f"{model.version} has more tokens than a sparse_vector field of OpenSearch has ids ({MAX_TOKEN_IDS:,}): "
            "use a rank_features field and the format word",
            field,
        )
    return keys


def table_of(asked: TextsRequest, model: LoadedModel) -> QueryTokens | None:
    """The table to encode the texts with, or None for the encoder."""
    if asked.input_type != "query":
        if asked.query_encoding:
            raise InvalidField(
                'query_encoding is for queries: leave it out, or send "input_type": "query"', "query_encoding"
            )
        return None
    if asked.top_k and asked.top_k > MAX_QUERY_TOKENS:
        raise InvalidField(
            f"a query keeps at most {MAX_QUERY_TOKENS} tokens, because OpenSearch takes 1,024 clauses in all: "
            "ask for fewer",
            "top_k",
        )
    available = model.query_tokens
    if asked.query_encoding == "inference_free" and available is None:
        raise InvalidField(
            f'model {model.version} has no query weights (query_tokens.json): use "query_encoding": "model"',
            "query_encoding",
        )
    wanted = asked.query_encoding == "inference_free" or (
        asked.query_encoding is None and available and available.default
    )
    return available if wanted else None


def windows_of(asked: TextsRequest, limits: Limits) -> int:
    """In how many windows a text is encoded at most; 1: what the model does not read at once is cut off."""
    if asked.input_type == "query":
        if asked.long_texts:
            raise InvalidField(
                'long_texts is for documents: leave it out, or send "input_type": "document"', "long_texts"
            )
        return 1
    return limits.max_windows if (asked.long_texts or limits.long_texts) == "windows" else 1


async def unless_client_leaves(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled if the client hangs up meanwhile; who does so at once is seen late.

    :raises ClientGone: if it did.
    """
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    gone = False

    async def client_leaves() -> None:
        nonlocal gone
        while (await request.receive())["type"] != "http.disconnect":
            pass
        gone = True
        task.cancel()  # which waits for `work`, else it would not be our turn

    watch: asyncio.Task[None] | None = None

    def start_watch() -> None:
        nonlocal watch
        watch = loop.create_task(client_leaves())

    timer = loop.call_later(QUICK_SECONDS, start_watch)
    try:
        return await work
    except asyncio.CancelledError:
        if not gone:
            raise
        task.uncancel()
        raise ClientGone from None
    finally:
        timer.cancel()
        if watch is not None:
            watch.cancel()


def most_tokens(asked: TextsRequest, limits: Limits, manifest: Manifest) -> int:
    """Tokens of a vector: as the request says, or as the service and the publisher of the model do."""
    usual = limits.top_k_query if asked.input_type == "query" else limits.top_k_document
    return asked.top_k or min(usual, manifest.max_active_tokens or usual)


async def _write(
    asked: EncodeRequest, top_k: int, vectors: Sequence[SparseVector | None], form: Form, keys: Keys
) -> tuple[bytes, int]:
    """The body, and the tokens of all vectors in it."""
    max_weight = MAX_QUERY_WEIGHT if asked.input_type == "query" else math.inf
    parts: list[bytes | None] = []
    tokens = 0
    for index, vector in enumerate(vectors, start=1):
        kept = None if vector is None else vector.prune(top_k=top_k, min_weight=asked.min_weight)
        parts.append(None if kept is None else form.write(kept, keys, max_weight))
        tokens += 0 if kept is None else len(kept)
        if index % VECTORS_AT_ONCE == 0:
            await asyncio.sleep(0)
    return form.join(parts), tokens
