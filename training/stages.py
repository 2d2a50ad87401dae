"""What training needs before it starts, each made once and kept in the run directory: vocabulary, weights, vectors."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoModelForMaskedLM, AutoTokenizer, PreTrainedModel

from sparse_encoder.artifact import MANIFEST, ArtifactError, read_artifact
from sparse_encoder.model import SpladeModel, is_lexical_bert, load_masked_lm
from sparse_encoder.modeling_lexical_bert import LexicalBertConfig, LexicalBertForMaskedLM
from sparse_encoder.packed import unpack
from training.config import Config, RunError
from training.data import TrainingData, vocabulary_texts
from training.e5 import DenseTeacher, encode_cached
from training.extension import extend_vocabulary
from training.growth import PieceKnowledge, grow
from training.lexical import emitted_rows, idf, own_weights
from training.module import TiledSplade
from training.student import own_words_start
from training.vocabulary import NEVER, Roles, analyse, build_vocabulary

PASSAGE_CHARACTERS = 160  #: of a passage, for the teacher


def vocabulary_stage(config: Config, run: Path) -> tuple[Tokenizer, Roles]:
    """The vocabulary that training goes on from, or a new one; extended if the recipe says so."""
    analysed = cache(lambda: analyse(vocabulary_texts(config)))  # takes minutes
    out = run / "vocabulary"
    if config.model.start == "checkpoint":
        out = trained_checkpoint(config, run)
        if config.vocabulary.extend and not is_lexical_bert(out):
            raise RunError(f"vocabulary.extend: {config.model.checkpoint} is no LexicalBert: leave it out")
    elif config.model.start == "pretrained":
        if not (out / "roles.json").is_file():
            _keep_vocabulary(config, out)
    elif not (out / "roles.json").is_file():
        build_vocabulary(analysed(), config.vocabulary.size, out)
    if config.vocabulary.extend:
        kept, out = read_vocabulary(out), run / "extended"
        if not (out / "roles.json").is_file():
            extend_vocabulary(*kept, analysed(), out)
    return read_vocabulary(out)


def read_vocabulary(directory: Path) -> tuple[Tokenizer, Roles]:
    return Tokenizer.from_file(str(directory / "tokenizer.json")), Roles.load(directory / "roles.json")


def trained_checkpoint(config: Config, run: Path) -> Path:
    """What training goes on from: ``model.checkpoint`` if it is the ``train/final`` of a run; for a published
    LexicalBert, packed or not, a checkpoint that is made of it in ``run``. Raises ``RunError``."""
    named, out = Path(config.model.checkpoint), run / "start"
    if (named / "roles.json").is_file():
        return named
    if (out / "roles.json").is_file():
        return out
    if not (named / MANIFEST).is_file():
        raise RunError(
            f"model.checkpoint {named}: no trained checkpoint there; name the train/final of a run, or a published "
            "model's directory"
        )
    try:
        if any(named.glob("packed-*.safetensors")):
            unpack(named, out)
        else:
            read_artifact(named)
            shutil.copytree(named, out, dirs_exist_ok=True)
    except ArtifactError as error:
        raise RunError(f"model.checkpoint {named}: {error}") from error
    mlm = load_masked_lm(out)
    if not isinstance(mlm, LexicalBertForMaskedLM):
        raise RunError(f'model.checkpoint {named}: no LexicalBert; go on from it with model.start = "pretrained"')
    Roles([int(token) for token in mlm.own_token]).save(out / "roles.json")
    return out


def growth_stage(checkpoint: Path, run: Path, tokenizer: Tokenizer, roles: Roles, known: PieceKnowledge) -> Path:
    """The LexicalBert ``checkpoint`` under a vocabulary with more pieces."""
    out = run / "grown"
    if not (out / "roles.json").is_file():
        mlm = load_masked_lm(checkpoint)
        assert isinstance(mlm, LexicalBertForMaskedLM)
        mlm = grow(mlm, roles, known)
        TiledSplade(SpladeModel(mlm, roles.emitted), tokenizer, roles, {}, bf16=False).save(str(out))
    return out


def _keep_vocabulary(config: Config, out: Path) -> None:
    """Writes the pretrained model's tokenizer, and roles by which every token but the special ones is emitted."""
    try:
        pretrained = AutoTokenizer.from_pretrained(config.model.checkpoint)
    except (OSError, ValueError) as error:
        raise RunError(
            f"model.checkpoint {config.model.checkpoint}: its tokenizer cannot be loaded: {error}"
        ) from error
    special = set(pretrained.all_special_ids)
    backend = pretrained.backend_tokenizer
    out.mkdir(parents=True, exist_ok=True)
    backend.save(str(out / "tokenizer.json"))
    Roles([NEVER if i in special else i for i in range(backend.get_vocab_size())]).save(out / "roles.json")


def pretrained_model(config: Config) -> PreTrainedModel:
    """The masked language model that ``model.checkpoint`` names, its decoder apart from its input embedding: closing
    words for good in the one must not touch the other. Raises ``RunError`` if it cannot be loaded."""
    try:
        mlm: PreTrainedModel = AutoModelForMaskedLM.from_pretrained(config.model.checkpoint, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise RunError(f"model.checkpoint {config.model.checkpoint}: cannot be loaded: {error}") from error
    decoder = mlm.get_output_embeddings()
    decoder.weight = torch.nn.Parameter(decoder.weight.detach().clone())
    if decoder.bias is None:
        decoder.bias = torch.nn.Parameter(torch.zeros(len(decoder.weight)))
    mlm.config.tie_word_embeddings = False
    return mlm


def pieces_of(tokenizer: Tokenizer) -> list[str]:
    return [str(tokenizer.id_to_token(i)) for i in range(tokenizer.get_vocab_size())]


def lexical_stage(
    config: Config, run: Path, data: TrainingData, tokenizer: Tokenizer, roles: Roles
) -> tuple[Tensor, float]:
    """The weight of every token on its own [vocabulary], and the own words of an average passage."""
    path = run / "lexical.npz"
    if not path.is_file():
        texts = [pair.passage[:300] for pair in data.pairs]
        texts = texts or [side for row in data.triplets for side in (row.anchor, row.positive)]
        texts = texts or [side for pair in data.terms for side in (pair.term, pair.related)]
        rows = emitted_rows(tokenizer, roles, texts, 512)
        length = float(np.mean([min(len(row), config.train.document_tokens * 0.6) for row in rows]))
        np.savez(path, idf=idf(rows, tokenizer.get_vocab_size()), length=length)
    stored = np.load(path)
    return torch.from_numpy(own_weights(stored["idf"], config.model.lexical_scale)), float(stored["length"])


def teacher_stage(
    config: Config, run: Path, data: TrainingData, teacher: DenseTeacher, pieces: list[str]
) -> dict[str, NDArray[np.float16]]:
    """Vectors of queries, passages and every token's surface."""
    pairs = data.pairs[: config.train.teacher_pairs]
    cache = run / "teacher"
    return {
        "queries": encode_cached(teacher, [f"query: {p.query}" for p in pairs], cache, description="queries"),
        "passages": encode_cached(
            teacher, [f"passage: {p.passage[:PASSAGE_CHARACTERS]}" for p in pairs], cache, description="passages"
        ),
        "words": encode_cached(teacher, [f"query: {p.removeprefix('##')}" for p in pieces], cache, description="words"),
    }


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
