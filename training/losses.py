"""Losses as pure functions of vectors: queries and documents [batch, vocabulary], weights >= 0; all return scalars."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SHARPNESS = 2.0  #: standard deviation of normalised scores
_SOFT_SHARPNESS = 0.8  #: of those that a teacher's are compared with
_SMALLEST_DEVIATION = 0.05
_SMALLEST_IDF = 0.1
_DEEPEST = -50.0  #: a text of no words has a maximum of minus infinity


def normalised_scores(queries: Tensor, documents: Tensor) -> Tensor:
    """Dot products divided by their own standard deviation, times a constant: [batch, batch].

    The temperature follows the scale of the weights: with a fixed one the cheapest way to a lower loss is to shrink
    queries to a handful of words. The deviation takes part in the gradient, else growing every weight without bound
    would lower the loss for ever.
    """
    scores = queries @ documents.T
    return scores * (SHARPNESS / scores.std().clamp(min=_SMALLEST_DEVIATION))


def contrastive(scores: Tensor, *, symmetric: bool = False) -> Tensor:
    """InfoNCE with in-batch negatives (van den Oord et al. 2018): row i belongs to column i; more columns than rows
    are further negatives. ``symmetric`` (square scores only) also asks for the row of each column."""
    labels = torch.arange(len(scores), device=scores.device)
    loss = F.cross_entropy(scores, labels)
    return (loss + F.cross_entropy(scores.T, labels)) / 2 if symmetric else loss


def distillation(scores: Tensor, teacher_logits: Tensor) -> Tensor:
    """KL(teacher || student) over the documents of the batch, both [batch, batch]."""
    return F.kl_div(F.log_softmax(scores, dim=1), F.softmax(teacher_logits, dim=1), reduction="batchmean")


def softened(scores: Tensor) -> Tensor:
    """Logits whose softmax leaves something to the passages that a query only nearly asks for."""
    return scores * (_SOFT_SHARPNESS / scores.std().clamp(min=_SMALLEST_DEVIATION))


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


def activation(signed: Tensor, rows: Tensor, columns: Tensor, floors: Tensor) -> Tensor:
    """How far the expected words stay below their floor, on average; nothing is asked above it. ``signed``
    [batch, vocabulary] are weights before ``relu``, else a word that is off would learn nothing."""
    if not len(rows):
        return signed.sum() * 0.0
    return F.relu(floors - signed[rows, columns].clamp(min=_DEEPEST)).mean()


def tail(weights: Tensor, most: int) -> Tensor:
    """The weights of each text beyond its ``most`` heaviest words, summed, on average: what a service that keeps so
    many words throws away."""
    kept = weights.topk(min(most, weights.shape[1]), dim=1).values
    return (weights.sum(1) - kept.sum(1)).mean()


def quadratic_warmup(progress: float, warmup: float) -> float:
    """From 0.1 at the start to 1 at ``warmup`` (share of the run), quadratic between; 1 from there on."""
    return 1.0 if progress >= warmup else 0.1 + 0.9 * (progress / warmup) ** 2


def margin_mse(
    positive: Tensor, negative: Tensor, teacher_positive: Tensor, teacher_negative: Tensor, scale: float = 1.0
) -> Tensor:
    """Squared distance between the student's and the teacher's margins, all [batch] (Hofstätter et al. 2020,
    arXiv:2010.02666); ``scale`` brings the teacher's scores to the student's size."""
    return F.mse_loss(positive - negative, scale * (teacher_positive - teacher_negative))


def idf_aware_flops(weights: Tensor, usage: Tensor, idf: Tensor) -> Tensor:
    """``flops`` in which a word costs the more the commoner it is: each term is divided by its idf [vocabulary]
    relative to the mean, so that rare words, which cost an index little, may fire (Geng et al. 2024, arXiv:2411.04403).
    """
    return flops(weights, usage * (idf.mean() / idf.clamp(min=_SMALLEST_IDF)))


def anti_collapse(weights: Tensor, least: float) -> Tensor:
    """How far the vectors' sums of weights stay below ``least``, on average: keeps FLOPS from emptying vectors."""
    return F.relu(least - weights.sum(1)).mean()


def card(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    anchor_tokens: tuple[Tensor, Tensor],
    positive_tokens: tuple[Tensor, Tensor],
    margin: float,
) -> dict[str, Tensor]:
    """The four unweighted parts of the loss of Korean Neural Sparse Encoder v1 over triplets [batch, vocabulary].

    ``self``: the anchor's own tokens, ``synonym``: the positive's tokens, both as minus the mean weight that the anchor
    gives them, averaged over the texts that have any; ``margin``: ``relu(margin - cos(a, p) + cos(a, n))``; ``flops``:
    ``sum_j (mean_i a_ij)^2``. Tokens are given as (rows, columns), each pair once.
    """
    return {
        "self": -_mean_of_tokens(anchor, *anchor_tokens),
        "synonym": -_mean_of_tokens(anchor, *positive_tokens),
        "margin": F.relu(margin - F.cosine_similarity(anchor, positive) + F.cosine_similarity(anchor, negative)).mean(),
        "flops": flops(anchor, anchor.mean(0)),
    }


def _mean_of_tokens(weights: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    if not len(rows):
        return weights.sum() * 0.0
    counts = torch.bincount(rows, minlength=len(weights))
    sums = weights.new_zeros(len(weights)).index_add(0, rows, weights[rows, columns])
    return (sums[counts > 0] / counts[counts > 0]).mean()
