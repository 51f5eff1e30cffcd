"""PHEW: where walks may go and how often, and what is kept of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from toys import chain, mlp_problem, residual_problem

from panning.alive.connectivity import Connectivity
from panning.foundation.errors import DensityError, ModelError, NonFiniteError
from panning.foundation.seeding import torch_generator
from panning.masks.layout import prunable_layout
from panning.pruners.phew import walks as walks_module
from panning.pruners.phew.method import PHEW, Visits, Walks, trace
from panning.scoring.problem import Problem

N_WALKS = 2000
TOYS: list[Callable[[], Problem]] = [mlp_problem, residual_problem]


def steps(problem: Problem, n: int = N_WALKS) -> dict[str, Tensor]:
    """How often each weight is met: parameter -> [n walks, *shape], even walks forward."""
    walk, position = Walks(*trace(problem)).batch(0, n, torch_generator(0))
    met = torch.zeros(n, problem.layout.n_prunable, dtype=torch.long)
    met.index_put_((walk, position), torch.ones_like(walk), accumulate=True)
    parts = zip(problem.layout.names, problem.layout.shapes, met.split(problem.layout.sizes, 1), strict=True)
    return {name: part.reshape(n, *shape) for name, shape, part in parts}


def per_walk(met: Tensor) -> Tensor:
    return met.flatten(1).sum(1)


def share(met: Tensor, *index: int) -> float:
    """The fraction of steps through a layer that meet one weight."""
    return float(met[(slice(None), *index)].sum() / met.sum())


class Branched(nn.Module):
    """A 1x1 convolution, what ``body`` makes of it, and a classifier on the mean of its map."""

    def __init__(self, body: Callable[[Branched, Tensor], Tensor], n_features: int = 4, **layers: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 1)
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.classifier = nn.Linear(n_features, 3)
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.body(self, self.stem(x)).mean((2, 3)))


def branched(body: Callable[[Branched, Tensor], Tensor], n_features: int = 4, **layers: nn.Module) -> Problem:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Branched(body, n_features, **layers)
        for parameter in model.parameters():
            nn.init.normal_(parameter)
    return Problem.of(model, (2, 4, 4), None)


# --- masks ---


@pytest.mark.parametrize("density", [0.03, 0.1, 0.25, 0.5, 0.9, 0.99, 1.0])
@pytest.mark.parametrize("toy", TOYS)
def test_exactly_k_weights_are_kept_and_all_are_alive(toy: Callable[[], Problem], density: float) -> None:
    problem = toy()
    result = PHEW()(problem, density)
    k = int(density * problem.layout.n_prunable + 0.5)
    assert int(result.mask.sum()) == k == Connectivity.of(problem).n_alive(result.mask)
    assert torch.isfinite(result.scores).all() and len(result.history) == 1


@pytest.mark.parametrize("toy", TOYS)
def test_the_count_is_exact_wherever_the_cut_falls(toy: Callable[[], Problem]) -> None:
    problem = toy()
    n = problem.layout.n_prunable
    for k in range(1, 30):
        mask = PHEW()(problem, k / n).mask
        assert int(mask.sum()) == k
        assert k < 3 or Connectivity.of(problem).n_alive(mask) == k  # no path is shorter than 3


@pytest.mark.parametrize("toy", [lambda: mlp_problem(sizes=(12, 20, 20, 4)), residual_problem])
def test_masks_are_nested_over_densities(toy: Callable[[], Problem]) -> None:
    problem = toy()
    masks = [PHEW()(problem, density).mask for density in (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.95, 1.0)]
    for smaller, larger in zip(masks[:-1], masks[1:], strict=True):
        assert not bool((smaller & ~larger).any())


def test_one_seed_gives_one_mask_and_leaves_everything_as_it_was() -> None:
    problem = residual_problem()
    before = {name: tensor.clone() for name, tensor in problem.model.state_dict().items()}
    torch.manual_seed(1)
    state = torch.get_rng_state()
    mask = PHEW()(problem, 0.1).mask
    assert torch.equal(torch.get_rng_state(), state) and problem.model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in problem.model.state_dict().items())
    assert all(parameter.grad is None for parameter in problem.model.parameters())
    torch.rand(7)
    with torch.no_grad():
        assert torch.equal(mask, PHEW()(residual_problem(inplace=True), 0.1).mask)
    other = Problem.of(problem.model, problem.input_shape, None, seed=1)
    assert not torch.equal(mask, PHEW()(other, 0.1).mask)


def test_whole_walks_come_first_in_the_order_they_are_drawn() -> None:
    problem = mlp_problem()
    walk, position = Walks(*trace(problem)).batch(0, 1000, torch_generator(problem.seed, "phew", "walks"))
    mask = PHEW()(problem, 40 / 136).mask
    visited = list(dict.fromkeys(position.tolist()))
    last = next(n for n in range(1000) if position[walk <= n].unique().numel() > 40)
    whole = position[walk < last].unique()
    assert mask[whole].all() and len(whole) > 34
    assert set(mask.nonzero().flatten().tolist()) <= set(visited[:60])  # and the next visited fill up


def test_what_no_walk_meets_follows_by_magnitude() -> None:
    # Hidden unit 2 has no incoming weight, but two outgoing ones; kernels of 0 are never drawn among others.
    problem = Problem.of(chain([[1.0, 2.0], [3.0, 1.0], [0.0, 0.0]], [[1.0, 1.0, 0.0], [1.0, 1.0, 0.0]]), (2,), None)
    result = PHEW()(problem, 8 / 12)
    assert result.mask.tolist() == [True] * 4 + [False] * 2 + [True, True, False] * 2
    assert (result.scores[result.mask] > 1.0).all() and (result.scores[~result.mask] <= 0.5).all()
    assert int(PHEW()(problem, 11 / 12).mask.sum()) == 11 and bool(PHEW()(problem, 1.0).mask.all())


def test_a_walk_that_leads_out_of_the_map_is_not_kept() -> None:
    # Four 3x3 convolutions on a map of 2x2: most single walks shift it by more than its size.
    model = nn.Sequential(*(nn.Conv2d(6, 6, 3, padding=1) for _ in range(4)), nn.Flatten(), nn.Linear(24, 3))
    problem = Problem.of(model, (6, 2, 2), None)
    masks = [PHEW()(problem, density).mask for density in (0.02, 0.05, 0.2)]
    for mask in masks:
        assert Connectivity.of(problem).n_alive(mask) == int(mask.sum())


@pytest.mark.parametrize("table_entries", [1, 7, 40])
@pytest.mark.parametrize("toy", [lambda: mlp_problem(sizes=(12, 20, 21, 4)), residual_problem])
def test_small_tables_lead_the_same_way(
    toy: Callable[[], Problem], table_entries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = toy()
    problem.weight[5:60] = 0.0  # rows without a weight and columns that are not allowed
    whole, mask = steps(problem), PHEW()(problem, 0.3).mask
    monkeypatch.setattr(walks_module, "TABLE_ENTRIES", table_entries)
    small = Walks(*trace(problem))
    tables = [node.forward.rising for node in small.nodes if node.layer is not None]
    assert all(table.shape[1] == 1 or table.numel() <= table_entries + 2 * table.shape[0] for table in tables)
    assert all(torch.equal(met, whole[name]) for name, met in steps(problem).items())
    assert torch.equal(mask, PHEW()(problem, 0.3).mask)


def test_a_seeds_mask_stays_what_it_was() -> None:
    result = PHEW()(mlp_problem(), 0.2)
    assert result.mask.nonzero().flatten().tolist() == [
        2, 4, 7, 13, 20, 21, 30, 35, 36, 47, 50, 56, 57, 59, 61, 62, 64, 75, 79, 83, 113, 114, 121, 123, 124, 128, 129,
    ]  # fmt: skip
    assert int((result.scores > 1.0).sum()) == 136  # so many were met


# --- where walks go ---


def test_every_walk_is_a_path_from_input_to_output() -> None:
    met = list(steps(mlp_problem()).values())
    assert all((per_walk(layer) == 1).all() for layer in met)
    for layer, following in zip(met[:-1], met[1:], strict=True):
        assert torch.equal(layer.sum(2), following.sum(1))  # it leaves the unit that it came to


def test_walks_start_at_each_unit_in_turn() -> None:
    met = steps(mlp_problem(sizes=(6, 8, 8, 3)), 48)
    assert met["0.weight"][0::2].sum((0, 1)).tolist() == [4] * 6
    assert met["4.weight"][1::2].sum((0, 2)).tolist() == [8] * 3


def test_steps_are_drawn_in_proportion_to_the_magnitude() -> None:
    forward = steps(Problem.of(chain([[3.0], [-1.0], [0.0]], [[1.0, 1.0, 1.0]]), (1,), None))["0.weight"][0::2]
    assert share(forward, 0) == pytest.approx(0.75, abs=0.03) and share(forward, 2) == 0.0
    backward = steps(Problem.of(chain([[1.0], [1.0], [1.0]], [[3.0, -1.0, 0.0]]), (1,), None))["2.weight"][1::2]
    assert share(backward, 0, 0) == pytest.approx(0.75, abs=0.03) and share(backward, 0, 2) == 0.0


def test_steps_are_uniform_where_all_weights_are_zero() -> None:
    met = steps(Problem.of(chain([[0.0], [0.0]], [[0.0, 0.0]]), (1,), None))
    for walks in (slice(0, None, 2), slice(1, None, 2)):
        assert share(met["0.weight"][walks], 0) == pytest.approx(0.5, abs=0.04)


def test_kernels_are_drawn_by_their_norm_and_taps_by_their_magnitude() -> None:
    conv = nn.Conv1d(1, 2, 2)
    conv.weight.data = torch.tensor([[[3.0, -1.0]], [[0.0, 1.0]]])
    met = steps(Problem.of(nn.Sequential(conv, nn.Flatten(), nn.Linear(6, 1)), (1, 4), None))["0.weight"][0::2]
    assert share(met, 0, 0, 0) == pytest.approx(0.6, abs=0.03)
    assert share(met, 0, 0, 1) == pytest.approx(0.2, abs=0.03)
    assert share(met, 1, 0, 0) == 0.0


def test_taps_that_only_read_padding_are_never_drawn() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ConvTranspose2d(4, 4, 3, padding=1), nn.Flatten(), nn.Linear(4, 2)
    )
    met = steps(Problem.of(model, (1, 1, 1), None))
    for name in ("0.weight", "1.weight"):
        assert int(met[name][..., 1, 1].sum()) == N_WALKS == int(met[name].sum())


def test_a_flattened_channel_goes_on_from_any_of_its_places() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(8, 2))
    # Not at random: after other tests the weights would be other ones, and a channel might hardly be met.
    for parameter in model.parameters():
        nn.init.ones_(parameter)
    problem = Problem.of(model, (1, 2, 2), None)
    met = steps(problem)
    assert torch.equal(met["0.weight"].flatten(1), met["2.weight"].sum(1).view(-1, 2, 4).sum(2))
    places = met["2.weight"][0::2].sum((0, 1)).view(2, 4)
    assert (places / places.sum(1, keepdim=True) - 0.25).abs().max() < 0.06


def test_an_identity_skip_is_not_walked_and_a_shortcut_half_the_time() -> None:
    met = {name.removesuffix(".weight"): per_walk(layer) for name, layer in steps(residual_problem()).items()}
    for name in ("stem", "block1", "block2", "classifier"):
        assert (met[name] == 1).all()
    assert torch.equal(met["down"] + met["shortcut"], torch.ones(N_WALKS, dtype=torch.long))
    for direction in (0, 1):
        assert met["shortcut"][direction::2].float().mean() == pytest.approx(0.5, abs=0.04)


def test_a_padded_skip_is_not_walked_either_but_what_the_block_does_not_reach_is() -> None:
    def padded(net: Branched, x: Tensor) -> Tensor:
        block = net.block(x[:, :, ::2, ::2])
        block += F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        return block

    met = steps(branched(padded, 8, block=nn.Conv2d(4, 8, 1)))
    assert (per_walk(met["block.weight"]) == 1).all()

    def split(net: Branched, x: Tensor) -> Tensor:  # the second half is no input of the block that it is added to
        block = net.block(x[:, :2])
        block.add_(x[:, 2:])
        return block

    met = steps(branched(split, 2, block=nn.Conv2d(2, 2, 1)))
    assert torch.equal(per_walk(met["block.weight"]), (met["stem.weight"].sum((2, 3, 4)).argmax(1) < 2).long())
    assert per_walk(met["block.weight"])[1::2].float().mean() == pytest.approx(0.5, abs=0.04)


def test_walks_stay_in_their_group() -> None:
    def shuffled(net: Branched, x: Tensor) -> Tensor:
        x = net.grouped(x)  # groups of two, then their channels in turn
        return net.depthwise(x.view(x.shape[0], 2, 2, 4, 4).transpose(1, 2).flatten(1, 2))

    layers = {"grouped": nn.Conv2d(4, 4, 1, groups=2), "depthwise": nn.Conv2d(4, 8, 3, padding=1, groups=4)}
    problem = branched(shuffled, 8, **layers)
    met = steps(problem)
    assert all((per_walk(layer) == 1).all() for layer in met.values())
    group = met["grouped.weight"].flatten(1).argmax(1) // 4
    assert torch.equal(group, met["stem.weight"].sum((2, 3, 4)).argmax(1) // 2)
    output = met["grouped.weight"].sum((2, 3, 4)).argmax(1)
    assert torch.equal(met["depthwise.weight"].flatten(1).argmax(1) // 18, (output % 2) * 2 + output // 2)


def test_concatenations_and_slices_are_followed() -> None:
    def body(net: Branched, x: Tensor) -> Tensor:
        return torch.cat([net.first(x[:, :1]), F.pad(x[:, 1:], (1, 1, 1, 1))[:, :, 1:-1, 1:-1] / 3], 1)

    met = steps(branched(body, 5, first=nn.Conv2d(1, 2, 1)))
    by_first = per_walk(met["first.weight"]) == 1
    assert torch.equal(by_first, met["stem.weight"].sum((2, 3, 4)).argmax(1) == 0)
    assert torch.equal(by_first, met["classifier.weight"].sum(1).argmax(1) < 2)


@pytest.mark.parametrize("flattened", [False, True])
def test_a_gate_is_walked_half_the_time(flattened: bool) -> None:
    def excited(net: Branched, x: Tensor) -> Tensor:
        features = x.flatten(1) if flattened else F.adaptive_avg_pool2d(x, 1).flatten(1)
        return x * torch.sigmoid(net.gate(features))[:, :, None, None]

    # However many places of a channel lead into the gate, it is one branch.
    gate = per_walk(steps(branched(excited, gate=nn.Linear(64 if flattened else 4, 4)))["gate.weight"])
    for direction in (0, 1):
        assert gate[direction::2].float().mean() == pytest.approx(0.5, abs=0.04)


def test_transposed_convolutions_have_their_inputs_first() -> None:
    met = steps(branched(lambda net, x: net.up(x), 6, up=nn.ConvTranspose2d(4, 6, 2, groups=2)))
    source, output, _, _ = met["up.weight"].nonzero()[:, 1:].unbind(1)
    assert torch.equal(source, met["stem.weight"].sum((2, 3, 4)).argmax(1))
    assert torch.equal(source // 2 * 3 + output, met["classifier.weight"].sum(1).argmax(1))


def test_layers_that_lead_nowhere_or_hold_no_prunable_weight() -> None:
    def body(net: Branched, x: Tensor) -> Tensor:
        net.auxiliary(x)
        return net.dense(x)

    model = branched(body, auxiliary=nn.Conv2d(4, 4, 1), dense=nn.Conv2d(4, 4, 1)).model
    met = steps(Problem(model, prunable_layout(model, exclude=("dense.*",)), (2, 4, 4), None))
    assert {name: int(layer.sum()) for name, layer in met.items()} == {
        "stem.weight": N_WALKS, "auxiliary.weight": 0, "classifier.weight": N_WALKS,
    }  # fmt: skip


def test_walking_ends_where_nothing_can_be_met() -> None:
    model = branched(lambda net, x: x, auxiliary=nn.Conv2d(4, 4, 1)).model
    visits = Visits(Problem(model, prunable_layout(model, include=("auxiliary.*",)), (2, 4, 4), None))
    visits.walk_to(8)
    assert visits.exhausted and visits.n_visited == 0
    assert torch.equal(visits.scores().argsort(), visits.weight.abs().argsort())


def test_tokens_are_the_inputs_of_an_embedding() -> None:
    model = nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(12, 2))
    met = steps(Problem(model, prunable_layout(model, include=("*",)), (4,), None))
    assert met["0.weight"][0::2].sum((0, 2)).tolist() == [N_WALKS // 10] * 5
    assert torch.equal(met["0.weight"].sum(1), met["2.weight"].sum(1).view(-1, 4, 3).sum(1))


# --- what is refused ---


class Attending(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.project, self.attention, self.how = nn.Linear(4, 4), nn.MultiheadAttention(4, 2, batch_first=True), how

    def forward(self, x: Tensor) -> Tensor:
        x = self.project(x)
        if self.how == "module":
            return self.attention(x, x, x)[0]
        if self.how == "functional":
            return F.scaled_dot_product_attention(x, x, x)
        if self.how == "einsum":
            return torch.einsum("bik,bjk->bij", x, x)
        return torch.softmax(x @ x.transpose(1, 2), -1) @ x


@pytest.mark.parametrize("how", ["module", "functional", "einsum", "product"])
def test_attention_is_refused(how: str) -> None:
    with pytest.raises(ModelError, match="no walk through attention .* 'synflow_l2'"):
        PHEW()(Problem.of(Attending(how), (3, 4), None), 0.5)


def test_a_network_that_mixes_its_channels_is_refused() -> None:
    with pytest.raises(ModelError, match="finds no walk"):
        PHEW()(branched(lambda net, x: x[:, :3].mean(1, keepdim=True).expand_as(x)), 0.5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_with_their_layer(value: float) -> None:
    problem = mlp_problem()
    problem.model[2].weight.data[1, 1] = value  # type: ignore[index]
    with pytest.raises(NonFiniteError, match=r"Layer '2\.weight' has NaN or infinite weights"):
        PHEW()(problem, 0.5)


def test_densities_outside_their_range_are_refused() -> None:
    with pytest.raises(DensityError, match="must be in"):
        PHEW()(mlp_problem(), 0.0)
