"""Stage 4: the encoder before it has learned anything, for each ``model.start`` of a recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForMaskedLM, PreTrainedModel

from sparse_encoder.model import SpladeModel, architecture_of
from sparse_encoder.modeling_lexical_bert import LexicalBertConfig, LexicalBertForMaskedLM
from training.config import Config, RunError
from training.module import TiledSplade
from training.run import Run
from training.stages.lexical import LexicalWeights
from training.stages.teacher import load_teacher
from training.stages.vocabulary import Vocabulary
from training.student import own_words_start, start_from_e5
from training.trained import trained_checkpoint
from training.vocabulary import Roles


def start_stage(run: Run, vocabulary: Vocabulary, lexical: LexicalWeights) -> Path:
    """The directory of the encoder, as ``TiledSplade`` saves it. Raises ``RunError``."""
    return STARTS[run.config.model.start](run, vocabulary, lexical)


def e5_start(run: Run, vocabulary: Vocabulary, lexical: LexicalWeights) -> Path:
    """The teacher's layers under the run's vocabulary; its head is installed once they give the teacher's vectors."""

    def make(folder: Path) -> None:
        teacher, config = load_teacher(run), run.config
        mlm = start_from_e5(teacher.model, teacher.tokenizer, vocabulary.pieces, vocabulary.roles, seed=config.seed)
        save_module(mlm, vocabulary, folder)

    return run.result("start", make)


def fresh_start(run: Run, vocabulary: Vocabulary, lexical: LexicalWeights) -> Path:
    """A LexicalBert of random weights, whose own words weigh what they should."""
    return run.result(
        "start", lambda folder: save_module(fresh_model(run.config, vocabulary.roles, lexical.own), vocabulary, folder)
    )


def pretrained_start(run: Run, vocabulary: Vocabulary, lexical: LexicalWeights) -> Path:
    """Any masked language model of transformers."""
    return run.result("start", lambda folder: save_module(pretrained_model(run.config), vocabulary, folder))


def checkpoint_start(run: Run, vocabulary: Vocabulary, lexical: LexicalWeights) -> Path:
    """What an earlier run trained or published."""
    return trained_checkpoint(run)


Start = Callable[[Run, Vocabulary, LexicalWeights], Path]
STARTS: Mapping[str, Start] = {
    "e5": e5_start,
    "fresh": fresh_start,
    "checkpoint": checkpoint_start,
    "pretrained": pretrained_start,
}


def save_module(mlm: PreTrainedModel, vocabulary: Vocabulary, folder: Path) -> None:
    splade = SpladeModel(mlm, vocabulary.roles.emitted)
    TiledSplade(splade, vocabulary.tokenizer, vocabulary.roles, {}, bf16=False).save(str(folder))


def pretrained_model(config: Config) -> PreTrainedModel:
    """The masked language model that ``model.checkpoint`` names, its decoder apart from its input embedding: closing
    words for good in the one must not touch the other. Raises ``RunError`` if it cannot be loaded."""
    try:
        mlm: PreTrainedModel = AutoModelForMaskedLM.from_pretrained(config.model.checkpoint, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise RunError(f"model.checkpoint {config.model.checkpoint}: cannot be loaded: {error}") from error
    try:
        architecture_of(mlm)
    except ValueError as error:
        raise RunError(f"model.checkpoint {config.model.checkpoint}: {error}") from error
    decoder = mlm.get_output_embeddings()
    decoder.weight = torch.nn.Parameter(decoder.weight.detach().clone())
    if decoder.bias is None:
        decoder.bias = torch.nn.Parameter(torch.zeros(len(decoder.weight)))
    mlm.config.tie_word_embeddings = False
    return mlm


def fresh_model(config: Config, roles: Roles, own_weights: Tensor) -> LexicalBertForMaskedLM:
    """Random weights; own words weigh ``own_weights`` [vocabulary] from the start."""
    torch.manual_seed(config.seed)
    model = LexicalBertForMaskedLM(
        LexicalBertConfig(
            vocab_size=len(roles.emitted_as),
            hidden_size=config.model.hidden_size,
            num_hidden_layers=config.model.layers,
            num_attention_heads=config.model.heads,
            intermediate_size=config.model.intermediate_size,
            type_vocab_size=1,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            pad_token_id=0,
            tie_word_embeddings=False,
        )
    )
    own_words_start(model, roles)
    with torch.no_grad():
        model.own_weight.copy_(own_weights)
    return model
