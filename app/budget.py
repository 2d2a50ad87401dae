"""How many tokens one encoder run should have: measured, since it depends on the model and on the machine."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from app.checkpoints import Checkpoint
from app.encoders.base import OutOfMemory, TokenBatch

TOKENS_A_TEXT = 64
SIZES = (256, 512, 1024, 2048, 4096, 8192, 16384)
#: A query that arrives waits for the run that is on: half of this on average.
LONGEST_RUN_SECONDS = 0.2
#: A smaller run that reaches this share of the best throughput is better: queries wait less.
GOOD_ENOUGH = 0.9


def measured_batch_tokens(checkpoint: Checkpoint) -> int:
    """Tokens of one run for the best throughput within `LONGEST_RUN_SECONDS`, and no fewer than its longest text has.

    Takes about two runs of each size, so less than a second where one takes `LONGEST_RUN_SECONDS`.
    """
    manifest = checkpoint.manifest
    longest = max(manifest.max_length_document, manifest.max_length_query)
    return max(longest, choose_batch_tokens(list(_measure(checkpoint, min(TOKENS_A_TEXT, longest)))))


def choose_batch_tokens(measured: Sequence[tuple[int, float]]) -> int:
    """`measured`: tokens and seconds of runs of growing size, at least one.

    :raises ValueError: if there is none.
    """
    if not measured:
        raise ValueError("nothing was measured: the encoder cannot run its smallest batch")
    quick = [run for run in measured if run[1] <= LONGEST_RUN_SECONDS] or measured[:1]
    best = max(tokens / seconds for tokens, seconds in quick)
    return next(tokens for tokens, seconds in quick if tokens / seconds >= GOOD_ENOUGH * best)


def _measure(checkpoint: Checkpoint, tokens_a_text: int) -> Iterator[tuple[int, float]]:
    for tokens in SIZES:
        count = max(1, tokens // tokens_a_text)
        batch = TokenBatch.pad([[checkpoint.tokenizer.pad_id] * tokens_a_text] * count, checkpoint.tokenizer.pad_id)
        seconds = []
        try:
            for _ in range(2):  # the first run of a shape prepares it
                started = time.perf_counter()
                checkpoint.encoder.encode(batch)
                seconds.append(time.perf_counter() - started)
        except OutOfMemory:
            return
        yield count * tokens_a_text, min(seconds)
        if min(seconds) > LONGEST_RUN_SECONDS:
            return
