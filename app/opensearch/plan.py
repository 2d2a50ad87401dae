"""What a set-up consists of. Pure: what the user wants and what was found out in, settings and resources out.

A resource that needs the id of another holds a reference, `<id of kind name>`, which the runner replaces.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from app.opensearch.facts import Facts, OpenSearchError, Version

Queries = Literal["service", "asymmetric", "tokenizer"]
IndexEngine = Literal["rank_features", "seismic"]
Kind = Literal["model group", "connector", "model", "ingest pipeline", "search pipeline", "index template"]

TRUSTED = "plugins.ml_commons.trusted_connector_endpoints_regex"
PRIVATE = "plugins.ml_commons.connector.private_ip_enabled"
LOCAL_FILE = "plugins.ml_commons.allow_registering_model_via_local_file"
ML_NODES_ONLY = "plugins.ml_commons.only_run_on_ml_node"
NEEDED_PLUGINS = ("opensearch-ml", "opensearch-neural-search")

OLDEST: Version = (2, 16, 0)  # batch_size of the processor; before 2.12 Hangul is destroyed on its way
SPARSE_VECTOR: Version = (3, 3, 0)
BLANK_FIELDS: Version = (3, 4, 0)
ASYMMETRIC: Version = (3, 6, 0)  # 3.5 has it too, but refuses other models with a model_config


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the user wants.

    :raises OpenSearchError: if a value makes no sense.
    """

    encoder: str  #: address of the service as the cluster's nodes see it
    name: str = "ko-sparse"
    index_pattern: str = ""  #: of the indices that get the mapping and the pipelines; without it, NAME-*
    fields: tuple[str, ...] = ("text",)
    queries: Queries = "service"
    engine: IndexEngine = "rank_features"
    chunks: bool = False
    batch_size: int = 32  #: documents in one request of the ingest pipeline
    model_version: str | None = None  #: version or alias that the connectors ask for
    api_key: str | None = field(default=None, repr=False)  #: of the service

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,63}", self.name):
            raise OpenSearchError(f"--name {self.name!r} must be small letters, digits, _ and - (at most 64)")
        if urlsplit(self.encoder).scheme not in ("http", "https") or not urlsplit(self.encoder).hostname:
            raise OpenSearchError(f"--encoder {self.encoder!r} is no http(s) address, such as http://10.0.0.5:8080")
        if not self.fields or any(not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) for name in self.fields):
            raise OpenSearchError(f"--field {' '.join(self.fields)!r}: letters, digits and _ only, no dots")
        if self.batch_size < 1:
            raise OpenSearchError(f"--batch-size {self.batch_size} must be at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceFacts:
    """What was found out about the service; the defaults are those of the service."""

    private_address: bool
    max_texts_per_request: int = 1024
    request_timeout_seconds: float = 60.0
    max_length_document: int = 512  #: tokens


@dataclass(frozen=True, slots=True)
class Setting:
    """A cluster setting that must have a value, and why."""

    key: str
    value: Any
    why: str


@dataclass(frozen=True, slots=True)
class Resource:
    """Something to be created."""

    kind: Kind
    name: str
    body: Mapping[str, Any]
    tokenizer: bytes | None = None  #: the zip that is uploaded, if this is a model inside OpenSearch

    @property
    def reference(self) -> str:
        return f"<id of {self.kind} {self.name}>"


@dataclass(frozen=True, slots=True)
class Plan:
    settings: list[Setting] = field(default_factory=list)
    resources: list[Resource] = field(default_factory=list)


def make_plan(options: Options, facts: Facts, encoder: ServiceFacts, tokenizer: bytes | None = None) -> Plan:
    """Everything that `options` need on a cluster with `facts`; `tokenizer`: the zip for `queries="tokenizer"`.

    :raises OpenSearchError: if the cluster cannot do it.
    """
    _check_cluster(options, facts)
    group = Resource("model group", options.name, {"name": options.name})
    connectors = _connectors(options, encoder)
    models = [_remote_model(options, group, connector) for connector in connectors]
    if options.queries == "tokenizer":
        assert tokenizer
        models.append(_tokenizer_model(options, group, tokenizer))
    documents, queries = models[0], models[-1]
    return Plan(
        _settings(options, facts, encoder),
        [
            group,
            *connectors,
            *models,
            Resource("ingest pipeline", options.name, _ingest_pipeline(options, facts, encoder, documents)),
            Resource("search pipeline", options.name, _search_pipeline(options, queries)),
            Resource("index template", options.name, _index_template(options, facts)),
        ],
    )


def _check_cluster(options: Options, facts: Facts) -> None:
    def need(what: str, oldest: Version) -> None:
        if facts.version < oldest:
            have, want = (".".join(map(str, version)) for version in (facts.version, oldest))
            raise OpenSearchError(f"{what} needs OpenSearch {want} or newer, this is {have}")

    missing = [plugin for plugin in NEEDED_PLUGINS if plugin not in facts.plugins]
    if missing:
        raise OpenSearchError(
            f"not every node has the plugin {' and '.join(missing)}: use the full distribution of OpenSearch, or "
            "install it on all nodes"
        )
    need("neural sparse search in Korean", OLDEST)
    if options.queries == "asymmetric":
        need("--queries asymmetric", ASYMMETRIC)
    if options.engine == "seismic":
        need("--engine seismic", SPARSE_VECTOR)
        if options.chunks:
            raise OpenSearchError("--engine seismic searches whole documents: leave out --chunks")


def _settings(options: Options, facts: Facts, encoder: ServiceFacts) -> list[Setting]:
    trusted = list(facts.settings[TRUSTED])
    parts = urlsplit(options.encoder)
    pattern = "^" + re.escape(f"{parts.scheme}://{parts.netloc}/").replace("\\-", "-") + ".*$"
    settings = []
    if not any(re.fullmatch(known, encode_url(options)) for known in trusted):
        settings.append(Setting(TRUSTED, [*trusted, pattern], "the nodes may call the service"))
    if encoder.private_address:
        settings.append(Setting(PRIVATE, True, "the service has a private address"))
    if options.queries == "tokenizer":
        settings.append(Setting(LOCAL_FILE, True, "the query tokenizer is uploaded"))
        if not facts.has_ml_node:
            settings.append(Setting(ML_NODES_ONLY, False, "no node has the role ml, so the tokenizer runs on others"))
    return [s for s in settings if str(facts.settings.get(s.key)).lower() != str(s.value).lower()]


def encode_url(options: Options) -> str:
    return options.encoder.rstrip("/") + "/encode"


def _connectors(options: Options, encoder: ServiceFacts) -> list[Resource]:
    if options.queries == "asymmetric":
        return [_connector(options, encoder, options.name, "${parameters.texts}", "${parameters.content_type}")]
    sides = {"documents": "document", "queries": "query"} if options.queries == "service" else {"documents": "document"}
    return [
        _connector(options, encoder, f"{options.name}-{side}", "${parameters.input}", input_type)
        for side, input_type in sides.items()
    ]


def _connector(options: Options, encoder: ServiceFacts, name: str, texts: str, input_type: str) -> Resource:
    # Fixed, whatever OpenSearch would put there: TOKEN_ID would be answered with the ids of the tokenizer.
    fields = {
        "input_type": input_type,
        "sparse_embedding_format": "sparse_vector" if options.engine == "seismic" else "word",
    }
    if options.model_version:
        fields["version"] = options.model_version
    headers = {"Content-Type": "application/json"}
    if options.api_key:
        headers["Authorization"] = "Bearer ${credential.key}"
    return Resource(
        "connector",
        name,
        {
            "name": name,
            "version": "1",
            "protocol": "http",
            "parameters": {
                # A document may hold ${parameters.x}.
                "skip_validating_missing_parameters": "true",
                # The chunks of many documents must not exceed what the service takes at once.
                "input_docs_processed_step_size": str(encoder.max_texts_per_request),
            },
            "credential": {"key": options.api_key or "unused"},  # must not be empty; OpenSearch keeps it encrypted
            "actions": [
                {
                    "action_type": "predict",
                    "method": "POST",
                    "url": encode_url(options),
                    "headers": headers,
                    "request_body": f'{{"texts": {texts}, {json.dumps(fields)[1:-1]}}}',
                }
            ],
            "client_config": {
                # Batches wait in the service, which orders and refuses them, not for a connection, where they fail.
                "max_connection": 256,
                "connection_timeout": 5,  # s
                # Longer than the service keeps a request waiting, so that it answers and the request is retried.
                "read_timeout": round(encoder.request_timeout_seconds) + 10,  # s
                "max_retry_times": 10,
                "retry_backoff_millis": 200,
                "retry_backoff_policy": "exponential_full_jitter",
                "retry_timeout_seconds": 60,
            },
        },
    )


def _remote_model(options: Options, group: Resource, connector: Resource) -> Resource:
    body: dict[str, Any] = {
        "name": connector.name,
        "function_name": "remote",
        "model_group_id": group.reference,
        "connector_id": connector.reference,
    }
    if options.queries == "asymmetric":
        body["model_config"] = {
            "model_type": "sparse_encoding",
            "embedding_dimension": 1,  # must be given, means nothing here
            "framework_type": "sentence_transformers",  # the same
            "additional_config": {"is_asymmetric": True},
        }
    return Resource("model", connector.name, body)


def _tokenizer_model(options: Options, group: Resource, tokenizer: bytes) -> Resource:
    name = f"{options.name}-queries"
    body = {
        "name": name,
        "version": "1",
        "model_format": "TORCH_SCRIPT",
        "function_name": "SPARSE_TOKENIZE",
        "model_group_id": group.reference,
    }
    return Resource("model", name, body, tokenizer)


def _ingest_pipeline(options: Options, facts: Facts, encoder: ServiceFacts, documents: Resource) -> dict[str, Any]:
    processors: list[dict[str, Any]] = []
    if facts.version < BLANK_FIELDS:
        processors += [
            {"remove": {"field": name, "if": f"ctx.{name} instanceof String && ctx.{name}.trim().isEmpty()"}}
            for name in options.fields
        ]
    if options.chunks:
        # Counted in eojeol, and cut between them; one takes 2 to 3 tokens of the model.
        algorithm = {"token_limit": encoder.max_length_document * 2 // 5, "overlap_rate": 0.1, "tokenizer": "standard"}
        chunked = {name: f"{name}_chunks" for name in options.fields}
        processors.append({"text_chunking": {"algorithm": {"fixed_token_length": algorithm}, "field_map": chunked}})
    sources = {name: f"{name}_chunks" if options.chunks else name for name in options.fields}
    # Last, because a processor after it would read the dots in a vector's tokens as paths.
    processors.append(
        {
            "sparse_encoding": {
                "model_id": documents.reference,
                "batch_size": options.batch_size,
                "field_map": {source: f"{name}_sparse" for name, source in sources.items()},
            }
        }
    )
    if options.engine == "seismic" and not options.chunks:
        # Lucene refuses an empty vector beside others; a text without a word of the vocabulary has none.
        processors += [
            {"remove": {"field": name, "if": f"ctx.{name} instanceof Map && ctx.{name}.isEmpty()"}}
            for name in (f"{field}_sparse" for field in options.fields)
        ]
    return {"processors": processors}


def _search_pipeline(options: Options, queries: Resource) -> dict[str, Any]:
    request: list[dict[str, Any]] = [{"neural_query_enricher": {"default_model_id": queries.reference}}]
    if options.engine == "rank_features":
        two_phase = {"prune_ratio": 0.4, "expansion_rate": 5.0, "max_window_size": 10000}
        request.append({"neural_sparse_two_phase_processor": {"enabled": True, "two_phase_parameter": two_phase}})
    normalization = {
        "normalization": {"technique": "min_max"},
        "combination": {"technique": "arithmetic_mean"},
    }
    return {"request_processors": request, "phase_results_processors": [{"normalization-processor": normalization}]}


def _index_template(options: Options, facts: Facts) -> dict[str, Any]:
    # Without nori, pairs of syllables (cjk) find more than whole eojeol (standard) do.
    analyzer = "nori" if "analysis-nori" in facts.plugins else "cjk"
    vector: dict[str, Any] = {"type": "rank_features"}
    settings = {"index.default_pipeline": options.name, "index.search.default_pipeline": options.name}
    if options.engine == "seismic":
        vector = {"type": "sparse_vector", "method": {"name": "seismic", "parameters": {}}}
        settings["index.sparse"] = "true"
    if options.chunks:
        vector = {"type": "nested", "properties": {"sparse_encoding": vector}}
    properties: dict[str, Any] = {}
    for name in options.fields:
        properties[name] = {"type": "text", "analyzer": analyzer}
        properties[f"{name}_sparse"] = vector
        if options.chunks:
            properties[f"{name}_chunks"] = {"type": "text", "index": False}
    return {
        "index_patterns": [options.index_pattern or f"{options.name}-*"],
        "template": {"settings": settings, "mappings": {"properties": properties}},
    }
