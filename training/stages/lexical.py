"""Stage 3: what each word weighs by itself, by its document frequency over the training passages."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sparse_encoder.lexical_tables import LexicalTables
from sparse_encoder.query_tokens import NEVER, QueryTokens
from sparse_encoder.query_tokens import RelatedWords as Related
from training.config import PublishConfig, RunError
from training.lexical import blended, emitted_rows, idf, idf_of, own_weights
from training.run import Run
from training.stages.related import RelatedWords
from training.stages.vocabulary import Vocabulary
from training.vocabulary import Roles

_NAME = "lexical"
_IDF = "idf.npy"
_LENGTH = "length.json"
_CHARACTERS, _TOKENS = 300, 512  #: of a passage


@dataclass(frozen=True)
class LexicalWeights:
    own: Tensor  #: [vocabulary] the weight of every token on its own
    passage_length: float  #: own words of an average passage


def lexical_stage(run: Run, vocabulary: Vocabulary, related: RelatedWords | None = None) -> LexicalWeights:
    """``related``: by its corpora, which hold more words than the training passages, as well."""
    config = run.config

    def make(folder: Path) -> None:
        data = run.data
        texts = [pair.passage[:_CHARACTERS] for pair in data.pairs]
        texts = texts or [side for row in data.triplets for side in (row.anchor, row.positive)]
        texts = texts or [side for pair in data.terms for side in (pair.term, pair.related)]
        rows = emitted_rows(vocabulary.tokenizer, vocabulary.roles, texts, _TOKENS)
        length = float(np.mean([min(len(row), config.train.document_tokens * 0.6) for row in rows]))
        values = idf(rows, vocabulary.tokenizer.get_vocab_size())
        if related:
            values = blended(values, idf_of(related.frequency, related.texts))
        np.save(folder / _IDF, values)
        (folder / _LENGTH).write_text(json.dumps(length), encoding="utf-8")

    out = run.result(_NAME, make, inputs=f"document_tokens {config.train.document_tokens}")
    length = float(json.loads((out / _LENGTH).read_text(encoding="utf-8")))
    return LexicalWeights(torch.from_numpy(own_weights(np.load(out / _IDF), config.model.lexical_scale)), length)


def query_tokens(run: Path, exported: Path, roles: Roles, settings: PublishConfig) -> QueryTokens:
    """What a published model says about queries that are not encoded: each emitted token weighs its idf over the run's
    training passages (see `training.lexical.idf`), and brings along what the table of the ``exported`` model names.

    Raises ``RunError`` if the run has no counts, ``ArtifactError`` if there is to be a table and the model has none.
    """
    path = run / _NAME / _IDF
    if not path.is_file():
        raise RunError(f"{path}: missing; run `python -m training train` to its end first")
    emitted_as = np.array(roles.emitted_as, np.int32)
    weights = np.zeros(len(emitted_as), np.float32)
    targets = np.setdiff1d([*roles.emitted_as, *roles.last], [NEVER])
    weights[targets] = np.load(path)[targets]
    related = None
    if settings.related_query_factor:
        tables = LexicalTables.read(exported)
        related = Related(settings.related_query_factor, settings.related_query_words, tables)
    return QueryTokens(settings.query_encoding == "inference_free", emitted_as, weights, related)
