"""Losses as pure functions of vectors: queries and documents [batch, vocabulary], weights >= 0; all return scalars."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_SHARPNESS = 2.0
_SMALLEST_DEVIATION = 0.05


def normalised_scores(queries: Tensor, documents: Tensor) -> Tensor:
    """Dot products divided by their own standard deviation, times a constant: [batch, batch].

    The temperature follows the scale of the weights: with a fixed one the cheapest way to a lower loss is to shrink
    queries to a handful of words. The deviation takes part in the gradient, else growing every weight without bound
    would lower the loss for ever.
    """
    scores = queries @ documents.T
    return scores * (_SHARPNESS / scores.std().clamp(min=_SMALLEST_DEVIATION))


def contrastive(scores: Tensor, *, symmetric: bool = False) -> Tensor:
    """InfoNCE with in-batch negatives (van den Oord et al. 2018): row i belongs to column i."""
    labels = torch.arange(len(scores), device=scores.device)
    loss = F.cross_entropy(scores, labels)
    return (loss + F.cross_entropy(scores.T, labels)) / 2 if symmetric else loss


def distillation(scores: Tensor, teacher_logits: Tensor) -> Tensor:
    """KL(teacher || student) over the documents of the batch, both [batch, batch]."""
    return F.kl_div(F.log_softmax(scores, dim=1), F.softmax(teacher_logits, dim=1), reduction="batchmean")


def sparse_scores(
    queries: tuple[Tensor, Tensor, Tensor], documents: tuple[Tensor, Tensor, Tensor], batch: int, columns: int
) -> Tensor:
    """Dot products of vectors given as (rows, columns, weights): [batch, batch]."""
    q, d = (
        torch.zeros((batch, columns), device=weights.device).index_put_((rows, places), weights)
        for rows, places, weights in (queries, documents)
    )
    return q @ d.T


def alignment(vectors: Tensor, teacher_vectors: Tensor) -> Tensor:
    """1 - mean cosine of dense vectors [batch, size] with the (normalised) teacher's."""
    return 1 - (F.normalize(vectors, dim=-1) * teacher_vectors).sum(1).mean()


def flops(weights: Tensor, usage: Tensor) -> Tensor:
    """``sum_j usage_j mean_i w_ij``: with ``usage`` [vocabulary] the mean of this batch, the expected number of
    multiplications (Paria et al. 2020, arXiv:2004.05665). With a running mean over batches of every source a word is
    charged for firing everywhere, not for being the topic of one batch."""
    return (weights.mean(0) * usage).sum()


def lexical(weights: Tensor, rows: Tensor, columns: Tensor, targets: Tensor) -> Tensor:
    """Squared distance of each text's own words from the weight they should have; entry i is (rows[i], columns[i])."""
    if not len(rows):
        return weights.sum() * 0.0
    return ((weights[rows, columns] - targets) ** 2).mean()


def activation(weights: Tensor, rows: Tensor, columns: Tensor, floors: Tensor) -> Tensor:
    """How far the expected words stay below their floor, on average; nothing is asked above it."""
    if not len(rows):
        return weights.sum() * 0.0
    return F.relu(floors - weights[rows, columns]).mean()


def quadratic_warmup(progress: float, warmup: float) -> float:
    """From 0.1 at the start to 1 at ``warmup`` (share of the run), quadratic between; 1 from there on."""
    return 1.0 if progress >= warmup else 0.1 + 0.9 * (progress / warmup) ** 2
