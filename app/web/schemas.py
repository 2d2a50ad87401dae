"""What a request may say. The answer is bytes, written by `wire`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationInfo,
    model_validator,
)

from app.models.scoring import CEILING_INGEST, CEILING_SEARCH, Rounding

TEXTS_NAMES = ("texts", "inputs", "input", "text_docs")
INPUT_TYPE_NAMES = ("input_type", "content_type")

LongTexts = Literal["cut", "windows"]


def check_texts(value: object, info: ValidationInfo) -> list[str | None]:
    """A check of our own, since pydantic refuses strings with lone surrogates, which the tokenizer replaces.

    With `on_error` null, what is no string is None.
    """
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise ValueError("expected a list of strings or one string")
    for index, text in enumerate(value):
        if not isinstance(text, str):
            if info.data.get("on_error") == "null":
                return [item if isinstance(item, str) else None for item in value]
            raise ValueError(f"expected strings only, item {index} is {_json_name(text)}")
    return value


def _json_name(value: object) -> str:
    names = {bool: "a boolean", int: "a number", float: "a number", list: "an array", dict: "an object"}
    return names.get(type(value), "null")


def _null(value: object) -> object:
    """null itself is taken as well."""
    return "null" if value is None else _lower(value)


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


class TextsRequest(BaseModel):
    """What the bodies of `POST /encode` and `POST /explain` have in common."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # Before the texts, whose check looks at it.
    on_error: Annotated[Literal["error", "null"], BeforeValidator(_null)] = Field(
        "error",
        description="What becomes of a request with a text that cannot be encoded: an error for all of it, or null in "
        "the place of that text (X-Text-Errors says how many there are).",
    )
    texts: Annotated[list[str | None], PlainValidator(check_texts, json_schema_input_type=list[str] | str)] = Field(
        validation_alias=AliasChoices(*TEXTS_NAMES),
        description="The texts to encode. May also be called inputs, input or text_docs.",
    )
    input_type: Annotated[Literal["document", "query", "passage"] | None, BeforeValidator(_lower)] = Field(
        None,
        validation_alias=AliasChoices(*INPUT_TYPE_NAMES),
        description="What the texts are; passage means document, which they are if nothing is said. May also be called "
        "content_type, or be ?input_type=, X-Input-Type, or the beginning of the path: /query/encode.",
    )
    query_encoding: Annotated[Literal["model", "inference_free"] | None, BeforeValidator(_lower)] = Field(
        None,
        description="How queries are encoded: by the model, or by a fixed weight for each of their own tokens; without "
        "it, as the model's publisher chose.",
    )
    top_k: int | None = Field(
        None, ge=1, strict=True, description="Keep this many of the heaviest tokens of each text."
    )
    version: str | None = Field(
        None,
        max_length=128,
        description="Model version or alias; without it, the one served. May also be ?version= or X-Model-Version.",
    )
    truncate: Annotated[Literal["end", "error"], BeforeValidator(_lower)] = Field(
        "end",
        description="What becomes of a text that is longer than the model reads, or than the service takes: loses "
        "its end, or an error.",
    )
    long_texts: Annotated[LongTexts | None, BeforeValidator(_lower)] = Field(
        None,
        description="What becomes of a document that is longer than the model reads: cut loses its end, windows are "
        "encoded one by one and give each token its heaviest weight; without it, as the service is set.",
    )
    min_weight: float = Field(0.0, ge=0, allow_inf_nan=False, description="Drop tokens with a weight below this one.")

    @model_validator(mode="before")
    @classmethod
    def _accept_bare_texts(cls, body: Any) -> Any:
        if isinstance(body, str | list):
            return {"texts": body}
        if not isinstance(body, dict):
            raise ValueError("expected an object with texts, a list of strings, or a string")
        for names in (TEXTS_NAMES, INPUT_TYPE_NAMES):
            given = [name for name in names if name in body]
            if len(given) > 1:
                raise ValueError(f"{' and '.join(given)} mean the same: give one of them")
        return body


class EncodeRequest(TextsRequest):
    """The body of `POST /encode`; a bare list or string stands for `texts`."""

    sparse_embedding_format: Annotated[
        Literal["word", "lexical", "token_id", "sparse_vector", "full", "indices"], BeforeValidator(_lower)
    ] = Field(
        "word",
        description="Keys of the answer: tokens (word and lexical are the same), ids of the tokenizer as strings, or "
        "the ids that a sparse_vector field of OpenSearch can hold. full: a list of id, word and weight. indices: "
        "two lists, indices and values.",
    )
    return_tokens: bool = Field(
        False, strict=True, description="With the format indices: a third list, tokens, the words of the indices."
    )


class ExplainRequest(TextsRequest):
    """The body of `POST /explain`; a bare list or string stands for `texts`."""

    query: str | None = Field(
        None,
        min_length=1,
        description="A query that the texts, which are documents then, are scored against. It is explained as well.",
    )
    query_top_k: int | None = Field(
        None, ge=1, strict=True, description="top_k of the query; that of the texts is top_k."
    )
    query_min_weight: float = Field(0.0, ge=0, allow_inf_nan=False, description="As min_weight, of the query.")
    rounding: Annotated[Rounding, BeforeValidator(_lower)] = Field(
        "rank_features",
        description="Score as OpenSearch does with a field of this type: rank_features keeps nine bits of a document's "
        "weight; sparse_vector, where it searches approximately, a byte of each; none does not round.",
    )
    quantization_ceiling_ingest: float = Field(
        CEILING_INGEST, gt=0, allow_inf_nan=False, description="Of the sparse_vector field, as its mapping says."
    )
    quantization_ceiling_search: float = Field(
        CEILING_SEARCH, gt=0, allow_inf_nan=False, description="Of the sparse_vector field, as its mapping says."
    )


#: Bodies that work as they stand, shown in /docs.
EXPLAIN_EXAMPLES: dict[str, dict[str, Any]] = {
    "query_and_documents": {
        "summary": "검색어와 문서: 점수와 그 까닭",
        "value": {
            "query": "휴대폰 고장",
            "texts": [
                "화면이 깨진 스마트폰은 구입한 날부터 일 년 동안 무상으로 수리한다.",
                "감기에 걸리면 물을 자주 마신다.",
            ],
        },
    },
    "document": {"summary": "문서 한 건", "value": {"texts": ["부동산 임대차 계약을 해지하는 방법"], "top_k": 20}},
}
EXAMPLES: dict[str, dict[str, Any]] = {
    "documents": {
        "summary": "문서 두 건",
        "value": {"texts": ["당뇨병 치료에는 식이 요법과 운동이 중요하다.", "부동산 임대차 계약을 해지하는 방법"]},
    },
    "query": {
        "summary": "검색어 한 건",
        "value": {"texts": ["손해배상"], "input_type": "query", "top_k": 20},
    },
    "token_ids": {
        "summary": "토큰 대신 토큰 번호",
        "value": {"texts": ["인공지능 규제 법안"], "sparse_embedding_format": "token_id"},
    },
    "bare_list": {"summary": "목록만", "value": ["손해배상", "인공지능"]},
}


class ErrorDetail(BaseModel):
    type: str = Field(description="Which kind of error it is, for programs.")
    message: str = Field(description="What is wrong with what, and what to do.")
    param: str | None = Field(description="The field of the request that is wrong, if one is.")


class ErrorAnswer(BaseModel):
    """Every answer other than 200."""

    error: ErrorDetail


#: What any route may answer, in OpenAPI; a service without API keys never answers 401.
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": description}
    for status, description in {
        400: "Not HTTP, or the body is not JSON",
        401: "The key is missing or wrong",
        405: "The path does not take this method",
        408: "The request was not complete in time",
        431: "Too many headers, or too long ones",
        500: "An error of the service, whose log says more",
        503: "Stopping, or not in time",
    }.items()
}


#: What the routes may answer too that encode texts.
ENCODING_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": description}
    for status, description in {
        404: "No such version or alias; names those that exist",
        413: "Too many bytes, texts or characters, or more tokens than can be encoded in time; says how many can",
        415: "The body is packed in another way than gzip or zstd",
        422: "A field is unknown or wrong",
        429: "Too much in flight",
    }.items()
}
#: And those of the admin routes.
ADMIN_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": description}
    for status, description in {
        403: "The admin routes are closed: the service has no admin key",
        404: "No such version or alias",
        409: "Understood and not done; says why",
        413: "Too many bytes",
        415: "The body is packed in another way than gzip or zstd",
        422: "A field is unknown or wrong",
    }.items()
}


def texts_body(model: type[TextsRequest], examples: dict[str, Any]) -> dict[str, Any]:
    """What the schema says of the body of a route that takes texts: the fields of `model`, or the texts alone."""
    bare = [{"type": "array", "items": {"type": "string"}}, {"type": "string"}]
    schema = {"anyOf": [model.model_json_schema(by_alias=False), *bare]}
    content = {"application/json": {"schema": schema, "examples": examples}}
    return {"requestBody": {"required": True, "content": content}}
