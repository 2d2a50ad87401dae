"""One TOML file describes a run, from data to published artifact. An unknown key is an error."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

PairReader = Literal["fields", "numbered", "definitions", "short_names"]


def _ascending(band: tuple[float, float]) -> tuple[float, float]:
    if band[0] > band[1]:
        raise ValueError("the lower end comes first")
    return band


PACKAGED = "package:"  #: ``package:name`` is a file in ``training/words``

Share = Annotated[float, Field(ge=0, le=1)]
Tokens = Annotated[int, Field(ge=3)]  #: of a text: [CLS], a token, [SEP]
Band = Annotated[tuple[NonNegativeFloat, NonNegativeFloat], AfterValidator(_ascending)]


class ConfigError(ValueError):
    """The recipe is wrong; the message names the file, the key and what was expected."""


class RunError(RuntimeError):
    """A run cannot go on; the message says what went wrong and what to change."""


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class PassageSource(Section):
    """Text with natural (query, passage) pairs in it; files are read as ``training.readers`` says.

    ``fields``: the query is one field and the passage another. ``numbered``: both hold items ``[1] ... [2] ...`` that
    belong together by number. ``definitions``: the passage defines quoted terms, each a query for its own sentence.
    ``short_names``: the passage is legal text that gives what it describes a short name (이하 "..."라 한다), each a
    query for the clause before it.
    """

    name: str
    path: str
    query: str
    passage: str
    reader: PairReader = "fields"
    query_prefix: str = ""  #: a second field put before half of the queries, e.g. the law of an article
    other_names: tuple[str, ...] = ()  #: files of term pairs: instead of its query, each other name of it is asked
    max_pairs: NonNegativeInt = 0  #: 0 = all
    max_query_repeats: NonNegativeInt = 0  #: drop pairs whose query text is shared by more rows than this (0 = keep)
    vocabulary_texts: NonNegativeInt = 12_000  #: rows of this file that shape the vocabulary


class TextSource(Section):
    """Plain lines of text; they shape the vocabulary and nothing else."""

    path: str
    max_lines: NonNegativeInt = 12_000


class Corpus(Section):
    """Running text: what its words are, how frequent, and which belong together. Files of one name are one corpus.

    Each row's ``fields`` are one text; a file without fields (``.txt``) holds a text a line.
    """

    name: str
    path: str
    fields: tuple[str, ...] = ()
    title: str = ""  #: the field that names what the row is about
    characters: PositiveInt = 600  #: of a text; the table of related words reads its first 128 tokens
    every: PositiveInt = 1  #: of so many rows one is read, when related words are looked for
    weight: PositiveFloat = 1.0  #: of its words among those of the others, when words are chosen

    @model_validator(mode="after")
    def _title_is_a_field(self) -> Corpus:
        if self.title and self.title not in self.fields:
            raise ValueError(f"title {self.title!r}: name it among the fields, too")
        return self


class TermSource(Section):
    """Related terms; columns ``score`` and ``domain`` are used where a file has them."""

    path: str
    term: str = "term"
    related: str = "related"
    kind: Literal["synonym", "related", "translation"] = "related"
    max_pairs: NonNegativeInt = 0
    min_score: float = -1.5  #: rows that carry a lower ``score`` are left out (rows without one stay)


class TripletSource(Section):
    """(anchor, positive, hard negative) terms, for the card's loss."""

    path: str
    anchor: str = "anchor"
    positive: str = "positive"
    negative: str = "negative"  #: "" = the file has none: a term that looks like the anchor is found for each row
    max_triplets: NonNegativeInt = 0


class RetrievalSet(Section):
    """``{name}.corpus.jsonl`` and ``{name}.queries.jsonl`` (or ``.xz``) in ``DataConfig.retrieval``."""

    name: str
    forbid_query_terms: bool = False  #: no training pair may hold one of its queries as a term


class DataConfig(Section):
    root: str = "data"  #: paths below are relative to it
    passages: tuple[PassageSource, ...] = ()
    texts: tuple[TextSource, ...] = ()
    corpora: tuple[Corpus, ...] = ()
    terms: tuple[TermSource, ...] = ()
    triplets: tuple[TripletSource, ...] = ()
    max_bad_rows: NonNegativeInt = 0  #: unreadable rows that a file may have; they are logged and counted
    validation_pairs: NonNegativeInt = 0  #: passage pairs kept from training, to choose the best checkpoint by
    min_passage_characters: PositiveInt = 1  #: shorter passages are left out
    retrieval: str = "retrieval"
    retrieval_sets: tuple[RetrievalSet, ...] = ()
    held_out_percent: int = Field(default=10, ge=0, lt=100)  #: share of anchor terms that no training term pair holds
    everyday: tuple[str, ...] = (f"{PACKAGED}everyday_queries.jsonl",)  #: see ``training.everyday``; never trained on
    origin: tuple[str, ...] = ()  #: where the data comes from and under which licence, for the model card


class VocabularyConfig(Section):
    size: int = Field(default=24_000, ge=100)
    characters_per_text: PositiveInt = 250
    extend: bool = False  #: after ``size``, those that ``training.extension`` finds missing
    #: In place of a checkpoint's own vocabulary one of words, of which at most so many are emitted: `training.words`.
    #: 32,768 are what OpenSearch's ``sparse_vector`` holds. 0 = none.
    words: int = Field(default=0, ge=0, le=32_768)


class CorpusWeights(Section):
    """What a corpus says of the words that belong together."""

    feedback: NonNegativeFloat = 1.0  #: weight of the words of the best passages (RM3)
    association: NonNegativeFloat = 0.5  #: weight of the words that are there together (PMI)
    depth: PositiveInt = 40  #: best passages of a word
    shrinkage: PositiveFloat = 8.0  #: a word that so many texts hold counts half


class RelatedConfig(Section):
    """The table of related words, see `training.related`."""

    words: PositiveInt = 40  #: of a row
    #: By the name of the corpus; the first is the one that the others are measured by. One of no weight agrees only.
    corpora: dict[str, CorpusWeights] = {}
    neighbours: NonNegativeFloat = 0.6  #: weight of what can stand in a word's place (CoNg)
    terms: NonNegativeFloat = 0.0  #: weight of a synonym by the term lists
    mutual: NonNegativeFloat = 0.0  #: a word that names another is named by it, too, by such a share of the weight
    inherited: NonNegativeFloat = 0.0  #: a compound names what its parts name, by such a share of their mean
    agreement: NonNegativeFloat = 0.35  #: for each further source that names it a related word weighs so much more
    scale: PositiveFloat = 2.0  #: logit that the first word of a row gets from a word of weight 1 alone in its text
    power: NonNegativeFloat = 0.5  #: ``related_power`` of the model; above 1 a text of many words wants less of each
    closed: PositiveFloat = 1.5  #: logit below zero of a word that the head has no row for


class ModelConfig(Section):
    """The encoder. ``e5``: a LexicalBert with the layers of multilingual-e5-small; ``fresh``: one of random weights;
    ``checkpoint`` goes on from what an earlier run trained or published; ``pretrained`` from any masked
    language model (BERT, ModernBERT, RoBERTa) with its tokenizer: every token but the special ones may be emitted."""

    start: Literal["e5", "fresh", "checkpoint", "pretrained"] = "e5"
    checkpoint: str = ""  #: ``train/final`` or published model, packed or not; folder or hub name of the pretrained one
    e5_path: str = "e5-small-q4.bin"  #: relative to the data root unless absolute; "": ``checkpoint`` without a teacher
    hidden_size: PositiveInt = 384  #: for ``fresh``
    layers: PositiveInt = 12
    heads: PositiveInt = 12
    intermediate_size: PositiveInt = 1536
    lexical_scale: PositiveFloat = 1.3  #: weight of a word on its own = lexical_scale x sqrt(idf)
    start_active: NonNegativeInt = 160  #: expansions that fire for an average passage before training
    skip: bool = False  #: whether a LexicalBert's head sees each token itself beside its state; better not


class AlignConfig(Section):
    """Stage 1: under its new vocabulary the body learns to give the teacher's vectors."""

    steps: NonNegativeInt = 300  #: 0 = skip the stage
    batch: int = Field(default=96, ge=2)
    embeddings_only: Share = 0.3  #: share of the stage in which only the embeddings learn
    learning_rate: PositiveFloat = 6e-5
    embedding_learning_rate: NonNegativeFloat = 2e-3
    document_tokens: Tokens = 64


class LossConfig(Section):
    contrastive: NonNegativeFloat = 1.0
    distillation: NonNegativeFloat = 1.0
    alignment: NonNegativeFloat = 1.0
    lexical: NonNegativeFloat = 1.0
    synonym: NonNegativeFloat = 0.5
    flops_query: NonNegativeFloat = 0.06
    flops_document: NonNegativeFloat = 0.03
    flops_warmup: Share = 0.33  #: share of the run over which FLOPS grows quadratically to its weight
    temperature: PositiveFloat = 0.02  #: of the teacher's cosines
    lexical_teacher: NonNegativeFloat = 0.0  #: weight of BM25-like scores of the own words beside the teacher's logits
    former: NonNegativeFloat = 0.0  #: distillation of how the checkpoint that the run goes on from scores a batch
    former_start: NonNegativeFloat = (
        0.0  #: weight, beside these scores, of those of the model that training starts from
    )
    margin: NonNegativeFloat = 0.0  #: MarginMSE against the dense teacher, over mined negatives
    idf_aware_flops: bool = False  #: FLOPS charges common words more than rare ones
    unsupported: NonNegativeFloat = 0.0  #: FLOPS charges words that the table does not name so much more
    look_alike: NonNegativeFloat = 0.0  #: and so much more still those that share a syllable with a query or term
    tail: NonNegativeFloat = 0.0  #: weight of the words beyond the next two, which a service cuts off
    tail_query: PositiveInt = 24
    tail_document: PositiveInt = 128
    anti_collapse: NonNegativeFloat = 0.0  #: weight of the guard that no vector weighs less than ``least_weight``
    least_weight: NonNegativeFloat = 2.0


class CardLossConfig(Section):
    """The four-part loss of Korean Neural Sparse Encoder v1, over triplets."""

    lambda_self: NonNegativeFloat = 4.0
    lambda_synonym: NonNegativeFloat = 10.0
    lambda_margin: NonNegativeFloat = 2.5
    lambda_flops: NonNegativeFloat = 8e-3
    margin: NonNegativeFloat = 1.5


class TrainConfig(Section):
    """Stage 2: the sparse training."""

    objective: Literal["retrieval", "card"] = "retrieval"  #: ``card``: ``[card]`` over the triplets, nothing else
    steps: PositiveInt = 2800
    epochs: NonNegativeFloat = 0.0  #: instead of ``steps``; 0 = ``steps`` counts
    batch: int = Field(default=64, ge=2)  #: of all processes together
    accumulation: PositiveInt = 1  #: batches whose gradients make one step
    term_share: float = Field(default=0.3, ge=0, lt=1)  #: share of batches made of term pairs
    query_tokens: Tokens = 32
    document_tokens: Tokens = 64
    term_tokens: Tokens = 16
    learning_rate: PositiveFloat = 6e-5
    embedding_learning_rate: NonNegativeFloat = 6e-4
    warmup_steps: PositiveInt = 20
    warmup_share: float = Field(default=0.0, ge=0, lt=1)  #: of all steps, instead of ``warmup_steps``
    final_rate: Share = 0.1  #: the learning rate falls to this share of itself
    weight_decay: NonNegativeFloat = 0.0
    max_grad_norm: PositiveFloat = 2.0
    save_steps: PositiveInt = 250
    log_steps: PositiveInt = 10
    active_band: Band = (3.0, 2000.0)  #: stop when the mean active words of a batch leave it
    bf16: bool = True
    teacher_pairs: PositiveInt = 32_768  #: pairs that are trained on with a teacher, the first of the shuffled ones
    cluster_pairs: NonNegativeInt = 0  #: pairs of a cluster that a batch is drawn from, for hard negatives; 0 = none
    hard_negatives: bool = False  #: a mined negative for each pair that has one, see ``[mining]``
    device: Literal["auto", "cpu"] = "auto"  #: ``auto``: the accelerator where there is one
    threads: PositiveInt = 2

    @property
    def max_tokens(self) -> dict[str, int]:
        """By task, of each text."""
        return {"query": self.query_tokens, "document": self.document_tokens, "term": self.term_tokens}


class MiningConfig(Section):
    """Hard negatives: passages that BM25 or the starting model ranks high and that do not answer the query."""

    depth: PositiveInt = 30  #: best passages of each system that are looked at
    skip: NonNegativeInt = 0  #: of them the first so many are left out
    max_overlap: Share = 0.6  #: share of common character triples above which two passages are near duplicates
    max_teacher: NonNegativeFloat = 0.95  #: above this share of the positive's teacher cosine it may be an answer


class GateConfig(Section):
    """What a model must show to be published, by the figures of ``training evaluate``; see ``training.gate``."""

    active_query: Band = (2.0, 64.0)  #: mean active words of a query, on every retrieval set
    active_document: Band = (4.0, 256.0)
    source_preservation: Share = 0.0  #: share of held-out terms, at least; 0 = any
    synonym_activation: Share = 0.0
    everyday: Share = 0.0  #: share of everyday queries with own words, three related ones and no look-alike, at least
    max_ndcg_drop: NonNegativeFloat = 0.01  #: nDCG@10 below the incumbent's that a retrieval set may have


class PublishConfig(Section):
    max_length_document: Tokens = 256
    max_length_query: Tokens = 64
    top_k_document: PositiveInt = 256
    top_k_query: PositiveInt = 64
    query_encoding: Literal["model", "inference_free"] = "model"  #: how queries are encoded unless a request says
    #: For inference-free queries the table's words weigh so much beside the query's own; 0 = own words only. In a query
    #: of n own words they weigh ``related_query_words`` / n of it where that is less.
    related_query_factor: NonNegativeFloat = 0.0
    related_query_words: PositiveFloat = 3.0
    bias_shift: float = 0.0  #: added to the decoder bias of every emitted word, to trade sparsity for recall
    max_expansion_rate: float = Field(default=0.0, ge=0, lt=1)  #: share of texts a rare word may be added to; 0 = any
    limits: str = "Not examined."  #: what the model card says the model cannot do
    gate: GateConfig = GateConfig()


class Config(Section):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,60}$")  #: starts the version id
    seed: int = Field(default=13, ge=0, lt=2**32)
    data: DataConfig = DataConfig()
    vocabulary: VocabularyConfig = VocabularyConfig()
    related: RelatedConfig = RelatedConfig()
    model: ModelConfig = ModelConfig()
    align: AlignConfig = AlignConfig()
    loss: LossConfig = LossConfig()
    card: CardLossConfig = CardLossConfig()
    mining: MiningConfig = MiningConfig()
    train: TrainConfig = TrainConfig()
    publish: PublishConfig = PublishConfig()

    @model_validator(mode="after")
    def _settings_fit_the_architecture(self) -> Config:
        if self.model.start == "pretrained":
            for name, given in (("vocabulary.extend", self.vocabulary.extend), ("model.skip", self.model.skip)):
                if given:
                    raise ValueError(f'{name}: leave it out where model.start is "pretrained"')
        if not self.model.e5_path and self.model.start == "e5":
            raise ValueError("model.e5_path: name the teacher's file; the start e5 needs it")
        if self.loss.former and self.model.start != "checkpoint":
            raise ValueError('loss.former: needs model.start = "checkpoint", whose scores are to be kept')
        if self.vocabulary.extend and self.model.start == "checkpoint":
            raise ValueError('vocabulary.extend: use vocabulary.words where model.start is "checkpoint"')
        if self.model.start == "fresh" and self.model.hidden_size % self.model.heads:
            raise ValueError(f"model.hidden_size {self.model.hidden_size}: no multiple of heads, {self.model.heads}")
        if self.mining.skip >= self.mining.depth:
            raise ValueError(f"mining.skip {self.mining.skip}: leaves none of the {self.mining.depth} of mining.depth")
        return self

    @model_validator(mode="after")
    def _words_have_corpora(self) -> Config:
        if not self.vocabulary.words:
            return self
        if self.model.start != "checkpoint":
            raise ValueError('vocabulary.words: needs model.start = "checkpoint", whose knowledge the words inherit')
        names = {corpus.name for corpus in self.data.corpora}
        if not names:
            raise ValueError("vocabulary.words: name the texts that words are counted in, [[data.corpora]]")
        if names != set(self.related.corpora):
            raise ValueError(
                f"related.corpora: give weights to {', '.join(sorted(names))}, the names of [[data.corpora]] "
                f"(found {', '.join(self.related.corpora) or 'none'})"
            )
        return self

    def data_path(self, relative: str) -> Path:
        if relative.startswith(PACKAGED):
            return Path(__file__).parent / "words" / relative.removeprefix(PACKAGED)
        return Path(self.data.root) / relative

    def data_source(self, path: str) -> Path | str:
        """Where ``training.readers`` finds a source: a file or folder below the root, or the name of a hub dataset."""
        return path if path.startswith("hf:") else self.data_path(path)


def load_config(path: Path, *, data_root: Path | None = None) -> Config:
    """Read a recipe; ``data_root`` replaces ``data.root``. Raises ``ConfigError``."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such recipe") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    if data_root is not None:
        table.setdefault("data", {})["root"] = str(data_root)
    try:
        return Config.model_validate(table)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, e['loc']))}: {e['msg']} (found {e['input']!r})" if e["loc"] else e["msg"]
            for e in error.errors()
        )
        raise ConfigError(f"{path}: {problems}") from None
