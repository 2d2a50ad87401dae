"""Each loss against a plain reference; the tiled head against the dense one, values and gradients."""

import math

import pytest
import torch
from torch import Tensor, nn

from sparse_encoder.model import MaxLogits
from training import losses
from training.config import LossConfig
from training.module import FadingRelu
from training.objectives import BatchVectors, Objective, OwnWords
from training.vocabulary import Roles

GENERATOR = torch.Generator().manual_seed(3)


def vectors(rows: int = 5, columns: int = 7) -> torch.Tensor:
    return torch.relu(torch.randn((rows, columns), generator=GENERATOR))


def test_contrastive_is_the_cross_entropy_of_the_diagonal() -> None:
    scores = torch.randn((4, 4), generator=GENERATOR)
    expected = (
        -sum(math.log(math.exp(scores[i, i]) / sum(math.exp(s) for s in scores[i].tolist())) for i in range(4)) / 4
    )
    assert losses.contrastive(scores).item() == pytest.approx(expected, rel=1e-5)
    both = (losses.contrastive(scores) + losses.contrastive(scores.T)) / 2
    assert losses.contrastive(scores, symmetric=True).item() == pytest.approx(both.item())


def test_distillation_is_zero_when_the_student_ranks_like_the_teacher() -> None:
    teacher = torch.rand((4, 4), generator=GENERATOR)
    assert losses.distillation(teacher / 0.02, teacher / 0.02).item() == pytest.approx(0, abs=1e-5)
    assert losses.distillation(-teacher / 0.02, teacher / 0.02).item() > 1


def test_flops_counts_expected_multiplications() -> None:
    weights = torch.tensor([[1.0, 0.0, 2.0], [3.0, 0.0, 0.0]])
    assert losses.flops(weights, weights.mean(0)).item() == pytest.approx(2.0**2 + 0 + 1.0**2)


def test_flops_charges_the_words_that_fire_everywhere() -> None:
    weights = torch.tensor([[1.0, 1.0], [1.0, 1.0]]).requires_grad_()
    losses.flops(weights, torch.tensor([0.9, 0.1])).backward()
    assert weights.grad is not None
    torch.testing.assert_close(weights.grad, torch.tensor([[0.45, 0.05], [0.45, 0.05]]))


def test_scores_of_given_words_are_dot_products() -> None:
    queries = torch.tensor([0, 1]), torch.tensor([2, 0]), torch.tensor([3.0, 1.0])
    documents = torch.tensor([0, 0, 1]), torch.tensor([2, 1, 0]), torch.tensor([2.0, 5.0, 4.0])
    torch.testing.assert_close(losses.sparse_scores(queries, documents, 2, 3), torch.tensor([[6.0, 0.0], [0.0, 4.0]]))


def test_growing_every_weight_does_not_lower_the_contrastive_loss() -> None:
    queries = vectors().requires_grad_()
    documents = vectors()
    losses.contrastive(losses.normalised_scores(queries, documents)).backward()
    assert queries.grad is not None
    along = (queries.grad * queries.detach()).sum().abs()
    assert along.item() == pytest.approx(0, abs=1e-5)  # no gradient along the vectors themselves


def test_lexical_and_activation_look_at_the_named_entries_only() -> None:
    weights = torch.tensor([[1.0, 0.5, 9.0], [0.2, 0.0, 9.0]])
    rows, columns = torch.tensor([0, 0, 1]), torch.tensor([0, 1, 0])
    targets = torch.tensor([1.0, 1.0, 1.0])
    assert losses.lexical(weights, rows, columns, targets).item() == pytest.approx((0 + 0.25 + 0.64) / 3)
    assert losses.activation(weights, rows, columns, targets).item() == pytest.approx((0 + 0.5 + 0.8) / 3)
    nothing = torch.zeros(0, dtype=torch.long)
    assert losses.lexical(weights, nothing, nothing, torch.zeros(0)).item() == 0


def test_words_that_are_off_learn_from_the_activation_loss_however_deep_they_are() -> None:
    signed = torch.tensor([[-9.0, 0.5], [-torch.inf, 3.0]], requires_grad=True)  # the second text has no words
    rows, columns = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    loss = losses.activation(signed, rows, columns, torch.ones(4))
    loss.backward()
    assert torch.isfinite(loss)
    assert signed.grad is not None
    assert signed.grad.tolist() == [[-0.25, -0.25], [0.0, 0.0]]


def test_fading_relu_is_relu_whose_gradient_fades_out_below_zero() -> None:
    signed = torch.tensor([2.0, 0.0, -0.2, -1.0, -5.0, -torch.inf], requires_grad=True)
    out = FadingRelu.apply(signed)  # type: ignore[no-untyped-call]
    assert out.tolist() == [2.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    out.sum().backward()
    assert signed.grad is not None
    assert signed.grad.tolist() == pytest.approx([1.0, 1.0, math.exp(-0.6), math.exp(-3.0), 0.0, 0.0])


def test_flops_warmup_is_quadratic_and_never_off() -> None:
    values = [losses.quadratic_warmup(p, 0.5) for p in (0.0, 0.25, 0.5, 1.0)]
    assert values == pytest.approx([0.1, 0.325, 1.0, 1.0])


def test_tiled_head_gives_the_values_and_gradients_of_the_dense_one() -> None:
    lengths = [7, 1, 90, 4, 100]  # more positions than one tile holds, so rows fall into several
    mask = torch.zeros((5, 100), dtype=torch.bool)
    for row, length in enumerate(lengths):
        mask[row, :length] = True
    mask[0, 2] = False  # a hole, not only padding
    leaves = [torch.randn(shape, generator=GENERATOR).requires_grad_() for shape in ((5, 100, 16), (60, 16), (60,))]
    copies = [leaf.detach().clone().requires_grad_() for leaf in leaves]

    tiled = MaxLogits.apply(leaves[0], mask, leaves[1], leaves[2], torch.float32)  # type: ignore[no-untyped-call]
    logits = copies[0] @ copies[1].T + copies[2]
    dense = logits.masked_fill(~mask.unsqueeze(-1), -torch.inf).amax(1)
    torch.testing.assert_close(tiled, dense, rtol=1e-5, atol=1e-5)

    upstream = torch.randn((5, 60), generator=GENERATOR)
    for behind in (lambda z: torch.log1p(torch.relu(z)), lambda z: z):  # few words have a gradient, or all
        (behind(tiled) * upstream).sum().backward(retain_graph=True)
        (behind(dense) * upstream).sum().backward(retain_graph=True)
        for leaf, copy in zip(leaves, copies, strict=True):
            torch.testing.assert_close(leaf.grad, copy.grad, rtol=1e-4, atol=1e-5)


class _Seen(nn.Module):
    """Takes the place of the encoder, which keeps what is usual."""

    def observe(self, task: str, weights: Tensor) -> Tensor:
        return weights.mean(0)


def test_own_words_are_counted_under_the_form_they_are_emitted_as() -> None:
    roles = Roles([-1, -1, -1, -1, -1, 5, 5, -1, 8])  # 6 is ##5, 7 a particle
    own = OwnWords.of(roles, torch.tensor([5, 8]), torch.arange(9.0), average_length=3.0)
    ids = torch.tensor([[2, 5, 6, 7, 8, 3, 0]])
    rows, columns, frequency = own.counts(ids, 2)
    assert (rows.tolist(), columns.tolist(), frequency.tolist()) == ([0, 0], [0, 1], [2, 1])
    assert own.query_targets(ids, 2)[2].tolist() == [5.0, 8.0]
    # BM25: tf 1 in a text of average length weighs 1, tf 2 weighs 2 (1 + k1) / (2 + k1)
    assert own.document_targets(ids, 2)[2].tolist() == pytest.approx([5.0 * 2 * 2.2 / 3.2, 8.0])


def test_a_text_holds_the_parts_of_its_words_and_what_speaks_for_it_when_none_does() -> None:
    roles = Roles([-1, -1, -1, -1, -1, 5, 5, -1, 8], [-1, -1, -1, -1, -1, 5, 5, 7, 8])  # 7 speaks as a last resort
    parts = torch.full((9, 2), -1, dtype=torch.int32)
    parts[5, 0] = 8  # 5 also for 8
    own = OwnWords.of(roles, roles.emitted, torch.arange(9.0), 3.0, parts)
    rows, columns = own.held(torch.tensor([[2, 5, 7, 3, 0], [2, 7, 3, 0, 0], [2, 6, 3, 0, 0]]))
    held = {(int(row), int(roles.emitted[column])) for row, column in zip(rows, columns, strict=True)}
    assert held == {(0, 5), (0, 8), (1, 7), (2, 5)}
    assert own.counts(torch.tensor([[2, 5, 7, 3, 0]]), 3)[1].tolist() == [0]  # no target of a loss


def test_words_that_a_text_holds_cost_no_flops() -> None:
    roles = Roles([-1, 1, 2, 3], [-1, 1, 2, 3])
    own = OwnWords.of(roles, roles.emitted, torch.ones(4), 3.0, torch.tensor([[-1], [2], [-1], [-1]]))
    vectors = torch.tensor([[2.0, 1.0, 0.0]])  # of a text of 1, which speaks for 2, too
    ids = torch.tensor([[0, 1, 0]])
    encoded = BatchVectors(vectors, vectors, ids, None, torch.zeros(1, 0))
    objective = Objective(nn.ModuleList([_Seen()]))
    assert float(objective.expansion_flops("query", encoded, own, LossConfig())) == 0.0
    other = BatchVectors(vectors, torch.tensor([[2.0, 1.0, 3.0]]), ids, None, torch.zeros(1, 0))
    assert float(objective.expansion_flops("query", other, own, LossConfig())) > 0.0


def test_what_the_table_does_not_name_costs_more_and_a_look_alike_still_more() -> None:
    roles = Roles([-1, 1, 2, 3, 4])
    own = OwnWords.of(roles, roles.emitted, torch.ones(5), 3.0, pieces=["[PAD]", "월세", "과세", "보증", "전세"])
    ids = torch.tensor([[0, 1, 0]])
    objective = Objective(nn.ModuleList([_Seen()]))

    def cost(word: int, task: str = "query", supported: bool = False) -> float:
        vectors = torch.zeros(1, 4)
        vectors[0, 0], vectors[0, word - 1] = 2.0, 1.0
        named = torch.zeros(1, 4, dtype=torch.bool)
        named[0, word - 1] = supported
        encoded = BatchVectors(vectors, vectors, ids, named, torch.zeros(1, 0))
        return float(objective.expansion_flops(task, encoded, own, LossConfig(unsupported=1.0, look_alike=3.0)))

    assert cost(4, supported=True) == 1.0
    assert cost(3) == 2.0**2  # FLOPS is a square
    assert cost(2) == 5.0**2
    assert cost(2, task="document") == 2.0**2  # a long text shares a syllable with every word


def test_further_columns_are_further_negatives() -> None:
    scores = torch.tensor([[2.0, 0.0, 1.0], [0.0, 3.0, 1.0]])
    expected = sum(math.log(sum(math.exp(s) for s in row)) - row[i] for i, row in enumerate(scores.tolist())) / 2
    assert losses.contrastive(scores).item() == pytest.approx(expected, rel=1e-5)


def test_margins_are_compared_with_the_teachers() -> None:
    student = torch.tensor([3.0, 1.0]), torch.tensor([1.0, 1.0])
    teacher = torch.tensor([0.9, 0.8]), torch.tensor([0.8, 0.4])
    expected = ((2.0 - 10 * 0.1) ** 2 + (0.0 - 10 * 0.4) ** 2) / 2
    assert losses.margin_mse(*student, *teacher, scale=10).item() == pytest.approx(expected, rel=1e-5)


def test_idf_aware_flops_charges_common_words_more() -> None:
    weights, idf = torch.tensor([[1.0, 1.0], [1.0, 0.0]]), torch.tensor([1.0, 3.0])
    usage = weights.mean(0)
    assert losses.idf_aware_flops(weights, usage, idf).item() == pytest.approx(1 * 1 * 2 / 1 + 0.5 * 0.5 * 2 / 3)
    same = torch.full((2,), 5.0)
    assert losses.idf_aware_flops(weights, usage, same).item() == pytest.approx(losses.flops(weights, usage).item())


def test_the_anti_collapse_guard_asks_nothing_of_full_vectors() -> None:
    weights = torch.tensor([[1.5, 1.0], [0.25, 0.25]])
    assert losses.anti_collapse(weights, 2.0).item() == pytest.approx((0 + 1.5) / 2)


def test_the_cards_loss_is_its_published_formula() -> None:
    a, p, n = vectors(3), vectors(3), vectors(3)
    own, synonym = [[0, 2], [1], []], [[3], [4, 5], [0, 1]]

    def pairs(tokens: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        flat = [(row, column) for row, columns in enumerate(tokens) for column in columns]
        rows, columns = zip(*flat, strict=True)
        return torch.tensor(rows), torch.tensor(columns)

    def mean_of_tokens(tokens: list[list[int]]) -> float:
        means = [sum(float(a[row, j]) for j in columns) / len(columns) for row, columns in enumerate(tokens) if columns]
        return sum(means) / len(means)

    def cosine(x: torch.Tensor, y: torch.Tensor) -> float:
        return float(x @ y / (x.norm() * y.norm()))

    parts = losses.card(a, p, n, pairs(own), pairs(synonym), margin=1.5)
    assert parts["self"].item() == pytest.approx(-mean_of_tokens(own), rel=1e-5)
    assert parts["synonym"].item() == pytest.approx(-mean_of_tokens(synonym), rel=1e-5)
    margins = [max(0.0, 1.5 - cosine(a[i], p[i]) + cosine(a[i], n[i])) for i in range(3)]
    assert parts["margin"].item() == pytest.approx(sum(margins) / 3, rel=1e-5)
    assert parts["flops"].item() == pytest.approx(sum(float(m) ** 2 for m in a.mean(0)), rel=1e-5)
