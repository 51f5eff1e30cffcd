"""Structured masks: scores by hand, which units go together, and that compaction cashes a mask in."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from toys import OF_UNITS, chain, residual_problem

import panning
from panning.compaction.together import STAYS, groups_of
from panning.foundation.errors import DensityError, ModelError
from panning.foundation.seeding import isolated_torch_rng
from panning.pruners import PRUNERS, Rounds, prune_problem
from panning.pruners.structured import KeepUnits, Shares, snap, three_sp
from panning.scoring.interface import problem_of
from panning.scoring.problem import Problem
from panning.scoring.schedules import densities
from panning.scoring.signals import Signals


def half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * (outputs - targets).square().sum()


def problem_around(model: nn.Module, inputs: Tensor, targets: Tensor) -> Problem:
    return Problem.of(model, tuple(inputs.shape[1:]), lambda number: (inputs, targets), loss=half_square)


def scored(problem: Problem, score: object) -> list[float]:
    whole = torch.ones(problem.layout.n_prunable, dtype=torch.bool)
    return score(Signals(problem, whole), groups_of(problem), 0.5).tolist()  # type: ignore[operator]


# --- scores ---


def test_the_gates_scores_are_as_computed_by_hand() -> None:
    # f = 2 - 3 = -1, L = f^2 / 2: the gates' gradients are -1 * 2 = -2 and -1 * -3 = 3; two multiply-adds go with each.
    problem = problem_around(chain([[2.0], [3.0]], [[1.0, -1.0]]), torch.ones(1, 1), torch.zeros(1, 1))
    assert scored(problem, snap) == [2.0, 3.0]
    assert scored(problem, three_sp) == [1.0, 1.5]
    assert prune_problem(problem, 0.5, "snap").mask.tolist() == [False, True, False, True]


def test_a_gates_gradient_keeps_the_signs_of_the_weights_that_read_the_unit() -> None:
    # f = (2a + b, a - b) = (7, -1) at a = 2, b = 3. a: 7 * 4 - 1 * 2 = 26; b: 7 * 3 - 1 * -3 = 24.
    problem = problem_around(chain([[2.0], [3.0]], [[2.0, 1.0], [1.0, -1.0]]), torch.ones(1, 1), torch.zeros(1, 2))
    assert scored(problem, snap) == [26.0, 24.0]
    # f = (5, -1) against (4, 0): a: 1 * 2 - 1 * 2 = 0, though each of its weights has a score; b: 1 * 3 + 1 * 3 = 6.
    signed = problem_around(
        chain([[2.0], [3.0]], [[1.0, 1.0], [1.0, -1.0]]), torch.ones(1, 1), torch.tensor([[4.0, 0.0]])
    )
    assert scored(signed, snap) == [0.0, 6.0]


def test_a_gates_gradient_is_that_of_an_explicit_gate() -> None:
    problem = residual_problem()
    groups, parameters = groups_of(problem), problem.parameters()
    gates = torch.ones(groups.n, requires_grad=True)
    for side in groups.sides:
        if side.reads:
            weight = parameters[side.parameter]
            of_units = torch.cat([gates, torch.ones(1)])[side.groups]
            parameters[side.parameter] = weight * of_units.view(-1, *[1] * (weight.dim() - side.axis - 1))
    inputs, targets = problem.batch(0)
    model = copy.deepcopy(problem.model).train()
    model.drop.p = 0.0
    outputs = torch.func.functional_call(model, parameters, (inputs,))
    (gradient,) = torch.autograd.grad(problem.loss(outputs, targets), gates)
    assert scored(problem, snap) == pytest.approx(gradient.abs().tolist(), rel=1e-4, abs=1e-6)


def test_multiply_adds_not_weights_divide_the_score_of_3sp() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map, self.head = nn.Conv2d(1, 2, 1, bias=False), nn.Linear(2, 1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.map(x).mean((2, 3)))

    net = Net()
    net.map.weight.data[:] = torch.tensor([2.0, 3.0]).view(2, 1, 1, 1)
    net.head.weight.data[:] = torch.tensor([1.0, -1.0])
    problem = problem_around(net, torch.ones(1, 1, 3, 3), torch.zeros(1, 1))
    assert scored(problem, snap) == [2.0, 3.0]
    assert scored(problem, three_sp) == pytest.approx([2 / 10, 3 / 10])  # 9 of the map and 1 of the head


# --- units that go together ---


class Tied(nn.Module):
    """A residual sum, a depthwise convolution, a concatenation, a flattened map, and a stream that LayerNorm keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.depthwise, self.beside = nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.Conv2d(4, 3, 1)
        self.last, self.norm, self.head = nn.Linear(7 * 4, 5), nn.LayerNorm(5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = x + self.branch(x)
        x = torch.cat([torch.relu(self.depthwise(x)), self.beside(x)], 1)
        return self.head(self.norm(self.last(x.flatten(1))))


def tied_problem() -> Problem:
    with isolated_torch_rng(0):
        model, inputs = Tied(), torch.randn(6, 2, 2, 2)
    return Problem.of(model, (2, 2, 2), lambda number: (inputs, torch.arange(6) % 3))


def test_units_that_share_an_index_go_together_and_others_stay() -> None:
    groups = groups_of(tied_problem())
    made = groups.made()
    assert groups.n == 4 + 3
    for name in ("branch.weight", "depthwise.weight"):
        assert torch.equal(made[name], made["stem.weight"])
    assert not set(made["beside.weight"].tolist()) & set(made["stem.weight"].tolist())
    reads = {side.parameter: side.groups for side in groups.sides if side.reads}
    flat = torch.cat([made["stem.weight"], made["beside.weight"]]).repeat_interleave(4)
    assert torch.equal(reads["last.weight"], flat)
    assert "stem.weight" not in reads and {"last.weight", "head.weight"}.isdisjoint(made)  # inputs, LayerNorm, outputs
    assert STAYS not in flat


def test_units_of_networks_of_half_precision_are_those_of_the_network() -> None:
    with isolated_torch_rng(0):
        model, inputs = Tied().bfloat16(), torch.randn(6, 2, 2, 2).bfloat16()
    masks = panning.prune(model, (inputs, torch.arange(6) % 3), method="snap", density=0.5)
    assert masks.n_kept == round(0.5 * masks.n_prunable)
    problem = problem_of(model, masks.layout, (inputs, torch.arange(6) % 3))
    assert groups_of(problem).n == groups_of(tied_problem()).n


def test_a_layer_that_is_not_pruned_keeps_what_it_makes_and_reads() -> None:
    layers = [nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2)]
    model, batch = nn.Sequential(*layers), (torch.randn(9, 4), torch.arange(9) % 2)
    masks = panning.prune(model, batch, method="snap", density=0.9, exclude=["2.*"])
    assert masks["0.weight"].all() and not masks["4.weight"].all()
    with pytest.raises(ModelError, match="No unit of this network can go"):
        panning.prune(model, batch, method="snap", density=0.9, exclude=["2.*", "6.*"])


# --- masks ---


@pytest.mark.parametrize("method", OF_UNITS)
def test_whole_units_go_and_at_most_one_is_kept_in_part(method: str) -> None:
    problem = tied_problem()
    result = prune_problem(problem, 0.55, method)
    assert int(result.mask.sum()) == round(0.55 * problem.layout.n_prunable)
    groups = groups_of(problem)
    kept, size = groups.sums(result.mask.double()), groups.sums(torch.ones(len(result.mask), dtype=torch.double))
    in_part = result.scores.floor()[~result.mask].max()
    assert bool((result.mask >= (result.scores.floor() > in_part)).all()), "the best ranks are kept whole"
    assert bool((result.scores.floor()[result.mask] >= in_part).all()), "of one rank alone single weights are kept"
    assert bool((kept <= size).all())
    for units in groups.made().values():
        assert bool((kept[units] > 0).any()), "a unit of each layer stays"


def test_a_density_that_no_unit_leaves_is_refused_with_the_smallest() -> None:
    problem = residual_problem()
    with pytest.raises(DensityError, match="The smallest density is") as caught:
        prune_problem(problem, 0.02, "snap")
    smallest = float(str(caught.value).rpartition(" is ")[2].rstrip("."))
    prune_problem(problem, smallest, "snap")


def test_snap_it_halves_the_gap_five_times_and_then_takes_the_rest() -> None:
    assert densities("halving", 6, 0.2) == pytest.approx([0.6, 0.4, 0.3, 0.25, 0.225, 0.2])
    history = prune_problem(residual_problem(), 0.4, "snap_it").history
    assert [entry["density"] for entry in history] == pytest.approx([0.7, 0.55, 0.475, 0.4375, 0.41875, 0.4])
    assert [entry["units"] for entry in history] == sorted((entry["units"] for entry in history), reverse=True)


def test_precrop_keeps_the_shares_of_the_other_method() -> None:
    with isolated_torch_rng(0):
        model = nn.Sequential(nn.Linear(20, 400), nn.ReLU(), nn.Linear(400, 40), nn.ReLU(), nn.Linear(40, 5))
    problem = Problem.of(model, (20,), None)
    groups, shares = groups_of(problem), Shares(PRUNERS["erk"].pruner, "ERK")  # type: ignore[arg-type]
    kept = shares(Signals(problem, torch.ones(problem.layout.n_prunable, dtype=torch.bool)), groups, 0.2) >= 1.0
    dense = problem.layout.counts(PRUNERS["erk"].pruner(problem, 0.2).mask)
    first, second, third = (n / size for n, size in zip(dense, problem.layout.sizes, strict=True))
    made = groups.made()
    # Of a unit 20 weights lead in and 40 out; then 400 in and 5 out.
    assert kept[made["0.weight"]].double().mean() == pytest.approx(((20 * first + 40 * second) / 60) ** 0.5, abs=0.01)
    assert kept[made["2.weight"]].double().mean() == pytest.approx(((400 * second + 5 * third) / 405) ** 0.5, abs=0.03)


def test_counts_of_channels_are_rounded_up_to_multiples() -> None:
    with isolated_torch_rng(0):
        convolutions = nn.Conv2d(3, 24, 3), nn.ReLU(), nn.Conv2d(24, 20, 3), nn.ReLU()
        model = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(80, 4))
        images = torch.randn(8, 3, 6, 6)
    problem = Problem.of(model, (3, 6, 6), lambda number: (images, torch.arange(8) % 4))
    for density in (0.3, 0.5, 0.8):
        result = KeepUnits(snap)(problem, density, Rounds(round_to=8))
        rank = result.scores.floor()
        whole = rank > rank[~result.mask].max()
        for name, view in problem.layout.views(whole).items():
            n_units = int(view.flatten(1).any(1).sum())
            assert name == "5.weight" or n_units % 8 == 0 or n_units == len(view), (density, name, n_units)
