"""Stage 1: the vocabulary that training goes on from, or a new one; extended if the recipe says so."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tokenizers import Tokenizer
from transformers import AutoTokenizer

from sparse_encoder.model import is_lexical_bert
from training.config import Config, RunError
from training.data import vocabulary_texts
from training.extension import extend_vocabulary
from training.run import Run
from training.trained import trained_checkpoint
from training.vocabulary import NEVER, Roles, analyse, build_vocabulary


@dataclass(frozen=True)
class Vocabulary:
    tokenizer: Tokenizer
    roles: Roles

    @property
    def pieces(self) -> list[str]:
        return [str(self.tokenizer.id_to_token(i)) for i in range(self.tokenizer.get_vocab_size())]

    @classmethod
    def read(cls, directory: Path) -> Vocabulary:
        return cls(Tokenizer.from_file(str(directory / "tokenizer.json")), Roles.load(directory / "roles.json"))


def vocabulary_stage(run: Run) -> Vocabulary:
    config = run.config
    analysed = cache(lambda: analyse(vocabulary_texts(config)))  # takes minutes
    if config.model.start == "checkpoint":
        out = trained_checkpoint(run)
        if config.vocabulary.extend and not is_lexical_bert(out):
            raise RunError(f"vocabulary.extend: {config.model.checkpoint} is no LexicalBert: leave it out")
    elif config.model.start == "pretrained":
        out = run.result("vocabulary", lambda folder: _keep_vocabulary(config, folder))
    else:
        out = run.result("vocabulary", lambda folder: build_vocabulary(analysed(), config.vocabulary.size, folder))
    if config.vocabulary.extend:
        kept = Vocabulary.read(out)
        out = run.result("extended", lambda folder: extend_vocabulary(kept.tokenizer, kept.roles, analysed(), folder))
    return Vocabulary.read(out)


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
    backend.save(str(out / "tokenizer.json"))
    Roles([NEVER if i in special else i for i in range(backend.get_vocab_size())]).save(out / "roles.json")
