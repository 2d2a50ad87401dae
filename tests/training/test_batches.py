from __future__ import annotations

import random

from datasets import Dataset

from training.batches import DistinctBatches


def batches(dataset: Dataset, size: int, epoch: int = 0) -> list[list[int]]:
    sampler = DistinctBatches(dataset, size, drop_last=True, seed=3)
    sampler.set_epoch(epoch)
    assert len(sampler) == len(dataset) // size
    return list(sampler)


def test_no_text_stands_twice_in_a_batch_and_no_row_is_used_twice() -> None:
    rng = random.Random(1)
    queries = [f"q{rng.randrange(40)}" for _ in range(100)]
    dataset = Dataset.from_dict({"query": queries, "passage": [f"p{i}" for i in range(100)], "label": [0] * 100})
    found = batches(dataset, 8)
    assert len(found) == 12
    assert len({row for batch in found for row in batch}) == 96
    for batch in found[:-3]:  # the last ones must take what is left
        assert len({queries[row] for row in batch}) == 8


def test_every_epoch_is_whole_though_all_rows_repeat_one_text() -> None:
    dataset = Dataset.from_dict({"term": ["same"] * 30, "related": [f"r{i}" for i in range(30)]})
    found = batches(dataset, 8)
    assert [len(batch) for batch in found] == [8, 8, 8]
    assert len({row for batch in found for row in batch}) == 24


def test_the_order_depends_on_the_epoch_only() -> None:
    dataset = Dataset.from_dict({"text": [str(i) for i in range(20)]})
    assert batches(dataset, 5) == batches(dataset, 5)
    assert batches(dataset, 5) != batches(dataset, 5, epoch=1)
