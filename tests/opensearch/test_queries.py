"""How a real cluster scores documents, by each way to encode queries."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from app.opensearch.service import EncoderService
from scripts.opensearch_parts import has_nori
from tests.opensearch.live import DOCUMENTS, Live, Run, Setup, assert_vectors, dot, encode_requests, neural
from tests.tiny import SENTENCES

# The first test downloads OpenSearch.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.usefixtures("indices")]


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


def test_words_are_found_by_the_korean_analyzer_where_the_nodes_have_one(live: Live, run: Run, encoder: Setup) -> None:
    run("setup", *encoder)
    live.index("ko-sparse-a", [{"text": "손해배상을 청구하였다"}, {"text": "한편"}])
    analyzer = live.cluster.request("GET", "/ko-sparse-a/_mapping")["ko-sparse-a"]["mappings"]["properties"]["text"]
    assert analyzer["analyzer"] == ("nori" if has_nori(live.version) else "cjk")
    for query in ("배상", "손해배상", "청구"):
        assert list(live.search("ko-sparse-a", {"match": {"text": query}})) == ["0"]
    # Two syllables that stand side by side are a word to cjk only.
    assert bool(live.search("ko-sparse-a", {"match": {"text": "해배"}})) != has_nori(live.version)


@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.2, 0.8)])
def test_a_hybrid_query_adds_the_normalised_scores_of_words_and_meaning(
    live: Live, run: Run, encoder: Setup, weights: tuple[float, float]
) -> None:
    run("setup", *encoder, *(() if weights == (0.5, 0.5) else ("--hybrid-weights", *map(str, weights))))
    live.index("ko-sparse-a", DOCUMENTS)
    sides = [{"match": {"text": "손해배상 청구"}}, neural("text_sparse", "손해배상 청구")]
    expected: dict[str, float] = {}
    for side, weight in zip(sides, weights, strict=True):
        scores = live.search("ko-sparse-a", side)
        low, high = min(scores.values()), max(scores.values())
        for number, score in scores.items():
            share = (score - low) / (high - low) if high > low else 1.0
            expected[number] = expected.get(number, 0) + max(share, 0.001) * weight  # the least that OpenSearch gives
    found = live.search("ko-sparse-a", {"hybrid": {"queries": sides}})
    assert found == pytest.approx(expected, abs=0.01)


def test_a_hybrid_query_by_ranks(live: Live, run: Run, encoder: Setup) -> None:
    run("setup", *encoder, "--hybrid", "rrf")
    live.index("ko-sparse-a", DOCUMENTS)
    sides = [{"match": {"text": "손해배상 청구"}}, neural("text_sparse", "손해배상 청구")]
    expected: dict[str, float] = {}
    for side in sides:
        for rank, number in enumerate(live.search("ko-sparse-a", side), 1):
            expected[number] = expected.get(number, 0) + 1 / (60 + rank)
    assert live.search("ko-sparse-a", {"hybrid": {"queries": sides}}) == pytest.approx(expected, abs=1e-4)


def test_one_model_for_both_sides(
    live: Live, run: Run, encoder: Setup, service: EncoderService, refused: Callable[[], None]
) -> None:
    if not live.is_3:
        refused()
        error = run("setup", *encoder, "--queries", "asymmetric", fails=True)
        assert "--queries asymmetric needs OpenSearch 3.6.0 or newer, this is 2.19.1" in error
        return
    run("setup", *encoder, "--queries", "asymmetric")
    live.index("ko-sparse-a", DOCUMENTS)
    assert_vectors(live.vectors("ko-sparse-a"), service.encode(SENTENCES))
    text = " ".join(SENTENCES[:6])  # longer than a query of the tiny model, shorter than a document
    (query,) = service.encode([text], input_type="query")
    expected = {str(n): score for n, v in enumerate(service.encode(SENTENCES)) if (score := dot(query, v)) > 0}
    assert live.search("ko-sparse-a", neural("text_sparse", text)) == pytest.approx(expected, rel=2**-8)
    run("check", *encoder)


@pytest.mark.parametrize("queries", ["service", "asymmetric", "tokenizer"])
def test_seismic(
    live: Live,
    run: Run,
    encoder: Setup,
    service: EncoderService,
    tiny_artifact: Path,
    queries: str,
    refused: Callable[[], None],
) -> None:
    options = (*encoder, "--engine", "seismic", "--queries", queries, "--artifact", str(tiny_artifact))
    if not live.is_3:
        refused()
        assert "needs OpenSearch 3." in run("setup", *options, fails=True)
        return
    run("setup", *options)
    live.index("ko-sparse-b", [DOCUMENTS[0], {"text": "ㆍㆍ"}, DOCUMENTS[1]])  # a text without a vector is no error
    assert [bool(vector) for vector in live.vectors("ko-sparse-b")] == [True, False, True]
    live.index("ko-sparse-a", DOCUMENTS)
    vectors = service.encode(SENTENCES, sparse_embedding_format="sparse_vector")
    assert_vectors(live.vectors("ko-sparse-a"), vectors)
    text = "손해배상 청구는 2024년에 손해와 가해자를"
    encoding = "inference_free" if queries == "tokenizer" else "model"
    fields = {"input_type": "query", "query_encoding": encoding, "sparse_embedding_format": "sparse_vector"}
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


@pytest.mark.parametrize(
    "options",
    [
        ("--field", "title", "text"),
        ("--chunks", "--html"),
        ("--queries", "tokenizer"),
        ("--engine", "seismic"),
    ],
    ids=["fields", "chunks", "tokenizer", "seismic"],
)
def test_explain_says_which_words_make_the_score_that_opensearch_gives(
    live: Live,
    run: Run,
    encoder: Setup,
    service: EncoderService,
    tiny_artifact: Path,
    options: tuple[str, ...],
    refused: Callable[[], None],
) -> None:
    if "seismic" in options and not live.is_3:
        refused()
        assert "needs OpenSearch 3." in run("setup", *encoder, *options, fails=True)
        return
    artifact = ("--artifact", str(tiny_artifact)) if "tokenizer" in options else ()
    run("setup", *encoder, *options, *artifact)
    long = " ".join(SENTENCES * 3) if "--chunks" in options else SENTENCES[1]
    live.index("ko-sparse-a", [{"title": "손해배상", "text": f"<p>{long}</p>" if "--html" in options else long}])
    field = ("--field", "text") if "title" in options else ()
    words = [word for word in service.encode([SENTENCES[1]])[0] if word.isalnum()][:5]  # own words find it, too
    query = " ".join([SENTENCES[1], *words])
    hit = ("--index", "ko-sparse-a", "--id", "0", "--query", query, *field)
    told = json.loads(run("explain", *encoder, *hit, "--json"))
    best = told["parts"][0]
    assert told["score"] == best["score"] == pytest.approx(sum(word["adds"] for word in best["words"]))
    assert told["score"] == pytest.approx(told["opensearch"], rel=1e-3), "OpenSearch computes another score"
    assert len(told["parts"]) == len(live.documents("ko-sparse-a")[0].get("text_chunks", [0]))
    assert "<p>" not in best["text"]
    around = ("[CLS]", "[SEP]")
    for text, side in ((query, "from_query"), (best["text"], "from_document")):
        assert all(piece in text or piece in around for word in best["words"] for piece in word[side])
    assert all(word["from_query"] and word["from_document"] for word in best["words"])
    table = run("explain", *encoder, *hit)
    assert f"score {told['score']:.4f}; by OpenSearch {told['opensearch']:.4f}" in table
    assert best["words"][0]["word"] in table


def test_explain_says_where_the_index_holds_something_else(live: Live, run: Run, encoder: Setup) -> None:
    run("setup", *encoder)
    live.index("ko-sparse-a", DOCUMENTS[:2])
    hit = ("--index", "ko-sparse-a", "--id", "0", "--query", SENTENCES[0])
    document = {**live.documents("ko-sparse-a")[0], "text": SENTENCES[7]}
    live.index("ko-sparse-a", [document], pipeline="_none")
    assert "the index holds another vector of text than the text has by tiny-v1" in run(
        "explain", *encoder, *hit, fails=True
    )
    for changed, message in (
        (("--id", "9"), "has no document '9'"),
        (("--index", "ko-sparse-none"), "there is no index ko-sparse-none"),
        (("--field", "title"), "which of the fields of ko-sparse-a that have vectors (text)?"),
        (("--name", "none"), "there are no pipelines of the set-up none"),
    ):
        assert message in run("explain", *encoder, *hit, *changed, fails=True)
