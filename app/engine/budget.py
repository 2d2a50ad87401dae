"""How many tokens one encoder run should have: measured, since it depends on the model and on the machine."""

from __future__ import annotations

import time
from itertools import cycle, islice
from typing import NamedTuple

from app.encoders.base import LONG_TEXT, OutOfMemory, TokenBatch
from app.models.loaded import LoadedModel

TEXTS, TOKENS_A_TEXT = 4, 64
#: A query that arrives waits for the run that is on: half of this on average.
SECONDS = 0.15
LEAST, MOST = 256, 16_384


class Budget(NamedTuple):
    batch_tokens: int
    tokens_per_second: float | None  #: None on a device without memory for the measurement


def measure(model: LoadedModel) -> Budget:
    """Tokens that the encoder of documents computes in about `SECONDS`, and no fewer than the longest text has that is
    not encoded aside; and its pace.

    Takes two runs of 256 tokens, the first of which prepares the encoder for their shape.
    """
    manifest = model.manifest
    longest = max(manifest.max_length_document, manifest.max_length_query)
    length, least = min(TOKENS_A_TEXT, manifest.max_length_document), min(longest, LONG_TEXT)
    (probe,) = model.tokenizer.encode_batch([model.probe], longest)
    text = list(islice(cycle(probe.ids), length))  # of real words: an encoder may pass over what is none
    batch = TokenBatch.pad([text] * TEXTS, model.tokenizer.pad_id)
    try:
        model.encoder.encode(batch)
        started = time.perf_counter()
        model.encoder.encode(batch)
        tokens_a_second = TEXTS * length / (time.perf_counter() - started)
    except OutOfMemory:
        return Budget(max(least, LEAST), None)
    return Budget(max(least, choose_batch_tokens(tokens_a_second)), tokens_a_second)


def choose_batch_tokens(tokens_a_second: float) -> int:
    """The power of two below what is computed in `SECONDS`, from `LEAST` to `MOST`; larger ones gain nothing more."""
    tokens = LEAST
    while tokens < MOST and 2 * tokens <= tokens_a_second * SECONDS:
        tokens *= 2
    return tokens
