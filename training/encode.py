"""Encode many texts offline with the torch reference, shortest first, into pruned sparse vectors."""

from __future__ import annotations

import torch
from tqdm import tqdm

from sparse_encoder.model import SpladeModel
from sparse_encoder.tokenizer import Tokenizer
from sparse_encoder.vector import SparseVector
from training.student import pad

_BATCH_TOKENS = 4096


@torch.inference_mode()
def encode(
    model: SpladeModel,
    tokenizer: Tokenizer,
    texts: list[str],
    *,
    max_length: int,
    top_k: int | None = None,
    bf16: bool = False,
    description: str = "encode",
) -> list[SparseVector]:
    """Vectors of ``texts`` in their order; a text without any content token gives an empty one.

    ``bf16``: the encoder body and the decoder product in bfloat16, for measuring many texts; exact vectors need False.
    """
    tokenised = tokenizer.encode_batch(texts, max_length)
    order = sorted((i for i, text in enumerate(tokenised) if text.content_tokens), key=lambda i: len(tokenised[i].ids))
    empty = SparseVector.from_pairs([], [])
    vectors = [empty] * len(texts)
    device = model.decoder.weight.device
    with tqdm(total=len(order), desc=description, unit="text", mininterval=2.0) as bar:
        start = 0
        while start < len(order):
            size = 1
            while start + size < len(order) and len(tokenised[order[start + size]].ids) * (size + 1) <= _BATCH_TOKENS:
                size += 1
            chosen = order[start : start + size]
            batch = pad([tokenised[i].ids for i in chosen])
            ids, mask = batch.input_ids.to(device), batch.attention_mask.to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                states = model.hidden_states(ids, mask)
            weights = model.weights(states, ids, mask, torch.bfloat16 if bf16 else torch.float32)
            for i, row in zip(chosen, weights, strict=True):
                active = row.nonzero()[:, 0]
                words = active if model.emitted is None else model.emitted[active]
                vectors[i] = SparseVector.from_pairs(words.numpy(force=True), row[active].numpy(force=True)).prune(
                    top_k=top_k
                )
            start += size
            bar.update(size)
    return vectors
