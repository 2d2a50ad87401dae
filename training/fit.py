"""One run of sentence-transformers' trainer: resumed where it was stopped, watched, and written down as it goes."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from sentence_transformers import SparseEncoder, SparseEncoderTrainer, SparseEncoderTrainingArguments
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from training.batches import DistinctBatches
from training.config import RunError, TrainConfig
from training.distributed import ddp_backend, on_cpu, processes
from training.module import TiledSplade, load_module
from training.progress import Diary
from training.run import whole_directory, write_json

logger = logging.getLogger(__name__)

FINAL = "final"  #: the trained checkpoint, in the directory of a training
_STATE = "trainer_state.json"
_TASK_OF_COLUMN = {
    **{"query": "query", "passage": "document", "negative": "document", "text": "document"},
    **{"term": "term", "related": "term", "anchor": "term", "synonym": "term", "look_alike": "term"},
}


class SparseModel(SparseEncoder):
    """A SparseEncoder of one module that remembers how many words the last batch activated."""

    active: tuple[float, float] | None = None  #: words of the last queries and documents; None: none measured yet

    def track(self, queries: Tensor, documents: Tensor) -> None:
        self.active = (float((queries > 0).sum(1).float().mean()), float((documents > 0).sum(1).float().mean()))


class _Trainer(SparseEncoderTrainer):
    """Logs the active words beside the loss, and stops at one that is no number before it changes a weight."""

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss: Tensor = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):
            raise RunError(f"step {self.state.global_step}: the loss is {float(loss)}; lower the learning rate")
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        model: SparseModel = getattr(self.model, "module", self.model)  # type: ignore[arg-type]
        if "loss" in logs and model.active:
            query, document = model.active
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

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, model: nn.Module | None = None, **_: Any
    ) -> None:
        """Else a checkpoint of weights that are no numbers may take the place of the last good one."""
        assert model
        norm = torch.nn.utils.get_total_norm(p.grad for p in model.parameters() if p.grad is not None)
        if not torch.isfinite(norm):
            raise RunError(f"step {state.global_step}: a gradient is no number; lower the learning rate")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if logs is None or "loss" not in logs:
            return
        low, high = self.band
        for side, active in zip(("queries", "documents"), self.model.active or (), strict=False):
            if not low <= active <= high:
                raise RunError(
                    f"step {state.global_step}: {side} activate {active:.0f} words on average, outside "
                    f"train.active_band {low:.0f}-{high:.0f}; change the loss.flops_* weights"
                )


@dataclass
class Job:
    """What is trained: columns of texts by name, and the objective of each."""

    model: SparseModel
    module: TiledSplade
    datasets: dict[str, Dataset]
    objectives: dict[str, nn.Module]
    groups: list[dict[str, Any]]  #: parameters and their learning rate, as an optimizer takes them
    schedules: list[Callable[[int], float]]  #: factor of each group's learning rate by step
    steps: int
    batch: int
    accumulation: int = 1
    progress: Progress = field(default_factory=Progress)
    callbacks: list[TrainerCallback] = field(default_factory=list)


def fit(train: TrainConfig, seed: int, out: Path, job: Job) -> None:
    """Trains ``job`` to its end, from the last checkpoint in ``out`` if there is one; writes ``out / FINAL``.

    ``train.batch`` rows are shared out among the processes, all of the same dataset. Raises ``RunError`` if the run
    goes wrong.
    """
    state = processes(train)
    out.mkdir(parents=True, exist_ok=True)
    with state.main_process_first():
        checkpoint = last_checkpoint(out)
    if _steps_done(checkpoint) < job.steps:  # else the trainer would take one step more
        _train(train, seed, out, job, checkpoint)
    if state.is_main_process:
        _write_final(out)
    state.wait_for_everyone()


def _train(train: TrainConfig, seed: int, out: Path, job: Job, checkpoint: str | None) -> None:
    for parameter in unused_parameters(job.module):  # DistributedDataParallel would wait for their gradients for ever
        parameter.requires_grad_(False)
    optimizer = torch.optim.AdamW(job.groups, betas=(0.9, 0.98), weight_decay=train.weight_decay)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, job.schedules)
    arguments = SparseEncoderTrainingArguments(
        output_dir=str(out),
        max_steps=job.steps,
        per_device_train_batch_size=job.batch,
        gradient_accumulation_steps=job.accumulation,
        accelerator_config={"split_batches": True},
        max_grad_norm=train.max_grad_norm,
        seed=seed,
        use_cpu=on_cpu(train),
        ddp_backend=ddp_backend(train),
        ddp_find_unused_parameters=False,
        logging_nan_inf_filter=False,  # else a loss that is no number is logged as the mean of earlier ones
        save_steps=train.save_steps,
        save_total_limit=1,
        logging_steps=train.log_steps,
        report_to=["tensorboard"],
        batch_sampler=DistinctBatches,
        multi_dataset_batch_sampler="proportional",
        router_mapping=_TASK_OF_COLUMN,
        dataloader_drop_last=True,
        dataloader_pin_memory=False,
    )
    trainer = _Trainer(
        model=job.model,
        args=arguments,
        train_dataset=job.datasets,
        loss=job.objectives,
        optimizers=(optimizer, scheduler),
        callbacks=[Watch(job.progress, job.model, train.active_band), Diary(out), *job.callbacks],
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    job.module.eval()


def _write_final(out: Path) -> None:
    """The best checkpoint, or else the last, and the log of the run."""
    checkpoint = last_checkpoint(out)
    assert checkpoint
    best = out / "best" if (out / "best").is_dir() else Path(checkpoint)
    with whole_directory(out / FINAL) as folder:
        load_module(best, max_tokens={}, bf16=False).save(str(folder))
    write_json(out / "log.json", _state(checkpoint)["log_history"])


def _state(checkpoint: str) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((Path(checkpoint) / _STATE).read_text(encoding="utf-8"))
    return state


def _steps_done(checkpoint: str | None) -> int:
    return int(_state(checkpoint)["global_step"]) if checkpoint else 0


def last_checkpoint(out: Path) -> str | None:
    """The newest complete checkpoint: its state file is written last, so one without was cut off and is removed."""
    for path in out.glob("checkpoint-*"):
        if not (path / _STATE).is_file():
            shutil.rmtree(path)
    found: str | None = get_last_checkpoint(str(out))
    return found


def split_parameters(module: TiledSplade) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """(embeddings, decoder and the words' own weights; everything else)."""
    mlm = module.splade.mlm
    tables = {id(p): p for m in (mlm.get_input_embeddings(), module.splade.decoder) for p in m.parameters()}
    if module.splade.lexical:
        tables[id(mlm.own_weight)] = mlm.own_weight
    return list(tables.values()), [p for p in module.parameters() if id(p) not in tables]


def unused_parameters(module: TiledSplade) -> list[nn.Parameter]:
    """What gets no gradient: of BERT's two copies of the decoder's bias the one that nothing computes with; and the
    whole head while only dense vectors are trained."""
    mlm = module.splade.mlm
    if module.heads_only:
        body = {id(parameter) for parameter in mlm.base_model.parameters()}
        return [parameter for parameter in mlm.parameters() if id(parameter) not in body]
    bias = getattr(getattr(getattr(mlm, "cls", None), "predictions", None), "bias", None)
    return [] if bias is None or bias is module.splade.decoder.bias else [bias]
