"""What a batch is trained for: one objective for each kind of data, each returning its named, weighted parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from training import losses
from training.config import LossConfig
from training.vocabulary import NEVER, Roles

Features = list[dict[str, Any]]
Parts = dict[str, Tensor]
Targets = tuple[Tensor, Tensor, Tensor]  #: rows, columns and weights of the own words of a batch

_SATURATION = 1.2  #: BM25's k1
_LENGTH = 0.75  #: BM25's b


@dataclass(frozen=True)
class OwnWords:
    """Which columns a text's own tokens occupy, and what each should weigh there."""

    column: Tensor  #: [vocabulary] column of the vectors under which a token is emitted, -1 = never
    weight: Tensor  #: [columns] weight of a word on its own
    average_length: float  #: own words in an average passage

    @classmethod
    def of(cls, roles: Roles, emitted: Tensor, own_weights: Tensor, average_length: float) -> OwnWords:
        place = torch.full((len(roles.emitted_as),), -1)
        place[emitted] = torch.arange(len(emitted))
        target = torch.tensor(roles.emitted_as)
        column = torch.where(target == NEVER, -1, place[target.clamp(min=0)])
        return cls(column, own_weights[emitted], average_length)

    def counts(self, input_ids: Tensor, columns: int) -> tuple[Tensor, Tensor, Tensor]:
        """(rows, columns, term frequency) of the distinct own words of a batch."""
        place = self.column[input_ids]
        row = torch.arange(len(input_ids)).unsqueeze(1).expand_as(place)
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


class Objective(nn.Module):
    """Holds the model under the name that sentence-transformers' trainer expects."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def expansion_flops(self, task: str, weights: Tensor, own: Targets) -> Tensor:
        """FLOPS of the words that a text does not hold; what its own words weigh is the lexical loss's to say."""
        rows, columns, _ = own
        added = torch.ones_like(weights).index_put_((rows, columns), weights.new_zeros(())) * weights
        return losses.flops(added, self.model[0].observe(task, added))  # type: ignore[index]


class PassageObjective(Objective):
    """(query, passage) pairs; the label is the row of their teacher vectors, -1 for none."""

    def __init__(
        self,
        model: nn.Module,
        own: OwnWords,
        config: LossConfig,
        teacher: tuple[Tensor, Tensor],
        core: int,
        progress: Callable[[], float],
    ) -> None:
        super().__init__(model)
        self.own, self.config, self.core, self.progress = own, config, core, progress
        self.teacher_queries, self.teacher_passages = teacher

    def forward(self, features: Features, labels: Tensor) -> Parts:
        config = self.config
        query, passage = (self.model(feature) for feature in features)
        q, d = query["sentence_embedding"], passage["sentence_embedding"]
        scores = losses.normalised_scores(q, d)
        ramp = losses.quadratic_warmup(self.progress(), config.flops_warmup)
        of_query = self.own.query_targets(query["input_ids"], q.shape[1])
        of_passage = self.own.document_targets(passage["input_ids"], d.shape[1])
        parts = {
            "contrastive": config.contrastive * losses.contrastive(scores),
            "lexical": config.lexical * (losses.lexical(q, *of_query) + losses.lexical(d, *of_passage)),
            "flops": ramp
            * (
                config.flops_query * self.expansion_flops("query", q, of_query)
                + config.flops_document * self.expansion_flops("document", d, of_passage)
            ),
        }
        if bool((labels >= 0).all()):
            tq, td = self.teacher_queries[labels].float(), self.teacher_passages[labels].float()
            target = tq @ td.T / config.temperature
            if config.lexical_teacher:
                target += config.lexical_teacher * losses.sparse_scores(of_query, of_passage, *q.shape)
            parts["distillation"] = config.distillation * losses.distillation(scores, target)
            parts["alignment"] = config.alignment * (
                losses.alignment(pooled(query, self.core), tq) + losses.alignment(pooled(passage, self.core), td)
            )
        self.model.track(q, d)  # type: ignore[operator]
        return parts


class TermObjective(Objective):
    """Pairs of related terms; the label is the weight that each side's words should reach in the other's vector."""

    def __init__(self, model: nn.Module, own: OwnWords, config: LossConfig, progress: Callable[[], float]) -> None:
        super().__init__(model)
        self.own, self.config, self.progress = own, config, progress

    def forward(self, features: Features, labels: Tensor) -> Parts:
        config = self.config
        left, right = (self.model(feature) for feature in features)
        a, b = left["sentence_embedding"], right["sentence_embedding"]
        of_a = self.own.query_targets(left["input_ids"], a.shape[1])
        of_b = self.own.query_targets(right["input_ids"], b.shape[1])
        ramp = losses.quadratic_warmup(self.progress(), config.flops_warmup)
        return {
            "term contrastive": config.contrastive * losses.contrastive(losses.normalised_scores(a, b), symmetric=True),
            "term lexical": config.lexical * (losses.lexical(a, *of_a) + losses.lexical(b, *of_b)),
            "term synonym": config.synonym
            * (
                losses.activation(a, of_b[0], of_b[1], labels[of_b[0]])
                + losses.activation(b, of_a[0], of_a[1], labels[of_a[0]])
            ),
            "term flops": ramp
            * config.flops_query
            * (self.expansion_flops("term", a, of_a) + self.expansion_flops("term", b, of_b)),
        }


class AlignObjective(Objective):
    """Texts whose dense vectors are to become the teacher's; the label is the row of the teacher's vector."""

    def __init__(self, model: nn.Module, teacher: Tensor, core: int) -> None:
        super().__init__(model)
        self.teacher, self.core = teacher, core

    def forward(self, features: Features, labels: Tensor) -> Parts:
        target = self.teacher[labels].float()
        vectors = nn.functional.normalize(pooled(self.model(features[0]), self.core), dim=-1)
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
