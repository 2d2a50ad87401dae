"""Stage 8: the sparse training itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from sklearn.cluster import MiniBatchKMeans

from training.config import Config, RunError
from training.data import TrainingData
from training.distributed import processes
from training.fit import FINAL, Job, SparseModel, fit, split_parameters
from training.former import FormerVectors
from training.module import TiledSplade
from training.objectives import OwnWords, PassageObjective, Teacher, TermObjective, TripletObjective
from training.pairs import STRENGTH
from training.run import Run
from training.stages.lexical import LexicalWeights
from training.stages.mine import NONE
from training.stages.teacher import TeacherVectors
from training.stages.vocabulary import Vocabulary
from training.validation import Validation

_TRAIN = "train"  #: where a run holds checkpoints and logs


def _passage_batches(
    config: Config, data: TrainingData, known: int, topics: NDArray[np.float16] | None
) -> dict[str, list[int]]:
    """The pairs of each source, since negatives of the same kind are harder, and within a source those of similar
    queries (topic-aware batches, Hofstätter et al. 2021, arXiv:2104.06967), by their ``topics`` [known, size]. Of the
    first ``known`` pairs, which a teacher knows; 0: of all, without one."""
    groups: dict[str, list[int]] = {}
    for i, pair in enumerate(data.pairs[:known] if known else data.pairs):
        groups.setdefault(pair.source, []).append(i)
    size = config.train.cluster_pairs
    if topics is not None:
        clustered: dict[str, list[int]] = {}
        for name, rows in groups.items():
            clusters: dict[int, list[int]] = {}
            for place, cluster in zip(rows, cluster_of(topics[rows], len(rows) // size, config.seed), strict=True):
                clusters.setdefault(cluster, []).append(place)
            for cluster, places in clusters.items():  # one that fills no batch joins what is left of its source
                label = cluster if len(places) >= config.train.batch else "rest"
                clustered.setdefault(f"{name} {label}", []).extend(places)
        groups = clustered
    return {name: rows for name, rows in groups.items() if len(rows) >= config.train.batch}


def cluster_of(vectors: NDArray[np.float16], count: int, seed: int) -> list[int]:
    """Number of the cluster of each vector, of ``count`` clusters (k-means); all 0 if ``count`` is less than two."""
    if count < 2:
        return [0] * len(vectors)
    return [int(i) for i in MiniBatchKMeans(count, random_state=seed, n_init=1).fit_predict(vectors.astype(np.float32))]


def _passage_datasets(
    config: Config, data: TrainingData, known: int, topics: NDArray[np.float16] | None, negatives: list[int]
) -> dict[str, Dataset]:
    """Columns query, passage, label, and negative for the rows that have one: those stand in datasets of their own."""
    datasets: dict[str, Dataset] = {}
    for name, rows in _passage_batches(config, data, known, topics).items():
        mined = [i for i in rows if negatives and negatives[i] != NONE]
        if len(mined) < config.train.batch:
            mined = []
        alone = sorted(set(rows) - set(mined)) if mined else rows
        for part, places in ((name, alone), (f"{name} hard", mined)):
            columns: dict[str, list[Any]] = {
                "query": [data.pairs[i].query for i in places],
                "passage": [data.pairs[i].passage for i in places],
            }
            if places is mined:
                columns["negative"] = [data.pairs[negatives[i]].passage for i in places]
            if len(places) >= config.train.batch:
                datasets[part] = Dataset.from_dict({**columns, "label": [i if i < known else -1 for i in places]})
    return datasets


def _retrieval_job(
    config: Config,
    data: TrainingData,
    teacher: TeacherVectors | None,
    former: FormerVectors | None,
    negatives: list[int],
    own: OwnWords,
    job: Job,
) -> None:
    """Pairs under ``[loss]``; term pairs make ``train.term_share`` of the batches."""
    model, progress = job.model, job.progress
    nothing = torch.empty(0)
    vectors = Teacher(nothing, nothing, nothing)
    core = 0
    if teacher:
        queries, passages = torch.from_numpy(teacher.queries), torch.from_numpy(teacher.passages)
        vectors = Teacher(queries, passages, passages[negatives] if negatives else nothing)
        core = teacher.words.shape[1]
    known = len(teacher.passages) if teacher else former.passages.shape[0] if former else 0
    topics = None
    if config.train.cluster_pairs:
        topics = teacher.queries if teacher else former.topics(config.seed) if former else None
    job.datasets |= _passage_datasets(config, data, known, topics, negatives)
    objective = PassageObjective(model, own, config.loss, vectors, core, progress, former)
    job.objectives |= dict.fromkeys(job.datasets, objective)
    pairs = sum(len(dataset) for dataset in job.datasets.values())
    share = config.train.term_share
    terms = data.terms[: int(pairs * share / (1 - share))] if job.datasets else data.terms
    if len(terms) >= config.train.batch:
        job.datasets["terms"] = Dataset.from_dict(
            {
                "term": [p.term for p in terms],
                "related": [p.related for p in terms],
                "label": [STRENGTH[p.kind] for p in terms],
            }
        )
        job.objectives["terms"] = TermObjective(model, own, config.loss, progress)


def _card_job(config: Config, data: TrainingData, own: OwnWords, job: Job) -> None:
    """Triplets under ``[card]``."""
    if len(data.triplets) >= config.train.batch:
        job.datasets["triplets"] = Dataset.from_dict(
            {
                "anchor": [row.anchor for row in data.triplets],
                "synonym": [row.positive for row in data.triplets],
                "look_alike": [row.negative for row in data.triplets],
                "label": [0] * len(data.triplets),
            }
        )
        job.objectives["triplets"] = TripletObjective(job.model, own, config.card)


def _schedule(config: Config, total: int) -> Callable[[int], float]:
    """Linear up over the warm-up, linear down to ``final_rate`` at the end."""
    train = config.train
    warmup = max(1, math.ceil(train.warmup_share * total)) if train.warmup_share else train.warmup_steps

    def factor(step: int) -> float:
        return min(1.0, (step + 1) / warmup) * (1 - (1 - train.final_rate) * step / total)

    return factor


def train_stage(
    run: Run,
    module: TiledSplade,
    vocabulary: Vocabulary,
    teacher: TeacherVectors | None,
    former: FormerVectors | None,
    lexical: LexicalWeights,
    negatives: list[int],
) -> Path:
    """Trains ``module``; the directory of the trained checkpoint. Raises ``RunError``."""
    config, out = run.config, run.path / _TRAIN
    roles, device = vocabulary.roles, processes(config.train).device
    model = SparseModel(modules=[module], device=str(device))
    parts = getattr(module.splade.mlm, "part_token", None)
    own = OwnWords.of(roles, roles.emitted, lexical.own, lexical.passage_length, parts, vocabulary.pieces).to(device)
    tables, body = split_parameters(module)
    groups: list[dict[str, Any]] = [
        {"params": tables, "lr": config.train.embedding_learning_rate},
        {"params": body, "lr": config.train.learning_rate},
    ]
    job = Job(model, module, {}, {}, groups, [], config.train.steps, config.train.batch, config.train.accumulation)
    if config.train.objective == "card":
        _card_job(config, run.data, own, job)
    else:
        _retrieval_job(config, run.data, teacher, former, negatives, own, job)
    if not job.datasets:
        raise RunError(
            f"no source has train.batch = {config.train.batch} rows left after filtering: "
            f"see {run.path / 'data.json'}, lower train.batch or add data"
        )
    if config.train.epochs:
        batches = sum(len(dataset) // job.batch for dataset in job.datasets.values())
        job.steps = max(1, math.ceil(config.train.epochs * batches / job.accumulation))
    job.schedules = [_schedule(config, job.steps)] * len(groups)
    if run.data.validation:
        job.callbacks.append(Validation(config, module, run.data.validation, out))
    fit(config.train, config.seed, out, job)
    return trained(run)


def trained(run: Run) -> Path:
    """The directory of the trained checkpoint."""
    return run.path / _TRAIN / FINAL
