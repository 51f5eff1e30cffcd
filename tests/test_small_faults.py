"""Wrong arguments at the edges: each is taken, or refused by a sentence."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import panning
from panning.foundation.device import device_name
from panning.foundation.errors import ConfigError, MaskError, ModelError, PanningError
from panning.jobs.outcome import CellOutcome
from panning.jobs.spec import TrainSpec
from panning.models import build_model
from panning.pruners import PruneResult, Rounds
from panning.scoring.problem import Problem
from panning.tasks import TaskSpec
from panning.training import Recipe


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))


def masks_of(model: nn.Module) -> panning.Masks:
    return panning.prune(model, density=0.5, method="magnitude", input_shape=(4,))


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ([torch.ones(2)], "mapping from names to tensors, given a list"),
        (torch.ones(2), "given a Tensor"),
        ({"a": np.ones((2, 2))}, "'a' is a ndarray.*torch.as_tensor"),
        ({"a": [[1, 0]]}, "'a' is a list"),
        ({3: torch.ones(2)}, "mask of 3"),
        ({"a": torch.full((2,), 0.5)}, "entries other than 0 and 1"),
        ({}, "at least one"),
    ],
)
def test_masks_are_made_of_named_tensors(tensors: object, said: str) -> None:
    with pytest.raises(MaskError, match=said):
        panning.Masks.from_tensors(tensors)  # type: ignore[arg-type]


def test_masks_are_enforced_for_evaluation_without_an_optimizer() -> None:
    model = net()
    masks = masks_of(model)
    with panning.enforce_masks(model, masks) as enforcement:
        assert all(not bool(model.get_parameter(name)[~mask].any()) for name, mask in masks.items())
        model(torch.ones(2, 4)).sum().backward()
        assert all(not bool(model.get_parameter(name).grad[~mask].any()) for name, mask in masks.items())
        other = panning.Masks(masks.layout, masks.flat & (torch.arange(masks.n_prunable) % 2 == 0))
        enforcement.change(other)
        assert sum(int(model.get_parameter(name).count_nonzero()) for name in masks) == other.n_kept
    with pytest.raises(MaskError, match="in no optimizer"):  # one that is given must hold what learns
        panning.enforce_masks(model, masks, torch.optim.SGD([nn.Parameter(torch.ones(1))], 0.1))


class Writes:
    """A pruner that spoils the network that it is given."""

    indices: tuple[str, ...] = ()
    n_rounds = 1

    def __init__(self, how: str) -> None:
        self.how = how

    def __call__(self, problem: Problem, density: float, rounds: Rounds) -> PruneResult:
        model = problem.model
        if self.how == "weights":
            with torch.no_grad():
                model[0].weight.mul_(2)
        elif self.how == "data":
            model[2].weight.data.zero_()
        elif self.how == "gradients":
            model(torch.ones(1, 4)).sum().backward()
        elif self.how == "modes":
            model.train(not model.training)
        mask = torch.zeros(problem.layout.n_prunable, dtype=torch.bool)
        mask[: round(density * mask.numel())] = True
        return PruneResult(problem.layout, mask, mask.double())


@pytest.mark.parametrize("how", ["weights", "data", "gradients", "modes"])
def test_a_pruner_that_writes_into_the_network_is_refused_and_the_network_put_back(how: str) -> None:
    model = net()
    before: dict[str, Tensor] = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(MaskError, match=r"'Writes' has written into the network \('"):
        panning.prune(model, density=0.5, method=Writes(how), input_shape=(4,))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters()) and model.training
    assert panning.prune(model, density=0.5, method=Writes("nothing"), input_shape=(4,)).n_kept == 21


def test_a_device_may_be_an_object_with_a_number() -> None:
    model = net()
    for device in (torch.device("cpu"), torch.device("cpu", 0), "cpu"):
        assert panning.prune(model, density=0.5, input_shape=(4,), device=device).n_kept == 21
    assert [device_name(torch.device(*kind)) for kind in (("mps", 0), ("cuda", 1))] == ["mps", "cuda:1"]


def test_a_factory_that_returns_one_network_for_ever_is_refused() -> None:
    kept = nn.Linear(4, 3)

    def shared() -> nn.Module:
        return kept

    first = build_model(shared, input_shape=(4,), n_classes=3, seed=0)
    assert first is kept
    with pytest.raises(ModelError, match="'.*shared' returned the very network that a call before"):
        build_model(shared, input_shape=(4,), n_classes=3, seed=1)
    assert build_model(lambda: nn.Linear(4, 3), input_shape=(4,), n_classes=3, seed=0) is not kept


@pytest.mark.parametrize("model", [5, None, 3.5, [1]])
def test_a_config_made_in_python_is_refused_as_one_from_a_file(model: object) -> None:
    with pytest.raises(ConfigError, match=r"TaskSpec: 1 error\(s\)\n  model: The model is a .*must be a name"):
        TaskSpec(model=model, data="digits")  # type: ignore[arg-type]
    with pytest.raises(PanningError, match="epochs"):
        Recipe(epochs=-1)


def test_numbers_that_no_table_can_hold_are_refused() -> None:
    for wrong in ({"loss": 1e308}, {"test_loss": -1e200}, {"history": ({"epoch": 1e150},)}):
        with pytest.raises(ConfigError):
            CellOutcome(**wrong)  # type: ignore[arg-type]
    for seed in (10**400, -(2**64)):
        with pytest.raises(ConfigError, match="seed"):
            TrainSpec(task=TaskSpec(model="mlp", data="digits"), seed=seed, mask=None, recipe=Recipe())
