"""PX: values by hand, the lost class, its relation to SynFlow-L2, and gates along convolutions, pools and residual sums."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from test_signals import dense
from torch import Tensor, nn
from torch.func import functional_call
from toys import chain, flat_mask, residual_problem

from panning.foundation.errors import ModelError
from panning.pruners import Rounds, prune_problem
from panning.scoring.indices import INDICES
from panning.scoring.problem import Problem
from panning.scoring.signals import Signals


def scores(problem: Problem, index: str, mask: Tensor | None = None) -> Tensor:
    return INDICES[index].formula(Signals(problem, dense(problem) if mask is None else mask))


def toy(inputs: Tensor) -> Problem:
    model = chain([[1.0, 2.0], [-1.0, 0.0]], [[1.0, 3.0], [2.0, 1.0]], activation=nn.ReLU)
    return Problem.of(model, (2,), lambda number: (inputs, torch.zeros(len(inputs), dtype=torch.long)))


def test_px_is_as_computed_by_hand_and_loses_a_class_whose_inputs_are_off() -> None:
    # x = (1, 2): hidden unit 0 is on (5), unit 1 off (-1). c = (5, 5), h = (14, 21).
    problem = toy(torch.tensor([[1.0, 2.0]]))
    assert scores(problem, "px").tolist() == [25, 100, 50, 0, 25, 45, 100, 5]
    assert scores(problem, "synflow_l2_squared").tolist() == [5, 20, 10, 0, 5, 9, 20, 1]
    # Without the weight from unit 0 to class 0 no active path leads to class 0: c = (0, 5).
    mask = dense(problem)
    mask[4] = False
    assert scores(problem, "px", mask).tolist() == [20, 80, 5, 0, 0, 0, 100, 5]
    assert scores(problem, "synflow_l2_squared", mask).tolist() == [4, 16, 10, 0, 5, 9, 20, 1]


def test_a_dense_last_layer_makes_px_synflow_l2_of_squares_and_layers_conserve_it() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 3)).double()
    problem = Problem.of(model, (6,), lambda number: (torch.randn(9, 6).double(), torch.arange(9) % 3))
    torch.manual_seed(1)
    weighted, plain = scores(problem, "px"), scores(problem, "synflow_l2_squared")
    torch.testing.assert_close(weighted / weighted.sum(), plain / plain.sum())
    sums = [float(part.sum()) for part in problem.layout.views(weighted).values()]
    assert sums == pytest.approx([sums[0]] * 3, rel=1e-12)


def test_without_biases_the_sign_of_the_input_changes_gates_alone() -> None:
    torch.manual_seed(0)
    images = torch.randn(5, 2)
    one, both = toy(images), toy(torch.cat([images, -images]))
    mask = dense(one)
    mask[6] = False
    torch.testing.assert_close(scores(both, "px", mask), scores(one, "px", mask) + scores(toy(-images), "px", mask))


class Gated(nn.Module):
    """In place of a ReLU: where the real pass was above 0."""

    def __init__(self) -> None:
        super().__init__()
        self.gates: list[Tensor] = []
        self.counting = False

    def forward(self, x: Tensor) -> Tensor:
        if self.counting:
            return x * self.gates.pop(0)
        self.gates.append(x > 0)
        return F.relu(x)


@pytest.mark.parametrize("inplace", [False, True])
def test_class_counts_follow_gates_through_convolutions_pools_and_residual_sums(inplace: bool) -> None:
    problem = residual_problem(inplace=inplace)
    mask = flat_mask(problem.layout, 0.3, 2)
    images = problem.batch(0)[0]
    by_hand = residual_problem().model
    by_hand.relu = relu = Gated()
    for module in by_hand.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats, module.running_mean, module.running_var = False, None, None
    by_hand.eval()
    kept = problem.layout.views(problem.weight * mask)
    functional_call(by_hand, kept, (images,))
    relu.counting, by_hand.norm = True, nn.Identity()
    zeros = {n: torch.zeros_like(p).double() for n, p in by_hand.named_parameters() if n.endswith("bias")}
    with torch.no_grad():
        counts = functional_call(
            by_hand, {**zeros, **problem.layout.views(mask.double())}, (images.double() ** 2,)
        ).sum(0)
    squares = (problem.weight.double() * mask).square().requires_grad_()
    relu.gates = [torch.ones(1, 1)] * 9
    linear = functional_call(by_hand, {**zeros, **problem.layout.views(squares)}, (torch.ones(1, 2, 8, 8).double(),))
    (gradient,) = torch.autograd.grad((linear[0] * counts).sum(), squares)
    assert len(counts.unique()) == 3
    torch.testing.assert_close(scores(problem, "px", mask), problem.weight.double().square() * gradient)


def test_counts_beyond_float64_are_scaled() -> None:
    deep = nn.Sequential(*(module for _ in range(130) for module in (nn.Linear(300, 300, bias=False), nn.ReLU())))
    for parameter in deep.parameters():
        nn.init.constant_(parameter, 1 / 300)
    problem = Problem.of(deep, (300,), lambda number: (torch.ones(2, 300), torch.zeros(2)))
    found = scores(problem, "px")  # 300^130 = 1e322 active paths to each class
    assert torch.isfinite(found).all() and (found > 0).all()


def test_the_row_keeps_one_batch_and_the_right_number() -> None:
    problem = residual_problem()
    seen: list[int] = []
    counted = dataclasses.replace(problem, batches=lambda number: seen.append(number) or problem.batches(number))  # type: ignore[func-returns-value,misc]
    result = prune_problem(counted, 0.1, "px", rounds=Rounds(5))
    assert int(result.mask.sum()) == round(0.1 * problem.layout.n_prunable) and set(seen) == {0}
    without = prune_problem(problem, 0.1, "synflow_l2_squared", rounds=Rounds(5))
    assert 0 < int((result.mask & without.mask).sum()) < int(result.mask.sum())


def test_activations_that_depend_on_values_are_refused_with_a_way_out() -> None:
    class Moody(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x) if bool((x < 0).any()) else F.relu(self.linear(x))

    problem = Problem.of(Moody(), (2,), lambda number: (torch.tensor([[-1.0, 1.0]]), torch.zeros(1)))
    with pytest.raises(ModelError, match="calls other activations.*synflow_l2"):
        scores(problem, "px")
