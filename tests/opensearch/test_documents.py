"""What a real cluster does with documents."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import pytest

from app.opensearch.cluster import error_text
from app.opensearch.service import EncoderService
from tests.opensearch.live import DOCUMENTS, Live, Run, Setup, assert_vectors, dot, encode_requests, neural
from tests.tiny import SENTENCES

# The first test downloads OpenSearch.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.usefixtures("indices")]


def test_batches_of_a_bulk_get_the_vectors_of_the_service(
    live: Live, run: Run, encoder: Setup, service: EncoderService
) -> None:
    run("setup", *encoder, "--field", "title", "text", "--batch-size", "10")
    before = encode_requests(service)
    live.index("ko-sparse-a", DOCUMENTS)
    assert encode_requests(service) - before == math.ceil(len(DOCUMENTS) / 10)
    for field in ("title", "text"):
        found = live.vectors("ko-sparse-a", field)
        assert_vectors(found, service.encode([document[field] for document in DOCUMENTS]))


def test_a_long_hangul_answer_arrives_whole(live: Live, run: Run, encoder: Setup, service: EncoderService) -> None:
    """An answer of more than a hundred kilobytes, in pieces that would cut syllables in two."""
    run("setup", *encoder, "--batch-size", "400")
    texts = [f"{left} {right}" for left, right in itertools.islice(itertools.product(SENTENCES, SENTENCES), 400)]
    live.index("ko-sparse-a", [{"text": text} for text in texts])
    found = live.vectors("ko-sparse-a")
    assert len(json.dumps(found, ensure_ascii=False).encode()) > 100_000
    assert "\ufffd" not in json.dumps(found, ensure_ascii=False)
    assert_vectors(found, service.encode(texts))


ODD = [
    "값은 ${parameters.x} 이다",
    '따옴표 " 와 역사선 \\',
    "탭\t과 줄\n바꿈",
    "이모지 🦜🇰🇷",
    "<b>&amp;</b>",
    "점.점 3.6",
    "\x00 끝",
]


def test_odd_texts_harm_neither_themselves_nor_their_neighbours(
    live: Live, run: Run, encoder: Setup, service: EncoderService
) -> None:
    run("setup", *encoder)
    texts = [SENTENCES[0], *ODD, SENTENCES[1]]
    live.index("ko-sparse-a", [{"text": text} for text in texts])
    found = live.vectors("ko-sparse-a")
    assert_vectors(found, [vector for text in texts for vector in service.encode([text])])


def test_blank_and_missing_fields_are_no_error(live: Live, run: Run, encoder: Setup) -> None:
    run("setup", *encoder, "--field", "title", "text")
    live.index(
        "ko-sparse-a", [{"title": "", "text": SENTENCES[0]}, {"text": "  "}, {"title": SENTENCES[1]}, {"other": 1}]
    )
    assert [bool(vector) for vector in live.vectors("ko-sparse-a")] == [True, False, False, False]
    assert [bool(vector) for vector in live.vectors("ko-sparse-a", "title")] == [False, False, True, False]


def test_encoded_documents_pass_a_second_processor_and_a_second_index(live: Live, run: Run, encoder: Setup) -> None:
    """Where OpenSearch reads dots in the tokens of a vector as paths."""
    run("setup", *encoder)
    processors = live.cluster.request("GET", "/_ingest/pipeline/ko-sparse")["ko-sparse"]["processors"]
    (first,) = [processor["sparse_encoding"] for processor in processors if "sparse_encoding" in processor]
    second = {"sparse_encoding": {**first, "field_map": {"title": "title_sparse"}}}
    live.cluster.request("PUT", "/_ingest/pipeline/both", {"processors": [*processors, second]})
    live.index("ko-sparse-a", DOCUMENTS, pipeline="both")
    encoded = live.documents("ko-sparse-a")
    assert all(document["title_sparse"] and document["text_sparse"] for document in encoded)
    copy = {"source": {"index": "ko-sparse-a"}, "dest": {"index": "ko-sparse-b"}}
    assert live.cluster.request("POST", "/_reindex?refresh=true", copy)["failures"] == []
    assert_vectors(live.vectors("ko-sparse-b"), live.vectors("ko-sparse-a"))
    assert [document["text"] for document in live.documents("ko-sparse-b")] == [d["text"] for d in DOCUMENTS]
    live.cluster.request("DELETE", "/_ingest/pipeline/both")


def test_chunks_of_a_long_text_are_found(live: Live, run: Run, encoder: Setup, service: EncoderService) -> None:
    run("setup", *encoder, "--chunks")
    long = [" ".join(SENTENCES[:15]), " ".join(SENTENCES[15:])]
    live.index("ko-sparse-a", [{"text": text} for text in long])
    for text, document in zip(long, live.documents("ko-sparse-a"), strict=True):
        chunks = document["text_chunks"]
        assert len(chunks) > 3
        words = text.split()
        assert all(set(chunk.split()) <= set(words) for chunk in chunks), "a chunk ends within a word"
        assert_vectors([chunk["sparse_encoding"] for chunk in document["text_sparse"]], service.encode(chunks))
    (query,) = service.encode([SENTENCES[20]], input_type="query")
    expected = {
        str(number): max(dot(query, chunk["sparse_encoding"]) for chunk in document["text_sparse"])
        for number, document in enumerate(live.documents("ko-sparse-a"))
    }
    clause = neural("text_sparse.sparse_encoding", SENTENCES[20])
    scores = live.search("ko-sparse-a", {"nested": {"path": "text_sparse", "score_mode": "max", "query": clause}})
    assert scores == pytest.approx(expected, rel=0.01)
    run("check", *encoder)


def test_fields_of_any_name_and_texts_of_any_shape_are_encoded(
    live: Live, run: Run, encoder: Setup, service: EncoderService
) -> None:
    run("setup", *encoder, "--field", "제목", "meta.title", "doc-title")
    live.index(
        "ko-sparse-a",
        [
            {"제목": SENTENCES[0], "meta": {"title": SENTENCES[1]}, "doc-title": SENTENCES[2]},
            {"제목": [SENTENCES[0], SENTENCES[1]], "meta.title": 2024, "doc-title": True},
            {"제목": None, "doc-title": [], "meta": None},
        ],
    )
    assert_vectors(live.vectors("ko-sparse-a", "제목"), [*service.encode([SENTENCES[0], "\n".join(SENTENCES[:2])]), {}])
    assert_vectors(live.vectors("ko-sparse-a", "meta.title"), [*service.encode([SENTENCES[1], "2024"]), {}])
    assert_vectors(live.vectors("ko-sparse-a", "doc-title"), [*service.encode([SENTENCES[2], "true"]), {}])
    refused = live.bulk("ko-sparse-a", [{"제목": {"ko": "가"}}, {"meta": [{"title": "가"}]}, {"제목": SENTENCES[0]}])
    reasons = [error_text(outcome["error"]) if "error" in outcome else None for outcome in refused]
    assert "the field [제목] holds an object, which has no text to encode" in str(reasons[0])
    assert "the field [meta.title] is in an array of objects" in str(reasons[1])
    assert reasons[2] is None


def test_markup_is_no_text_with_html(live: Live, run: Run, encoder: Setup, service: EncoderService) -> None:
    run("setup", *encoder, "--html")
    markup = f'<html><body class="pt">{SENTENCES[0]}<br/></body></html>'
    live.index("ko-sparse-a", [{"text": markup}, {"text": SENTENCES[1]}])
    assert_vectors(live.vectors("ko-sparse-a"), service.encode(SENTENCES[:2]))
    assert live.documents("ko-sparse-a")[0]["text"] == markup


def test_a_vector_goes_with_its_text(live: Live, run: Run, encoder: Setup, service: EncoderService) -> None:
    run("setup", *encoder, "--field", "title", "text")
    live.index("ko-sparse-a", [{"text": text, "title": text} for text in SENTENCES[:4]])
    new = SENTENCES[5 if live.is_3 else 0]  # 2.x merges two vectors
    updates: list[dict[str, Any]] = [{"text": new}, {"text": None}, {"other": 1}]
    lines = [
        line
        for number, doc in enumerate(updates)
        for line in ({"update": {"_id": str(number)}}, {"doc": doc, "doc_as_upsert": True})
    ]
    body = "".join(json.dumps(line) + "\n" for line in lines).encode()
    assert not live.cluster.request("POST", "/ko-sparse-a/_bulk?refresh=true", body)["errors"]
    texts, titles = service.encode([new, *SENTENCES[2:4]]), service.encode(SENTENCES[:4])
    assert_vectors(live.vectors("ko-sparse-a"), [texts[0], {}, *texts[1:]])
    assert_vectors(live.vectors("ko-sparse-a", "title"), titles)
    copy = {"source": {"index": "ko-sparse-a", "_source": {"excludes": ["title"]}}, "dest": {"index": "ko-sparse-b"}}
    assert live.cluster.request("POST", "/_reindex?refresh=true", copy)["failures"] == []
    assert ["title_sparse" in document for document in live.documents("ko-sparse-b")] == [False] * 4
    assert live.vectors("ko-sparse-b") == live.vectors("ko-sparse-a")


def test_a_text_beyond_all_limits_harms_no_neighbour(
    live: Live, run: Run, encoder: Setup, service: EncoderService
) -> None:
    run("setup", *encoder)
    huge = SENTENCES[0] + " 가" * 550_000
    live.index("ko-sparse-a", [{"text": SENTENCES[1]}, {"text": huge}, {"text": SENTENCES[2]}])
    assert_vectors(live.vectors("ko-sparse-a"), service.encode([SENTENCES[1], huge[:1000], SENTENCES[2]]))


def test_the_end_of_a_very_long_text_is_found_in_its_chunks(live: Live, run: Run, encoder: Setup) -> None:
    """Of more words than OpenSearch takes apart by default, and of more chunks."""
    run("setup", *encoder, "--chunks")
    live.index("ko-sparse-a", [{"text": " ".join([*(["하늘"] * 10_500), SENTENCES[20]])}, {"text": SENTENCES[0]}])
    chunks = live.documents("ko-sparse-a")[0]["text_chunks"]
    assert len(chunks) > 100
    assert SENTENCES[20].split()[-1] in chunks[-1]
    clause = neural("text_sparse.sparse_encoding", SENTENCES[20])
    query = {"nested": {"path": "text_sparse", "score_mode": "max", "query": clause}}
    assert next(iter(live.search("ko-sparse-a", query))) == "0"
