"""Which rows stand together in a batch, and texts of different length as one tensor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sentence_transformers.base.sampler import DefaultBatchSampler
from torch import Tensor

_LOOK_AHEAD = 10  #: batches' worth of rows that are looked through for one that repeats nothing


@dataclass(frozen=True)
class Batch:
    input_ids: Tensor  #: [batch, length]
    attention_mask: Tensor


def pad(rows: Sequence[Sequence[int]], token: int = 0) -> Batch:
    """The ids of texts as a batch, filled up with ``token`` to the longest."""
    length = max(1, *(len(row) for row in rows)) if rows else 1
    ids = torch.full((len(rows), length), token)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    return Batch(ids, mask)


class DistinctBatches(DefaultBatchSampler):
    """Batches in which no text stands twice, since every other row of a batch counts as a negative.

    Unlike sentence-transformers' own, every epoch has exactly ``len(dataset) // batch_size`` batches: a run of so many
    steps has that many, and one that goes on finds its place. For that a batch may repeat a text where all the rows
    left do. The order depends on seed and epoch only.
    """

    def __init__(self, dataset: Any, batch_size: int, **settings: Any) -> None:
        super().__init__(dataset, batch_size, **settings)
        columns = [name for name in dataset.column_names if name != "label"]
        self._texts = [frozenset(texts) for texts in zip(*(dataset[name] for name in columns), strict=True)]

    def __len__(self) -> int:
        return len(self._texts) // self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        random = np.random.default_rng((self.seed, self.epoch, len(self._texts)))
        left = [int(row) for row in random.permutation(len(self._texts))[::-1]]
        for _ in range(len(self)):
            batch: list[int] = []
            repeating: list[int] = []
            seen: set[str] = set()
            while left and len(batch) < self.batch_size and len(repeating) < _LOOK_AHEAD * self.batch_size:
                row = left.pop()
                if seen.isdisjoint(self._texts[row]):
                    seen |= self._texts[row]
                    batch.append(row)
                else:
                    repeating.append(row)
            missing = self.batch_size - len(batch)
            batch += repeating[:missing]
            left += reversed(repeating[missing:])
            yield batch
