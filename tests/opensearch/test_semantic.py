"""Fields of the type `semantic`, which encode by models of a set-up without its pipelines."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from app.opensearch.cluster import RequestFailed
from app.opensearch.service import EncoderService
from tests.app.server import ROOT
from tests.opensearch.live import Live, Run, Setup, assert_vectors, dot
from tests.tiny import SENTENCES

# The first test downloads OpenSearch.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.usefixtures("empty")]


def mapping_of_the_guide(ids: Mapping[str, str]) -> dict[str, Any]:
    """The body that the page shows, with the ids of now."""
    page = (ROOT / "docs/opensearch/fields.md").read_text(encoding="utf-8")
    found = re.search(r"^```json\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert found
    text = found[1].replace("ID OF DOCUMENTS", ids["documents"]).replace("ID OF QUERIES", ids["queries"])
    body: dict[str, Any] = json.loads(text)
    return body


def test_semantic_fields_encode_texts_chunks_and_queries(
    live: Live, run: Run, encoder: Setup, service: EncoderService, refused: Callable[[], None]
) -> None:
    run("setup", *encoder)
    body = mapping_of_the_guide(json.loads(run("ids", "--json")))
    assert list(body["mappings"]["properties"]) == ["title", "text"]
    if not live.is_3:
        refused()
        with pytest.raises(RequestFailed, match=r"No handler for type \[semantic\][\s\S]*-> .*OpenSearch 3"):
            live.cluster.request("PUT", "/semantic-a", body)
        return
    live.cluster.request("PUT", "/semantic-a", body)
    long = " ".join(SENTENCES * 50)
    assert len(long.split()) > 10_000
    huge = SENTENCES[3] + " 가" * 550_000
    live.index(
        "semantic-a", [*({"title": text} for text in SENTENCES[:3]), {"text": long}, {"title": huge}, {"title": ""}]
    )
    documents = live.documents("semantic-a")
    titles = [document["title_semantic_info"]["embedding"] for document in (*documents[:3], documents[4])]
    assert_vectors(titles, service.encode([*SENTENCES[:3], huge[:1000]]))
    chunks = documents[3]["text_semantic_info"]["chunks"]
    assert chunks[-1]["text"].endswith(long[-20:])
    vectors = [chunk["embedding"] for chunk in chunks]
    assert_vectors(vectors, service.encode([chunk["text"] for chunk in chunks]))

    for text in (SENTENCES[1], "손해배상 청구"):
        (query,) = service.encode([text], input_type="query")
        scores = {n: dot(query, titles[i]) for i, n in enumerate("0124")}
        expected = {number: score for number, score in scores.items() if score > 0}
        found = live.search("semantic-a", {"neural": {"title": {"query_text": text}}})
        assert found == pytest.approx(expected, rel=2**-8)
        best = {"3": max(dot(query, vector) for vector in vectors)}
        assert live.search("semantic-a", {"neural": {"text": {"query_text": text}}}) == pytest.approx(best, rel=2**-8)


def test_models_that_semantic_fields_name_stay(
    live: Live, run: Run, encoder: Setup, refused: Callable[[], None]
) -> None:
    if not live.is_3:
        refused()  # see above
        return
    run("setup", *encoder)
    before = json.loads(run("ids", "--json"))
    live.cluster.request("PUT", "/semantic-a", mapping_of_the_guide(before))
    live.index("semantic-a", [{"title": SENTENCES[0]}])
    query = {"neural": {"title": {"query_text": SENTENCES[0]}}}
    found = live.search("semantic-a", query)
    assert found
    assert "text of semantic-a, title of semantic-a name models of ko-sparse" in run("teardown", fails=True)

    moved = tuple(option.replace("127.0.0.1", "localhost") for option in encoder)
    printed = run("setup", *moved)
    for side in ("documents", "queries"):
        assert f"kept model ko-sparse-{side} ({before[side]}), which text of semantic-a, title of semantic-a" in printed
    assert live.search("semantic-a", query) == found
    replaced = f"title of semantic-a names the model {before['queries']}, which setup has replaced"
    assert replaced in run("check", *moved, fails=True)

    new = mapping_of_the_guide(json.loads(run("ids", "--json")))
    live.cluster.request("PUT", "/semantic-a/_mapping", new["mappings"])
    assert live.search("semantic-a", query) == pytest.approx(found, rel=2**-8)
    assert "removed model ko-sparse-queries" in run("setup", *moved)
    run("check", *moved)
    live.cluster.request("DELETE", "/semantic-a")
    assert "removed model group ko-sparse" in run("teardown")
