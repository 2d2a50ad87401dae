"""Stage by stage from data to a trained checkpoint: vocabulary, teacher vectors, start, alignment, sparse training.

Every stage leaves its result in the run directory and is skipped when it is there, so a stopped run goes on where it
was; the two training stages resume from their last checkpoint. Several processes (``torchrun``) share the batches; what
comes before training is made by the first and read by the others.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from sklearn.cluster import MiniBatchKMeans
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.preprocessing import normalize
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from sparse_encoder.model import SpladeModel
from training.config import Config, RunError
from training.data import TrainingData, load_training_data
from training.e5 import DenseTeacher, load_e5
from training.fit import Job, SparseModel, fit, processes, split_parameters
from training.growth import PieceKnowledge
from training.mining import NONE, mining_stage
from training.module import TiledSplade, load_module
from training.objectives import AlignObjective, OwnWords, PassageObjective, Teacher, TermObjective, TripletObjective
from training.stages import (
    PASSAGE_CHARACTERS,
    fresh_model,
    growth_stage,
    lexical_stage,
    pieces_of,
    pretrained_model,
    teacher_stage,
    trained_checkpoint,
    vocabulary_stage,
)
from training.student import install_head, mean_piece_embeddings, start_from_e5, without_skip
from training.validation import Validation
from training.vocabulary import Roles

logger = logging.getLogger(__name__)

_TERM_FLOOR = {"synonym": 1.0, "related": 0.5, "translation": 0.7}
_CLUSTERED = 120  #: characters of a passage that tell what it is about
Vectors = dict[str, NDArray[np.float16]]


def _tasks(config: Config) -> dict[str, int]:
    train = config.train
    return {"query": train.query_tokens, "document": train.document_tokens, "term": train.term_tokens}


def align_stage(config: Config, run: Path, module: TiledSplade, teacher: Vectors, data: TrainingData) -> None:
    out = run / "align"
    pieces = pieces_of(module.tokenizer)  # type: ignore[arg-type]
    whole = [i for i, piece in enumerate(pieces) if not piece.startswith(("##", "[")) and len(piece) > 1]
    pairs = data.pairs[: len(teacher["passages"])]
    texts = {
        "words": ([pieces[i] for i in whole], teacher["words"][whole]),
        "queries": ([p.query for p in pairs], teacher["queries"]),
        "passages": ([p.passage for p in pairs], teacher["passages"]),
    }
    core = teacher["words"].shape[1]
    module.heads_only = True
    module.bf16 = config.train.bf16
    module.max_tokens = dict.fromkeys(module.max_tokens, config.align.document_tokens)
    model = SparseModel(modules=[module], device=str(processes(config.train).device))
    frozen = config.align.embeddings_only
    tables, body = split_parameters(module)
    total = config.align.steps

    def decay(step: int) -> float:
        return min(1.0, (step + 1) / 10) * (1 - 0.9 * step / total)

    job = Job(
        model,
        module,
        {name: Dataset.from_dict({"text": t, "label": list(range(len(t)))}) for name, (t, _) in texts.items()},
        {name: AlignObjective(model, torch.from_numpy(v), core) for name, (_, v) in texts.items()},
        groups=[
            {"params": tables, "lr": config.align.embedding_learning_rate},
            {"params": body, "lr": config.align.learning_rate},
        ],
        schedules=[decay, lambda step: decay(step) if step >= frozen * total else 0.0],
        steps=total,
        batch=config.align.batch,
    )
    fit(config.train, config.seed, out, job)
    module.heads_only = False


def _check_size(checkpoint: Path, teacher: int) -> None:
    """Raises ``RunError`` if the states of ``checkpoint`` have no room for the teacher's vectors."""
    size = json.loads((checkpoint / "config.json").read_bytes())["hidden_size"]
    if size < teacher:
        raise RunError(
            f"model.checkpoint {checkpoint}: its states have {size} dimensions, the teacher's vectors {teacher}: go on "
            'without a teacher (model.e5_path = "")'
        )


def start_stage(
    config: Config, run: Path, data: TrainingData, tokenizer: Tokenizer, roles: Roles
) -> tuple[TiledSplade, Vectors]:
    """The encoder before sparse training, and the teacher's vectors (empty without a teacher)."""
    out, tasks, bf16 = run / "start", _tasks(config), config.train.bf16
    first = processes(config.train).main_process_first
    if config.model.start in ("fresh", "pretrained"):
        with first():
            if not (out / "roles.json").is_file():
                if config.model.start == "fresh":
                    weights, _ = lexical_stage(config, run, data, tokenizer, roles)
                    mlm: PreTrainedModel = fresh_model(config, roles, weights)
                else:
                    mlm = pretrained_model(config)
                TiledSplade(SpladeModel(mlm, roles.emitted), tokenizer, roles, tasks, False).save(str(out))
        return load_module(out, max_tokens=tasks, bf16=bf16), {}
    if not config.model.e5_path:
        return load_module(trained_checkpoint(config, run), max_tokens=tasks, bf16=bf16), {}
    e5, e5_tokenizer = load_e5(config.data_path(config.model.e5_path))
    if config.model.start == "checkpoint":
        _check_size(trained_checkpoint(config, run), e5.config.hidden_size)
    pieces = pieces_of(tokenizer)
    with first():
        teacher = teacher_stage(config, run, data, DenseTeacher(e5, e5_tokenizer, batch_tokens=2048), pieces)
    if config.model.start == "checkpoint":
        checkpoint = trained_checkpoint(config, run)
        if config.vocabulary.extend:
            with first():
                known = PieceKnowledge(
                    own_weights=lexical_stage(config, run, data, tokenizer, roles)[0],
                    word_vectors=torch.from_numpy(teacher["words"]).float(),
                    embeddings=mean_piece_embeddings(e5, e5_tokenizer, pieces),
                )
                checkpoint = growth_stage(checkpoint, run, tokenizer, roles, known)
        return load_module(checkpoint, max_tokens=tasks, bf16=bf16), teacher
    if not (out / "roles.json").is_file():
        final = run / "align" / "final"
        if not (final / "roles.json").is_file():
            mlm = start_from_e5(e5, e5_tokenizer, pieces, roles, seed=config.seed)
            module = TiledSplade(SpladeModel(mlm, roles.emitted), tokenizer, roles, dict(tasks), bf16)
            if config.align.steps:
                align_stage(config, run, module, teacher, data)
            else:
                module.save(str(final))
        with first():
            if not (out / "roles.json").is_file():
                module = load_module(final, max_tokens=tasks, bf16=False).eval()
                weights, _ = lexical_stage(config, run, data, tokenizer, roles)
                sample = [p.passage[:PASSAGE_CHARACTERS] for p in data.pairs[:200]]
                sample += [p.query for p in data.pairs[200:280]]
                measured = install_head(
                    module.splade,
                    teacher["words"],
                    weights,
                    [encoding.ids[: config.train.document_tokens] for encoding in tokenizer.encode_batch(sample)],
                    start_active=config.model.start_active,
                    skip=config.model.skip,
                )
                logger.info("head installed: %s", measured)
                module.save(str(out))
    return load_module(out, max_tokens=tasks, bf16=bf16), teacher


def _passage_batches(config: Config, data: TrainingData, vectors: NDArray[np.float16] | None) -> dict[str, list[int]]:
    """The pairs of each source, since negatives of the same kind are harder, and within a source those of similar
    queries (topic-aware batches, Hofstätter et al. 2021, arXiv:2104.06967); ``vectors`` are the teacher's."""
    groups: dict[str, list[int]] = {}
    for i, pair in enumerate(data.pairs if vectors is None else data.pairs[: len(vectors)]):
        groups.setdefault(pair.source, []).append(i)
    size = config.train.cluster_pairs
    if vectors is not None and size:
        clustered: dict[str, list[int]] = {}
        for name, rows in groups.items():
            clusters: dict[int, list[int]] = {}
            for place, cluster in zip(rows, cluster_of(vectors[rows], len(rows) // size, config.seed), strict=True):
                clusters.setdefault(cluster, []).append(place)
            for cluster, places in clusters.items():  # one that fills no batch joins what is left of its source
                label = cluster if len(places) >= config.train.batch else "rest"
                clustered.setdefault(f"{name} {label}", []).extend(places)
        groups = clustered
    return {name: rows for name, rows in groups.items() if len(rows) >= config.train.batch}


def passage_vectors(config: Config, data: TrainingData) -> NDArray[np.float16]:
    """What the passages are about, without a teacher: latent semantic analysis of their character pairs."""
    counts = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 3), min_df=5, max_features=60_000, dtype=np.float32)
    matrix = counts.fit_transform([pair.passage[:_CLUSTERED] for pair in data.pairs])
    reduced = TruncatedSVD(64, random_state=config.seed, n_iter=3).fit_transform(matrix)
    return np.asarray(normalize(reduced), np.float16)


def cluster_of(vectors: NDArray[np.float16], count: int, seed: int) -> list[int]:
    """Number of the cluster of each vector, of ``count`` clusters (k-means); all 0 if ``count`` is less than two."""
    if count < 2:
        return [0] * len(vectors)
    return [int(i) for i in MiniBatchKMeans(count, random_state=seed, n_init=1).fit_predict(vectors.astype(np.float32))]


_SETTINGS = "config.json"
_FIXED_SECTIONS = ("seed", "data", "vocabulary", "model", "align")


def _check_settings(config: Config, run: Path) -> None:
    """Raises ``RunError`` if stages of the run that are done were made with other settings."""
    path = run / _SETTINGS
    if path.is_file():
        before, now = Config.model_validate_json(path.read_text(encoding="utf-8")), config
        for section in _FIXED_SECTIONS:
            old, new = getattr(before, section), getattr(now, section)
            if section == "data":
                old, new = old.model_copy(update={"root": new.root}), new
            if old != new:
                raise RunError(
                    f"{run}: the recipe's {section!r} differs from what this run was started with; finished stages "
                    "would not match it: use another --run directory"
                )


def _negatives(config: Config, run: Path, data: TrainingData, module: TiledSplade, teacher: Vectors) -> list[int]:
    """The place of each pair's mined negative; empty without mining."""
    if not config.train.hard_negatives or not data.pairs:
        return []
    known = len(teacher["passages"]) if teacher else len(data.pairs)
    vectors = (teacher["queries"], teacher["passages"]) if teacher else None
    with processes(config.train).main_process_first():
        return mining_stage(config, run, data.pairs[:known], module, vectors)


def _passage_datasets(config: Config, data: TrainingData, teacher: Vectors, negatives: list[int]) -> dict[str, Dataset]:
    """Columns query, passage, label, and negative for the rows that have one: those stand in datasets of their own."""
    datasets: dict[str, Dataset] = {}
    known = len(teacher["passages"]) if teacher else 0
    vectors = teacher.get("queries", passage_vectors(config, data) if config.train.cluster_pairs else None)
    for name, rows in _passage_batches(config, data, vectors).items():
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
    config: Config, run: Path, data: TrainingData, module: TiledSplade, teacher: Vectors, own: OwnWords, job: Job
) -> None:
    """Pairs under ``[loss]``; term pairs make ``train.term_share`` of the batches."""
    model, progress = job.model, job.progress
    nothing = torch.empty(0)
    negatives = _negatives(config, run, data, module, teacher)
    vectors = Teacher(nothing, nothing, nothing)
    core = 0
    if teacher:
        queries, passages = (torch.from_numpy(teacher[part]) for part in ("queries", "passages"))
        vectors = Teacher(queries, passages, passages[negatives] if negatives else nothing)
        core = teacher["words"].shape[1]
    job.datasets |= _passage_datasets(config, data, teacher, negatives)
    objective = PassageObjective(model, own, config.loss, vectors, core, progress)
    job.objectives |= dict.fromkeys(job.datasets, objective)
    pairs = sum(len(dataset) for dataset in job.datasets.values())
    share = config.train.term_share
    terms = data.terms[: int(pairs * share / (1 - share))] if job.datasets else data.terms
    if len(terms) >= config.train.batch:
        job.datasets["terms"] = Dataset.from_dict(
            {
                "term": [p.term for p in terms],
                "related": [p.related for p in terms],
                "label": [_TERM_FLOOR[p.kind] for p in terms],
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


def train(config: Config, run: Path) -> Path:
    """Run all stages that are not done yet; the directory of the trained checkpoint. Raises ``RunError``."""
    before = torch.get_num_threads()
    torch.set_num_threads(config.train.threads)
    try:
        return _train(config, run)
    finally:
        torch.set_num_threads(before)


def _train(config: Config, run: Path) -> Path:
    state = processes(config.train)
    with state.main_process_first():
        run.mkdir(parents=True, exist_ok=True)
        _check_settings(config, run)
        data = load_training_data(config)
        if config.model.start == "checkpoint":
            trained_checkpoint(config, run)
        # from here on stages leave results; what was wrong before can be put right in the same run
        (run / _SETTINGS).write_text(config.model_dump_json(indent=1), encoding="utf-8")
        (run / "data.json").write_text(json.dumps(data.counts, indent=1, ensure_ascii=False), encoding="utf-8")
        tokenizer, roles = vocabulary_stage(config, run)
    module, teacher = start_stage(config, run, data, tokenizer, roles)
    if module.splade.lexical and not config.model.skip:
        without_skip(module.splade.mlm)
    with state.main_process_first():
        weights, length = lexical_stage(config, run, data, tokenizer, roles)
    model = SparseModel(modules=[module], device=str(state.device))
    own = OwnWords.of(roles, roles.emitted, weights, length).to(state.device)
    tables, body = split_parameters(module)
    groups: list[dict[str, Any]] = [
        {"params": tables, "lr": config.train.embedding_learning_rate},
        {"params": body, "lr": config.train.learning_rate},
    ]
    job = Job(model, module, {}, {}, groups, [], config.train.steps, config.train.batch, config.train.accumulation)
    if config.train.objective == "card":
        _card_job(config, data, own, job)
    else:
        _retrieval_job(config, run, data, module, teacher, own, job)
    if not job.datasets:
        raise RunError(
            f"no source has train.batch = {config.train.batch} rows left after filtering: see {run / 'data.json'}, "
            "lower train.batch or add data"
        )
    if config.train.epochs:
        batches = sum(len(dataset) // job.batch for dataset in job.datasets.values())
        job.steps = max(1, math.ceil(config.train.epochs * batches / job.accumulation))
    job.schedules = [_schedule(config, job.steps)] * len(groups)
    if data.validation:
        job.callbacks.append(Validation(config, module, data.validation, run / "train"))
    fit(config.train, config.seed, run / "train", job)
    return run / "train" / "final"
