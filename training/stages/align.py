"""Stage 5, for the start ``e5``: under its new vocabulary the body learns to give the teacher's vectors again, and the
head is installed over it."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from datasets import Dataset

from training.distributed import processes
from training.fit import FINAL, Job, SparseModel, fit, split_parameters
from training.module import TiledSplade, load_module
from training.objectives import AlignObjective
from training.run import Run
from training.stages.lexical import LexicalWeights
from training.stages.teacher import PASSAGE_CHARACTERS, TeacherVectors
from training.stages.vocabulary import Vocabulary
from training.student import install_head

logger = logging.getLogger(__name__)

_SAMPLED_PASSAGES, _SAMPLED_QUERIES = 200, 80  #: by which the head is installed


def align_stage(
    run: Run, started: Path, vocabulary: Vocabulary, teacher: TeacherVectors, lexical: LexicalWeights
) -> Path:
    """The directory of the encoder whose layers and head agree with the teacher."""
    config, work = run.config, run.path / "align"
    body = work / FINAL if config.align.steps else started
    if not (run.path / "aligned").is_dir() and config.align.steps:
        module = load_module(started, max_tokens=config.train.max_tokens, bf16=config.train.bf16)
        _align(run, module, vocabulary, teacher, work)

    def make(folder: Path) -> None:
        module = load_module(body, max_tokens=config.train.max_tokens, bf16=False).eval()
        pairs = run.data.pairs
        sample = [pair.passage[:PASSAGE_CHARACTERS] for pair in pairs[:_SAMPLED_PASSAGES]]
        sample += [pair.query for pair in pairs[_SAMPLED_PASSAGES : _SAMPLED_PASSAGES + _SAMPLED_QUERIES]]
        measured = install_head(
            module.splade,
            teacher.words,
            lexical.own,
            [encoding.ids[: config.train.document_tokens] for encoding in vocabulary.tokenizer.encode_batch(sample)],
            start_active=config.model.start_active,
            skip=config.model.skip,
        )
        logger.info("head installed: %s", measured)
        module.save(str(folder))

    return run.result("aligned", make)


def _align(run: Run, module: TiledSplade, vocabulary: Vocabulary, teacher: TeacherVectors, out: Path) -> None:
    config, pieces = run.config, vocabulary.pieces
    whole = [i for i, piece in enumerate(pieces) if not piece.startswith(("##", "[")) and len(piece) > 1]
    pairs = run.data.pairs[: len(teacher.passages)]
    texts = {
        "words": ([pieces[i] for i in whole], teacher.words[whole]),
        "queries": ([p.query for p in pairs], teacher.queries),
        "passages": ([p.passage for p in pairs], teacher.passages),
    }
    core = teacher.words.shape[1]
    module.heads_only = True
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
