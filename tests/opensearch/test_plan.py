"""What would be done, decided without a cluster."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.opensearch.__main__ import _parser
from app.opensearch.advice import ADVICE, advice_for
from app.opensearch.facts import SECURITY, Facts, OpenSearchError, Version, parse_version
from app.opensearch.plan import (
    ACCESS_CONTROL,
    LOCAL_FILE,
    ML_NODES_ONLY,
    PRIVATE,
    TRUSTED,
    Options,
    Plan,
    ServiceFacts,
    make_plan,
)
from app.opensearch.service import is_private
from app.opensearch.settings_record import RECORD, to_apply, to_restore

ROOT = Path(__file__).parent.parent.parent
SETTINGS = {TRUSTED: ["^https://elsewhere/.*$"], PRIVATE: "false", LOCAL_FILE: "false", ML_NODES_ONLY: "true"}
PLUGINS = frozenset({"opensearch-ml", "opensearch-neural-search"})
FACTS = Facts((3, 6, 0), PLUGINS, has_ml_node=False, settings=SETTINGS, persistent={})


def plan(version: Version = (3, 6, 0), *, private: bool = True, facts: Facts = FACTS, **options: Any) -> Plan:
    wanted = Options(encoder="http://10.0.0.5:8080", **options)
    tokenizer = b"zip" if wanted.queries == "tokenizer" else None
    return make_plan(
        wanted, dataclasses.replace(facts, version=version), ServiceFacts(private_address=private), tokenizer
    )


def body(made: Plan, kind: str) -> Any:
    return next(resource.body for resource in made.resources if resource.kind == kind)


@pytest.mark.parametrize(
    ("version", "options", "message"),
    [
        ((2, 15, 0), {}, "needs OpenSearch 2.16.0 or newer, this is 2.15.0"),
        ((2, 19, 1), {"engine": "seismic"}, "--engine seismic needs OpenSearch 3.3.0 or newer"),
        ((3, 5, 0), {"queries": "asymmetric"}, "--queries asymmetric needs OpenSearch 3.6.0 or newer"),
        ((3, 6, 0), {"engine": "seismic", "chunks": True}, "leave out --chunks"),
        ((3, 6, 0), {"fields": ("a..b",)}, "--field 'a..b' is no name of a field"),
        ((3, 6, 0), {"fields": ("_id",)}, "--field '_id' is no name of a field"),
        ((3, 6, 0), {"fields": ("meta", "meta.title")}, "a field cannot be a text and hold others"),
        ((3, 6, 0), {"fields": ("text", "text_sparse")}, "is what is made of another field"),
        ((3, 6, 0), {"fields": ("text", "text")}, "names no field, or one twice"),
        ((3, 6, 0), {"engine": "seismic", "two_phase": True}, "leave out --two-phase"),
        ((2, 18, 0), {"hybrid": "rrf"}, "--hybrid rrf needs OpenSearch 2.19.0 or newer"),
        ((3, 6, 0), {"hybrid": "rrf", "hybrid_weights": (0.5, 0.5)}, "leave out --hybrid-weights"),
        ((3, 6, 0), {"hybrid_weights": (0.5, 0.6)}, "1.0 in sum"),
        ((3, 6, 0), {"name": "Ko Sparse"}, "--name 'Ko Sparse' must be small letters"),
        ((3, 6, 0), {"batch_size": 0}, "--batch-size 0 must be at least 1"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(version: Version, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OpenSearchError, match=re.escape(message)):
        plan(version, **options)


def test_a_cluster_without_the_plugins_is_refused() -> None:
    with pytest.raises(OpenSearchError, match="not every node has the plugin opensearch-neural-search"):
        plan(facts=dataclasses.replace(FACTS, plugins=PLUGINS - {"opensearch-neural-search"}))


def test_only_the_settings_that_are_needed_are_changed() -> None:
    pattern = r"^http://10\.0\.0\.5:8080/.*$"
    assert {s.key: s.value for s in plan().settings} == {TRUSTED: [*SETTINGS[TRUSTED], pattern], PRIVATE: True}
    assert [s.key for s in plan(private=False).settings] == [TRUSTED]
    assert [s.key for s in plan(queries="tokenizer").settings] == [TRUSTED, PRIVATE, LOCAL_FILE, ML_NODES_ONLY]
    with_ml_node = dataclasses.replace(FACTS, has_ml_node=True)
    assert ML_NODES_ONLY not in [s.key for s in plan(queries="tokenizer", facts=with_ml_node).settings]
    done = dataclasses.replace(FACTS, settings={**SETTINGS, TRUSTED: [pattern], PRIVATE: "true"})
    assert plan(facts=done).settings == []


@pytest.mark.parametrize("queries", ["service", "asymmetric", "tokenizer"])
def test_the_body_of_a_connector_is_json_once_filled(queries: str) -> None:
    connectors = [r.body for r in plan(queries=queries, model_version="stable").resources if r.kind == "connector"]
    sent = []
    for connector in connectors:
        template = connector["actions"][0]["request_body"]
        for name, value in {
            "input": '["가"]',
            "texts": '["가"]',
            "content_type": "query",
            **connector["parameters"],
        }.items():
            template = template.replace(f"${{parameters.{name}}}", value)
        assert "${" not in template
        sent.append(json.loads(template))
    assert [s["texts"] for s in sent] == [["가"]] * len(sent)
    types = {"service": ["document", "query"], "asymmetric": ["query"], "tokenizer": ["document"]}
    assert [s["input_type"] for s in sent] == types[queries]
    assert {s["version"] for s in sent} == {"stable"}


def test_an_api_key_is_a_credential_of_each_connector_and_nowhere_else() -> None:
    assert "Authorization" not in str(plan().resources)
    made = plan(api_key="s3cret")
    for connector in (r.body for r in made.resources if r.kind == "connector"):
        assert connector["credential"] == {"key": "s3cret"}
        assert connector["actions"][0]["headers"]["Authorization"] == "Bearer ${credential.key}"
        assert "s3cret" not in str({**connector, "credential": None})
    assert "s3cret" not in str([r for r in made.resources if r.kind != "connector"])
    assert "s3cret" not in repr(Options(encoder="http://a", api_key="s3cret"))


def test_processors_work_on_fields_of_their_own_whatever_those_of_the_documents_are_called() -> None:
    made = plan((2, 19, 1), fields=("제목", "meta.doc-title"), chunks=True, html=True)
    processors = body(made, "ingest pipeline")["processors"]
    kinds = [next(iter(processor)) for processor in processors]
    assert kinds == ["script", "html_strip", "html_strip", "script", "sparse_encoding", "script"]
    assert processors[4]["sparse_encoding"]["field_map"] == {
        "sparse_encoder_chunks_0": "sparse_encoder_vector_0",
        "sparse_encoder_chunks_1": "sparse_encoder_vector_1",
    }
    assert processors[0]["script"]["params"]["fields"][1]["path"] == ["meta", "doc-title"]
    assert [next(iter(p)) for p in body(plan(), "ingest pipeline")["processors"]] == [
        "script",
        "sparse_encoding",
        "script",
    ]


def test_a_narrower_pattern_has_the_higher_priority() -> None:
    wide, narrow = (body(plan(name=name), "index template")["priority"] for name in ("ko-sparse", "ko-sparse-2"))
    assert narrow > wide > 200
    assert body(plan(priority=7), "index template")["priority"] == 7


def test_nori_is_used_where_it_is() -> None:
    with_nori = dataclasses.replace(FACTS, plugins=PLUGINS | {"analysis-nori"})
    analyzers = [
        body(made, "index template")["template"]["mappings"]["properties"]["text"]["analyzer"]
        for made in (plan(), plan(facts=with_nori))
    ]
    assert analyzers == ["cjk", "nori"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"access_mode": "public"}),
        ({"access": "private"}, {"access_mode": "private"}),
        ({"access": "restricted", "backend_roles": ("a",)}, {"access_mode": "restricted", "backend_roles": ["a"]}),
    ],
)
def test_models_and_connectors_say_who_may_use_them_where_the_cluster_asks(
    options: dict[str, Any], expected: dict[str, Any]
) -> None:
    controlled = {setting: "true" for setting in ACCESS_CONTROL.values()}
    secured = dataclasses.replace(FACTS, plugins=PLUGINS | {SECURITY}, settings={**SETTINGS, **controlled})
    for kind in ("model group", "connector"):
        body = plan(facts=secured, **options).resource(kind).body
        assert {key: body[key] for key in ("access_mode", "backend_roles") if key in body} == expected
        # A cluster that does not control it refuses to be told.
        of_none = dataclasses.replace(secured, plugins=PLUGINS)
        assert "access_mode" not in plan(facts=of_none).resource(kind).body
    if options:
        with pytest.raises(OpenSearchError, match="needs the security plugin and"):
            plan(**options)


def test_an_access_and_its_roles_come_together() -> None:
    for options in ({"access": "restricted"}, {"backend_roles": ("a",)}, {"access": "public", "backend_roles": ("a",)}):
        with pytest.raises(OpenSearchError, match="give both or neither"):
            plan(**options)


@pytest.mark.parametrize(("version", "has"), [((3, 6, 0), True), ((3, 5, 0), False), ((2, 19, 1), False)])
def test_models_serve_semantic_fields_where_that_does_no_harm(version: Version, has: bool) -> None:
    assert ("model_config" in plan(version).resource("model").body) == has


def test_settings_are_put_back_by_the_last_set_up_unless_somebody_changed_them() -> None:
    applied = to_apply(plan().settings, "a", FACTS)
    assert applied
    facts = dataclasses.replace(FACTS, persistent=applied)
    assert to_apply([], "a", facts) is None
    assert to_apply([], "first, and all is as it must be", FACTS) is None
    second = to_apply([], "b", facts)
    assert second
    facts = dataclasses.replace(FACTS, persistent={**applied, **second})
    first_gone = to_restore("a", facts)
    assert first_gone
    assert first_gone.keys() == {RECORD}
    facts = dataclasses.replace(FACTS, persistent={**applied, **first_gone})
    assert to_restore("b", facts) == {TRUSTED: None, PRIVATE: None, RECORD: None}
    facts = dataclasses.replace(facts, persistent={**facts.persistent, TRUSTED: ["^somebody's$"]})
    assert to_restore("b", facts) == {PRIVATE: None, RECORD: None}
    assert to_restore("never set up", facts) is None


@pytest.mark.parametrize(
    ("host", "private"),
    [("127.0.0.1", True), ("10.1.2.3", True), ("::1", True), ("8.8.8.8", False), ("no.such.invalid", True)],
)
def test_private_addresses(host: str, private: bool) -> None:
    assert is_private(host) is private


def test_versions() -> None:
    assert parse_version("3.6.0-SNAPSHOT") == (3, 6, 0)
    with pytest.raises(OpenSearchError, match="which is none"):
        parse_version("latest")


def test_errors_of_opensearch_get_advice_and_the_guide_has_the_same() -> None:
    found = advice_for("illegal_argument_exception: Connector URL is not matching the trusted connector endpoint regex")
    assert found
    assert "run setup" in found
    assert advice_for("something new") is None
    guide = (ROOT / "docs" / "opensearch" / "troubleshooting.md").read_text(encoding="utf-8").splitlines()
    rows = [f"| {', '.join(f'`{part}`' for part in parts)} | {advice} |" for parts, advice in ADVICE]
    assert [row for row in rows if row not in guide] == []


def test_the_compose_file_uses_options_that_exist() -> None:
    services = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["services"]
    options = _parser().parse_args(services["connect"]["command"])
    assert (options.command, options.encoder) == ("setup", "http://encoder:8080")
