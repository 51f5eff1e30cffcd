"""Alive weights: by hand, and against an independent detector (all-ones gradients in float64)."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from toys import ResidualNet, chain, flat_mask, mlp_problem, residual_problem

from panning.alive.connectivity import Connectivity, alive_flat
from panning.alive.report import report
from panning.foundation.errors import DensityError, MaskError
from panning.masks.layout import prunable_layout
from panning.masks.masks import Masks
from panning.scoring.problem import Problem


def connectivity(model: nn.Module, *input_shape: int) -> Connectivity:
    return Connectivity(model, prunable_layout(model), input_shape)


def test_a_weight_is_alive_only_on_a_path_from_input_to_output() -> None:
    # 2 inputs, 2 hidden units, 1 output; hidden 0 has no outgoing weight, hidden 1 no incoming one.
    net = connectivity(chain([[1.0, 1.0], [1.0, 1.0]], [[1.0, 1.0]]), 2)
    mask = torch.tensor([True, True, False, False, False, True])
    assert net.alive(mask).tolist() == [False] * 6
    mask = torch.tensor([True, False, False, True, True, False])
    assert net.alive(mask).tolist() == [True, False, False, False, True, False]


def test_deadness_cascades_through_layers() -> None:
    # 1-1-1-1 chain with its middle weight masked: nothing is alive.
    net = connectivity(chain([[1.0]], [[1.0]], [[1.0]]), 1)
    assert net.n_alive(torch.tensor([True, False, True])) == 0
    assert net.n_alive(torch.tensor([True, True, True])) == 3


def test_connected_tells_what_one_more_weight_would_bring() -> None:
    net = connectivity(chain([[1.0, 1.0], [1.0, 1.0]], [[1.0, 1.0]]), 2)
    mask = torch.tensor([True, False, False, False, True, False])  # input 0 -> hidden 0 -> output
    # Free places between living units: input 1 -> hidden 0. Hidden 1 has no living end.
    assert net.connected(mask).tolist() == [True, True, False, False, True, False]


def test_biases_and_norms_keep_nothing_alive() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.ReLU(), nn.Linear(2, 1))
    nn.init.ones_(model[0].bias)  # type: ignore[arg-type]
    nn.init.ones_(model[1].bias)  # type: ignore[arg-type]
    mask = torch.tensor([False, False, True, True, True, True])
    assert connectivity(model, 2).alive(mask).tolist() == [False, False, True, True, False, True]


def test_identity_skips_carry_life_and_blocks_can_die_inside() -> None:
    problem = residual_problem()
    net = Connectivity.of(problem)
    layout = problem.layout
    views = layout.views(mask := torch.ones(layout.n_prunable, dtype=torch.bool))
    views["block2.weight"].fill_(False)
    alive = {name: int(view.sum()) for name, view in layout.views(net.alive(mask)).items()}
    assert alive["block1.weight"] == 0 and alive["block2.weight"] == 0
    assert alive["stem.weight"] == views["stem.weight"].numel()
    assert alive["classifier.weight"] == views["classifier.weight"].numel()


def test_flatten_keeps_a_channel_alive_by_any_of_its_places() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(8, 1))
    mask = torch.tensor([True, True] + [False] * 3 + [True] + [False] * 4)  # one place of channel 0, none of channel 1
    assert connectivity(model, 1, 2, 2).alive(mask)[:2].tolist() == [True, False]


def test_grouped_convolutions_connect_within_their_group_only() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 1, groups=2), nn.Flatten(), nn.Linear(2, 1))
    mask = torch.tensor([True, False, True, True, True, True])  # channel 1 is never fed
    assert connectivity(model, 1, 1, 1).alive(mask).tolist() == [True, False, True, False, True, False]


def test_a_tap_that_only_reads_padding_is_dead() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.Flatten(), nn.Linear(1, 1))
    alive = connectivity(model, 1, 1, 1).alive(torch.ones(10, dtype=torch.bool))
    assert alive.nonzero().flatten().tolist() == [4, 9]  # the centre of the kernel, and the classifier


@pytest.mark.parametrize("functional", [False, True])
def test_max_pooling_counts_every_tap_that_can_win(functional: bool) -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.pool, self.out = nn.Conv2d(1, 1, 2, stride=2), nn.MaxPool2d(2), nn.Linear(1, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            return self.out((F.max_pool2d(x, 2) if functional else self.pool(x)).flatten(1))

    assert connectivity(Pooled(), 1, 4, 4).n_alive(torch.ones(5, dtype=torch.bool)) == 5


def test_a_sigmoid_gate_cuts_nothing() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.main, self.gate, self.out = nn.Linear(1, 1), nn.Linear(1, 1), nn.Linear(1, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.main(x) * torch.sigmoid(self.gate(x)))

    net = connectivity(Gated(), 1)
    assert net.alive(torch.tensor([True, False, True])).tolist() == [True, False, True]
    assert net.alive(torch.tensor([True, True, True])).tolist() == [True, True, True]


def by_gradients(model: nn.Module, masks: Tensor, input_shape: tuple[int, ...]) -> Tensor:
    """An independent detector: float64 copy with weights := mask, norms gone, averages for maxima; gradient != 0."""
    net = copy.deepcopy(model).double().eval()
    for module in net.modules():
        for name, child in list(module.named_children()):
            if isinstance(child, nn.MaxPool2d):
                setattr(module, name, nn.AvgPool2d(child.kernel_size, child.stride, child.padding))
            elif isinstance(child, nn.BatchNorm2d | nn.Dropout):
                setattr(module, name, nn.Identity())
            elif isinstance(child, nn.Tanh):
                setattr(module, name, nn.ReLU())
    layout = prunable_layout(model)
    parameters = dict(net.named_parameters())
    for name, parameter in parameters.items():
        parameter.data = layout.views(masks.double())[name].clone() if name in layout.names else parameter.data * 0
    net(torch.ones(1, *input_shape, dtype=torch.float64)).sum().backward()
    grads = torch.cat([parameters[name].grad.reshape(-1) for name in layout.names])  # type: ignore[union-attr]
    return (grads != 0) & masks


@pytest.mark.parametrize("density", [0.5, 0.2, 0.1, 0.05])
@pytest.mark.parametrize("seed", range(5))
def test_booleans_agree_with_float64_gradients_on_random_masks(seed: int, density: float) -> None:
    for problem in (mlp_problem(sizes=(10, 16, 16, 3)), residual_problem()):
        mask = flat_mask(problem.layout, density, seed)
        expected = by_gradients(problem.model, mask, problem.input_shape)
        assert torch.equal(Connectivity.of(problem).alive(mask), expected)


def test_depth_neither_overflows_nor_underflows() -> None:
    deep = nn.Sequential(*[layer for _ in range(300) for layer in (nn.Linear(64, 64), nn.ReLU())])
    n = 300 * 64 * 64
    assert connectivity(deep, 64).n_alive(torch.ones(n, dtype=torch.bool)) == n


def test_alive_weights_of_nested_masks_are_nested() -> None:
    problem = residual_problem()
    net = Connectivity.of(problem)
    noise = torch.rand(problem.layout.n_prunable, generator=torch.Generator().manual_seed(0))
    alive = [net.alive(noise < density) for density in (0.05, 0.1, 0.2, 0.4)]
    assert all(not bool((small & ~large).any()) for small, large in zip(alive[:-1], alive[1:], strict=True))


def test_the_alive_test_leaves_the_model_as_it_was() -> None:
    problem = residual_problem()
    problem.model.train()
    before = {name: tensor.clone() for name, tensor in problem.model.state_dict().items()}
    Connectivity.of(problem).alive(flat_mask(problem.layout, 0.3, 0))
    assert problem.model.training and all(p.grad is None for p in problem.model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in problem.model.state_dict().items())


def test_the_shortest_path_goes_around_what_a_skip_bridges() -> None:
    assert Connectivity.of(mlp_problem()).smallest_alive() == 3
    assert Connectivity.of(residual_problem()).smallest_alive() == 3  # stem, shortcut, classifier
    with pytest.raises(DensityError, match="a path needs 3"):
        Connectivity.of(residual_problem()).check_reachable(2)
    Connectivity.of(residual_problem()).check_reachable(3)


def test_masks_know_their_effective_density() -> None:
    model = ResidualNet()
    layout = prunable_layout(model)
    masks = Masks(layout, torch.ones(layout.n_prunable, dtype=torch.bool))
    assert masks.effective_density(model, (2, 8, 8)) == 1.0
    assert masks.with_manifest(input_shape=[2, 8, 8]).effective_density(model) == 1.0
    with pytest.raises(MaskError, match="pass input_shape"):
        masks.effective_density(model)
    with pytest.raises(MaskError, match="another network"):
        alive_flat(nn.Linear(2, 2), masks, (2,))


def test_a_report_names_the_layers_without_an_alive_weight() -> None:
    net = connectivity(chain([[1.0]], [[1.0]], [[1.0]]), 1)
    facts = report(net, torch.tensor([True, False, True]))
    assert (facts.n_kept, facts.density, facts.effective_density) == (2, 2 / 3, 0.0)
    assert facts.collapsed_layers == ("0.weight", "2.weight", "4.weight")


@pytest.mark.parametrize("ending", [nn.Softmax(-1), nn.LogSoftmax(-1), nn.Hardsigmoid(inplace=True), nn.Sigmoid()])
def test_what_ends_a_network_cuts_nothing(ending: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Hardswish(inplace=True), nn.Linear(3, 2), ending)
    assert connectivity(model, 2).n_alive(torch.ones(12, dtype=torch.bool)) == 12


# --- what is shown beside effective density ---


def test_paths_and_reached_outputs_are_counted_as_by_hand() -> None:
    problem = Problem.of(chain([[1.0, 1.0], [1.0, 1.0]], [[1.0, 1.0], [1.0, 1.0]]), (2,), None)
    whole = report(Connectivity.of(problem), torch.ones(8, dtype=torch.bool))
    assert (whole.n_alive_units, whole.n_reached_outputs, whole.n_outputs) == (4, 2, 2)
    assert whole.log10_paths == round(math.log10(8), 4)
    # The first hidden unit has both inputs and leads to output 0 alone; a weight of output 1 hangs on the dead unit.
    mask = torch.tensor([True, True, False, False, True, False, False, True])
    found = report(Connectivity.of(problem), mask)
    assert (found.n_alive_units, found.n_dead_units, found.n_reached_outputs) == (2, 2, 1)
    assert found.log10_paths == round(math.log10(2), 4)
    assert "2 alive and 2 dead units, 10^0.3 paths, 1 of 2 outputs reached" in found.sentence
    none = report(Connectivity.of(problem), torch.zeros(8, dtype=torch.bool))
    assert none.log10_paths is None and none.n_reached_outputs == 0 and "log10_paths" not in none.facts()


@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(2), nn.AdaptiveMaxPool2d(2)])
def test_pools_add_paths_up_and_norms_and_activations_leave_them(pool: nn.Module) -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3), nn.GELU(), pool, nn.Flatten(), nn.Linear(12, 5), nn.Sigmoid()
    )
    problem = Problem.of(net, (1, 4, 4), None)
    mask = torch.ones(3 + 60, dtype=torch.bool)
    mask[0] = False  # two channels of 16 places each, each place to 5 outputs
    assert Connectivity.of(problem).log10_paths(mask) == pytest.approx(math.log10(2 * 16 * 5))


def test_more_paths_than_float64_holds_are_counted() -> None:
    deep = nn.Sequential(*(nn.Linear(300, 300, bias=False) for _ in range(130)))
    net = Connectivity.of(Problem.of(deep, (300,), None))
    paths = net.log10_paths(torch.ones(130 * 300 * 300, dtype=torch.bool))
    assert paths == pytest.approx(131 * math.log10(300))
