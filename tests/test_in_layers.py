"""All-alive pruning inside the layers: a toy by hand, counts that stay, and what is said where there is no such mask."""

from __future__ import annotations

import json

import pytest
import torch
from toys import chain, mlp_problem, residual_problem

import panning
from panning.alive.connectivity import Connectivity
from panning.alive.in_layers import all_alive_in_layers
from panning.compare.grid import Contender
from panning.foundation.errors import ConfigError, DensityError, MaskError
from panning.jobs.spec import PruneSpec
from panning.jobs.ways import Method, Way
from panning.masks.allocation import top_k
from panning.pruners import Form, all_alive, prune_problem
from panning.scoring.problem import Problem
from panning.tasks import TaskSpec


def test_each_layer_goes_down_its_own_ranking_until_it_has_its_count() -> None:
    """By hand: of 9, 8, 7 and 6, 4 only 7 and 4 are alive, at unit 1. One step down, 3 reaches unit 2, which 6 reads: the
    second layer has its two. The first goes on past 9 and 8, which nothing reads, to 2: its third."""
    first, second = [[9.0, 8.0, 1.2], [7.0, 2.0, 1.0], [3.0, 0.5, 0.4]], [[1.0, 4.0, 6.0], [2.0, 3.0, 1.5]]
    problem = Problem.of(chain(first, second), (3,), None)
    scores = problem.weight
    mask = torch.cat([top_k(scores[:9], 3), top_k(scores[9:], 2)])
    found = all_alive_in_layers(Connectivity.of(problem), mask, scores)
    assert found.int().tolist() == [0, 0, 0, 1, 1, 0, 1, 0, 0, 0, 1, 1, 0, 0, 0]


@pytest.mark.parametrize("density", [0.03, 0.01])
@pytest.mark.parametrize("quotas", ["erk", "uniform", "synflow", "snip"])
def test_layers_keep_their_counts_and_all_weights_are_alive(quotas: str, density: float) -> None:
    problem, form = residual_problem(), Form(quotas=quotas, place="lot", min_density={"*": 0.005})
    before = prune_problem(problem, density, None, form=form)
    after = prune_problem(problem, density, None, form=form, all_alive_weights="in_layers")
    assert problem.layout.counts(after.mask) == problem.layout.counts(before.mask)
    net = Connectivity.of(problem)
    assert net.n_alive(after.mask) == int(after.mask.sum()) > net.n_alive(before.mask)
    moved = all_alive(net, before.mask, before.scores)
    assert problem.layout.counts(moved) != problem.layout.counts(before.mask)


def test_masks_are_found_where_counts_allow_them_and_never_elsewhere() -> None:
    """By hand: in a chain of 6, 8, 8 and 3 units, h and g hidden units in use ask of each layer as many weights as the
    larger of the numbers of units on its two sides, and have places for their product. Counts of 200 masks are judged so."""
    problem = mlp_problem(sizes=(6, 8, 8, 3))
    net, layout, drawn = Connectivity.of(problem), problem.layout, torch.Generator().manual_seed(0)
    n_found = n_missed = 0
    for _ in range(200):
        counts = [int(torch.randint(1, 1 + size // 2, (), generator=drawn)) for size in layout.sizes]
        scores = torch.rand(layout.n_prunable, generator=drawn)
        mask = torch.cat([top_k(scores[part], n) for part, n in zip(layout.slices(), counts, strict=True)])
        is_possible = any(
            h <= counts[0] <= 6 * h and max(h, g) <= counts[1] <= h * g and g <= counts[2] <= 3 * g
            for h in range(1, 9) for g in range(1, 9)
        )  # fmt: skip
        try:
            found = all_alive_in_layers(net, mask, scores)
        except DensityError:
            n_missed += is_possible
            continue
        n_found += 1
        assert is_possible and layout.counts(found) == counts and net.n_alive(found) == sum(counts)
    assert n_found == 129 and n_missed == 7  # of these 136, all with at most three choices of units


def test_a_mask_that_is_all_alive_stays_and_bounds_hold() -> None:
    problem = residual_problem()
    before = prune_problem(problem, 0.5, "magnitude")
    after = prune_problem(problem, 0.5, "magnitude", all_alive_weights="in_layers")
    assert Connectivity.of(problem).n_alive(before.mask) == int(before.mask.sum())
    assert torch.equal(before.mask, after.mask)
    name = problem.layout.names[1]
    bounded = Form(quotas="erk", place="lot", max_density={name: 0.01})
    with pytest.raises(DensityError, match="or take all_alive='in_layers'"):
        prune_problem(problem, 0.03, None, form=bounded, all_alive_weights=True)
    kept = prune_problem(problem, 0.03, None, form=bounded, all_alive_weights="in_layers").mask
    assert problem.layout.counts(kept)[1] <= 0.01 * problem.layout.sizes[1]


def test_what_cannot_be_had_gets_a_sentence() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    problem = Problem.of(chain([[1.0, 1.0], [1.0, 1.0]], [[1.0, 1.0]]), (2,), None)
    with pytest.raises(DensityError, match="'0.weight' keeps no weight, and no path gets around it"):
        all_alive_in_layers(Connectivity.of(problem), torch.arange(6) > 3, problem.weight)
    with pytest.raises(MaskError, match="all_alive is 'layers', but must be True, False or 'in_layers'"):
        panning.prune(model, input_shape=(6,), density=0.2, all_alive="layers")  # type: ignore[arg-type]
    with pytest.raises(MaskError, match="of masks that move must be True or False"):
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        panning.move_masks(model, optimizer, density=0.2, n_steps=9, input_shape=(6,), all_alive="in_layers")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="in_layers is for masks that do not move"):
        Contender(dynamic="rigl", all_alive="in_layers")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="in_layers is for masks that do not move"):
        Way(by=Method(dynamic="rigl"), all_alive="in_layers")  # type: ignore[arg-type]


def test_rows_and_records_name_the_repair() -> None:
    way = Way(by=Method(quotas="erk", place="snip"), all_alive="in_layers")
    assert way.label == "quotas of ERK; places by snip + all-alive in layers"
    spec = PruneSpec(task=TaskSpec(model="mlp", data="digits"), seed=0, density=0.1, by=way.by, all_alive=way.all_alive)
    again = PruneSpec.model_validate_json(json.dumps(spec.model_dump(mode="json")), strict=True)
    assert again == spec and again.all_alive == "in_layers"
    model = torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.ReLU(), torch.nn.Linear(30, 5))
    masks = panning.prune(model, input_shape=(20,), density=0.05, quotas="erk", place="lot", all_alive="in_layers")
    assert masks.manifest["all_alive"] == "in_layers" and masks.effective_density(model) == masks.density
