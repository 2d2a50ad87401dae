"""The contract of an encoder: token ids in, sparse vectors out. Nothing dense leaves it.

`tests/app/encoders/test_encoder_contract.py` is the contract as tests; every implementation runs them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from app.encoders.explaining import Reason
from sparse_encoder.vector import SMALLEST_WEIGHT, SparseVector

#: What a user may ask for; auto is the fastest that costs no retrieval quality.
Precision = Literal["auto", "f32", "bf16", "f16", "int8", "int8-static"]

#: Columns of a large vocabulary that are looked at together: where their sum is zero, all of them are.
BLOCK_OF_SUMS = 64
#: Texts of more tokens take long, whatever the machine.
LONG_TEXT = 512


class EncoderError(Exception):
    """A checkpoint that this encoder cannot run. The message says why, and what to do."""


class OutOfMemory(Exception):
    """The device had no memory left for this batch; a smaller one may fit."""


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
    """Any thread may call it; calls run one after the other, those of `encode` aside and others side by side."""

    @property
    def device(self) -> str:
        """What it runs on and how exactly, such as `CPU f32`."""

    @property
    def rounding(self) -> float:
        """Length of the error that its precision makes in a vector, by the length of the vector; 0 for none."""

    def device_memory_bytes(self) -> int:
        """What this process has of the device's memory; 0 where that is the memory of the machine."""

    def specialise(self) -> None:
        """Prepares what makes later calls faster, if there is such a thing; takes the time and the memory of loading
        the checkpoint once more. `encode` may be called meanwhile."""

    def give_back_memory(self) -> None:
        """Frees what only the largest batches so far needed. `encode` may be called meanwhile."""

    def prepare_aside(self) -> None:
        """Makes what `encode` needs for `aside`, if it is not there: that takes time which says nothing of texts."""

    def encode(self, batch: TokenBatch, *, aside: bool = False) -> list[SparseVector]:
        """One vector for each text, in order: w_j = log1p(relu(max over its positions t of logits[t, j])).

        Where `pooling` and `activation` of the manifest say so, a sum, a second log1p or none; where the head weighs
        own tokens, the maximum over the positions of each. The same text gives the same
        vector whatever it shares a batch with: within 1e-4 in f32, within the rounding of a lower precision.

        `aside`: takes long, so that where the device allows it other calls run meanwhile instead of after it. So does a
        batch with more than `LONG_TEXT` tokens a text, whatever is asked.

        :raises ValueError: if the model computes NaN or infinity.
        :raises OutOfMemory: if the batch is too large for the device; the encoder can be used again.
        """

    def explain(self, ids: Sequence[int], words: NDArray[np.int32]) -> list[Reason]:
        """Why each of `words` has its weight in the vector of the text `ids`, in order: computed in f32 where the
        encoder can, so that a weight differs from that of `encode` by the rounding of its precision, or by 1e-4.

        Takes about the time of encoding the text alone, and no memory that grows with the vocabulary; the first call
        may load the checkpoint once more. `encode` may be called meanwhile.

        :raises EncoderError: if the checkpoint is not there any more.
        :raises OutOfMemory: if the device is full.
        """


def sparse_rows(weights: NDArray[np.float32], ids: NDArray[np.int32]) -> list[SparseVector]:
    """What is positive in each row of `weights` [B, n]; column j is token `ids[j]`, and `ids` ascend.

    One pass over all rows, since a pass for each costs more than the encoder takes for a short text.

    :raises ValueError: if a weight is NaN or infinite.
    """
    if not np.isfinite(weights).all():
        raise ValueError("the encoder computed NaN or infinity: its checkpoint is broken")
    rows, columns = np.nonzero(weights >= SMALLEST_WEIGHT)
    return _heaviest_first(rows, ids[columns], weights[rows, columns], len(weights))


def sparse_blocks(weights: NDArray[Any], sums: NDArray[np.float32], ids: NDArray[np.int32]) -> list[SparseVector]:
    """As `sparse_rows`, but reads no more of `weights` [B, n] than the blocks of `BLOCK_OF_SUMS` columns whose `sums`
    [B, n // BLOCK_OF_SUMS] are positive, and the columns behind the last whole block.

    `weights`: f32, or the 16 bits of bf16 in u16.

    :raises ValueError: if a weight is NaN or infinite.
    """
    if not np.isfinite(sums).all():
        raise ValueError("the encoder computed NaN or infinity: its checkpoint is broken")
    texts, blocks = np.nonzero(sums)
    columns = blocks[:, None] * BLOCK_OF_SUMS + np.arange(BLOCK_OF_SUMS)
    whole = sums.shape[1] * BLOCK_OF_SUMS
    values = as_f32(weights[texts[:, None], columns])
    rest = as_f32(weights[:, whole:])
    if not np.isfinite(rest).all():
        raise ValueError("the encoder computed NaN or infinity: its checkpoint is broken")
    at, within = np.nonzero(values >= SMALLEST_WEIGHT)
    rows, behind = np.nonzero(rest >= SMALLEST_WEIGHT)
    return _heaviest_first(
        np.concatenate([texts[at], rows]),
        ids[np.concatenate([columns[at, within], whole + behind])],
        np.concatenate([values[at, within], rest[rows, behind]]),
        len(weights),
    )


def as_f32(weights: NDArray[Any]) -> NDArray[np.float32]:
    """numpy has no bf16; its 16 bits, in u16, are the upper ones of an f32."""
    return (weights.astype(np.uint32) << 16).view(np.float32) if weights.dtype == np.uint16 else weights


def _heaviest_first(
    rows: NDArray[np.int64], tokens: NDArray[np.int32], weights: NDArray[np.float32], texts: int
) -> list[SparseVector]:
    """The vectors of so many `texts`; `rows`: of which of them each weight is."""
    order = np.lexsort((tokens, -weights, rows))
    tokens, weights = tokens[order], weights[order]
    ends = np.searchsorted(rows[order], np.arange(1, texts))
    return [
        SparseVector(part_ids, part_weights)
        for part_ids, part_weights in zip(np.split(tokens, ends), np.split(weights, ends), strict=True)
    ]


def own_rows(weights: NDArray[np.float32], batch: TokenBatch, emitted: NDArray[np.bool_]) -> list[SparseVector]:
    """Each token of a text with the heaviest of the weights [B, L] that its positions have.

    `emitted`: of each id of the vocabulary, whether it can be.

    :raises ValueError: if a weight is NaN or infinite.
    """
    return [
        _own_row(row[:length], ids[:length], emitted)
        for row, ids, length in zip(weights, batch.ids, batch.lengths.tolist(), strict=True)
    ]


def _own_row(weights: NDArray[np.float32], ids: NDArray[np.int32], emitted: NDArray[np.bool_]) -> SparseVector:
    if not np.isfinite(weights).all():
        raise ValueError("the encoder computed NaN or infinity: its checkpoint is broken")
    speaks = emitted[ids] & (weights >= SMALLEST_WEIGHT)
    tokens, at = np.unique(ids[speaks], return_inverse=True)
    heaviest = np.zeros(len(tokens), np.float32)
    np.maximum.at(heaviest, at, weights[speaks])
    order = np.lexsort((tokens, -heaviest))
    return SparseVector(tokens[order], heaviest[order])
