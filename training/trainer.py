"""Stage by stage from data to a trained checkpoint: vocabulary, teacher vectors, start, alignment, sparse training.

Every stage leaves its result in the run directory and is skipped when it is there, so a stopped run goes on where it
was; the two training stages resume from their last checkpoint.
"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from sentence_transformers import SparseEncoder, SparseEncoderTrainer, SparseEncoderTrainingArguments
from sklearn.cluster import MiniBatchKMeans
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from sparse_encoder.model import SpladeModel
from training.config import Config, RunError
from training.data import TrainingData, load_training_data
from training.e5 import DenseTeacher, load_e5
from training.module import TiledSplade, load_module
from training.objectives import AlignObjective, OwnWords, PassageObjective, TermObjective
from training.stages import (
    PASSAGE_CHARACTERS,
    fresh_model,
    lexical_stage,
    pieces_of,
    teacher_stage,
    vocabulary_stage,
)
from training.student import identity_codes, install_head, widen_e5
from training.vocabulary import Roles

logger = logging.getLogger(__name__)

_TERM_FLOOR = {"synonym": 1.0, "related": 0.5, "translation": 0.7}
_TASK_OF_COLUMN = {"query": "query", "passage": "document", "term": "term", "related": "term", "text": "document"}


class SparseModel(SparseEncoder):
    """A SparseEncoder of one module that remembers how many words the last batch activated."""

    active: tuple[float, float] | None = None  #: words of the last queries and documents; None: none measured yet

    def track(self, queries: Tensor, documents: Tensor) -> None:
        self.active = (float((queries > 0).sum(1).float().mean()), float((documents > 0).sum(1).float().mean()))


class _Trainer(SparseEncoderTrainer):
    """Logs the active words beside the loss."""

    model: SparseModel

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self.model.active:
            query, document = self.model.active
            logs = {**logs, "active_query": query, "active_document": document}
        super().log(logs, start_time)


class Progress:
    """The share of the run that is done, for schedules."""

    def __init__(self) -> None:
        self.value = 0.0

    def __call__(self) -> float:
        return self.value


class Watch(TrainerCallback):
    """Feeds ``Progress`` and stops a run that goes wrong before it is saved."""

    def __init__(self, progress: Progress, model: SparseModel, band: tuple[float, float]) -> None:
        self.progress, self.model, self.band = progress, model, band

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.progress.value = state.global_step / max(1, state.max_steps)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if logs is None or "loss" not in logs:
            return
        if not np.isfinite(logs["loss"]):
            raise RunError(f"step {state.global_step}: the loss is {logs['loss']}; lower the learning rate")
        low, high = self.band
        for side, active in zip(("queries", "documents"), self.model.active or (), strict=False):
            if not low <= active <= high:
                raise RunError(
                    f"step {state.global_step}: {side} activate {active:.0f} words on average, outside "
                    f"train.active_band {low:.0f}-{high:.0f}; change the loss.flops_* weights"
                )


def _fit(
    config: Config,
    out: Path,
    module: TiledSplade,
    datasets: dict[str, Dataset],
    objectives: dict[str, nn.Module],
    model: SparseModel,
    progress: Progress,
    *,
    steps: int,
    batch: int,
    groups: list[dict[str, Any]],
    schedules: list[Any],
) -> None:
    """One run of sentence-transformers' trainer, resumed if ``out`` holds a checkpoint."""
    train = config.train
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedules)
    arguments = SparseEncoderTrainingArguments(
        output_dir=str(out),
        max_steps=steps,
        per_device_train_batch_size=batch,
        max_grad_norm=train.max_grad_norm,
        seed=config.seed,
        use_cpu=True,
        logging_nan_inf_filter=False,  # else a loss that is no number is logged as the mean of earlier ones
        save_steps=train.save_steps,
        save_total_limit=1,
        logging_steps=train.log_steps,
        report_to=["tensorboard"],
        batch_sampler="no_duplicates",
        multi_dataset_batch_sampler="proportional",
        router_mapping=_TASK_OF_COLUMN,
        dataloader_drop_last=True,
        dataloader_pin_memory=False,
    )
    trainer = _Trainer(
        model=model,
        args=arguments,
        train_dataset=datasets,
        loss=objectives,
        optimizers=(optimizer, scheduler),
        callbacks=[Watch(progress, model, train.active_band)],
    )
    out.mkdir(parents=True, exist_ok=True)
    trainer.train(resume_from_checkpoint=last_checkpoint(out))
    module.eval()
    module.save(str(out / "final"))
    (out / "log.json").write_text(json.dumps(trainer.state.log_history, indent=1), encoding="utf-8")


def last_checkpoint(out: Path) -> str | None:
    """The newest complete checkpoint: its state file is written last, so one without was cut off and is removed."""
    for path in out.glob("checkpoint-*"):
        if not (path / "trainer_state.json").is_file():
            shutil.rmtree(path)
    found: str | None = get_last_checkpoint(str(out))
    return found


def _split_parameters(module: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """(embeddings and decoder, everything else)."""
    tables: list[nn.Parameter] = []
    body: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        (tables if "word_embeddings" in name or ".decoder." in name else body).append(parameter)
    return tables, body


def align_stage(
    config: Config, run: Path, module: TiledSplade, teacher: dict[str, NDArray[np.float16]], data: TrainingData
) -> None:
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
    model = SparseModel(modules=[module], device="cpu")
    frozen = config.align.embeddings_only
    tables, body = _split_parameters(module)
    total = config.align.steps

    def decay(step: int) -> float:
        return min(1.0, (step + 1) / 10) * (1 - 0.9 * step / total)

    _fit(
        config,
        out,
        module,
        {name: Dataset.from_dict({"text": t, "label": list(range(len(t)))}) for name, (t, _) in texts.items()},
        {name: AlignObjective(model, torch.from_numpy(v), core) for name, (_, v) in texts.items()},
        model,
        Progress(),
        steps=total,
        batch=config.align.batch,
        groups=[
            {"params": tables, "lr": config.align.embedding_learning_rate},
            {"params": body, "lr": config.align.learning_rate},
        ],
        schedules=[decay, lambda step: decay(step) if step >= frozen * total else 0.0],
    )
    module.heads_only = False


def start_stage(
    config: Config, run: Path, data: TrainingData, tokenizer: Tokenizer, roles: Roles
) -> tuple[TiledSplade, dict[str, NDArray[np.float16]]]:
    """The encoder before sparse training, and the teacher's vectors (empty without a teacher)."""
    out = run / "start"
    tasks = {
        "query": config.train.query_tokens,
        "document": config.train.document_tokens,
        "term": config.train.term_tokens,
    }
    emitted = torch.tensor(sorted(set(roles.emitted_as) - {-1}))
    if config.model.start == "fresh":
        if not (out / "roles.json").is_file():
            mlm = fresh_model(config, len(roles.emitted_as))
            TiledSplade(SpladeModel(mlm, emitted), tokenizer, roles, tasks, False).save(str(out))
        return load_module(out, max_tokens=tasks, bf16=config.train.bf16), {}
    e5, e5_tokenizer = load_e5(config.data_path(config.model.e5_path))
    pieces = pieces_of(tokenizer)
    teacher = teacher_stage(config, run, data, DenseTeacher(e5, e5_tokenizer, batch_tokens=2048), pieces)
    if config.model.start == "checkpoint":
        return load_module(Path(config.model.checkpoint), max_tokens=tasks, bf16=config.train.bf16), teacher
    if not (out / "roles.json").is_file():
        codes = identity_codes(roles, config.model.identity_size, config.seed)
        sample = [p.passage[:PASSAGE_CHARACTERS] for p in data.pairs[:200]] + [p.query for p in data.pairs[200:280]]
        final = run / "align" / "final"
        if not (final / "roles.json").is_file():
            mlm = widen_e5(e5, e5_tokenizer, pieces, codes, sample[:32], seed=config.seed)
            module = TiledSplade(SpladeModel(mlm, emitted), tokenizer, roles, dict(tasks), config.train.bf16)
            if config.align.steps:
                align_stage(config, run, module, teacher, data)
            else:
                module.save(str(final))
        module = load_module(final, max_tokens=tasks, bf16=False).eval()
        weights, _ = lexical_stage(config, run, data, tokenizer, roles)
        measured = install_head(
            module.splade,
            roles,
            codes,
            teacher["words"],
            weights,
            [encoding.ids[: config.train.document_tokens] for encoding in tokenizer.encode_batch(sample)],
            [[2, i, 3] for i in emitted.tolist()],
            start_active=config.model.start_active,
        )
        logger.info("head installed: %s", measured)
        module.save(str(out))
    return load_module(out, max_tokens=tasks, bf16=config.train.bf16), teacher


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


def cluster_of(vectors: NDArray[np.float16], count: int, seed: int) -> list[int]:
    """Number of the cluster of each vector, of ``count`` clusters (k-means); all 0 if ``count`` is less than two."""
    if count < 2:
        return [0] * len(vectors)
    return [int(i) for i in MiniBatchKMeans(count, random_state=seed, n_init=1).fit_predict(vectors.astype(np.float32))]


_FIXED_SECTIONS = ("seed", "data", "vocabulary", "model", "align")


def _keep_settings(config: Config, run: Path) -> None:
    """Store the recipe in the run. Raises ``RunError`` if stages that are done were made with other settings."""
    path = run / "config.json"
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
    path.write_text(config.model_dump_json(indent=1), encoding="utf-8")


def train(config: Config, run: Path) -> Path:
    """Run all stages that are not done yet; the directory of the trained checkpoint. Raises ``RunError``."""
    torch.set_num_threads(config.train.threads)
    run.mkdir(parents=True, exist_ok=True)
    _keep_settings(config, run)
    data = load_training_data(config)
    (run / "data.json").write_text(json.dumps(data.counts, indent=1, ensure_ascii=False), encoding="utf-8")
    tokenizer, roles = vocabulary_stage(config, run)
    module, teacher = start_stage(config, run, data, tokenizer, roles)
    weights, length = lexical_stage(config, run, data, tokenizer, roles)
    assert module.splade.emitted is not None
    own = OwnWords.of(roles, module.splade.emitted, weights, length)
    model = SparseModel(modules=[module], device="cpu")
    progress = Progress()
    vectors = (torch.empty(0), torch.empty(0))
    core = known = 0
    if teacher:
        vectors = (torch.from_numpy(teacher["queries"]), torch.from_numpy(teacher["passages"]))
        core, known = teacher["words"].shape[1], len(teacher["passages"])
    datasets: dict[str, Dataset] = {}
    objectives: dict[str, nn.Module] = {}
    passages = PassageObjective(model, own, config.loss, vectors, core, progress)
    for name, rows in _passage_batches(config, data, teacher.get("queries")).items():
        datasets[name] = Dataset.from_dict(
            {
                "query": [data.pairs[i].query for i in rows],
                "passage": [data.pairs[i].passage for i in rows],
                "label": [i if i < known else -1 for i in rows],
            }
        )
        objectives[name] = passages
    pairs = sum(len(dataset) for dataset in datasets.values())
    share = config.train.term_share
    terms = data.terms[: int(pairs * share / (1 - share))] if datasets else data.terms
    if len(terms) >= config.train.batch:
        datasets["terms"] = Dataset.from_dict(
            {
                "term": [p.term for p in terms],
                "related": [p.related for p in terms],
                "label": [_TERM_FLOOR[p.kind] for p in terms],
            }
        )
        objectives["terms"] = TermObjective(model, own, config.loss, progress)
    if not datasets:
        raise RunError(
            f"no source has train.batch = {config.train.batch} rows left after filtering: see {run / 'data.json'}, "
            "lower train.batch or add data"
        )
    tables, body = _split_parameters(module)
    total = config.train.steps

    def schedule(step: int) -> float:
        return min(1.0, (step + 1) / config.train.warmup_steps) * (1 - 0.9 * step / total)

    _fit(
        config,
        run / "train",
        module,
        datasets,
        objectives,
        model,
        progress,
        steps=total,
        batch=config.train.batch,
        groups=[
            {"params": tables, "lr": config.train.embedding_learning_rate},
            {"params": body, "lr": config.train.learning_rate},
        ],
        schedules=[schedule, schedule],
    )
    return run / "train" / "final"
