"""A real but tiny model: BERT shape, random weights, Korean WordPiece. Real in every way but in what it knows."""

from __future__ import annotations

import string
from pathlib import Path

import numpy as np
import tokenizers
import torch
from tokenizers.models import WordPiece
from tokenizers.normalizers import NFC, BertNormalizer
from tokenizers.normalizers import Sequence as NormalizerSequence
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertForMaskedLM, PreTrainedModel, PreTrainedTokenizerFast

from sparse_encoder.architectures import Architecture
from sparse_encoder.artifact import Description, GoldenVector, InputType, TrainingOrigin, write_artifact, write_golden
from sparse_encoder.packed import dequantise, quantise
from sparse_encoder.query_tokens import NEVER, QueryTokens
from sparse_encoder.tokenizer import Tokenizer
from sparse_encoder.vector import SparseVector

MAX_LENGTH: dict[InputType, int] = {"document": 64, "query": 32}  # tokens
ACTIVE_TOKENS = 40  # on average over SENTENCES, by the choice of the decoder bias
CLOSED = -1e4  # decoder bias of what is never emitted
SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
# Longest first, so that "에서는" is not taken for "는".
PARTICLES = [
    "에서는",
    "으로는",
    "에게는",
    "에서",
    "으로",
    "에게",
    "까지",
    "부터",
    "보다",
    "처럼",
    "하고",
    "이나",
    "마다",
]
PARTICLES += ["은", "는", "이", "가", "을", "를", "의", "에", "로", "와", "과", "도", "만", "나"]
SENTENCES = [
    "당뇨병 치료 방법은 식사 조절과 꾸준한 운동에서 시작한다.",
    "부동산 임대차 계약 해지는 서면으로 알리는 것이 안전하다.",
    "손해배상 청구는 손해와 가해자를 안 날부터 삼 년까지 할 수 있다.",
    "인공지능 연구자는 언어 모델의 학습 비용을 줄이려고 한다.",
    "서울의 지하철 노선도에서 환승역을 찾는 방법을 설명한다.",
    "고혈압 환자에게 나트륨이 적은 식단이 도움이 된다.",
    "법원은 임차인의 보증금 반환 청구를 받아들였다.",
    "검색 엔진은 질의와 문서의 단어를 비교하여 순위를 정한다.",
    "태풍이 남해안에 상륙하면서 항공편이 모두 취소되었다.",
    "감기 증상에는 물을 자주 마시고 충분히 쉬는 것이 좋다.",
    "중소기업의 수출 지원 사업은 매년 봄에 신청을 받는다.",
    "도서관에서 빌린 책은 두 주 안에 반납해야 한다.",
    "김치찌개에는 잘 익은 김치와 돼지고기를 넣고 끓인다.",
    "이 영화는 배우의 연기가 훌륭하지만 줄거리가 지루하다.",
    "전기차 배터리의 수명은 충전 습관에 따라 크게 달라진다.",
    "초등학교 앞에서는 자동차의 속도를 시속 삼십 킬로미터로 제한한다.",
    "반도체 공장에서 불량률을 낮추는 검사 장비를 개발했다.",
    "국민연금 수령 나이는 태어난 해에 따라 다르다.",
    "여름 휴가에 제주도로 가는 비행기 표가 벌써 매진되었다.",
    "근로자는 퇴직금을 퇴직한 날부터 십사 일 안에 받을 수 있다.",
    "아이의 독서 습관은 부모와 함께 읽는 시간에서 자란다.",
    "환율이 오르면 수입 물가와 소비자 물가도 함께 오른다.",
    "산불 예방을 위하여 봄철 입산을 통제한다.",
    "데이터베이스 색인은 조회 속도를 높이지만 저장 공간을 쓴다.",
    "의사는 수술보다 약물 치료를 먼저 권하였다.",
    "축구 국가대표 선수단이 어젯밤 공항으로 돌아왔다.",
    "소득세 신고는 오월 말까지 인터넷으로 마칠 수 있다.",
    "강아지 예방 접종은 생후 여섯 주부터 시작한다.",
    "한글은 세종대왕이 만든 소리글자이다.",
    "OpenSearch 3.6 cluster의 index 설정을 바꾸면 검색이 빨라진다.",
]
GOLDEN_TEXTS: list[tuple[str, InputType]] = [
    ("손해배상", "query"),
    ("당뇨병 치료 방법", "query"),
    ("부동산 임대차 계약 해지", "query"),
    ("인공지능", "document"),
    (SENTENCES[1], "document"),
    (" ".join(SENTENCES[:3]), "document"),
    (" ".join(SENTENCES), "query"),
    ("OpenSearch cluster 설정", "document"),
]


def build_tokenizer() -> tokenizers.Tokenizer:
    """A WordPiece tokenizer of about 1,000 tokens that splits a word of SENTENCES into its stem and its particle."""
    words = [word.strip(".").lower() for sentence in SENTENCES for word in sentence.split()]
    stems = [next((w.removesuffix(p) for p in PARTICLES if w.endswith(p) and len(w) > len(p) + 1), w) for w in words]
    syllables = sorted(set("".join(words)) - set(string.printable))
    tokens = [*SPECIAL_TOKENS, *string.punctuation, *string.digits, *string.ascii_lowercase, *syllables, *stems]
    tokens += [f"##{piece}" for piece in (*string.digits, *string.ascii_lowercase, *syllables, *PARTICLES)]
    vocabulary = {token: id_ for id_, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = tokenizers.Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = NormalizerSequence([NFC(), BertNormalizer(lowercase=True, strip_accents=False)])
    tokenizer.pre_tokenizer = BertPreTokenizer()
    specials = [(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", specials)
    tokenizer.decoder = tokenizers.decoders.WordPiece()
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    return tokenizer


def never_emitted_ids(vocabulary: tuple[str, ...]) -> tuple[int, ...]:
    """Special tokens, punctuation and particles."""
    closed = {*SPECIAL_TOKENS, *string.punctuation, *(f"##{particle}" for particle in PARTICLES)}
    return tuple(id_ for id_, token in enumerate(vocabulary) if token in closed)


def build_query_tokens(vocabulary: tuple[str, ...]) -> QueryTokens:
    """`##x` is emitted as `x` where there is one, and what is never emitted not at all; weights differ by token."""
    ids = {token: token_id for token_id, token in enumerate(vocabulary)}
    closed = set(never_emitted_ids(vocabulary))
    emitted_as = [
        NEVER if token_id in closed else ids.get(token.removeprefix("##"), token_id)
        for token_id, token in enumerate(vocabulary)
    ]
    weights = np.zeros(len(vocabulary), np.float32)
    targets = sorted(set(emitted_as) - {NEVER})
    weights[targets] = 1 + np.arange(len(targets)) % 50 / 10
    return QueryTokens(False, np.array(emitted_as, np.int32), weights)


def build_model(tokenizer: Tokenizer, seed: int = 20, bias_shift: float = 0.0) -> BertForMaskedLM:
    """Random weights whose matrices are exactly int8 x scale, as in a published model.

    Another `bias_shift` changes every weight of a vector and hardly the order; another `seed` is another model.
    """
    config = BertConfig(
        vocab_size=len(tokenizer.vocabulary),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=MAX_LENGTH["document"],
        initializer_range=0.15,  # so large that different texts get clearly different vectors
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = BertForMaskedLM(config)
        model.eval()
        head = model.cls.predictions
        never = list(never_emitted_ids(tuple(tokenizer.vocabulary)))
        head.decoder.weight[never] = 0.0
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.copy_(torch.from_numpy(dequantise(*quantise(parameter.numpy()))))
        highest = torch.stack([highest_logits(model, tokenizer, text, "document") for text in SENTENCES])
        threshold = highest.flatten().sort(descending=True).values[ACTIVE_TOKENS * len(SENTENCES)]
        for bias in (head.bias, head.decoder.bias):  # the second is used; transformers stores both
            bias.fill_(bias_shift - threshold)
            bias[never] = CLOSED
    return model


@torch.no_grad()
def highest_logits(model: PreTrainedModel, tokenizer: Tokenizer, text: str, input_type: InputType) -> torch.Tensor:
    """Each token's highest logit over the positions of one text: [vocabulary]."""
    ids = tokenizer.encode_batch([text], MAX_LENGTH[input_type])[0].ids
    logits: torch.Tensor = model(input_ids=torch.tensor([ids])).logits
    return logits[0].amax(dim=0)


def reference_vector(model: PreTrainedModel, tokenizer: Tokenizer, text: str, input_type: InputType) -> SparseVector:
    """The definition of a vector, written out for one text without padding."""
    return SparseVector.from_dense(highest_logits(model, tokenizer, text, input_type).relu().log1p().numpy())


def publish(target: Path, version: str = "tiny-v1", *, seed: int = 20, bias_shift: float = 0.0) -> Path:
    """Writes the tiny artifact at `target`; see `build_model`."""
    return write(target, build_model(Tokenizer(build_tokenizer()), seed, bias_shift), version)


def write(target: Path, model: PreTrainedModel, version: str, architecture: Architecture = "BertForMaskedLM") -> Path:
    """Writes `model` of the tiny vocabulary as an artifact at `target`."""
    backend = build_tokenizer()
    tokenizer = Tokenizer(backend)

    def fill(directory: Path) -> None:
        model.save_pretrained(directory)
        names = {f"{token.strip('[]').lower()}_token": token for token in SPECIAL_TOKENS}
        PreTrainedTokenizerFast(
            tokenizer_object=backend, model_max_length=MAX_LENGTH["document"], **names
        ).save_pretrained(directory)
        (directory / "README.md").write_text("# A tiny random model, for tests\n", encoding="utf-8")
        write_golden(directory / "golden.jsonl", (golden(text, input_type) for text, input_type in GOLDEN_TEXTS))
        build_query_tokens(tuple(tokenizer.vocabulary)).write(directory)

    def golden(text: str, input_type: InputType) -> GoldenVector:
        vector = reference_vector(model, tokenizer, text, input_type)
        return GoldenVector(text, input_type, tuple(vector.ids.tolist()), tuple(vector.weights.tolist()))

    def describe(_: Path) -> Description:
        return Description(
            version=version,
            architecture=architecture,
            activation="log1p_relu",
            max_length_document=MAX_LENGTH["document"],
            max_length_query=MAX_LENGTH["query"],
            vocabulary_size=len(tokenizer.vocabulary),
            never_emitted_ids=never_emitted_ids(tuple(tokenizer.vocabulary)),
            golden_tolerance=1e-4,
            evaluation={},
            training=TrainingOrigin(commit="none", command="none", base="none", data_origin=("random weights",)),
        )

    return write_artifact(target, fill, describe)


def dense(vector: SparseVector, size: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """`vector` as a row of `size` weights."""
    row = np.zeros(size, dtype=np.float32)
    row[vector.ids] = vector.weights
    return row
