"""Stage 7, for a run that goes on from a checkpoint: how that one scores the pairs, and its table, as a teacher.

What a model knew is kept by learning its answers beside the new task (Li & Hoiem 2016, arXiv:1606.09282). Here a
vocabulary changes under it, so the answers are scores of texts and not words.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch
from tokenizers import Tokenizer as BackendTokenizer
from tqdm import tqdm

from sparse_encoder.tokenizer import Tokenizer
from training.batches import by_length, pad
from training.encode import encode
from training.former import FormerVectors
from training.module import TiledSplade, load_module
from training.retrieval import to_matrix
from training.run import Run

_BATCH_TOKENS = 4096


def former_stage(run: Run, started: Path, encoder: Path) -> FormerVectors | None:
    """By the checkpoint in ``started``, and by the words and the table of the one in ``encoder``, whose scores count
    ``loss.former_table`` as much; None if ``loss.former`` is zero."""
    config = run.config
    if not config.loss.former:
        return None
    pairs = run.data.pairs[: config.train.teacher_pairs]
    texts = {"queries": [pair.query for pair in pairs], "passages": [pair.passage for pair in pairs]}
    limits = {"queries": config.train.query_tokens, "passages": config.train.document_tokens}

    def make(folder: Path) -> None:
        former = load_module(started, max_tokens={}, bf16=False)
        grown = load_module(encoder, max_tokens={}, bf16=False) if config.loss.former_table else None
        for name, rows in texts.items():
            found = [_encoded(former, rows, limits[name], name)]
            if grown:
                found.append(_words_and_table(grown, rows, limits[name], name) * np.sqrt(config.loss.former_table))
            sp.save_npz(folder / f"{name}.npz", sp.csr_matrix(sp.hstack(found, dtype=np.float32)))

    digest = hashlib.sha256("\0".join(text for rows in texts.values() for text in rows).encode()).hexdigest()
    inputs = f"{digest} {limits} {config.loss.former_table}"
    return FormerVectors.read(run.result("former", make, inputs=inputs))


def _encoded(module: TiledSplade, texts: list[str], limit: int, name: str) -> sp.csr_matrix:
    tokenizer = _tokenizer(module)
    vectors = encode(module.splade, tokenizer, texts, max_length=limit, bf16=True, description=f"former {name}")
    return to_matrix(vectors, len(tokenizer.vocabulary))


@torch.inference_mode()
def _words_and_table(module: TiledSplade, texts: Sequence[str], limit: int, name: str) -> sp.csr_matrix:
    splade = module.splade
    tokenised = _tokenizer(module).encode_batch(texts, limit)
    order: list[int] = []
    parts: list[sp.csr_matrix] = []
    with tqdm(total=len(texts), desc=f"table {name}", unit="text", mininterval=2.0) as bar:
        for places in by_length([len(text.ids) for text in tokenised], _BATCH_TOKENS):
            batch = pad([tokenised[i].ids for i in places])
            parts.append(sp.csr_matrix(splade.words_and_table(batch.input_ids, batch.attention_mask).numpy()))
            order += places
            bar.update(len(places))
    return sp.csr_matrix(sp.vstack(parts))[np.argsort(order)]


def _tokenizer(module: TiledSplade) -> Tokenizer:
    backend: BackendTokenizer = module.tokenizer  # type: ignore[assignment]
    return Tokenizer(BackendTokenizer.from_str(backend.to_str()))
