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
from app.opensearch.ingest import ingest_pipeline

Queries = Literal["service", "asymmetric", "tokenizer"]
IndexEngine = Literal["rank_features", "seismic"]
Hybrid = Literal["mean", "rrf"]
Access = Literal["public", "restricted", "private"]
Kind = Literal["model group", "connector", "model", "ingest pipeline", "search pipeline", "index template"]

TRUSTED = "plugins.ml_commons.trusted_connector_endpoints_regex"
PRIVATE = "plugins.ml_commons.connector.private_ip_enabled"
LOCAL_FILE = "plugins.ml_commons.allow_registering_model_via_local_file"
ML_NODES_ONLY = "plugins.ml_commons.only_run_on_ml_node"
#: Whether models, or connectors, have owners: then only these may use them, unless they are made for others as well.
ACCESS_CONTROL: Mapping[Kind, str] = {
    "model group": "plugins.ml_commons.model_access_control_enabled",
    "connector": "plugins.ml_commons.connector_access_control_enabled",
}
META = "sparse_encoder"  #: key in the `_meta` of a mapping: {"set_up": name, "model_version": of the vectors}
NEEDED_PLUGINS = ("opensearch-ml", "opensearch-neural-search")

OLDEST: Version = (2, 16, 0)  # batch_size of the processor; before 2.12 Hangul is destroyed on its way
RRF: Version = (2, 19, 0)
ARRAYS: Version = (3, 0, 0)  # 2.19 loses keys of objects in arrays when a second inference processor follows
SPARSE_VECTOR: Version = (3, 3, 0)
ASYMMETRIC: Version = (3, 6, 0)  # 3.5 has it too, but refuses other models with a model_config
SEMANTIC: Version = (3, 6, 0)  # fields of this type want a model with a model_config


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
    html: bool = False  #: markup in the fields is no text
    two_phase: bool = False
    hybrid: Hybrid = "mean"  #: how the parts of a hybrid query become one score
    hybrid_weights: tuple[float, ...] = ()  #: of the parts, in their order; without them, alike
    batch_size: int = 32  #: documents in one request of the ingest pipeline
    priority: int | None = None  #: of the index template; without it, the more the narrower its pattern is
    model_version: str | None = None  #: version or alias that the connectors ask for
    api_key: str | None = field(default=None, repr=False)  #: of the service
    access: Access | None = None  #: to the models, where the cluster controls it; without it, public
    backend_roles: tuple[str, ...] = ()  #: whose users have access, if it is restricted

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,63}", self.name):
            raise OpenSearchError(f"--name {self.name!r} must be small letters, digits, _ and - (at most 64)")
        if urlsplit(self.encoder).scheme not in ("http", "https") or not urlsplit(self.encoder).hostname:
            raise OpenSearchError(f"--encoder {self.encoder!r} is no http(s) address, such as http://10.0.0.5:8080")
        _check_fields(self.fields)
        if self.batch_size < 1:
            raise OpenSearchError(f"--batch-size {self.batch_size} must be at least 1")
        if bool(self.backend_roles) != (self.access == "restricted"):
            raise OpenSearchError(
                "--access restricted is for the users of --backend-roles, which nothing else has: give both or neither"
            )
        if self.two_phase and self.engine == "seismic":
            raise OpenSearchError("--engine seismic has phases of its own: leave out --two-phase")
        weights = self.hybrid_weights
        if weights and self.hybrid == "rrf":
            raise OpenSearchError("--hybrid rrf goes by ranks, not by scores: leave out --hybrid-weights")
        if weights and (min(weights) < 0 or abs(sum(weights) - 1) > 0.001):
            raise OpenSearchError(
                f"--hybrid-weights {' '.join(map(str, weights))}: one for each part of the hybrid queries, 1.0 in sum"
            )

    @property
    def pattern(self) -> str:
        return self.index_pattern or f"{self.name}-*"


def _check_fields(fields: tuple[str, ...]) -> None:
    """:raises OpenSearchError: if these cannot be fields of an index, or cannot be so together."""
    for name in fields:
        if not all(part.strip() for part in name.split(".")) or name.startswith("_") or "*" in name:
            raise OpenSearchError(f"--field {name!r} is no name of a field: no empty part, no * and no _ at its start")
        if rest := [other for other in fields if other.startswith(f"{name}.")]:
            raise OpenSearchError(f"--field {name} {rest[0]}: a field cannot be a text and hold others")
        if name in {f"{other}_{made}" for other in fields for made in ("sparse", "chunks")}:
            raise OpenSearchError(f"--field {name!r} is what is made of another field: leave it out")
    if not fields or len(set(fields)) < len(fields):
        raise OpenSearchError("--field names no field, or one twice")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceFacts:
    """What was found out about the service; the defaults are those of the service."""

    private_address: bool
    max_texts_per_request: int = 1024
    request_timeout_seconds: float = 60.0
    max_length_document: int = 512  #: tokens
    max_characters_per_text: int = 1_000_000
    model_version: str | None = None  #: that the connectors will get; None if it could not be asked


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
    options: Options
    settings: list[Setting]
    resources: list[Resource]  #: in an order in which they can be made
    fields: Mapping[str, Mapping[str, Any]]  #: mapping of each field, by its whole name
    model_version: str | None  #: that encodes, as far as is known

    def resource(self, kind: Kind) -> Resource:
        """The first of its kind."""
        return next(resource for resource in self.resources if resource.kind == kind)


def make_plan(options: Options, facts: Facts, encoder: ServiceFacts, tokenizer: bytes | None = None) -> Plan:
    """Everything that `options` need on a cluster with `facts`; `tokenizer`: the zip for `queries="tokenizer"`.

    :raises OpenSearchError: if the cluster cannot do it.
    """
    _check_cluster(options, facts)
    group = Resource("model group", options.name, {"name": options.name, **_access(options, facts, "model group")})
    connectors = _connectors(options, facts, encoder)
    models = [_remote_model(options, facts, group, connector) for connector in connectors]
    if options.queries == "tokenizer":
        assert tokenizer
        models.append(_tokenizer_model(options, group, tokenizer))
    documents, queries = models[0], models[-1]
    fields = _field_mappings(options, facts)
    pipeline = ingest_pipeline(
        options.fields,
        documents.reference,
        batch_size=options.batch_size,
        most_characters=encoder.max_characters_per_text,
        arrays=facts.version >= ARRAYS,
        html=options.html,
        tokens_of_a_chunk=encoder.max_length_document if options.chunks else None,
    )
    return Plan(
        options,
        _settings(options, facts, encoder),
        [
            group,
            *connectors,
            *models,
            Resource("ingest pipeline", options.name, pipeline),
            Resource("search pipeline", options.name, _search_pipeline(options, queries)),
            Resource("index template", options.name, _index_template(options, fields, encoder.model_version)),
        ],
        fields,
        encoder.model_version,
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
    if options.access and not facts.is_on(ACCESS_CONTROL["model group"]):
        raise OpenSearchError(
            f"--access {options.access} needs the security plugin and {ACCESS_CONTROL['model group']}, and one of them "
            "is not there: leave it out, as anybody who may call models may use all of them"
        )
    if options.queries == "asymmetric":
        need("--queries asymmetric", ASYMMETRIC)
    if options.hybrid == "rrf":
        need("--hybrid rrf", RRF)
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


def _access(options: Options, facts: Facts, kind: Kind) -> dict[str, Any]:
    """Who may use a resource of the `kind`; nothing where the cluster does not control it, which refuses it then."""
    if not facts.is_on(ACCESS_CONTROL[kind]):
        return {}
    if options.access == "restricted":
        return {"access_mode": "restricted", "backend_roles": list(options.backend_roles)}
    return {"access_mode": options.access or "public"}


def _connectors(options: Options, facts: Facts, encoder: ServiceFacts) -> list[Resource]:
    if options.queries == "asymmetric":
        return [_connector(options, facts, encoder, options.name, "${parameters.texts}", "${parameters.content_type}")]
    sides = {"documents": "document", "queries": "query"} if options.queries == "service" else {"documents": "document"}
    return [
        _connector(options, facts, encoder, f"{options.name}-{side}", "${parameters.input}", input_type)
        for side, input_type in sides.items()
    ]


def _connector(
    options: Options, facts: Facts, encoder: ServiceFacts, name: str, texts: str, input_type: str
) -> Resource:
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
            **_access(options, facts, "connector"),
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


def _remote_model(options: Options, facts: Facts, group: Resource, connector: Resource) -> Resource:
    body: dict[str, Any] = {
        "name": connector.name,
        "function_name": "remote",
        "model_group_id": group.reference,
        "connector_id": connector.reference,
    }
    if facts.version >= SEMANTIC:
        body["model_config"] = {
            "model_type": "sparse_encoding",
            "embedding_dimension": 1,  # must be given, means nothing here
            "framework_type": "sentence_transformers",  # the same
            **({"additional_config": {"is_asymmetric": True}} if options.queries == "asymmetric" else {}),
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


def _search_pipeline(options: Options, queries: Resource) -> dict[str, Any]:
    request: list[dict[str, Any]] = [{"neural_query_enricher": {"default_model_id": queries.reference}}]
    if options.two_phase:
        two_phase = {"prune_ratio": 0.4, "expansion_rate": 5.0, "max_window_size": 10000}
        request.append({"neural_sparse_two_phase_processor": {"enabled": True, "two_phase_parameter": two_phase}})
    results: dict[str, Any]
    if options.hybrid == "rrf":
        results = {"score-ranker-processor": {"combination": {"technique": "rrf"}}}
    else:
        combination: dict[str, Any] = {"technique": "arithmetic_mean"}
        if options.hybrid_weights:
            combination["parameters"] = {"weights": list(options.hybrid_weights)}
        results = {"normalization-processor": {"normalization": {"technique": "min_max"}, "combination": combination}}
    return {"request_processors": request, "phase_results_processors": [results]}


def _field_mappings(options: Options, facts: Facts) -> dict[str, dict[str, Any]]:
    # Without nori, pairs of syllables (cjk) find more than whole eojeol (standard) do.
    analyzer = "nori" if "analysis-nori" in facts.plugins else "cjk"
    vector: dict[str, Any] = {"type": "rank_features"}
    if options.engine == "seismic":
        vector = {"type": "sparse_vector", "method": {"name": "seismic", "parameters": {}}}
    if options.chunks:
        vector = {"type": "nested", "properties": {"sparse_encoding": vector}}
    mappings: dict[str, dict[str, Any]] = {}
    for name in options.fields:
        mappings[name] = {"type": "text", "analyzer": analyzer}
        mappings[f"{name}_sparse"] = vector
        if options.chunks:
            mappings[f"{name}_chunks"] = {"type": "text", "index": False}
    return mappings


def index_settings(options: Options) -> dict[str, str]:
    """Of an index of the set-up, flat names."""
    settings = {"index.default_pipeline": options.name, "index.search.default_pipeline": options.name}
    if options.engine == "seismic":
        settings["index.sparse"] = "true"
    return settings


def _index_template(
    options: Options, fields: Mapping[str, Mapping[str, Any]], model_version: str | None
) -> dict[str, Any]:
    made = {"set_up": options.name, **({"model_version": model_version} if model_version else {})}
    return {
        "index_patterns": [options.pattern],
        # A template of the whole organisation, or of a wider pattern of ours, must not win.
        "priority": 200 + len(options.pattern) if options.priority is None else options.priority,
        "template": {
            "settings": index_settings(options),
            "mappings": {"_meta": {META: made}, "properties": fields},
        },
    }
