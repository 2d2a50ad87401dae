"""Stage 1, second part, of a vocabulary of words: the table of related words, and how many texts hold each word.

Of term lists it knows what training knows, nothing of held-out terms.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from training.config import CorpusWeights
from training.corpora import Unseen, unseen_texts
from training.everyday import DEPTH, Shown, everyday_figures, load_everyday
from training.lexical import idf_of
from training.related.alone import words_by_table
from training.related.cooccurrence import Cooccurrence, cooccurrence
from training.related.matrix import term_matrix
from training.related.table import (
    Source,
    combine,
    knowledge,
    neighbour_weights,
    target_weights,
    together,
)
from training.related.terms import term_relations
from training.run import Run, whole_directory, write_json
from training.stages.vocabulary import Vocabulary
from training.words.cong import general_morphemes, open_cong

_TABLE = "table.npz"
_FREQUENCY = "frequency.npz"
_COUNTS = "counts.json"
_REPORT = "report.json"


@dataclass(frozen=True, eq=False)
class RelatedWords:
    table: sp.csr_matrix  #: [vocabulary, vocabulary] weights, the first word of a row weighs 1
    frequency: NDArray[np.int64]  #: [vocabulary] texts of the corpora with a weight that hold each word
    texts: int

    @classmethod
    def read(cls, folder: Path) -> RelatedWords:
        with np.load(folder / _FREQUENCY) as arrays:
            return cls(sp.csr_matrix(sp.load_npz(folder / _TABLE)), arrays["frequency"], int(arrays["texts"]))


def related_stage(run: Run, vocabulary: Vocabulary) -> RelatedWords | None:
    """None if the vocabulary is none of words. What each corpus gave is kept in ``related.sources`` of the run."""
    if vocabulary.tables is None or not run.config.vocabulary.words:
        return None
    data = run.data

    def make(folder: Path) -> None:
        passages = [pair.passage for pair in (*data.pairs, *data.validation)]
        _make(run, vocabulary, passages, folder)

    return RelatedWords.read(run.result("related", make))


def _make(run: Run, vocabulary: Vocabulary, passages: Sequence[str], folder: Path) -> None:
    settings, tables = run.config.related, vocabulary.tables
    assert tables is not None
    pieces, shares = vocabulary.pieces, tables.own_share[:, 0]
    found, texts = _corpora(run, vocabulary, passages)
    sources = _sources(run, vocabulary, found)
    general = general_morphemes(open_cong())
    targets = target_weights(pieces, vocabulary.roles, general, shares)

    def table_of(chosen: Sequence[Source]) -> sp.csr_matrix:
        return combine(chosen, settings, targets, tables)

    table = table_of(sources)
    sp.save_npz(folder / _TABLE, table)
    counted = [found[name] for name, weights in settings.corpora.items() if weights.feedback or weights.association]
    counted = counted or list(found.values())
    frequency = np.sum([corpus.frequency for corpus in counted], axis=0)
    np.savez(folder / _FREQUENCY, frequency=frequency, texts=sum(corpus.texts for corpus in counted))
    first = next(iter(found.values()))
    measure = _everyday(run, vocabulary, np.sqrt(idf_of(first.frequency, first.texts)))
    alone = {}
    for name in dict.fromkeys(source.name for source in sources):
        named = [Source(name, source.names, source.names) for source in sources if source.name == name]
        alone[name] = _size(together([source.names for source in named])) | measure(table_of(named))
    report = {"texts": texts, "alone": alone, "table": _size(table) | measure(table)}
    write_json(folder / _REPORT, report)


def _everyday(
    run: Run, vocabulary: Vocabulary, weights: NDArray[np.float32]
) -> Callable[[sp.csr_matrix], dict[str, Any]]:
    """What a person would see of a table alone who types the recipe's everyday queries, if it names any."""
    queries, pieces, tables = load_everyday(run.config), vocabulary.pieces, vocabulary.tables
    assert tables is not None
    asked = [vocabulary.tokenizer.encode(query.query, add_special_tokens=False).ids for query in queries]

    def measure(table: sp.csr_matrix) -> dict[str, Any]:
        found = (words_by_table(ids, vocabulary.roles, tables, table, weights) for ids in asked)
        shown = [Shown([pieces[i] for i in words[:DEPTH]]) for words in found]
        return {"everyday": everyday_figures(queries, shown)} if queries else {}

    return measure


def _sources(run: Run, vocabulary: Vocabulary, found: dict[str, Cooccurrence]) -> list[Source]:
    settings = run.config.related
    assert vocabulary.neighbours is not None
    first = next(iter(found.values()))
    sources = []
    for name, corpus in found.items():
        weights = settings.corpora[name]
        known = sp.diags_array(knowledge(corpus, first, weights.shrinkage))
        for weight, matrix in ((weights.feedback, corpus.feedback), (weights.association, corpus.association)):
            named = sp.csr_matrix(known @ matrix)
            sources.append(Source(name, sp.csr_matrix(named * np.float32(weight)), named))
    near = neighbour_weights(vocabulary.neighbours)
    sources.append(Source("neighbours", sp.csr_matrix(near * np.float32(settings.neighbours)), near))
    if settings.terms:
        listed = term_relations(run.data.terms, vocabulary.tokenizer, vocabulary.roles)
        sources.append(Source("terms", sp.csr_matrix(listed * np.float32(settings.terms)), listed))
    return sources


def _corpora(
    run: Run, vocabulary: Vocabulary, passages: Sequence[str]
) -> tuple[dict[str, Cooccurrence], dict[str, Any]]:
    """What each corpus says, in the order of the recipe's weights, and how many texts it has; made once for a
    vocabulary."""
    tables = vocabulary.tables
    assert tables is not None
    shares = tables.own_share[:, 0]
    identity = _identity(vocabulary)
    unseen: Unseen | None = None
    found: dict[str, Cooccurrence] = {}
    texts: dict[str, Any] = {}
    for name, weights in run.config.related.corpora.items():
        out = _source(run, name, weights, identity)
        if not out.is_dir():
            unseen = unseen or Unseen(run.config, passages)
            counts: Counter[str] = Counter()
            rows = unseen_texts(run.config, name, unseen, counts)
            words = term_matrix(rows, vocabulary.tokenizer, vocabulary.roles, shares, f"texts of {name}")
            made = cooccurrence(words, weights.depth, f"related words by {name}")
            out.parent.mkdir(exist_ok=True)
            with whole_directory(out) as folder:
                made.save(folder)
                write_json(folder / _COUNTS, dict(counts))
        found[name] = Cooccurrence.load(out)
        texts[name] = json.loads((out / _COUNTS).read_text(encoding="utf-8"))
    return found, texts


def _source(run: Run, name: str, weights: CorpusWeights, identity: str) -> Path:
    return run.path / "related.sources" / f"{name}-{weights.depth}-{identity}"


def _identity(vocabulary: Vocabulary) -> str:
    assert vocabulary.tables is not None
    digest = hashlib.sha256(vocabulary.tokenizer.to_str().encode())
    digest.update(np.array(vocabulary.roles.emitted_as, np.int32).tobytes())
    digest.update(vocabulary.tables.own_share.tobytes())
    return digest.hexdigest()[:12]


def _size(matrix: sp.csr_matrix) -> dict[str, int]:
    return {"rows": int((np.diff(matrix.indptr) > 0).sum()), "entries": int(matrix.nnz)}
