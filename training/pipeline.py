"""From data to a trained checkpoint, stage by stage: read `training` from here.

Every stage leaves its result in the run directory and is skipped where it is there, so a stopped run goes on where it
was; `align` and `train` resume from their last checkpoint. Several processes (``torchrun``) share the batches; what
comes before training is made by the first and read by the others. `evaluate` and `publish` are commands of their own.
"""

from __future__ import annotations

from pathlib import Path

import torch

from training.config import Config
from training.distributed import on_cpu, processes
from training.module import TiledSplade, load_module
from training.run import Run, check_settings, fix_settings
from training.stages.align import align_stage
from training.stages.former import former_stage
from training.stages.grow import grow_stage
from training.stages.lexical import lexical_stage
from training.stages.mine import mine_stage
from training.stages.related import related_stage
from training.stages.start import start_stage
from training.stages.teacher import teacher_stage
from training.stages.train import train_stage
from training.stages.vocabulary import vocabulary_stage
from training.student import without_skip
from training.trained import trained_checkpoint


def train(config: Config, directory: Path) -> Path:
    """Run all stages that are not done yet; the directory of the trained checkpoint. Raises ``RunError``."""
    before = torch.get_num_threads()
    torch.set_num_threads(config.train.threads)
    try:
        return _stages(begin(config, directory))
    finally:
        torch.set_num_threads(before)


def begin(config: Config, directory: Path) -> Run:
    """Reads the data, and fixes what stages that are done must not differ in. Raises ``RunError``."""
    run = Run(config, directory)
    state = processes(config.train)
    with state.main_process_first():
        directory.mkdir(parents=True, exist_ok=True)
        check_settings(run)
        _ = run.data
    if config.model.start == "checkpoint":
        trained_checkpoint(run)
    if state.is_main_process:
        fix_settings(run)
    return run


def _stages(run: Run) -> Path:
    vocabulary = vocabulary_stage(run)
    related = related_stage(run, vocabulary)
    teacher = teacher_stage(run, vocabulary)
    lexical = lexical_stage(run, vocabulary, related)
    encoder = started = start_stage(run, vocabulary, lexical)
    if run.config.model.start == "e5":
        assert teacher
        encoder = align_stage(run, encoder, vocabulary, teacher, lexical)
    elif related:
        encoder = grow_stage(run, encoder, vocabulary, related, lexical)
    former = former_stage(run, started, encoder)
    module = _load(run, encoder)
    negatives = mine_stage(run, module, teacher)
    return train_stage(run, module, vocabulary, teacher, former, lexical, negatives)


def _load(run: Run, encoder: Path) -> TiledSplade:
    module = load_module(encoder, max_tokens=run.config.train.max_tokens, bf16=run.config.train.bf16)
    if on_cpu(run.config.train):  # whose fused attention takes more than twice as long to learn by in bfloat16
        module.splade.mlm.set_attn_implementation("eager")
    if module.splade.lexical and not run.config.model.skip:
        without_skip(module.splade.mlm)
    return module
