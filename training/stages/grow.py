"""Stage 6, where a run goes on from a checkpoint and extends its vocabulary: the encoder gets the new pieces."""

from __future__ import annotations

from pathlib import Path

import torch

from sparse_encoder.model import load_masked_lm
from sparse_encoder.modeling_lexical_bert import LexicalBertForMaskedLM
from training.growth import PieceKnowledge, grow
from training.run import Run
from training.stages.lexical import LexicalWeights
from training.stages.start import save_module
from training.stages.teacher import TeacherVectors, load_teacher
from training.stages.vocabulary import Vocabulary
from training.student import mean_piece_embeddings


def grow_stage(
    run: Run, started: Path, vocabulary: Vocabulary, teacher: TeacherVectors, lexical: LexicalWeights
) -> Path:
    """The directory of the LexicalBert ``started`` under a vocabulary with more pieces."""

    def make(folder: Path) -> None:
        mlm, e5 = load_masked_lm(started), load_teacher(run)
        assert isinstance(mlm, LexicalBertForMaskedLM)
        known = PieceKnowledge(
            own_weights=lexical.own,
            word_vectors=torch.from_numpy(teacher.words).float(),
            embeddings=mean_piece_embeddings(e5.model, e5.tokenizer, vocabulary.pieces),
        )
        save_module(grow(mlm, vocabulary.roles, known), vocabulary, folder)

    return run.result("grown", make)
