from __future__ import annotations

from dataclasses import dataclass

import pytest

from app.engine.batching import (
    DOCUMENT_BATCHES_AFTER_A_QUERY,
    LEAST_AMONG_QUERIES,
    QUERY_BATCHES_IN_A_ROW,
    WINDOW,
    BatchQueue,
)


@dataclass(eq=False)
class Text:
    tokens: int
    is_query: bool = False
    client: str = "one"
    weight: float = 1.0
    model: str = "served"

    @property
    def work(self) -> int:
        return self.tokens


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
    waiting.remove([texts[0], texts[2]])
    waiting.remove([texts[0], Text(10)])  # not there (any more)
    assert (len(waiting), waiting.tokens, waiting.work) == (1, 10, 10)
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


def of(client: str, *tokens: int, is_query: bool = False) -> list[Text]:
    return [Text(n, is_query, client) for n in tokens]


@pytest.mark.parametrize("is_query", [True, False])
def test_a_client_that_comes_does_not_wait_behind_all_that_another_has_waiting(is_query: bool) -> None:
    waiting: BatchQueue[Text] = BatchQueue(100)
    waiting.extend(of("many", *[10] * 4000, is_query=is_query))
    waiting.next_batch()
    waiting.extend(of("few", 10, 10, is_query=is_query))
    batch = waiting.next_batch()
    assert [text.client for text in batch].count("few") == 2
    assert len(batch) == 10  # what it leaves of the batch is for others


def test_waiting_clients_get_the_same_number_of_tokens_not_of_texts() -> None:
    waiting: BatchQueue[Text] = BatchQueue(100)
    waiting.extend(of("long", *[100] * 100))
    waiting.extend(of("short", *[5] * 2000))
    waiting.extend(of("middle", *[20] * 500))
    given = {"long": 0, "short": 0, "middle": 0}
    for _ in range(60):
        for text in waiting.next_batch():
            given[text.client] += text.tokens
    assert sum(given.values()) == 6000
    assert all(1900 <= tokens <= 2100 for tokens in given.values())


def test_a_client_whose_texts_were_all_taken_pays_for_them_when_it_comes_back_at_once() -> None:
    waiting: BatchQueue[Text] = BatchQueue(100)
    waiting.extend(of("patient", *[10] * 1000))
    waiting.next_batch()
    given = {"patient": 0, "eager": 0}
    for _ in range(40):
        waiting.extend(of("eager", *[10] * 10))
        for text in waiting.next_batch():
            given[text.client] += text.tokens
    assert given["patient"] >= 1900


def test_a_client_of_more_weight_gets_so_many_times_the_tokens() -> None:
    waiting: BatchQueue[Text] = BatchQueue(100)
    waiting.extend(Text(10, client="heavy", weight=3.0) for _ in range(400))
    waiting.extend(of("light", *[10] * 400))
    given = {"heavy": 0, "light": 0}
    for _ in range(40):
        for text in waiting.next_batch():
            given[text.client] += text.tokens
    assert given == {"heavy": 3000, "light": 1000}


def test_a_weight_that_was_changed_counts_from_the_next_text_on() -> None:
    waiting: BatchQueue[Text] = BatchQueue(10)
    waiting.extend(Text(10, client="heavy", weight=9.0) for _ in range(20))
    waiting.extend([Text(10, client="heavy", weight=1.0), *of("light", *[10] * 20)])
    clients = [waiting.next_batch()[0].client for _ in range(20)]
    assert clients.count("light") == 10


def test_a_client_that_was_away_neither_owes_nor_is_owed_anything() -> None:
    waiting: BatchQueue[Text] = BatchQueue(10)
    waiting.extend(of("steady", *[10] * 100))
    waiting.extend(of("other", *[10] * 10))
    for _ in range(40):
        waiting.next_batch()
    waiting.extend(of("other", *[10] * 10) + of("new", *[10] * 10))
    clients = [waiting.next_batch()[0].client for _ in range(9)]
    assert {clients.count(client) for client in ("steady", "other", "new")} == {3}


def test_what_is_ahead_of_a_client_is_its_own_and_as_much_of_each_other() -> None:
    waiting: BatchQueue[Text] = BatchQueue(100)
    waiting.extend(of("many", *[10] * 400) + of("few", 30))
    assert waiting.ahead("many", 10, is_query=False) == 4000 + 30
    assert waiting.ahead("few", 20, is_query=False) == 30 + 50
    assert waiting.ahead("new", 20, is_query=False) == 20 + 20
    assert waiting.ahead("new", 20, is_query=True) == 0
    waiting.extend(of("many", *[10] * 3, is_query=True))
    assert waiting.ahead("new", 20, is_query=False) == 20 + 20 + 30
    assert waiting.ahead("new", 20, is_query=True) == 20
    assert waiting.ahead("new", 20, weight=4.0, is_query=False) == 5 + 5 + 30  # it gets four while each other gets one


@pytest.mark.parametrize(("budget", "small"), [(4000, 400), (200, LEAST_AMONG_QUERIES), (50, 50)])
def test_batches_of_documents_are_small_while_queries_come(budget: int, small: int) -> None:
    waiting: BatchQueue[Text] = BatchQueue(budget)
    waiting.extend(of("a", *[1] * 20_000))
    full = min(budget, WINDOW)
    assert len(waiting.next_batch()) == full
    waiting.extend(of("a", 1, is_query=True))
    assert waiting.next_batch()[0].is_query
    assert {len(waiting.next_batch()) for _ in range(DOCUMENT_BATCHES_AFTER_A_QUERY)} == {small}
    assert len(waiting.next_batch()) == full
