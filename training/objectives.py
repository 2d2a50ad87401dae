"""What a batch is trained for: one objective for each kind of data, each returning its named, weighted parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from training import losses
from training.config import CardLossConfig, LossConfig
from training.distributed import gather, gather_ids
from training.former import FormerVectors
from training.vocabulary import NEVER, Roles

Features = list[dict[str, Any]]
Parts = dict[str, Tensor]
Targets = tuple[Tensor, Tensor, Tensor]  #: rows, columns and weights of the own words of a batch

_SATURATION = 1.2  #: BM25's k1
_LENGTH = 0.75  #: BM25's b
_FIRST_SYLLABLE, _SYLLABLES = ord("가"), 11_172


@dataclass(frozen=True)
class OwnWords:
    """Which columns a text's own tokens occupy, and what each should weigh there."""

    column: Tensor  #: [vocabulary] column of the vectors under which a token is emitted, -1 = never
    weight: Tensor  #: [columns] weight of a word on its own
    average_length: float  #: own words in an average passage
    parts: Tensor  #: [vocabulary, parts] columns of the words that a token speaks for beside its own, -1 = none
    last: Tensor  #: [vocabulary] column under which a token is emitted in a text without any word, -1 = never
    syllables: Tensor  #: [columns, syllables] sparse: 1 where a word is written with a syllable

    @property
    def idf(self) -> Tensor:
        """Up to a constant factor, which is all that FLOPS asks for: ``weight`` is a multiple of its root."""
        return self.weight**2

    @classmethod
    def of(
        cls,
        roles: Roles,
        emitted: Tensor,
        own_weights: Tensor,
        average_length: float,
        part_token: Tensor | None = None,
        pieces: Sequence[str] = (),
    ) -> OwnWords:
        """``part_token`` [vocabulary, parts] as a LexicalBert has it; None for a model without. ``pieces``: the
        vocabulary as it is written, to tell look-alikes by."""
        size = len(roles.emitted_as)
        place = torch.full((size,), -1)
        place[emitted] = torch.arange(len(emitted))

        def columns(target: Tensor) -> Tensor:
            return torch.where(target == NEVER, -1, place[target.clamp(min=0).long()])

        return cls(
            columns(torch.tensor(roles.emitted_as)),
            own_weights[emitted],
            average_length,
            columns(torch.zeros(size, 0, dtype=torch.long) if part_token is None else part_token.cpu()),
            columns(torch.tensor(roles.last or [NEVER] * size)),
            _syllables([pieces[i] for i in emitted.tolist()] if pieces else [""] * len(emitted)),
        )

    def to(self, device: torch.device) -> OwnWords:
        tensors = (part.to(device) for part in (self.column, self.weight, self.parts, self.last, self.syllables))
        column, weight, parts, last, syllables = tensors
        return OwnWords(column, weight, self.average_length, parts, last, syllables)

    def look_alikes(self, held: tuple[Tensor, Tensor], batch: int) -> Tensor:
        """Which words share a syllable with one that a text holds, by ``held``: [batch, columns]."""
        rows, columns = held
        present = torch.zeros(len(self.weight), batch, device=rows.device)
        present[columns, rows] = 1.0
        spoken = (torch.sparse.mm(self.syllables.t(), present) > 0).float()
        found: Tensor = torch.sparse.mm(self.syllables, spoken) > 0
        return found.T

    def held(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """(rows, columns) of all that the texts of a batch hold: own words, their parts, and what speaks for a text
        without any; repeats kept."""
        own = self.column[input_ids]
        silent = (own < 0).all(1, keepdim=True)
        own = torch.where(silent, self.last[input_ids], own)
        places = torch.cat([own.unsqueeze(2), self.parts[input_ids]], 2).flatten(1)
        rows = torch.arange(len(input_ids), device=input_ids.device).unsqueeze(1).expand_as(places)
        return rows[places >= 0], places[places >= 0]

    def counts(self, input_ids: Tensor, columns: int) -> tuple[Tensor, Tensor, Tensor]:
        """(rows, columns, term frequency) of the distinct own words of a batch."""
        place = self.column[input_ids]
        row = torch.arange(len(input_ids), device=input_ids.device).unsqueeze(1).expand_as(place)
        keep = place >= 0
        keys, frequency = torch.unique(row[keep] * columns + place[keep], return_counts=True)
        return keys // columns, keys % columns, frequency

    def query_targets(self, input_ids: Tensor, columns: int) -> Targets:
        rows, places, _ = self.counts(input_ids, columns)
        return rows, places, self.weight[places]

    def document_targets(self, input_ids: Tensor, columns: int) -> Targets:
        """As BM25 weighs a term (Robertson & Zaragoza 2009, eq. 3.15): saturated by its count, less in long texts."""
        rows, places, frequency = self.counts(input_ids, columns)
        lengths = torch.bincount(rows, frequency.float(), len(input_ids))[rows]
        norm = _SATURATION * (1 - _LENGTH + _LENGTH * lengths / self.average_length)
        return rows, places, self.weight[places] * frequency * (1 + _SATURATION) / (frequency + norm)


def _syllables(words: Sequence[str]) -> Tensor:
    found = [(column, ord(letter) - _FIRST_SYLLABLE) for column, word in enumerate(words) for letter in set(word)]
    places = torch.tensor([(column, letter) for column, letter in found if 0 <= letter < _SYLLABLES]).reshape(-1, 2).T
    table = torch.sparse_coo_tensor(
        places, torch.ones(places.shape[1]), (len(words), _SYLLABLES), check_invariants=True
    )
    return table.coalesce()


@dataclass(frozen=True)
class BatchVectors:
    """One column of a batch, of all processes."""

    vectors: Tensor  #: [batch, columns]
    signed: Tensor  #: the same before ``relu``
    input_ids: Tensor  #: [batch, length]
    supported: Tensor | None  #: [batch, columns] what the table of related words names; without a table None
    dense: Tensor  #: [batch, core] mean of the states' first dimensions; core 0 without a dense teacher


class Objective(nn.Module):
    """Holds the model under the name that sentence-transformers' trainer expects, and wraps for several processes."""

    def __init__(self, model: nn.Module, core: int = 0) -> None:
        super().__init__()
        self.model, self.core = model, core

    @property
    def encoder(self) -> Any:
        """The model itself, without the wrapper of several processes."""
        return getattr(self.model, "module", self.model)

    def encode(self, feature: dict[str, Any]) -> BatchVectors:
        out = self.model(feature)
        return BatchVectors(
            gather(out["sentence_embedding"]),
            gather(out["signed"]),
            gather_ids(out["input_ids"]),
            gather(out["supported"]) if "supported" in out else None,
            gather(pooled(out, self.core)),
        )

    def expansion_flops(self, task: str, encoded: BatchVectors, own: OwnWords, config: LossConfig) -> Tensor:
        """FLOPS of the words that a text does not hold, by ``OwnWords.held``; what its own words weigh is the lexical
        loss's to say. Words that are off cost nothing, so nothing pushes them further down. Those that the table does
        not name cost more, and still more in a short text with which they share a syllable."""
        held = own.held(encoded.input_ids)
        weights = torch.relu(encoded.signed)
        if encoded.supported is not None:
            dearer = torch.tensor(1 + config.unsupported, device=weights.device)
            if config.look_alike and task != "document":
                dearer = dearer + config.look_alike * own.look_alikes(held, len(weights))
            weights = torch.where(encoded.supported, weights, dearer * weights)
        added = torch.ones_like(weights).index_put_(held, weights.new_zeros(())) * weights
        usage = self.encoder[0].observe(task, added)
        if config.idf_aware_flops:
            return losses.idf_aware_flops(added, usage, own.idf)
        return losses.flops(added, usage)


@dataclass(frozen=True)
class Teacher:
    """Dense vectors of the pairs' queries, passages and mined negatives: [pairs, core], on the CPU; may be empty."""

    queries: Tensor
    passages: Tensor
    negatives: Tensor

    def rows(self, part: Tensor, labels: Tensor) -> Tensor:
        return part[labels.cpu()].to(labels.device).float()


class PassageObjective(Objective):
    """(query, passage) pairs, or (query, passage, hard negative) rows; the label is the row of their teacher vectors,
    -1 for none."""

    def __init__(
        self,
        model: nn.Module,
        own: OwnWords,
        config: LossConfig,
        teacher: Teacher,
        core: int,
        progress: Callable[[], float],
        former: FormerVectors | None = None,
    ) -> None:
        super().__init__(model, core)
        self.own, self.config, self.progress = own, config, progress
        self.teacher, self.former = teacher, former

    def forward(self, features: Features, labels: Tensor) -> Parts:
        config = self.config
        query, passage, *negatives = (self.encode(feature) for feature in features)
        labels = gather(labels)
        q, d = query.vectors, passage.vectors
        scores = losses.normalised_scores(q, torch.cat([d, *(negative.vectors for negative in negatives)]))
        ramp = losses.quadratic_warmup(self.progress(), config.flops_warmup)
        of_query = self.own.query_targets(query.input_ids, q.shape[1])
        of_passage = self.own.document_targets(passage.input_ids, d.shape[1])
        parts = {
            "contrastive": config.contrastive * losses.contrastive(scores),
            "lexical": config.lexical * (losses.lexical(q, *of_query) + losses.lexical(d, *of_passage)),
            "flops": ramp
            * (
                config.flops_query * self.expansion_flops("query", query, self.own, config)
                + config.flops_document * self.expansion_flops("document", passage, self.own, config)
            ),
        }
        if config.tail:
            parts["tail"] = config.tail * (losses.tail(q, config.tail_query) + losses.tail(d, config.tail_document))
        if config.anti_collapse:
            parts["anti-collapse"] = config.anti_collapse * (
                losses.anti_collapse(q, config.least_weight) + losses.anti_collapse(d, config.least_weight)
            )
        if len(self.teacher.queries) and bool((labels >= 0).all()):
            tq, td = (self.teacher.rows(part, labels) for part in (self.teacher.queries, self.teacher.passages))
            target = tq @ td.T / config.temperature
            if config.lexical_teacher:
                target += config.lexical_teacher * losses.sparse_scores(of_query, of_passage, *q.shape)
            parts["distillation"] = config.distillation * losses.distillation(scores[:, : len(d)], target)
            parts["alignment"] = config.alignment * (
                losses.alignment(query.dense, tq) + losses.alignment(passage.dense, td)
            )
            if negatives and config.margin:
                tn = self.teacher.rows(self.teacher.negatives, labels)
                parts["margin"] = config.margin * losses.margin_mse(
                    scores.diagonal(),
                    scores[:, len(d) :].diagonal(),
                    (tq * td).sum(1) / config.temperature,
                    (tq * tn).sum(1) / config.temperature,
                    scale=losses.SHARPNESS / float(target.std().clamp(min=1e-6)),
                )
        if self.former and bool((labels >= 0).all()):
            target = losses.softened(self.former.scores(labels))
            parts["former"] = config.former * losses.distillation(losses.softened(scores[:, : len(d)]), target)
        self.encoder.track(q, d)
        return parts


class TermObjective(Objective):
    """Pairs of related terms; the label is the weight that each side's words should reach in the other's vector."""

    def __init__(self, model: nn.Module, own: OwnWords, config: LossConfig, progress: Callable[[], float]) -> None:
        super().__init__(model)
        self.own, self.config, self.progress = own, config, progress

    def forward(self, features: Features, labels: Tensor) -> Parts:
        config = self.config
        left, right = (self.encode(feature) for feature in features)
        labels = gather(labels)
        a, b = left.vectors, right.vectors
        of_a = self.own.query_targets(left.input_ids, a.shape[1])
        of_b = self.own.query_targets(right.input_ids, b.shape[1])
        ramp = losses.quadratic_warmup(self.progress(), config.flops_warmup)
        return {
            "term contrastive": config.contrastive * losses.contrastive(losses.normalised_scores(a, b), symmetric=True),
            "term lexical": config.lexical * (losses.lexical(a, *of_a) + losses.lexical(b, *of_b)),
            "term synonym": config.synonym
            * (
                losses.activation(left.signed, of_b[0], of_b[1], labels[of_b[0]])
                + losses.activation(right.signed, of_a[0], of_a[1], labels[of_a[0]])
            ),
            "term flops": ramp
            * config.flops_query
            * (
                self.expansion_flops("term", left, self.own, config)
                + self.expansion_flops("term", right, self.own, config)
            ),
        }


class TripletObjective(Objective):
    """(anchor, positive, hard negative) terms under the loss of Korean Neural Sparse Encoder v1."""

    def __init__(self, model: nn.Module, own: OwnWords, config: CardLossConfig) -> None:
        super().__init__(model)
        self.own, self.config = own, config

    def forward(self, features: Features, labels: Tensor) -> Parts:
        config = self.config
        anchor, positive, negative = (self.encode(feature) for feature in features)
        columns = anchor.vectors.shape[1]
        parts = losses.card(
            anchor.vectors,
            positive.vectors,
            negative.vectors,
            self.own.counts(anchor.input_ids, columns)[:2],
            self.own.counts(positive.input_ids, columns)[:2],
            config.margin,
        )
        self.encoder.track(anchor.vectors, positive.vectors)
        weights = {
            "self": config.lambda_self,
            "synonym": config.lambda_synonym,
            "margin": config.lambda_margin,
            "flops": config.lambda_flops,
        }
        return {name: weights[name] * part for name, part in parts.items()}


class AlignObjective(Objective):
    """Texts whose dense vectors are to become the teacher's; the label is the row of the teacher's vector."""

    def __init__(self, model: nn.Module, teacher: Tensor, core: int) -> None:
        super().__init__(model, core)
        self.teacher = teacher

    def forward(self, features: Features, labels: Tensor) -> Parts:
        target = self.teacher[gather(labels).cpu()].to(labels.device).float()
        vectors = nn.functional.normalize(gather(pooled(self.model(features[0]), self.core)), dim=-1)
        return {
            "alignment": 5 * losses.alignment(vectors, target),
            "contrast": 0.3 * losses.contrastive(vectors @ target.T / 0.03),
        }


def pooled(feature: dict[str, Any], core: int) -> Tensor:
    """Mean over unmasked positions of the dimensions that the teacher has: [batch, core]."""
    mask = feature["attention_mask"].unsqueeze(-1)
    total: Tensor = (feature["states"][:, :, :core] * mask).sum(1)
    mean: Tensor = total / mask.sum(1)
    return mean
