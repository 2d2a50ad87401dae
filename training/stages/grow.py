"""Stage 6, where a run goes on from a checkpoint with a vocabulary of words: the encoder under it."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from sparse_encoder.model import load_masked_lm
from sparse_encoder.modeling_lexical_bert import LexicalBertForMaskedLM
from training.growth import WordKnowledge, grow
from training.run import Run
from training.stages.lexical import LexicalWeights
from training.stages.related import RelatedWords
from training.stages.start import save_module
from training.stages.vocabulary import Vocabulary
from training.words.cong import general_morphemes, open_cong


def grow_stage(run: Run, started: Path, vocabulary: Vocabulary, related: RelatedWords, lexical: LexicalWeights) -> Path:
    """The directory of the LexicalBert ``started`` under a vocabulary of words, with its table of related words."""

    def make(folder: Path) -> None:
        mlm = load_masked_lm(started)
        assert isinstance(mlm, LexicalBertForMaskedLM)
        assert vocabulary.tables is not None
        known = WordKnowledge(
            vocabulary.pieces,
            vocabulary.roles,
            vocabulary.tables,
            related.table,
            lexical.own,
            general_morphemes(open_cong()),
        )
        tokenizer = Tokenizer.from_file(str(started / "tokenizer.json"))
        save_module(grow(mlm, tokenizer, known, run.config.related), vocabulary, folder)

    return run.result("grown", make)
