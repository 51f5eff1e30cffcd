"""What must hold for every method that changes masks while a network trains."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from panning.masks.masks import n_kept_at
from panning.moves import move_masks
from panning.training.moving.engine import MovingMasks
from panning.training.moving.method import Dynamic

N_STEPS, EPOCH = 24, 6


class DynamicContract:
    """A suite for one dynamic method; the fixture ``method`` gives an object (``panning.make_dynamic``, or one's own).

    The method must do its work within ``N_STEPS`` steps, in epochs of ``EPOCH``.
    """

    #: Asked of masks at the end; of methods that prune units, of these.
    density = 0.1

    @pytest.fixture
    def method(self) -> Dynamic:
        raise NotImplementedError("a subclass gives the method")

    def start(self, method: Dynamic, **options: Any) -> tuple[MovingMasks, torch.optim.Optimizer]:
        """A small network before its first step."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 5))
        optimizer = torch.optim.SGD(model.parameters(), 0.05, 0.9, weight_decay=1e-3)
        settings = {"density": self.density, "n_steps": N_STEPS, "steps_per_epoch": EPOCH, "data": batch(0), **options}
        return move_masks(model, optimizer, method, **settings), optimizer

    def test_it_ends_at_the_density_and_ships_no_masked_weight(self, method: Dynamic) -> None:
        moving, optimizer = self.start(method)
        layout, model = moving.problem.layout, moving.problem.model
        n_final = n_kept_at(self.density, layout.n_prunable)
        for number in range(moving.n_steps):
            step(model, optimizer, number)
            assert method.prunes_units or moving.masks.n_kept >= n_final
        masks = moving.finish()
        assert method.prunes_units or masks.n_kept == (layout.n_prunable if method.releases else n_final)
        weights = layout.flatten(dict(model.named_parameters()))
        assert not weights[~masks.flat].any() and torch.isfinite(weights).all()

    def test_all_alive_leaves_no_dead_weight_after_any_step(self, method: Dynamic) -> None:
        if method.prunes_units:
            pytest.skip("all-alive pruning gives single weights away, and this method prunes units")
        moving, optimizer = self.start(method, density=0.03, all_alive=True)
        for number in range(moving.n_steps):
            step(moving.problem.model, optimizer, number)
            facts = moving.report()
            assert facts.effective_density == facts.density

    def test_a_saved_state_goes_on_to_the_same_weights(self, method: Dynamic) -> None:
        runs = [self.start(method), self.start(method)]
        (moving, optimizer), (other, second) = runs
        half = moving.n_steps // 2
        for number in range(half):
            step(moving.problem.model, optimizer, number)
        other.load_state_dict(copy.deepcopy(moving.state_dict()))
        other.problem.model.load_state_dict(moving.problem.model.state_dict())
        second.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        for one, its_optimizer in runs:
            for number in range(half, moving.n_steps):
                step(one.problem.model, its_optimizer, number)
        assert moving.finish() == other.finish()
        parameters = zip(moving.problem.model.parameters(), other.problem.model.parameters(), strict=True)
        assert all(torch.equal(mine, theirs) for mine, theirs in parameters)


def batch(number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The inputs [50, 20] of a step, and which fifth of each is the largest."""
    inputs = torch.randn(50, 20, generator=torch.Generator().manual_seed(number))
    return inputs, inputs.view(50, 5, 4).sum(2).argmax(1)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
    """One step of a plain training loop, as users have it."""
    inputs, labels = batch(number)
    optimizer.zero_grad()
    F.cross_entropy(model.train()(inputs), labels).backward()
    optimizer.step()
