"""The table of related words: what a corpus says, what is left out of it, and what becomes of several sources."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

from training.config import Config, RelatedConfig, load_config
from training.corpora import Unseen, unseen_texts
from training.pairs import TermPair
from training.related.alone import words_by_table
from training.related.cooccurrence import Cooccurrence, cooccurrence
from training.related.matrix import term_matrix
from training.related.table import (
    Source,
    combine,
    knowledge,
    neighbour_weights,
    scaled,
    strongest,
    target_weights,
)
from training.related.terms import term_relations
from training.vocabulary import NEVER, SPECIAL_TOKENS, Roles, build_tokenizer
from training.words.cong import Morpheme
from training.words.tables import WordTables

WORDS = ["당뇨", "인슐린", "혈당", "전세", "보증금", "임대", "사람", "오늘"]
PIECES = [*SPECIAL_TOKENS, *WORDS, "##은", "##금"]
ID = {piece: i for i, piece in enumerate(PIECES)}
SIZE = len(PIECES)
ROLES = Roles([NEVER] * 5 + [ID[word] for word in WORDS] + [NEVER, ID["보증금"]])
DIABETES = ["당뇨은 인슐린 혈당 사람", "당뇨 인슐린 임대 오늘", "당뇨 혈당 인슐린", "당뇨 사람 혈당", "당뇨 인슐린"]
RENT = ["전세 보증금 임대", "전세 보증금 사람", "전세금 임대 오늘", "전세 임대 보증금", "전세 사람 오늘"]
OTHERS = ["사람 오늘", "오늘 사람", "사람", "오늘"] * 3


@pytest.fixture(scope="module")
def counts() -> sp.csr_matrix:
    shares = np.ones(SIZE, np.float32)
    shares[ID["##금"]] = 0.25
    return term_matrix([*DIABETES, *RENT, *OTHERS], build_tokenizer(PIECES), ROLES, shares, "test")


@pytest.fixture(scope="module")
def found(counts: sp.csr_matrix) -> Cooccurrence:
    return cooccurrence(counts, 40, "test")


def row(matrix: sp.csr_matrix, word: str) -> dict[str, float]:
    line = sp.csr_matrix(matrix[[ID[word]]])
    order = np.argsort(-line.data, kind="stable")
    return {PIECES[line.indices[i]]: float(line.data[i]) for i in order}


def matrix(rows: dict[str, dict[str, float]]) -> sp.csr_matrix:
    out = sp.lil_matrix((SIZE, SIZE), dtype=np.float32)
    for word, others in rows.items():
        for other, weight in others.items():
            out[ID[word], ID[other]] = weight
    return sp.csr_matrix(out)


def test_a_text_is_counted_by_what_its_pieces_are_emitted_as(counts: sp.csr_matrix) -> None:
    assert counts.shape == (22, SIZE)
    assert row(counts[[7] * SIZE], "당뇨") == {"전세": 1.0, "임대": 1.0, "오늘": 1.0, "보증금": 0.25}


def test_the_words_of_a_words_best_passages_belong_to_it(found: Cooccurrence) -> None:
    feedback = row(found.feedback, "당뇨")
    assert list(feedback)[:2] == ["인슐린", "혈당"]
    assert next(iter(feedback.values())) == 1.0
    assert not {"당뇨", "임대"} & set(feedback)  # itself, and what one passage only holds
    assert set(row(found.feedback, "전세")) >= {"보증금", "임대"}
    assert "인슐린" not in row(found.feedback, "전세")
    assert found.frequency[ID["당뇨"]] == 5
    assert found.texts == 22


def test_words_that_are_together_more_than_by_chance_are_associated(found: Cooccurrence) -> None:
    association = row(found.association, "당뇨")
    assert next(iter(association)) == "인슐린"
    assert association.get("사람", 0.0) < 0.5  # which is everywhere
    assert row(found.association, "인슐린")["당뇨"] == 1.0


def test_a_word_of_few_texts_has_no_row(counts: sp.csr_matrix) -> None:
    found = cooccurrence(sp.csr_matrix(counts[:3]), 40, "test")
    assert found.feedback.nnz == found.association.nnz == 0
    assert cooccurrence(sp.csr_matrix(counts[:0]), 40, "test").texts == 0


def test_what_a_corpus_gave_is_kept(found: Cooccurrence, tmp_path: Path) -> None:
    found.save(tmp_path)
    kept = Cooccurrence.load(tmp_path)
    assert (kept.feedback.toarray() == found.feedback.toarray()).all()
    assert (kept.association.toarray() == found.association.toarray()).all()
    assert kept.frequency.tolist() == found.frequency.tolist()
    assert kept.texts == found.texts


def corpus(frequency: Sequence[int], texts: int) -> Cooccurrence:
    nothing = sp.csr_matrix(np.zeros((2, 2), np.float32))
    return Cooccurrence(nothing, nothing, np.array(frequency), texts)


def test_a_corpus_knows_what_it_often_holds_and_what_is_its_subject() -> None:
    first = corpus([90, 10], 100)
    assert knowledge(first, first, 10.0).tolist() == pytest.approx([0.9, 0.5])
    other = knowledge(corpus([90, 90], 100), first, 10.0)
    assert other.tolist() == pytest.approx([0.9 * 0.75, 0.9])  # the first is as frequent in general


def test_hubs_and_vectors_that_were_not_learned_count_little_as_neighbours() -> None:
    cosines = sp.lil_matrix((300, 300), dtype=np.float32)
    cosines[2:90, 0] = 0.7  # a hub
    cosines[2, 1], cosines[2, 3] = 0.7, 0.55
    cosines[3, 1] = 0.9  # too near
    cosines[4:299, 5] = 0.8  # near to everything
    weights = neighbour_weights(sp.csr_matrix(cosines))
    assert weights[[2]].toarray()[0, :4].tolist() == pytest.approx([(40 / 88) ** 0.7, 1.0, 0.0, 0.25], rel=1e-3)
    assert weights[[3]].nnz == 0
    assert weights[:, [5]].nnz == 0


def general(**tags: str) -> dict[str, Morpheme]:
    return {form: Morpheme(form, tag, tag, 1) for form, tag in tags.items()}


def test_nouns_are_worth_most_as_related_words() -> None:
    pieces = ["전세", "##전세", "끓이", "것이", "병", "개", "12", "gpt", "a", "국가", "я"]
    roles = Roles([0, 0, 2, 3, 4, 5, 6, 7, 8, NEVER, 10])
    tags = general(전세="NNG", 끓이="VV", 것이="NNB", 병="NNG", 개="NNG", 국가="NNG")
    shares = np.array([1, 1, 1, 1, 0.9, 0.2, 1, 1, 1, 1, 1], np.float32)
    worth = target_weights(pieces, roles, tags, shares).tolist()
    assert worth == pytest.approx([1.0, 0.0, 0.35, 0.3, 0.75, 0.1, 0.1, 0.6, 0.1, 0.0, 0.25])


def plain_tables(parts: dict[str, str] | None = None) -> WordTables:
    token = np.full((SIZE, 2), NEVER, np.int32)
    for word, part in (parts or {}).items():
        token[ID[word], 0] = ID[part]
    return WordTables(np.ones((SIZE, 3), np.float32), token)


def table(sources: Sequence[Source], *, tables: WordTables | None = None, **settings: Any) -> sp.csr_matrix:
    ones = np.ones(SIZE, np.float32)
    return combine(sources, RelatedConfig(agreement=0.5, **settings), ones, tables or plain_tables())


def source(name: str, rows: dict[str, dict[str, float]], weight: float = 1.0) -> Source:
    named = matrix(rows)
    return Source(name, sp.csr_matrix(named * np.float32(weight)), named)


def test_sources_that_agree_weigh_more() -> None:
    one = source("one", {"당뇨": {"인슐린": 0.6, "혈당": 0.9}})
    other = source("other", {"당뇨": {"인슐린": 0.4}}, weight=0.0)  # of no weight: it agrees only
    assert row(table([one]), "당뇨") == pytest.approx({"혈당": 1.0, "인슐린": 2 / 3})
    assert row(table([one, other]), "당뇨") == pytest.approx({"혈당": 1.0, "인슐린": 0.6 * 1.5 / 0.9})
    same = source("one", {"당뇨": {"인슐린": 0.4}}, weight=0.0)  # another way of looking at the same texts
    assert row(table([one, same]), "당뇨") == pytest.approx({"혈당": 1.0, "인슐린": 2 / 3})


def test_a_row_holds_its_strongest_words_and_neither_itself_nor_its_parts() -> None:
    rows = {"당뇨": {"당뇨": 3.0, "인슐린": 1.0, "혈당": 0.5, "전세": 0.3, "오늘": 0.09, "보증금": 2.0}}
    made = table([source("one", rows)], words=2, tables=plain_tables({"당뇨": "보증금"}))
    assert row(made, "당뇨") == pytest.approx({"인슐린": 1.0, "혈당": 0.5})
    assert row(table([source("one", rows)]), "당뇨")["보증금"] == 1.0
    assert "오늘" not in row(table([source("one", rows)]), "당뇨")  # below a tenth of the first


def test_a_word_is_named_by_those_that_it_names() -> None:
    rows = source("one", {"당뇨": {"인슐린": 2.0}, "인슐린": {"혈당": 1.0}, "혈당": {"오늘": 1.0, "인슐린": 0.5}})
    made = table([rows], mutual=0.4)
    assert row(made, "인슐린") == pytest.approx({"혈당": 1.0, "당뇨": 0.4 / 1.2})  # and 혈당 names it by a half
    assert row(table([rows]), "인슐린") == {"혈당": 1.0}


def test_a_compound_names_what_its_parts_name() -> None:
    rows = source("one", {"보증금": {"임대": 1.0}, "전세": {"사람": 0.8, "오늘": 0.4, "보증금": 0.2}})
    made = table([rows], tables=plain_tables({"보증금": "전세"}), inherited=0.5)
    assert row(made, "보증금") == pytest.approx({"임대": 1.0, "사람": 0.4, "오늘": 0.2})


def test_synonyms_of_term_lists_are_named_by_their_words() -> None:
    pairs = [
        TermPair("synonym", "전세", "임대"),
        TermPair("translation", "혈당 인슐린", "당뇨"),
        TermPair("related", "오늘", "사람"),  # the corpora know better
        TermPair("synonym", "당뇨 전세 오늘", "보증금"),  # its words say too little
        TermPair("synonym", "전세", "전세 보증금"),  # no one word
    ]
    made = term_relations(pairs, build_tokenizer(PIECES), ROLES)
    assert {word: row(made, word) for word in WORDS if row(made, word)} == {
        "전세": {"임대": 1.0},
        "임대": {"전세": 1.0},
        "혈당": {"당뇨": pytest.approx(0.35)},
        "인슐린": {"당뇨": pytest.approx(0.35)},
    }


def test_rows_are_cut_and_scaled_alike_whatever_their_length() -> None:
    some = sp.csr_matrix(np.array([[0, 4, 2], [0, 0, 0], [1, 1, 1]], np.float32))
    assert scaled(some).toarray().tolist() == [[0, 1, 0.5], [0, 0, 0], [1, 1, 1]]
    assert strongest(some, 2, 0.0).toarray().tolist() == [[0, 4, 2], [0, 0, 0], [1, 1, 0]]


def test_the_table_alone_makes_own_words_then_parts_then_related_ones_of_a_text() -> None:
    weights = np.ones(SIZE, np.float32)
    weights[ID["당뇨"]] = 2.0
    made = matrix({"당뇨": {"인슐린": 1.0, "혈당": 0.4}, "전세": {"혈당": 0.9, "임대": 0.7, "당뇨": 0.9}})
    tables = plain_tables({"전세": "임대"})
    ids = [ID[word] for word in ("전세", "##은", "당뇨")]
    found = words_by_table(ids, ROLES, tables, made, weights)
    assert [PIECES[i] for i in found] == ["전세", "당뇨", "임대", "인슐린", "혈당"]
    last = Roles(ROLES.emitted_as, [*ROLES.emitted_as[:-2], ID["오늘"], NEVER])
    assert words_by_table([ID["##은"]], last, tables, made, weights) == [ID["오늘"]]


CORPUS = """
name = "x"
[[data.corpora]]
name = "a"
path = "a.jsonl"
fields = ["t", "x"]
[[data.corpora]]
name = "a"
path = "b.txt"
every = 2
[[data.retrieval_sets]]
name = "set"
"""
SEEN = "임대차 계약이 끝나면 집주인은 세입자에게 보증금을 돌려주어야 하고 세입자는 집을 비워 주어야 한다"
ASKED = "회사가 정당한 이유 없이 직원을 해고하면 직원은 노동위원회에 구제를 신청할 수 있고 임금도 청구할 수 있다"


def config_of(tmp_path: Path) -> Config:
    (tmp_path / "retrieval").mkdir()
    (tmp_path / "retrieval" / "set.corpus.jsonl").write_text(f'{{"_id": "1", "text": "{ASKED}"}}', encoding="utf-8")
    (tmp_path / "retrieval" / "set.queries.jsonl").write_text('{"query": "해고", "pos": ["1"]}', encoding="utf-8")
    texts = (SEEN, f"그리고 {ASKED} 그렇다", "남는 글", SEEN[:30])
    rows = "\n".join(f'{{"t": "제목{i}", "x": "{text}"}}' for i, text in enumerate(texts))
    (tmp_path / "a.jsonl").write_text(rows, encoding="utf-8")
    (tmp_path / "b.txt").write_text("하나\n둘\n셋\n", encoding="utf-8")
    (tmp_path / "recipe.toml").write_text(CORPUS, encoding="utf-8")
    return load_config(tmp_path / "recipe.toml", data_root=tmp_path)


def test_neither_evaluation_nor_training_passages_are_in_a_corpus(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    counts: Counter[str] = Counter()
    texts = list(unseen_texts(config, "a", Unseen(config, [SEEN]), counts))
    assert texts == ["제목2 . 남는 글", f"제목3 . {SEEN[:30]}", "하나", "셋"]
    assert counts == {"kept": 4, "training passage": 1, "evaluation passage": 1}
