from __future__ import annotations

from dataclasses import dataclass

from app.engine.batching import QUERY_BATCHES_IN_A_ROW, BatchQueue


@dataclass(eq=False)
class Text:
    tokens: int
    is_query: bool = False
    abandoned: bool = False
    model: str = "served"


def queue(*tokens: int, budget: int = 100) -> BatchQueue[Text]:
    made: BatchQueue[Text] = BatchQueue(budget)
    made.extend(Text(n) for n in tokens)
    return made


def drain(waiting: BatchQueue[Text]) -> list[list[int]]:
    batches = []
    while batch := waiting.next_batch():
        batches.append([text.tokens for text in batch])
    return batches


def test_nothing_waits_nothing_comes() -> None:
    assert queue().next_batch() == []


def test_padding_counts_against_the_budget() -> None:
    # 30 + 30 + 40 are 100 tokens, but three rows padded to 40 are 120.
    assert drain(queue(30, 30, 40)) == [[30, 30], [40]]


def test_texts_of_near_equal_length_go_together() -> None:
    assert drain(queue(5, 50, 6, 50, 5)) == [[5, 6, 5], [50, 50]]


def test_a_long_text_does_not_ride_with_short_ones_though_the_budget_has_room() -> None:
    assert drain(queue(5, 50, budget=1000)) == [[5], [50]]


def test_the_oldest_text_leads_so_that_odd_lengths_never_starve() -> None:
    waiting = queue(90, *[10] * 50)
    assert waiting.next_batch()[0].tokens == 90


def test_queries_go_ahead_of_documents_and_never_with_them() -> None:
    waiting = queue(10, 10)
    waiting.extend([Text(11, is_query=True)])
    assert drain(waiting) == [[11], [10, 10]]


def test_documents_get_their_turn_however_many_queries_come() -> None:
    waiting = queue(10)
    batches = []
    for _ in range(QUERY_BATCHES_IN_A_ROW + 2):
        waiting.extend([Text(3, is_query=True)])
        batches += [text.is_query for text in waiting.next_batch()]
    assert batches.count(False) == 1
    assert batches.index(False) == QUERY_BATCHES_IN_A_ROW


def test_queries_alone_need_not_take_turns() -> None:
    waiting: BatchQueue[Text] = BatchQueue(10)
    waiting.extend(Text(10, is_query=True) for _ in range(QUERY_BATCHES_IN_A_ROW + 3))
    assert drain(waiting) == [[10]] * (QUERY_BATCHES_IN_A_ROW + 3)


def test_abandoned_texts_never_reach_the_encoder() -> None:
    waiting = queue()
    texts = [Text(10), Text(10), Text(10)]
    waiting.extend(texts)
    texts[0].abandoned = texts[2].abandoned = True
    assert waiting.next_batch() == [texts[1]]
    assert len(waiting) == 0


def test_texts_of_two_models_never_share_a_batch_and_none_starves() -> None:
    waiting = queue()
    texts = [Text(10, model=name) for name in "abaab"]
    waiting.extend(texts)
    assert waiting.next_batch() == [texts[0], texts[2], texts[3]]
    waiting.extend(Text(10, model="a") for _ in range(50))
    assert waiting.next_batch() == [texts[1], texts[4]]


def test_a_text_longer_than_the_budget_goes_alone_and_never_waits_for_ever() -> None:
    assert drain(queue(101, 101, 5, budget=100)) == [[101], [101], [5]]


def test_every_text_comes_out_once() -> None:
    lengths = [(7 * n) % 97 + 1 for n in range(2000)]
    batches = drain(queue(*lengths))
    assert sorted(tokens for batch in batches for tokens in batch) == sorted(lengths)
    assert all(max(batch) * len(batch) <= 100 for batch in batches)
