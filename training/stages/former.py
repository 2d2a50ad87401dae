"""Stage 7, for a run that goes on from a checkpoint: how that one scores the pairs, as a teacher.

What a model knew is kept by learning its answers beside the new task (Li & Hoiem 2016, arXiv:1606.09282). Here a
vocabulary changes under it, so the answers are scores of texts and not words.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from tokenizers import Tokenizer as BackendTokenizer

from sparse_encoder.tokenizer import Tokenizer
from training.encode import encode
from training.former import FormerVectors
from training.module import TiledSplade, load_module
from training.retrieval import to_matrix
from training.run import Run


def former_stage(run: Run, started: Path, encoder: Path) -> FormerVectors | None:
    """By the checkpoint in ``started``, and by what training starts from, the one in ``encoder``, whose scores count
    ``loss.former_start`` as much; None if ``loss.former`` is zero."""
    config = run.config
    if not config.loss.former:
        return None
    pairs = run.data.pairs[: config.train.teacher_pairs]
    texts = {"queries": [pair.query for pair in pairs], "passages": [pair.passage for pair in pairs]}
    limits = {"queries": config.train.query_tokens, "passages": config.train.document_tokens}
    teachers = {started: 1.0, encoder: config.loss.former_start} if started != encoder else {started: 1.0}

    def make(folder: Path) -> None:
        modules = {load_module(path, max_tokens={}, bf16=False): weight for path, weight in teachers.items() if weight}
        for name, rows in texts.items():
            found = [_encoded(module, rows, limits[name], name) * np.sqrt(weight) for module, weight in modules.items()]
            sp.save_npz(folder / f"{name}.npz", sp.csr_matrix(sp.hstack(found, dtype=np.float32)))

    digest = hashlib.sha256("\0".join(text for rows in texts.values() for text in rows).encode()).hexdigest()
    return FormerVectors.read(run.result("former", make, inputs=f"{digest} {limits} {list(teachers.values())}"))


def _encoded(module: TiledSplade, texts: list[str], limit: int, name: str) -> sp.csr_matrix:
    backend: BackendTokenizer = module.tokenizer  # type: ignore[assignment]
    tokenizer = Tokenizer(BackendTokenizer.from_str(backend.to_str()))
    vectors = encode(module.splade, tokenizer, texts, max_length=limit, bf16=True, description=f"former {name}")
    return to_matrix(vectors, len(tokenizer.vocabulary))
