"""The contract of an encoder: token ids in, sparse vectors out. Nothing dense leaves it.

`tests/app/test_encoder_contract.py` is the contract as tests; every implementation runs them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sparse_encoder.vector import SparseVector


class EncoderError(Exception):
    """A checkpoint that this encoder cannot run. The message says why, and what to do."""


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Token ids of B texts, padded at the end to the longest one, L tokens."""

    ids: NDArray[np.int32]  #: [B, L]
    lengths: NDArray[np.int32]  #: [B], 1 to L; what is beyond in a row is padding

    @classmethod
    def pad(cls, texts: Sequence[Sequence[int]], pad_id: int) -> TokenBatch:
        """:raises ValueError: if there is no text, or one has no tokens."""
        if not texts or not all(texts):
            raise ValueError("a batch needs at least one text, and every text at least one token")
        lengths = np.array([len(text) for text in texts], np.int32)
        ids = np.full((len(texts), lengths.max()), pad_id, np.int32)
        for row, text in zip(ids, texts, strict=True):
            row[: len(text)] = text
        return cls(ids, lengths)


class Encoder(Protocol):
    """Any thread may call it; calls run one after the other."""

    @property
    def device(self) -> str:
        """What it runs on and how exactly, such as `CPU f32`."""

    def encode(self, batch: TokenBatch) -> list[SparseVector]:
        """One vector for each text, in order: w_j = log1p(relu(max over its positions t of logits[t, j])).

        The same text gives the same vector within 1e-4 whatever it shares a batch with.
        """
