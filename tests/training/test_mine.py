"""Hard negatives: what may be one, and what must not."""

from __future__ import annotations

from training.config import MiningConfig
from training.pairs import PassagePair
from training.stages.mine import NONE, choose_negatives, overlap, shingles

PAIRS = [
    PassagePair("s", "보증금 반환", "임대인은 임차인에게 보증금을 모두 돌려주어야 한다"),
    PassagePair("s", "보증금 반환", "보증금은 계약이 끝나는 날에 반환한다"),  # another answer of the same query
    PassagePair("s", "임차권 등기", "임대인은 임차인에게 보증금을 모두 돌려주어야 한다."),  # repeats the first passage
    PassagePair("s", "차임 연체", "차임을 두 번 연체하면 임대인은 계약을 해지할 수 있다"),
    PassagePair("s", "수선 의무", "임대인은 목적물을 수선할 의무를 진다"),
]
NOTHING: dict[int, float] = {}


def choose(run: dict[int, float], **settings: float) -> tuple[int, dict[str, int]]:
    chosen, counts = choose_negatives(PAIRS[:5], [[run, *[NOTHING] * 4]], MiningConfig(**settings))  # type: ignore[arg-type]
    return chosen[0], dict(counts)


def test_answers_and_near_duplicates_are_passed_over() -> None:
    chosen, counts = choose({0: 9.0, 1: 8.0, 2: 7.0, 3: 6.0, 4: 5.0})
    assert chosen == 3
    assert counts["answers of the same query"] == 2
    assert counts["near duplicates of the answer"] == 1


def test_what_the_teacher_takes_for_an_answer_is_passed_over() -> None:
    run = {3: 6.0, 4: 5.0}
    teacher = {0: 0.9, 3: 0.88, 4: 0.5}
    chosen, counts = choose_negatives(
        PAIRS, [[run, *[NOTHING] * 4]], MiningConfig(), lambda query, passage: teacher[passage] if query == 0 else 1.0
    )
    assert chosen == [4, NONE, NONE, NONE, NONE]
    assert counts["perhaps answers, says the teacher"] == 1
    assert (counts["negatives"], counts["without a negative"]) == (1, 4)


def test_systems_take_turns_and_the_first_ranks_may_be_skipped() -> None:
    runs = [[{3: 1.0}, *[NOTHING] * 4], [{4: 9.0}, *[NOTHING] * 4]]
    assert choose_negatives(PAIRS, runs, MiningConfig())[0][0] == 3
    assert choose({3: 6.0, 4: 5.0}, skip=1)[0] == 4
    assert choose({3: 6.0, 4: 5.0}, skip=2)[0] == NONE


def test_overlap_sees_one_text_in_another() -> None:
    assert overlap(shingles("가나다라마"), shingles("가나다라마바사아")) == 1.0
    assert overlap(shingles("가나다라"), shingles("마바사아")) == 0.0
