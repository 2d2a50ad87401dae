"""What OpenSearch does with the service and with what `setup` makes. Nothing here imitates OpenSearch."""

from __future__ import annotations

import itertools
import json
import math
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.opensearch.cluster import RequestFailed
from app.opensearch.service import EncoderService
from tests.app.server import Server
from tests.opensearch.conftest import Live, Run, serve
from tests.tiny import SENTENCES

# The first one to run downloads OpenSearch.
pytestmark = [pytest.mark.timeout(900), pytest.mark.usefixtures("empty")]

Setup = tuple[str, ...]
DOCUMENTS = [{"title": " ".join(text.split()[:2]), "text": text} for text in SENTENCES]


@pytest.fixture
def encoder(server: Server) -> Setup:
    return ("--encoder", server.url)


def encode_requests(service: EncoderService, status: int = 200) -> int:
    line = f'sparse_encoder_requests_total{{path="/encode",status="{status}"}} '
    metrics = httpx.get(f"{service.url}/metrics").text.splitlines()
    return sum(int(float(found.removeprefix(line))) for found in metrics if found.startswith(line))


def assert_vectors(found: Sequence[Mapping[str, float]], expected: Sequence[Mapping[str, float]]) -> None:
    """Alike but for the last digits, which differ with what else is in the encoder's batch."""
    assert len(found) == len(expected)
    for left, right in zip(found, expected, strict=True):
        assert {token for token, weight in left.items() if weight > 0.01} <= right.keys()
        assert {token for token, weight in right.items() if weight > 0.01} <= left.keys()
        assert {t: w for t, w in left.items() if t in right} == pytest.approx(
            {t: w for t, w in right.items() if t in left}, abs=0.001
        )


def dot(left: dict[str, float], right: dict[str, float]) -> float:
    return sum(weight * right[token] for token, weight in left.items() if token in right)


def neural(field: str, text: str) -> dict[str, Any]:
    return {"neural_sparse": {field: {"query_text": text}}}


# --- set up, check, tear down


def test_a_second_setup_changes_nothing_and_check_passes(live: Live, run: Run, encoder: Setup) -> None:
    first = run("setup", *encoder, "--field", "title", "text")
    assert "created ingest pipeline ko-sparse" in first
    second = run("setup", *encoder, "--field", "title", "text")
    assert second.splitlines()[-1] == "nothing had to be changed"
    assert "created" not in second
    checked = run("check", *encoder).splitlines()
    assert all(line.startswith("ok: ") for line in checked)
    assert [line for line in checked if "a query on" in line] == [
        f"ok: a query on '{f}' finds it" for f in ("text", "title")
    ]
    assert live.cluster.request("GET", "/_cat/indices/ko-sparse-*?format=json") == []


def test_teardown_leaves_the_cluster_as_it_was(live: Live, run: Run, encoder: Setup) -> None:
    trusted = {"plugins.ml_commons.trusted_connector_endpoints_regex": ["^https://elsewhere/.*$"]}
    live.cluster.request("PUT", "/_cluster/settings", {"persistent": trusted})
    before = live.cluster.request("GET", "/_cluster/settings?flat_settings=true")
    run("setup", *encoder)
    run("setup", *encoder, "--name", "second")
    run("teardown")
    run("check", *encoder, "--name", "second")  # the settings that both need are still there
    run("teardown", "--name", "second")
    assert live.cluster.request("GET", "/_cluster/settings?flat_settings=true") == before
    for kind in ("connectors", "models", "model_groups"):
        found = live.cluster.request("POST", f"/_plugins/_ml/{kind}/_search", {"query": {"match_all": {}}})
        assert found["hits"]["hits"] == [], kind
    assert live.cluster.find("/_ingest/pipeline/ko-sparse") is None
    assert live.cluster.find("/_index_template/ko-sparse") is None
    assert "there is nothing" in run("teardown")
    live.cluster.request("PUT", "/_cluster/settings", {"persistent": dict.fromkeys(trusted)})


def test_teardown_refuses_while_an_index_uses_it(live: Live, run: Run, encoder: Setup) -> None:
    run("setup", *encoder)
    live.index("ko-sparse-used", [{"text": "손해배상"}])
    assert "ko-sparse-used still use the pipelines" in run("teardown", fails=True)
    live.index("ko-sparse-used", [{"text": "손해배상"}])


def test_a_changed_setup_replaces_what_differs_and_leaves_no_rest(live: Live, run: Run, encoder: Setup) -> None:
    run("setup", *encoder)
    changed = run("setup", *encoder, "--batch-size", "7").splitlines()
    assert [line for line in changed if not line.startswith("unchanged")] == ["replaced ingest pipeline ko-sparse"]
    moved = run("setup", *(option.replace("127.0.0.1", "localhost") for option in encoder))
    assert "replaced connector ko-sparse-documents" in moved
    assert "removed connector ko-sparse-documents" in moved
    found = live.cluster.request("POST", "/_plugins/_ml/connectors/_search", {"query": {"match_all": {}}})
    assert len(found["hits"]["hits"]) == 2
    run("check", *encoder)


def test_what_others_made_is_left_alone(live: Live, run: Run, encoder: Setup) -> None:
    pipeline: dict[str, Any] = {"description": "not ours", "processors": []}
    live.cluster.request("PUT", "/_ingest/pipeline/ko-sparse", pipeline)
    assert "was not made by this set-up" in run("setup", *encoder, fails=True)
    run("teardown")
    assert live.cluster.request("GET", "/_ingest/pipeline/ko-sparse") == {"ko-sparse": pipeline}
    live.cluster.request("DELETE", "/_ingest/pipeline/ko-sparse")


def test_a_dry_run_prints_requests_and_sends_none(live: Live, run: Run, encoder: Setup) -> None:
    before = live.cluster.request("GET", "/_cluster/settings?flat_settings=true")
    printed = run("setup", *encoder, "--dry-run")
    for request in (
        "PUT /_cluster/settings",
        "POST /_plugins/_ml/connectors/_create",
        "PUT /_ingest/pipeline/ko-sparse",
    ):
        assert request in printed.splitlines()
    assert '"model_id": "<id of model ko-sparse-documents>"' in printed
    assert live.cluster.request("GET", "/_cluster/settings?flat_settings=true") == before
    assert "there is nothing" in run("teardown")


def test_check_says_what_is_wrong_and_what_to_do(live: Live, run: Run, tiny_artifact: Path) -> None:
    assert "no ingest pipeline" in run("check", fails=True)
    with serve(tiny_artifact) as server:
        run("setup", "--encoder", server.url)
    assert "the nodes cannot reach the service" in run("check", "--encoder", server.url, fails=True)
    (model, *_) = live.cluster.request("POST", "/_plugins/_ml/models/_search", {"query": {"match_all": {}}})["hits"][
        "hits"
    ]
    live.cluster.request("POST", f"/_plugins/_ml/models/{model['_id']}/_undeploy")
    assert "run setup again, which deploys it" in run("check", "--encoder", server.url, fails=True)
    assert f"deployed model {model['_source']['name']}" in run("setup", "--encoder", server.url)
    live.cluster.request("DELETE", "/_search/pipeline/ko-sparse")
    assert "no search pipeline of the set-up ko-sparse: run setup" in run("check", fails=True)


# --- documents


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


WORDS = [
    "손해",
    "배상을",
    "당뇨병의",
    "치료가",
    "임대차",
    "계약에서",
    "OpenSearch",
    "2024년",
    "쁎",
    "3.5",
    "(검색)",
    "방법은",
]
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


# --- queries


def test_a_query_scores_documents_by_the_dot_product(
    live: Live, run: Run, encoder: Setup, service: EncoderService
) -> None:
    run("setup", *encoder)
    live.index("ko-sparse-a", DOCUMENTS)
    vectors = service.encode(SENTENCES)
    for text in (SENTENCES[1], "손해배상 청구", "지하철 노선도"):
        (query,) = service.encode([text], input_type="query")
        expected = {str(n): score for n, vector in enumerate(vectors) if (score := dot(query, vector)) > 0}
        # Lucene keeps 9 significant bits of a document's weight.
        assert live.search("ko-sparse-a", neural("text_sparse", text)) == pytest.approx(expected, rel=2**-8)


def test_a_hybrid_query_adds_the_normalised_scores_of_words_and_meaning(live: Live, run: Run, encoder: Setup) -> None:
    run("setup", *encoder)
    live.index("ko-sparse-a", DOCUMENTS)
    sides = [{"match": {"text": "손해배상 청구"}}, neural("text_sparse", "손해배상 청구")]
    expected: dict[str, float] = {}
    for side in sides:
        scores = live.search("ko-sparse-a", side)
        low, high = min(scores.values()), max(scores.values())
        for number, score in scores.items():
            share = (score - low) / (high - low) if high > low else 1.0
            expected[number] = expected.get(number, 0) + max(share, 0.001) / 2  # the least that OpenSearch gives
    found = live.search("ko-sparse-a", {"hybrid": {"queries": sides}})
    assert found == pytest.approx(expected, abs=0.01)


def test_one_model_for_both_sides(live: Live, run: Run, encoder: Setup, service: EncoderService) -> None:
    if not live.is_3:
        refused = run("setup", *encoder, "--queries", "asymmetric", fails=True)
        assert "--queries asymmetric needs OpenSearch 3.6.0 or newer, this is 2.19.1" in refused
        return
    run("setup", *encoder, "--queries", "asymmetric")
    live.index("ko-sparse-a", DOCUMENTS)
    assert_vectors([document["text_sparse"] for document in live.documents("ko-sparse-a")], service.encode(SENTENCES))
    text = " ".join(SENTENCES[:6])  # longer than a query of the tiny model, shorter than a document
    (query,) = service.encode([text], input_type="query")
    expected = {str(n): score for n, v in enumerate(service.encode(SENTENCES)) if (score := dot(query, v)) > 0}
    assert live.search("ko-sparse-a", neural("text_sparse", text)) == pytest.approx(expected, rel=2**-8)
    run("check", *encoder)


@pytest.mark.parametrize("queries", ["service", "asymmetric", "tokenizer"])
def test_seismic(
    live: Live, run: Run, encoder: Setup, service: EncoderService, tiny_artifact: Path, queries: str
) -> None:
    options = (*encoder, "--engine", "seismic", "--queries", queries, "--artifact", str(tiny_artifact))
    if not live.is_3:
        assert "needs OpenSearch 3." in run("setup", *options, fails=True)
        return
    run("setup", *options)
    live.index("ko-sparse-a", DOCUMENTS)
    vectors = service.encode(SENTENCES, sparse_embedding_format="token_id")
    assert_vectors([document["text_sparse"] for document in live.documents("ko-sparse-a")], vectors)
    text = "손해배상 청구는 2024년에 손해와 가해자를"
    encoding = "inference_free" if queries == "tokenizer" else "model"
    fields = {"input_type": "query", "query_encoding": encoding, "sparse_embedding_format": "token_id"}
    (query,) = service.encode([text], **fields)
    expected = {str(n): score for n, vector in enumerate(vectors) if (score := dot(query, vector)) > 0}
    assert live.search("ko-sparse-a", neural("text_sparse", text)) == pytest.approx(expected, rel=0.01)
    run("check", *encoder)


def test_queries_inside_opensearch_are_those_of_the_service(
    live: Live, run: Run, encoder: Setup, service: EncoderService, tiny_artifact: Path
) -> None:
    run("setup", *encoder, "--queries", "tokenizer", "--artifact", str(tiny_artifact))
    again = run("setup", *encoder, "--queries", "tokenizer", "--artifact", str(tiny_artifact))
    assert again.splitlines()[-1] == "nothing had to be changed"
    queries = [" ".join(words) for words in itertools.islice(itertools.permutations(WORDS, 3), 1000)]
    before = encode_requests(service)
    (model,) = live.cluster.request(
        "POST", "/_plugins/_ml/models/_search", {"query": {"term": {"name.keyword": "ko-sparse-queries"}}}
    )["hits"]["hits"]
    predict = f"/_plugins/_ml/_predict/sparse_tokenize/{model['_id']}"
    results = live.cluster.request("POST", predict, {"text_docs": queries})["inference_results"]
    found = [v for result in results for output in result["output"] for v in output["dataAsMap"]["response"]]
    live.index("ko-sparse-a", DOCUMENTS)
    after_documents = encode_requests(service)
    assert live.search("ko-sparse-a", neural("text_sparse", " ".join(WORDS))) != {}
    assert encode_requests(service) == after_documents == before + 1, "a query called the service"
    expected = service.encode(queries, input_type="query", query_encoding="inference_free")
    assert len(found) == len(expected) == 1000
    for query, left, right in zip(queries, found, expected, strict=True):
        assert left == pytest.approx(right, rel=1e-4), query
    run("check", *encoder)


def test_a_tokenizer_of_another_model_is_refused(run: Run, encoder: Setup) -> None:
    error = run("setup", *encoder, "--queries", "tokenizer", fails=True)
    assert "serves tiny-v1, the artifact is ko-" in error


# --- load


def test_a_service_that_is_full_is_asked_again(live: Live, run: Run, tiny_artifact: Path) -> None:
    with serve(tiny_artifact, "--port", "0", "--max-texts-per-request", "4", "--max-texts-in-flight", "8") as server:
        service = EncoderService(server.url)
        run("setup", "--encoder", server.url, "--batch-size", "4")
        live.index("ko-sparse-a", DOCUMENTS * 6)
        assert encode_requests(service, 429) > 0
        vectors = [service.encode(SENTENCES[start : start + 4]) for start in range(0, len(SENTENCES), 4)]
        expected = list(itertools.chain(*vectors)) * 6
        assert_vectors([document["text_sparse"] for document in live.documents("ko-sparse-a")], expected)


def test_a_restart_under_ingest_loses_no_document(live: Live, run: Run, tiny_artifact: Path) -> None:
    """Documents of the time without a service fail with an error of their own; sent again, they are indexed."""
    with serve(tiny_artifact) as server:
        port = server.url.rpartition(":")[2]
        run("setup", "--encoder", server.url)
        live.index("ko-sparse-a", DOCUMENTS[:1])
        outcomes: list[dict[str, Any]] = []
        one_done, stop = threading.Event(), threading.Event()

        def ingest() -> None:
            for number in itertools.count():
                outcomes.extend(live.bulk(f"ko-sparse-b{number % 3}", DOCUMENTS))
                one_done.set()
                if stop.is_set():
                    return

        thread = threading.Thread(target=ingest)
        thread.start()
        one_done.wait()
        server.terminate()
        server.wait()
        one_done.clear()
        one_done.wait()
    with serve(tiny_artifact, "--port", port):
        one_done.clear()
        one_done.wait()
        stop.set()
        thread.join()
        failed = [outcome for outcome in outcomes if "error" in outcome]
        assert failed, "the service was gone for at least one bulk"
        assert len(failed) % len(DOCUMENTS) == 0, "a batch is encoded whole or not at all"
        for index in ("ko-sparse-b0", "ko-sparse-b1", "ko-sparse-b2"):
            live.index(index, DOCUMENTS)
        encoded = EncoderService(server.url).encode(SENTENCES)
        assert_vectors([document["text_sparse"] for document in live.documents("ko-sparse-b0")], encoded)


def test_an_error_says_what_to_do(live: Live, run: Run, encoder: Setup) -> None:
    run("setup", *encoder)
    live.index("ko-sparse-a", DOCUMENTS[:1])
    with pytest.raises(RequestFailed, match="-> a text holds"):
        live.cluster.request("PUT", "/ko-sparse-a/_doc/9", {"text": "${parameters.input}"})
