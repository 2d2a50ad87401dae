"""The model that ships: the service serves it by default, and it does what the README says."""

from collections.abc import AsyncIterator

import httpx
import numpy as np
import pytest

from app.encoders.base import TokenBatch
from app.encoders.openvino_encoder import OpenVINOEncoder, has_bfloat16
from app.encoders.openvino_encoder import Precision as CpuPrecision
from app.main import create_app
from app.models.loaded import EMBEDDED, open_artifact
from app.opensearch.vectors import SAME
from app.settings import Settings
from sparse_encoder.artifact import read_manifest
from sparse_encoder.tokenizer import Tokenizer
from tests.tiny import dense
from training.empties import nouns
from training.spelling import SYLLABLES

pytestmark = pytest.mark.slow

MEGABYTE = 1_000_000


@pytest.fixture(params=["f32", "bf16", "int8"])
async def client(request: pytest.FixtureRequest) -> AsyncIterator[httpx.AsyncClient]:
    if request.param == "bf16" and not has_bfloat16():
        pytest.skip("this CPU has no bf16 instructions")
    app = create_app(Settings(precision=request.param, encoder_threads=1, max_batch_tokens=1024))
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            yield client


async def encode(client: httpx.AsyncClient, *texts: str, **options: object) -> list[dict[str, float]]:
    response = await client.post("/encode", json={"texts": texts, **options})
    assert response.status_code == 200, response.text
    vectors: list[dict[str, float]] = response.json()
    return vectors


async def test_own_words_stay_and_related_words_come(client: httpx.AsyncClient) -> None:
    damages, diabetes, lease = await encode(
        client, "손해배상", "당뇨병 치료 방법", "부동산 임대차 계약 해지", input_type="query"
    )
    assert {"손해배상", "손해", "배상"} < set(list(damages)[:5])
    assert {"책임", "과실", "피해자"} & set(damages)
    assert {"당뇨병", "치료", "방법"} < set(list(diabetes)[:6])
    assert {"질병", "환자"} & set(diabetes)
    assert {"부동산", "임대차", "계약", "해지"} < set(list(lease)[:6])
    assert {"임차", "임대", "계약서", "임차인", "세입자"} & set(lease)


WHOLE = ("치매", "만두", "소파", "면도기", "이란", "변비", "비트코인", "스마트폰", "gpt", "ai", "cctv", "고혈압")


async def test_everyday_words_stay_whole(client: httpx.AsyncClient) -> None:
    vectors = await encode(client, *WHOLE, input_type="query")
    # A compound may bring up a part of itself as well: 스마트 beside 스마트폰.
    assert [word for word, vector in zip(WHOLE, vectors, strict=True) if word not in list(vector)[:2]] == []


async def test_particles_endings_and_punctuation_are_not_emitted(client: httpx.AsyncClient) -> None:
    (vector,) = await encode(client, "집주인이 보증금을 돌려주지 않으면, 세입자는 법원에서 도움을 받을 수 있나요?")
    assert {"보증", "보증금"} & set(vector)
    assert "법원" in vector
    noise = {"이", "을", "를", "은", "는", "에서", "으면", "나요", "요", "지", "수", ",", "?", "[CLS]", "[SEP]"}
    assert not noise & set(vector)
    assert not [token for token in vector if token.startswith("##") and not token.isascii()]  # nouns come out bare


async def test_a_text_has_the_same_vector_alone_and_among_others(client: httpx.AsyncClient) -> None:
    precision = (await client.get("/info")).json()["device"].split()[1]
    texts = ["손해배상", "환율이 오르면 수입 물가가 오른다. " * 20, "김치 담그는 법", "AI"]
    together = await encode(client, *texts, top_k=10_000)
    for text, vector in zip(texts, together, strict=True):
        (alone,) = await encode(client, text, top_k=10_000)
        tokens = sorted(alone.keys() | vector.keys())
        np.testing.assert_allclose(
            [alone.get(token, 0) for token in tokens],
            [vector.get(token, 0) for token in tokens],
            atol=1e-4 if precision == "f32" else 0.1,
        )


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_a_single_short_text_has_the_vector_of_its_batch(precision: CpuPrecision) -> None:
    """Else a document would not have the vector that it is indexed with, by who encodes it anew."""
    if precision == "bf16" and not has_bfloat16():
        pytest.skip("this CPU has no bf16 instructions")
    artifact = open_artifact(None)
    exact, encoder = OpenVINOEncoder(artifact, "f32"), OpenVINOEncoder(artifact, precision)
    encoder.specialise()
    assert encoder._short_request
    graphs = [request.get_compiled_model() for request in (encoder._request, encoder._short_request)]
    for hint in ("INFERENCE_PRECISION_HINT", "DYNAMIC_QUANTIZATION_GROUP_SIZE"):
        assert graphs[0].get_property(hint) == graphs[1].get_property(hint)
    tokenizer = Tokenizer.from_file(EMBEDDED / "tokenizer.json")
    for text in tokenizer.encode_batch([*WHOLE, "부동산 임대차 계약 해지"], 16):
        alone, beside = TokenBatch.pad([text.ids], tokenizer.pad_id), TokenBatch.pad([text.ids] * 2, tokenizer.pad_id)
        size = artifact.manifest.vocabulary_size
        expected, short, whole = (
            dense(vector, size)
            for vector in (exact.encode(alone)[0], encoder.encode(alone)[0], encoder.encode(beside)[0])
        )
        for found in (short, whole):
            assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < encoder.rounding / 3
        assert np.abs(short - whole).sum() < SAME / 2 * whole.sum()


def test_it_is_small_and_carries_its_figures() -> None:
    sizes = [file.stat().st_size for file in EMBEDDED.iterdir()]
    assert max(sizes) <= 45 * MEGABYTE
    assert sum(sizes) <= 90 * MEGABYTE
    manifest = read_manifest(EMBEDDED)
    assert set(manifest.evaluation["retrieval"]) >= {"wiki_alias", "law_definitions", "tax_rulings", "law_prec"}
    assert manifest.version in (EMBEDDED / "README.md").read_text(encoding="utf-8")


ODD = ("ㅋㅋ", "뷁", "쌻이", "❤️손해배상", "Café", "résumé", "Привет", "있다", "하다", "C++", "3·1절", "5G", "日本", "1")


def test_of_all_syllables_one_is_unknown() -> None:
    """It stands in a piece, 이릏, and is none itself."""
    tokenizer = Tokenizer.from_file(EMBEDDED / "tokenizer.json")
    syllables = list(map(chr, SYLLABLES))
    tokenised = tokenizer.encode_batch(syllables, 64)
    assert [text for text, found in zip(syllables, tokenised, strict=True) if not found.content_tokens] == ["릏"]


async def test_no_text_with_a_letter_or_a_digit_is_empty(client: httpx.AsyncClient) -> None:
    """What is no word, or not Korean, and some of the syllables and nouns that `training evaluate` counts all of."""
    texts = [*ODD, *map(chr, SYLLABLES[::97]), *filter(str.isalnum, nouns()[::397])]
    assert len(texts) > 80
    for input_type in ("document", "query"):
        vectors = await encode(client, *texts, input_type=input_type)
        assert [text for text, vector in zip(texts, vectors, strict=True) if not vector] == []
