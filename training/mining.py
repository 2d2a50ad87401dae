"""Hard negatives: passages that look like answers and are none, found by BM25 and by the model at its start.

A candidate is left out if it nearly repeats the right passage, if the same query has it as an answer elsewhere, or if
the dense teacher finds it nearly as close to the query as the right passage (it may then be an answer that nobody
marked; Qu et al. 2021, arXiv:2010.08191).
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as BackendTokenizer

from sparse_encoder.tokenizer import Tokenizer
from training.config import Config, MiningConfig
from training.encode import encode
from training.lexical import emitted_rows
from training.module import TiledSplade
from training.pairs import PassagePair, folded
from training.retrieval import rank, rank_bm25, to_matrix

logger = logging.getLogger(__name__)

Run = list[dict[int, float]]  #: for each query the scores of passages, by place
Closeness = Callable[[int, int], float]  #: (place of a query, of a passage) -> the teacher's cosine
NONE = -1


def shingles(text: str) -> frozenset[str]:
    """The character triples of a text; a shorter text is one."""
    key = folded(text)
    return frozenset(key[i : i + 3] for i in range(max(1, len(key) - 2)))


def overlap(one: frozenset[str], other: frozenset[str]) -> float:
    """Shared triples relative to the smaller set: 1 where one text holds the other."""
    return len(one & other) / max(1, min(len(one), len(other)))


def choose_negatives(
    pairs: Sequence[PassagePair], runs: Sequence[Run], settings: MiningConfig, teacher: Closeness | None = None
) -> tuple[list[int], Counter[str]]:
    """For each pair the place of the passage that serves as its negative, ``NONE`` without one; counts by reason.

    ``runs``: what each system found, over the passages of ``pairs``. The systems take turns, best first.
    """
    answers: dict[str, set[str]] = {}
    for pair in pairs:
        answers.setdefault(folded(pair.query), set()).add(folded(pair.passage))
    counts: Counter[str] = Counter()
    chosen = []
    for place, pair in enumerate(pairs):
        ranked = [
            sorted(run[place], key=lambda p, run=run: (-run[place][p], p))[settings.skip : settings.depth]  # type: ignore[misc]
            for run in runs
        ]
        turns = [found[turn] for turn in range(settings.depth) for found in ranked if turn < len(found)]
        own = shingles(pair.passage)
        negative = NONE
        for candidate in dict.fromkeys(turns):
            passage = pairs[candidate].passage
            if folded(passage) in answers[folded(pair.query)]:
                counts["answers of the same query"] += 1
            elif overlap(own, shingles(passage)) > settings.max_overlap:
                counts["near duplicates of the answer"] += 1
            elif teacher is not None and teacher(place, candidate) > settings.max_teacher * teacher(place, place):
                counts["perhaps answers, says the teacher"] += 1
            else:
                negative = candidate
                break
        counts["without a negative" if negative == NONE else "negatives"] += 1
        chosen.append(negative)
    return chosen, counts


def mining_stage(
    config: Config,
    run: Path,
    pairs: Sequence[PassagePair],
    module: TiledSplade,
    vectors: tuple[NDArray[np.float16], NDArray[np.float16]] | None,
) -> list[int]:
    """``choose_negatives`` over BM25 and ``module``, kept in the run directory; ``vectors``: the teacher's of queries
    and passages."""
    path = run / "negatives.json"
    key = hashlib.sha256("\0".join(f"{p.query}\0{p.passage}" for p in pairs).encode()).hexdigest()
    if path.is_file():
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["pairs_sha256"] == key:
            return [int(place) for place in stored["negatives"]]
    queries, passages = [pair.query for pair in pairs], [pair.passage for pair in pairs]
    train, publish = config.train, config.publish
    backend: BackendTokenizer = module.tokenizer  # type: ignore[assignment]
    words = [
        [[str(i) for i in row] for row in emitted_rows(backend, module.roles, texts, length)]
        for texts, length in ((passages, train.document_tokens), (queries, train.query_tokens))
    ]
    tokenizer = Tokenizer(BackendTokenizer.from_str(backend.to_str()))
    module.eval()
    sides = [
        to_matrix(
            encode(
                module.splade, tokenizer, texts, max_length=length, top_k=top_k, bf16=train.bf16, description="mine"
            ),
            len(module.roles.emitted_as),
        )
        for texts, length, top_k in (
            (queries, train.query_tokens, publish.top_k_query),
            (passages, train.document_tokens, publish.top_k_document),
        )
    ]
    teacher: Closeness | None = None
    if vectors is not None:
        of_queries, of_passages = (np.asarray(part, np.float32) for part in vectors)

        def teacher(query: int, passage: int) -> float:
            return float(of_queries[query] @ of_passages[passage])

    chosen, counts = choose_negatives(pairs, [rank_bm25(*words), rank(*sides)], config.mining, teacher)
    logger.info("mined: %s", dict(counts))
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({"pairs_sha256": key, "counts": counts, "negatives": chosen}), encoding="utf-8")
    partial.replace(path)
    return chosen
