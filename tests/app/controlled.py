"""A real encoder under the control of a test: it can be held, made to fail, and remembers what it was given."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from app.encoders.base import Encoder, OutOfMemory, TokenBatch
from app.encoders.explaining import Reason
from sparse_encoder.vector import SparseVector


class ControlledEncoder:
    """Open (not held) at first, so that a checkpoint can be loaded with it."""

    device = "test"
    rounding = 0.0

    def __init__(self, inner: Encoder) -> None:
        self._inner = inner
        self._open = threading.Event()
        self._aside_open = threading.Event()
        self._entered = threading.Semaphore(0)
        self._open.set()
        self._aside_open.set()
        self.fails = False
        self.poison: list[int] | None = None  #: ids of a text that makes it raise
        self.specialised = threading.Event()
        self.gave_back = threading.Event()
        self.explaining = threading.Event()
        self.may_explain = threading.Event()  #: set at first; as long as it is not, every explanation waits
        self.may_explain.set()
        self.most_texts = self.most_tokens = 1_000_000  #: of a batch; a larger one has no memory
        self.batches: list[list[list[int]]] = []  #: of token ids, without padding
        self.asides: list[int] = []  #: texts of each batch of these that was to be encoded aside

    def specialise(self) -> None:
        self.specialised.set()
        if self.fails:
            raise RuntimeError("no graph of its own")
        self._inner.specialise()

    def device_memory_bytes(self) -> int:
        return 123

    def prepare_aside(self) -> None:
        self._inner.prepare_aside()

    def give_back_memory(self) -> None:
        self.gave_back.set()
        if self.fails:
            raise RuntimeError("nothing can be given back")
        self._inner.give_back_memory()

    def explain(self, ids: Sequence[int], words: NDArray[np.int32]) -> list[Reason]:
        self.explaining.set()
        self.may_explain.wait()
        if self.fails:
            raise MemoryError("secret detail of the encoder")
        return self._inner.explain(ids, words)

    def hold(self) -> None:
        """From now on every batch waits inside the encoder until `release`."""
        self._forget()
        self._open.clear()

    def hold_aside(self) -> None:
        """The same of batches that are encoded aside alone."""
        self._forget()
        self._aside_open.clear()

    def _forget(self) -> None:
        self.batches.clear()
        while self._entered.acquire(blocking=False):
            pass

    def release(self) -> None:
        self._open.set()
        self._aside_open.set()
        self.may_explain.set()

    async def entered(self) -> None:
        """Returns when one more batch has reached the encoder since `hold`."""
        await asyncio.to_thread(self._entered.acquire)

    def encode(self, batch: TokenBatch, *, aside: bool = False) -> list[SparseVector]:
        self.batches.append([row[:n].tolist() for row, n in zip(batch.ids, batch.lengths, strict=True)])
        if aside:
            self.asides.append(len(batch.ids))
        self._entered.release()
        (self._aside_open if aside else self._open).wait()
        if len(batch.ids) > self.most_texts or batch.ids.shape[1] > self.most_tokens:
            raise OutOfMemory("the device is full")
        if self.fails or self.poison in self.batches[-1]:
            raise MemoryError("secret detail of the encoder")
        return self._inner.encode(batch, aside=aside)
