"""Diagonals of second order, the residual of magnitudes, and SynFlow as its release has it."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from test_signals import dense, loss_at
from torch import Tensor, nn
from toys import chain, flat_mask, mlp_problem, residual_problem

from panning.foundation.errors import DataError
from panning.masks.allocation import allocate
from panning.pruners import Rounds, prune_problem
from panning.scoring.indices import INDICES
from panning.scoring.problem import Problem, Scoring
from panning.scoring.signals import Signals, curvature


def logistic(*inputs: list[float]) -> Problem:
    """w = (2, -1) and y = 1: at x = (1, 2) the probability is 1/2."""
    batch = torch.tensor(inputs), torch.ones(len(inputs), 1)
    model = chain([[2.0, -1.0]])
    return Problem.of(model, (2,), lambda number: batch, loss=F.binary_cross_entropy_with_logits)


def scores(problem: Problem, index: str, mask: Tensor | None = None) -> Tensor:
    return INDICES[index].formula(Signals(problem, dense(problem) if mask is None else mask))


def test_fisher_indices_are_as_computed_by_hand() -> None:
    problem = logistic([1.0, 2.0])  # g = (p - y) x = (-1/2, -1)
    assert scores(problem, "fd").tolist() == [0.25, 1.0]
    assert scores(problem, "fp").tolist() == [0.5, 0.5]
    assert scores(problem, "fts").tolist() == [0.5, 1.5]
    # Squares are taken sample by sample: the gradients (-1/2, -1) and (-1/2, 1) of two samples do not cancel.
    two = dataclasses.replace(logistic([1.0, 2.0], [1.0, 2.0]), loss=lambda y, t: (y * t).mean() * 0.5)
    two = dataclasses.replace(
        two, batches=lambda n: (torch.tensor([[1.0, 2.0], [1.0, 2.0]]), torch.tensor([[1.0], [-1]]))
    )
    assert Signals(two, dense(two)).grad.tolist() == [0.0, 0.0]
    assert scores(two, "fd").tolist() == [0.25, 1.0]


def test_hutchinson_indices_are_as_computed_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.tensor([2.0, -1.0], requires_grad=True)
    loss = F.binary_cross_entropy_with_logits((weight * torch.tensor([1.0, 2.0])).sum(), torch.tensor(1.0))
    (grad,) = torch.autograd.grad(loss, weight, create_graph=True)  # H = x x^T / 4
    draws = [torch.tensor([1, 1]), torch.tensor([1, -1])]
    assert [curvature.diagonal(grad, weight, [z]).tolist() for z in draws] == [[0.75, 1.5], [-0.25, 0.5]]
    assert curvature.diagonal(grad, weight, draws).tolist() == [0.25, 1.0]
    both = iter(draws * 3)
    monkeypatch.setattr(curvature, "N_DRAWS", 2)
    monkeypatch.setattr(torch, "randint", lambda *args, **kwargs: (next(both) + 1) // 2)
    problem = logistic([1.0, 2.0])
    assert scores(problem, "hd").tolist() == [0.25, 1.0]
    assert scores(problem, "hp").tolist() == [0.5, 0.5]
    assert scores(problem, "hts").tolist() == [0.5, 1.5]


def test_hutchinson_comes_near_the_hessians_diagonal(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = mlp_problem(sizes=(3, 5, 4, 2), dtype=torch.float64)
    exact = torch.autograd.functional.hessian(lambda u: loss_at(problem, u), problem.weight).diagonal()
    errors = []
    for n_draws in (10, 1000):
        monkeypatch.setattr(curvature, "N_DRAWS", n_draws)
        errors.append(float((scores(problem, "hd") - exact).norm() / exact.norm()))
    assert errors[1] < 0.2 and errors[1] < 0.3 * errors[0]


def test_fisher_sees_each_sample_under_the_statistics_of_the_batch() -> None:
    problem = residual_problem()
    images, labels = problem.batch(0)
    model = copy.deepcopy(problem.model).eval()
    with torch.no_grad():
        first = model.stem(images)
    model.norm.running_mean = first.mean((0, 2, 3))  # type: ignore[union-attr]
    model.norm.running_var = first.var((0, 2, 3))  # type: ignore[union-attr]
    expected = torch.zeros(problem.layout.n_prunable)
    for image, label in zip(images, labels, strict=True):
        parameters = [dict(model.named_parameters())[name] for name in problem.layout.names]
        loss = F.cross_entropy(model(image[None]), label[None])
        expected += torch.cat([grad.flatten() for grad in torch.autograd.grad(loss, parameters)]).square() / len(images)
    found = scores(problem, "fd")
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-8)
    assert bool((problem.layout.views(found)["stem.weight"] > 0).all())


def test_fisher_refuses_a_batch_without_samples() -> None:
    problem = dataclasses.replace(mlp_problem(), batches=lambda number: (torch.randn(9, 6), torch.arange(4)))
    with pytest.raises(DataError, match="one by one"):
        scores(problem, "fd")


@pytest.mark.parametrize("method", ["fts", "hts"])
def test_rows_keep_the_highest_of_their_index(method: str) -> None:
    problem = residual_problem()
    expected = allocate(scores(problem, method), 78, problem.layout)
    assert torch.equal(prune_problem(problem, 0.1, method).mask, expected)


def test_the_residual_of_magnitudes_is_as_computed_by_hand() -> None:
    # |w| = [[1, 2], [3, 6]]: row means 1.5 and 4.5, column means 2 and 4, mean 3.
    problem = Problem.of(chain([[1.0, -2.0], [-3.0, 6.0]]), (2,), None)
    assert scores(problem, "magnitude_residual").tolist() == [0.5, -0.5, -0.5, 0.5]
    additive = Problem.of(chain([[1.0, -2.0, 3.0], [-4.0, 5.0, 6.0]]), (3,), None)
    assert scores(additive, "magnitude_residual").abs().max() < 1e-6


def test_the_residual_of_a_transposed_convolution_lies_where_its_weights_do() -> None:
    torch.manual_seed(0)
    conv = nn.ConvTranspose2d(4, 6, 2, groups=2)
    problem = Problem.of(nn.Sequential(conv), (4, 3, 3), None)
    found = scores(problem, "magnitude_residual").view(4, 3, 2, 2)
    rows = torch.stack(
        [conv.weight[2 * group : 2 * group + 2, unit].flatten() for group in (0, 1) for unit in range(3)]
    )
    rows = rows.detach().abs()
    expected = rows - rows.mean(1, keepdim=True) - rows.mean(0, keepdim=True) + rows.mean()
    torch.testing.assert_close(found[2:, 1].flatten(), expected[4])


# --- SynFlow, released ---


def test_released_synflow_counts_biases_as_by_hand() -> None:
    model = chain([[2.0]], [[3.0]], bias=True)
    model[0].bias.data.fill_(-5.0)
    problem = Problem.of(model, (1,), None)
    signals = Signals(problem, dense(problem), scoring=Scoring(linear_paths=False))
    # R = 3 (2 + 5): the first weight's share is 3 * 2, the second's 3 * 7.
    assert INDICES["synflow"].formula(signals).tolist() == [6.0, 21.0]
    assert scores(problem, "synflow").tolist() == [6.0, 6.0]


def test_released_synflow_is_the_network_of_absolute_values_as_it_is() -> None:
    problem = residual_problem()
    mask = flat_mask(problem.layout, 0.5, 3)
    model = copy.deepcopy(problem.model).double().eval()
    kept = problem.layout.views(mask)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(parameter.abs() * kept.get(name, 1.0))
    parameters = [dict(model.named_parameters())[name] for name in problem.layout.names]
    grads = torch.autograd.grad(model(torch.ones(1, 2, 8, 8, dtype=torch.float64)).sum(), parameters)
    signals = Signals(problem, mask, scoring=Scoring(linear_paths=False))
    torch.testing.assert_close(signals.path_grad, torch.cat([grad.flatten() for grad in grads]))
    text, release = (prune_problem(problem, 0.1, "synflow", rounds=Rounds(20), released=r).mask for r in (False, True))
    assert 0 < int((text ^ release).sum()) < 0.5 * int(text.sum())
