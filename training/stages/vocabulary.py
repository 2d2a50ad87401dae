"""Stage 1: the vocabulary that training goes on from, or a new one; extended, or made one of words, if the recipe says
so."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from kiwipiepy import Kiwi
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from sparse_encoder.model import is_lexical_bert
from training.config import Config, RunError
from training.data import vocabulary_texts
from training.extension import extend_vocabulary
from training.run import Run, write_json
from training.trained import trained_checkpoint
from training.vocabulary import (
    NEVER,
    Roles,
    Word,
    analyse,
    build_tokenizer,
    build_vocabulary,
    load_words,
    save_words,
)
from training.words.candidates import Compounds, Evidence, everyday_words
from training.words.choice import Choice, choose_pieces
from training.words.cong import Morpheme, Neighbours, general_morphemes, neighbours, open_cong
from training.words.counts import count_texts
from training.words.parts import trusted
from training.words.roles import Before, PieceUse, own_shares, word_roles
from training.words.tables import WordTables, own_words, word_tables

_TABLES = "words.npz"
_NEIGHBOURS = "neighbours.npz"
_REPORT = "report.json"
_WORDS = "words.txt"


@dataclass(frozen=True)
class Vocabulary:
    tokenizer: Tokenizer
    roles: Roles
    tables: WordTables | None = None  #: of a vocabulary of words
    #: [vocabulary, vocabulary] of a vocabulary of words: cosine of words that stand in a like place, by CoNg
    neighbours: sp.csr_matrix | None = None

    @property
    def pieces(self) -> list[str]:
        return [str(self.tokenizer.id_to_token(i)) for i in range(self.tokenizer.get_vocab_size())]

    @classmethod
    def read(cls, directory: Path) -> Vocabulary:
        tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        roles = Roles.load(directory / "roles.json")
        if not (directory / _TABLES).is_file():
            return cls(tokenizer, roles)
        near = sp.csr_matrix(sp.load_npz(directory / _NEIGHBOURS))
        return cls(tokenizer, roles, WordTables.load(directory / _TABLES), near)


def vocabulary_stage(run: Run) -> Vocabulary:
    config = run.config
    analysed = cache(lambda: analyse(vocabulary_texts(config)))  # takes minutes
    if config.model.start == "checkpoint":
        out = trained_checkpoint(run)
        if config.vocabulary.words:
            if not is_lexical_bert(out):
                raise RunError(f"vocabulary.words: {config.model.checkpoint} is no LexicalBert: leave it out")
            before, sample = Vocabulary.read(out), _morphemes(run)
            out = run.result(
                "words", lambda folder: build_word_vocabulary(config, before, load_words(sample / _WORDS), folder)
            )
    elif config.model.start == "pretrained":
        out = run.result("vocabulary", lambda folder: _keep_vocabulary(config, folder))
    else:
        out = run.result("vocabulary", lambda folder: build_vocabulary(analysed(), config.vocabulary.size, folder))
    if config.vocabulary.extend:
        kept = Vocabulary.read(out)
        out = run.result("extended", lambda folder: extend_vocabulary(kept.tokenizer, kept.roles, analysed(), folder))
    return Vocabulary.read(out)


def _morphemes(run: Run) -> Path:
    """The sample of words, segmented, which a stopped run need not count again."""
    return run.result("morphemes", lambda folder: save_words(analyse(vocabulary_texts(run.config)), folder / _WORDS))


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


def build_word_vocabulary(config: Config, before: Vocabulary, sample: Counter[Word], out: Path) -> None:
    """Writes a vocabulary of words in place of ``before``, as `training.words` makes it, and a report of what became of
    which pieces."""
    cong = open_cong()
    general = general_morphemes(cong)
    evidence = Evidence(sample, count_texts(config), general, everyday_words())
    compounds = Compounds.of(sample)
    old = Before.of(before.pieces, before.roles)
    choice = choose_pieces(before.pieces, old, evidence, compounds, Kiwi(num_workers=1), config.vocabulary.words)
    use = PieceUse.of(sample, frozenset(choice.pieces))
    roles = word_roles(choice.pieces, old, use, general, evidence.texts.characters)
    near = _neighbours(cong, own_words(choice.pieces, roles), general)
    shares = own_shares(choice.pieces, roles, use)
    tables = word_tables(choice.pieces, roles, shares, compounds.parts, trusted(near, near.keys()))
    build_tokenizer(choice.pieces, strip_accents=True).save(str(out / "tokenizer.json"))
    roles.save(out / "roles.json")
    tables.save(out / _TABLES)
    sp.save_npz(out / _NEIGHBOURS, _by_id(near, choice.pieces))
    write_json(out / _REPORT, _report(choice, roles, tables))


def _neighbours(cong: Kiwi, words: set[str], general: dict[str, Morpheme]) -> Neighbours:
    known = {word: general[word] for word in sorted(words) if word in general and len(word) > 1}
    found = neighbours(cong, known)
    return {word: [(other, score) for other, score in row if other in words] for word, row in found.items()}


def _by_id(near: Neighbours, pieces: list[str]) -> sp.csr_matrix:
    index = {piece: i for i, piece in enumerate(pieces)}
    places = [(index[word], index[other], score) for word, row in near.items() for other, score in dict(row).items()]
    table = np.array(places, np.float64).reshape(-1, 3)
    shape = (len(pieces), len(pieces))
    return sp.csr_matrix((table[:, 2].astype(np.float32), table[:, :2].astype(np.int64).T), shape=shape)


def _report(choice: Choice, roles: Roles, tables: WordTables) -> dict[str, object]:
    return {
        "pieces": len(choice.pieces),
        "emitted": len(roles.emitted),
        "emitted only as a last resort": len(set(roles.last) - set(roles.emitted_as) - {NEVER}),
        "new words by source": dict(Counter(candidate.source for candidate in choice.new.values()).most_common()),
        "old pieces dropped": len(choice.dropped),
        "pieces with parts": len(tables.parts()),
        "last chosen": [(word, round(candidate.score, 2)) for word, candidate in list(choice.new.items())[-40:]],
        "dropped": choice.dropped[:40],
    }
