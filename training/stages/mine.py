"""Stage 7, hard negatives: passages that look like answers and are none, found by BM25 and by the model at its start.

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
from tokenizers import Tokenizer as BackendTokenizer

from sparse_encoder.tokenizer import Tokenizer
from training.config import MiningConfig
from training.encode import Search, Side
from training.lexical import emitted_rows
from training.module import TiledSplade
from training.pairs import PassagePair, folded
from training.retrieval import Ranking, rank_bm25
from training.run import Run, write_json
from training.stages.teacher import TeacherVectors

logger = logging.getLogger(__name__)

Closeness = Callable[[int, int], float]  #: (place of a query, of a passage) -> the teacher's cosine
NONE = -1
_NEGATIVES = "negatives.json"


def shingles(text: str) -> frozenset[str]:
    """The character triples of a text; a shorter text is one."""
    key = folded(text)
    return frozenset(key[i : i + 3] for i in range(max(1, len(key) - 2)))


def overlap(one: frozenset[str], other: frozenset[str]) -> float:
    """Shared triples relative to the smaller set: 1 where one text holds the other."""
    return len(one & other) / max(1, min(len(one), len(other)))


def choose_negatives(
    pairs: Sequence[PassagePair],
    runs: Sequence[Sequence[Ranking]],
    settings: MiningConfig,
    teacher: Closeness | None = None,
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


def mine_stage(run: Run, module: TiledSplade, teacher: TeacherVectors | None) -> list[int]:
    """The place of each pair's mined negative, found by BM25 and ``module``; empty without mining."""
    train = run.config.train
    if not train.hard_negatives or train.objective == "card" or not run.data.pairs:
        return []
    pairs = run.data.pairs[: len(teacher.passages) if teacher else None]

    def make(folder: Path) -> None:
        closeness = _closeness(teacher) if teacher else None
        chosen, counts = choose_negatives(pairs, _found(run, module, pairs), run.config.mining, closeness)
        logger.info("mined: %s", dict(counts))
        write_json(folder / _NEGATIVES, {"counts": counts, "negatives": chosen})

    key = hashlib.sha256("\0".join(f"{p.query}\0{p.passage}" for p in pairs).encode()).hexdigest()
    out = run.result("negatives", make, inputs=key)
    return [int(place) for place in json.loads((out / _NEGATIVES).read_text(encoding="utf-8"))["negatives"]]


def _closeness(teacher: TeacherVectors) -> Closeness:
    queries, passages = np.asarray(teacher.queries, np.float32), np.asarray(teacher.passages, np.float32)
    return lambda query, passage: float(queries[query] @ passages[passage])


def _found(run: Run, module: TiledSplade, pairs: Sequence[PassagePair]) -> list[list[Ranking]]:
    """What BM25 and ``module`` find for each query among the passages."""
    queries, passages = [pair.query for pair in pairs], [pair.passage for pair in pairs]
    train, publish = run.config.train, run.config.publish
    backend: BackendTokenizer = module.tokenizer  # type: ignore[assignment]
    words = [
        [[str(i) for i in row] for row in emitted_rows(backend, module.roles, texts, length)]
        for texts, length in ((passages, train.document_tokens), (queries, train.query_tokens))
    ]
    tokenizer = Tokenizer(BackendTokenizer.from_str(backend.to_str()))
    module.eval()
    search = Search.encode(
        module.splade,
        tokenizer,
        Side(queries, train.query_tokens, publish.top_k_query),
        Side(passages, train.document_tokens, publish.top_k_document),
        bf16=train.bf16,
        description="mine",
    )
    return [rank_bm25(*words), search.rank()]
