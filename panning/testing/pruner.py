"""What must hold for every pruner."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from panning.alive.connectivity import Connectivity
from panning.foundation.errors import DataError, DensityError
from panning.masks.masks import n_kept_at
from panning.pruners import Pruner, PruneResult, Rounds, prune_problem, pruner_row
from panning.scoring.problem import Problem
from panning.testing.networks import residual_problem

FEW_ROUNDS = Rounds(5)


class PrunerContract:
    """A suite for one pruner; the fixture ``pruner`` gives a name of ``PRUNERS`` or an object.

    A method that may refuse some densities with a ``DensityError`` says so in ``may_refuse``. Another network than the
    default comes from the fixture ``problem``; it needs scoring batches.
    """

    @pytest.fixture
    def pruner(self) -> str | Pruner:
        raise NotImplementedError("a subclass gives the pruner")

    @pytest.fixture
    def problem(self) -> Problem:
        return residual_problem()

    def may_refuse(self, pruner: str | Pruner) -> bool:
        """Whether the method keeps some layers denser than a low density allows."""
        return False

    def run(self, problem: Problem, pruner: str | Pruner, density: float, all_alive: bool = False) -> PruneResult:
        return prune_problem(problem, density, pruner, all_alive_weights=all_alive, rounds=FEW_ROUNDS)

    @pytest.mark.parametrize("all_alive", [False, True])
    @pytest.mark.parametrize("density", [0.5, 0.0825, 0.02])
    def test_it_keeps_exactly_what_was_asked_and_leaves_the_problem_alone(
        self, pruner: str | Pruner, problem: Problem, density: float, all_alive: bool
    ) -> None:
        before = {name: tensor.clone() for name, tensor in problem.model.state_dict().items()}
        weight = problem.weight.clone()
        try:
            result = self.run(problem, pruner, density, all_alive)
        except DensityError as error:
            assert self.may_refuse(pruner) and "smallest density" in str(error)
            return
        n_kept = n_kept_at(density, problem.layout.n_prunable)
        assert int(result.mask.sum()) == n_kept == result.masks.n_kept
        assert torch.isfinite(result.scores).all() and len(result.history) >= 1
        if all_alive:
            assert Connectivity.of(problem).n_alive(result.mask) == n_kept
        assert all(torch.equal(tensor, before[name]) for name, tensor in problem.model.state_dict().items())
        assert torch.equal(problem.weight, weight)

    def test_equal_problems_give_equal_masks_whatever_the_global_random_state(
        self, pruner: str | Pruner, problem: Problem
    ) -> None:
        first = self.run(problem, pruner, 0.4)
        torch.rand(3)
        again = self.run(dataclasses.replace(problem), pruner, 0.4)
        assert torch.equal(first.mask, again.mask) and torch.equal(first.scores, again.scores)

    def test_it_says_truly_whether_it_needs_data(self, pruner: str | Pruner, problem: Problem) -> None:
        without = dataclasses.replace(problem, batches=None)
        if pruner_row(pruner).needs_data:
            with pytest.raises(DataError, match="needs data"):
                self.run(without, pruner, 0.4)
        else:
            self.run(without, pruner, 0.4)
