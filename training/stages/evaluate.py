"""Stage 9: figures on data that training never saw: retrieval beside BM25, and the card's two term measures."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kiwipiepy import Kiwi
from torch import Tensor

from sparse_encoder.artifact import ArtifactError, read_artifact
from sparse_encoder.model import SpladeModel
from sparse_encoder.query_tokens import QueryTokens
from sparse_encoder.tokenizer import Tokenizer
from sparse_encoder.vector import SparseVector
from training.config import Config, PublishConfig
from training.data import RetrievalData, load_retrieval
from training.e5 import DenseTeacher, load_e5
from training.empties import empty_counts
from training.encode import Search, Side, encode
from training.everyday import DEPTH, Shown, by_domain, everyday_figures, load_everyday, written
from training.export import export, weights_hash
from training.pairs import TermPair
from training.report import REFERENCE_TOP, TOP, plot, table
from training.retrieval import measure, rank_bm25, rank_dense
from training.run import Run, whole_directory, write_json
from training.stages.lexical import query_tokens
from training.stages.train import trained
from training.vocabulary import Roles

_BM25_TAG_NAMES = "NNG NNP NNB NR VV VA MM MAG MAJ XPN XSN XR SL SN SH W_SERIAL"
_BM25_TAGS = frozenset(_BM25_TAG_NAMES.split())
EXPORT = "export"  #: the weights that ship
REPORT = Path("evaluation", "report.json")
_DENSE_TOKENS = 256
_SHORT_QUERY, _SHORT_DOCUMENT = 24, 128  #: words of vectors that are cheap to search, measured beside the recipe's
_SHOWN_TOKENS = 32  #: of a term or an everyday query that are read
_DOMAIN_TERMS = 20  #: fewer terms give no figure


@dataclass(frozen=True)
class TextEncoder:
    """A checkpoint with its tokenizer: texts in, vectors out."""

    model: SpladeModel
    tokenizer: Tokenizer
    query_tokens: QueryTokens  #: for queries without the model
    roles: Roles

    def top_words(self, texts: list[str], count: int) -> list[list[str]]:
        """The heaviest ``count`` tokens of each short text, as they are written in the vocabulary."""
        vectors = encode(self.model, self.tokenizer, texts, max_length=_SHOWN_TOKENS, top_k=count, bf16=True)
        return [[self.tokenizer.vocabulary[i] for i in vector.ids] for vector in vectors]

    def shown(self, texts: list[str]) -> list[Shown]:
        """What the measure of everyday words looks at."""
        tops = self.top_words(texts, DEPTH)
        if not (self.model.lexical and self.model.mlm.config.related):
            return [Shown(top) for top in tops]
        return [Shown(top, *self._spoken(text)) for text, top in zip(texts, tops, strict=True)]

    def _spoken(self, text: str) -> tuple[frozenset[str], frozenset[str]]:
        """What the tokens of a text are emitted as, parts included, and what the table names for its words."""
        mlm = self.model.mlm
        (tokenised,) = self.tokenizer.encode_batch([text], _SHOWN_TOKENS)
        ids = torch.tensor([tokenised.ids], device=mlm.own_token.device)
        own = mlm.own_words(ids, torch.ones_like(ids))
        words = own.tokens[:, : own.length][own.speaks]
        named = mlm.related_token[words]

        def names(tokens: Tensor) -> frozenset[str]:
            return frozenset(written(self.tokenizer.vocabulary[i]) for i in tokens[tokens >= 0].tolist())

        return names(own.tokens), names(named)

    @classmethod
    def from_artifact(cls, path: Path) -> TextEncoder:
        """Read a published artifact, to compare with. Raises ``ArtifactError`` if it is none or has no query tokens."""
        manifest = read_artifact(path).manifest
        if manifest.query_encoder:
            raise ArtifactError(f"{path}: has two encoders, and one is compared here: name a model with one")
        tokenizer = Tokenizer.from_file(path / "tokenizer.json")
        queries = QueryTokens.read(path, manifest.vocabulary_size)
        if queries is None:
            raise ArtifactError(f"{path}: has no query tokens: publish it again")
        model = SpladeModel.from_pretrained(path, list(manifest.never_emitted_ids))
        last = model.mlm.last_token.tolist() if model.lexical and model.mlm.config.parts else []
        return cls(model, tokenizer, queries, Roles(queries.emitted_as.tolist(), last))

    @classmethod
    def from_export(cls, run: Path, settings: PublishConfig) -> TextEncoder:
        """Read what ``training.export`` wrote into the run directory, to be published by ``settings``."""
        path = run / EXPORT
        roles = Roles.load(path / "roles.json")
        model = SpladeModel.from_pretrained(path, roles.never_emitted)
        tokenizer = Tokenizer.from_file(path / "tokenizer.json")
        return cls(model, tokenizer, query_tokens(run, path, roles, settings), roles)


def morphemes(texts: list[str], workers: int = 2) -> list[list[str]]:
    """What BM25 is given: nouns, stems, roots, numbers and foreign words, folded as the encoder folds text."""

    def fold(form: str) -> str:
        return unicodedata.normalize("NFKC", form).lower()

    analysed = Kiwi(num_workers=workers).tokenize(iter(texts))
    return [[fold(t.form) for t in tokens if t.tag.split("-")[0] in _BM25_TAGS] for tokens in analysed]


def choose_queries(data: RetrievalData, limit: int) -> list[int]:
    """All queries, or a fixed random sample of ``limit``."""
    count = len(data.queries)
    if not limit or count <= limit:
        return list(range(count))
    return [int(i) for i in np.random.default_rng(0).permutation(count)[:limit]]


def evaluate_retrieval(
    config: Config, encoder: TextEncoder, *, query_limit: int = 1000, dense: DenseTeacher | None = None
) -> dict[str, Any]:
    """For each retrieval set the measures of the encoder and of BM25 over the whole corpus, and active words.

    ``short``: the same vectors, cut to ``_SHORT_QUERY`` and ``_SHORT_DOCUMENT`` words. ``inference_free``: the same
    documents, queries by ``query_tokens``. ``dense``: a dense encoder to compare with.
    """
    settings = config.publish
    results: dict[str, Any] = {}
    for item in config.data.retrieval_sets:
        data = load_retrieval(config, item.name)
        chosen = choose_queries(data, query_limit)
        texts = [data.queries[i] for i in chosen]
        relevant = [data.relevant[i] for i in chosen]
        whole = Search.encode(
            encoder.model,
            encoder.tokenizer,
            Side(texts, settings.max_length_query, max(settings.top_k_query, _SHORT_QUERY)),
            Side(data.documents, settings.max_length_document, max(settings.top_k_document, _SHORT_DOCUMENT)),
            bf16=True,
            description=item.name,
        )
        search = whole.cut(settings.top_k_query, settings.top_k_document)
        short = whole.cut(_SHORT_QUERY, _SHORT_DOCUMENT)
        tokenised = encoder.tokenizer.encode_batch(texts, settings.max_length_query)
        own = [encoder.query_tokens.vector(text.ids).prune(top_k=settings.top_k_query) for text in tokenised]
        results[item.name] = {
            "documents": len(data.documents),
            "queries": len(texts),
            "sparse": measure(search.rank(), relevant, data.document_ids),
            "short": {
                "top_k_query": _SHORT_QUERY,
                "top_k_document": _SHORT_DOCUMENT,
                **measure(short.rank(), relevant, data.document_ids),
            },
            "inference_free": measure(search.rank(own), relevant, data.document_ids),
            "bm25": measure(rank_bm25(morphemes(data.documents), morphemes(texts)), relevant, data.document_ids),
            "active_query": float(np.mean([len(v) for v in search.queries])),
            "active_query_inference_free": float(np.mean([len(v) for v in own])),
            "active_document": float(np.mean([len(v) for v in search.documents])),
            "flops": _flops(search),
        }
        if dense is not None:
            found = rank_dense(
                dense.encode([f"query: {text}" for text in texts], description=f"{item.name} dense queries"),
                dense.encode([f"passage: {text}" for text in data.documents], description=f"{item.name} dense"),
            )
            results[item.name]["dense"] = measure(found, relevant, data.document_ids)
    return results


def _flops(search: Search) -> float:
    """Mean number of words that a query and a document share: sum_j p_j(query) p_j(document) (Formal et al. 2021)."""

    def rates(vectors: list[SparseVector]) -> Any:
        counts = np.bincount(np.concatenate([v.ids for v in vectors]), minlength=search.vocabulary_size)
        return counts / len(vectors)

    return float(rates(search.queries) @ rates(search.documents))


def _touches(token: str, surface: str) -> bool:
    """Sub-string either way; a single syllable counts only if it is the whole surface."""
    return token == surface or (len(token) > 1 and len(surface) > 1 and (token in surface or surface in token))


def top_overlap(ours: list[list[str]], reference: list[list[str]]) -> float:
    """Mean share of the reference's heaviest ``REFERENCE_TOP`` tokens of a text that are among ours; texts for which
    the reference has no token do not count. Tokens are compared as they are written, so vocabularies may differ."""
    shares = [len(set(a) & set(b)) / len(set(b)) for a, b in zip(ours, reference, strict=True) if b]
    return float(np.mean(shares)) if shares else 0.0


def measures_by_domain(
    pairs: list[TermPair], top_words: Callable[[list[str]], list[list[str]]]
) -> dict[str, dict[str, float]]:
    """``term_measures`` of each domain that has at least ``_DOMAIN_TERMS`` anchors, the largest first."""
    domains: dict[str, list[TermPair]] = {}
    for pair in pairs:
        domains.setdefault(pair.domain, []).append(pair)
    domains.pop("", None)
    measured = {name: term_measures(rows, top_words) for name, rows in domains.items()}
    return {
        name: row
        for name, row in sorted(measured.items(), key=lambda item: -item[1]["terms"])
        if row["terms"] >= _DOMAIN_TERMS
    }


def term_measures(pairs: list[TermPair], top_words: Callable[[list[str]], list[list[str]]]) -> dict[str, float]:
    """The card's measures over held-out anchors, all of the test split, as shares (0 to 1).

    ``source_preservation``: an own word of the term is among its 15 heaviest tokens (sub-string either way).
    ``synonym_activation``: one of its expected synonyms is (same rule). ``new_synonym_activation``: one is, by a token
    that does not touch the term itself; it counts only terms that have a synonym sharing no syllable with them.
    ``top_words`` gives the 15 heaviest tokens of each text.
    """
    expected: dict[str, set[str]] = {}
    for pair in pairs:
        expected.setdefault(pair.term.lower(), set()).add(pair.related.lower())
    terms = list(expected)
    kept = activated = fresh = fresh_possible = 0
    for term, words in zip(terms, top_words(terms), strict=True):
        own = term.replace(" ", "")
        synonyms = [s.replace(" ", "") for s in expected[term]]
        kept += any(_touches(word, own) or word in own for word in words)
        activated += any(_touches(word, s) for word in words for s in synonyms)
        different = [s for s in synonyms if not set(s) & set(own)]
        fresh_possible += bool(different)
        fresh += any(_touches(word, s) and not _touches(word, own) for word in words for s in different)
    return {
        "terms": len(terms),
        "source_preservation": kept / len(terms),
        "synonym_activation": activated / len(terms),
        "new_synonym_terms": fresh_possible,
        "new_synonym_activation": fresh / max(1, fresh_possible),
    }


def evaluate_stage(
    run: Run, *, query_limit: int = 1000, reference: TextEncoder | None = None, with_dense: bool = False
) -> dict[str, Any]:
    """Exports what was trained, measures that and writes the report, again each time. Raises ``RunError``."""
    config = run.config
    with whole_directory(run.path / EXPORT) as folder:
        export(trained(run), folder, config, run.data)
    e5 = config.data_path(config.model.e5_path)
    report = evaluate(
        config,
        TextEncoder.from_export(run.path, config.publish),
        run.data.held_out,
        query_limit=query_limit,
        reference=reference,
        dense=DenseTeacher(*load_e5(e5), max_tokens=_DENSE_TOKENS) if with_dense else None,
    )
    report["weights_sha256"] = weights_hash(run.path / EXPORT)
    with whole_directory((run.path / REPORT).parent) as folder:
        write_json(folder / REPORT.name, report)
        (folder / "report.md").write_text(table(report) + "\n", encoding="utf-8")
        plot(report, folder / "report.png")
    return report


def evaluate(
    config: Config,
    encoder: TextEncoder,
    held_out: list[TermPair],
    *,
    query_limit: int = 1000,
    reference: TextEncoder | None = None,
    dense: DenseTeacher | None = None,
) -> dict[str, Any]:
    """Everything that goes into the manifest and the model card.

    ``reference``: another encoder, whose heaviest words of the held-out terms are looked for in ours.
    """
    report: dict[str, Any] = {"query_limit": query_limit, "prune": config.publish.model_dump()}
    if held_out:
        terms = list(dict.fromkeys(pair.term.lower() for pair in held_out))
        words = dict(zip(terms, encoder.top_words(terms, REFERENCE_TOP), strict=True))

        def top_words(texts: list[str]) -> list[list[str]]:
            return [words[text][:TOP] for text in texts]

        report["terms"] = term_measures(held_out, top_words)
        if domains := measures_by_domain(held_out, top_words):
            report["domains"] = domains
        if reference is not None:
            report["reference_overlap"] = top_overlap(list(words.values()), reference.top_words(terms, REFERENCE_TOP))
    if everyday := load_everyday(config):
        shown = encoder.shown([row.query for row in everyday])
        report["everyday"] = {**everyday_figures(everyday, shown), "domains": by_domain(everyday, shown)}
    report["empty"] = empty_counts(config, encoder.tokenizer, encoder.roles)
    report["retrieval"] = evaluate_retrieval(config, encoder, query_limit=query_limit, dense=dense)
    return report
