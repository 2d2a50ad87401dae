"""What a real cluster does with documents."""

from __future__ import annotations

import itertools
import json
import math

import pytest

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
        found = [document[f"{field}_sparse"] for document in live.documents("ko-sparse-a")]
        assert_vectors(found, service.encode([document[field] for document in DOCUMENTS]))


def test_a_long_hangul_answer_arrives_whole(live: Live, run: Run, encoder: Setup, service: EncoderService) -> None:
    """An answer of more than a hundred kilobytes, in pieces that would cut syllables in two."""
    run("setup", *encoder, "--batch-size", "400")
    texts = [f"{left} {right}" for left, right in itertools.islice(itertools.product(SENTENCES, SENTENCES), 400)]
    live.index("ko-sparse-a", [{"text": text} for text in texts])
    found = [document["text_sparse"] for document in live.documents("ko-sparse-a")]
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
    found = [document["text_sparse"] for document in live.documents("ko-sparse-a")]
    assert_vectors(found, [vector for text in texts for vector in service.encode([text])])


def test_blank_and_missing_fields_are_no_error(live: Live, run: Run, encoder: Setup) -> None:
    run("setup", *encoder, "--field", "title", "text")
    live.index(
        "ko-sparse-a", [{"title": "", "text": SENTENCES[0]}, {"text": "  "}, {"title": SENTENCES[1]}, {"other": 1}]
    )
    assert ["text_sparse" in document for document in live.documents("ko-sparse-a")] == [True, False, False, False]


def test_encoded_documents_pass_a_second_processor_and_a_second_index(live: Live, run: Run, encoder: Setup) -> None:
    """Where OpenSearch reads dots in the tokens of a vector as paths."""
    run("setup", *encoder)
    *_, processor = live.cluster.request("GET", "/_ingest/pipeline/ko-sparse")["ko-sparse"]["processors"]
    second = {"sparse_encoding": {**processor["sparse_encoding"], "field_map": {"title": "title_sparse"}}}
    live.cluster.request("PUT", "/_ingest/pipeline/both", {"processors": [processor, second]})
    live.index("ko-sparse-a", DOCUMENTS, pipeline="both")
    encoded = live.documents("ko-sparse-a")
    assert all(document["title_sparse"] and document["text_sparse"] for document in encoded)
    copy = {"source": {"index": "ko-sparse-a"}, "dest": {"index": "ko-sparse-b"}}
    assert live.cluster.request("POST", "/_reindex?refresh=true", copy)["failures"] == []
    assert live.documents("ko-sparse-b") == encoded
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
