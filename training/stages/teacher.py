"""Stage 2: the dense teacher's vectors of the pairs and of every token's surface."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from training.config import RunError
from training.e5 import DenseTeacher, load_e5
from training.run import Run
from training.stages.vocabulary import Vocabulary
from training.trained import trained_checkpoint

PASSAGE_CHARACTERS = 160  #: of a passage, for the teacher
_CHUNK = 2048  #: texts whose vectors are kept at a time, so that a stopped run goes on
_BATCH_TOKENS = 2048


@dataclass(frozen=True)
class TeacherVectors:
    """Normalised, float16."""

    queries: NDArray[np.float16]  #: [pairs, teacher] of the first ``train.teacher_pairs``
    passages: NDArray[np.float16]
    words: NDArray[np.float16]  #: [vocabulary, teacher] of the tokens' surfaces


def load_teacher(run: Run) -> DenseTeacher:
    return DenseTeacher(*load_e5(run.config.data_path(run.config.model.e5_path)), batch_tokens=_BATCH_TOKENS)


def has_teacher(run: Run) -> bool:
    return run.config.model.start in ("e5", "checkpoint") and bool(run.config.model.e5_path)


def teacher_stage(run: Run, vocabulary: Vocabulary) -> TeacherVectors | None:
    """None if the run trains without a teacher. Raises ``RunError`` if the model has no room for its vectors."""
    if not has_teacher(run):
        return None
    checkpoint = trained_checkpoint(run) if run.config.model.start == "checkpoint" else None
    pairs = run.data.pairs[: run.config.train.teacher_pairs]
    texts = {
        "queries": [f"query: {pair.query}" for pair in pairs],
        "passages": [f"passage: {pair.passage[:PASSAGE_CHARACTERS]}" for pair in pairs],
        "words": [f"query: {piece.removeprefix('##')}" for piece in vocabulary.pieces],
    }
    chunks = run.path / "teacher.chunks"

    def make(folder: Path) -> None:
        teacher = load_teacher(run)
        if checkpoint:
            _check_size(run, checkpoint, teacher.dimensions)
        for name, rows in texts.items():
            np.save(folder / f"{name}.npy", _encode(teacher, rows, chunks, name))

    out = run.result("teacher", make, inputs=_digest([text for rows in texts.values() for text in rows]))
    shutil.rmtree(chunks, ignore_errors=True)
    return TeacherVectors(*(np.load(out / f"{name}.npy") for name in texts))


def _check_size(run: Run, checkpoint: Path, teacher: int) -> None:
    size = json.loads((checkpoint / "config.json").read_bytes())["hidden_size"]
    if size < teacher:
        raise RunError(
            f"model.checkpoint {run.config.model.checkpoint}: its states have {size} dimensions, the teacher's vectors "
            f'{teacher}: go on without a teacher (model.e5_path = "")'
        )


def _encode(teacher: DenseTeacher, texts: list[str], chunks: Path, name: str) -> NDArray[np.float16]:
    """Vectors of ``texts`` in order, computed in parts that are kept in ``chunks`` until all are there."""
    chunks.mkdir(parents=True, exist_ok=True)
    parts: list[NDArray[np.float16]] = []
    with tqdm(total=len(texts), desc=name, unit="text") as bar:
        for start in range(0, len(texts), _CHUNK):
            rows = texts[start : start + _CHUNK]
            path = chunks / f"{name}-{start:08d}-{_digest(rows)[:12]}.npy"
            if not path.is_file():
                partial = path.with_suffix(".partial.npy")
                np.save(partial, teacher.encode(rows, progress=False).astype(np.float16))
                partial.replace(path)
            parts.append(np.load(path))
            bar.update(len(rows))
    return np.concatenate(parts) if parts else np.zeros((0, teacher.dimensions), np.float16)


def _digest(texts: list[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()
