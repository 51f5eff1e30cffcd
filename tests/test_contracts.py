"""What holds for every row of a table, and for what is made outside the package: the suites of ``panning.testing``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Annotated, Any, ClassVar

import gymnasium
import pytest
import torch
from pydantic import Field
from test_dynamics import shortened
from toys import OF_UNITS, residual_problem

from panning.jobs.executor import Executor, SerialExecutor
from panning.jobs.outcome import OutcomeT
from panning.jobs.work import Job, execute
from panning.masks.masks import n_kept_at
from panning.pruners import METHODS_OWN, PRUNERS, Pruner, PruneResult, Rounds
from panning.scoring.problem import Problem
from panning.testing import DynamicContract, EnvContract, ExecutorContract, PrunerContract
from panning.training import DYNAMICS
from panning.training.moving.method import Clock, Dynamic, Move, View


class TestEveryPruner(PrunerContract):
    @pytest.fixture(params=PRUNERS)
    def pruner(self, request: pytest.FixtureRequest) -> str:
        name: str = request.param
        return name

    def may_refuse(self, pruner: str | Pruner) -> bool:
        return pruner in {"uniform_plus", "smart_ratio", "smart_ratio_vgg", *OF_UNITS}


class TestEveryDynamicMethod(DynamicContract):
    @pytest.fixture(params=DYNAMICS)
    def method(self, request: pytest.FixtureRequest) -> Dynamic:
        return shortened(request.param)


class TestTheSerialExecutor(ExecutorContract):
    withdraws = True

    @pytest.fixture
    def executor(self) -> Executor:
        return SerialExecutor(heard_after_s=0.0)


@pytest.fixture(scope="module")
def ray_executor(local_ray: None) -> Iterator[Executor]:
    from panning.jobs.ray_executor import RayExecutor

    with RayExecutor(2, heard_after_s=0.0) as executor:
        yield executor


@pytest.mark.ray
class TestTheRayExecutor(ExecutorContract):
    withdraws = True

    @pytest.fixture
    def executor(self, ray_executor: Executor) -> Executor:
        return ray_executor


class TestTheEnvironment(EnvContract):
    @pytest.fixture(params=["mix", "pick"])
    def env(self, request: pytest.FixtureRequest) -> gymnasium.Env[Any, Any]:
        task = {"model": "mlp", "data": "digits", "n_train": 200}
        return gymnasium.make(
            "panning:Panning-v0", tasks=[task], densities=[0.1, 0.05], seeds=[0, 1, 2], n_rounds=3,
            action={"form": request.param}, render_mode="ansi",
        ).unwrapped  # fmt: skip


# --- made outside the package ---


class Extreme:
    """A pruner: the weights nearest to the median of their layer go first."""

    indices: tuple[str, ...] = ()
    n_rounds = 1

    def __call__(self, problem: Problem, density: float, rounds: Rounds = METHODS_OWN) -> PruneResult:
        layers = problem.layout.views(problem.weight).values()
        scores = torch.cat([(layer - layer.median()).abs().flatten() for layer in layers])
        mask = torch.zeros_like(scores, dtype=torch.bool)
        mask[scores.argsort(descending=True)[: n_kept_at(density, scores.numel())]] = True
        return PruneResult(problem.layout, mask, scores, ({"round": 1, "density": density},))


class TestAPrunerOfTheUsersOwn(PrunerContract):
    @pytest.fixture
    def pruner(self) -> Pruner:
        return Extreme()


class Wandering(Dynamic):
    """Masks drawn anew at every move, with as many weights as before.

    Attributes:
        until: the share of the training after which masks stay.
    """

    keeps_count: ClassVar[bool] = True
    every: Annotated[int, Field(ge=1)] | None = 4
    until: float = 0.75

    def acts(self, clock: Clock) -> bool:
        return super().acts(clock) and clock.progress <= self.until

    def move(self, view: View) -> Move:
        order = torch.rand(view.mask.numel(), generator=view.generator).argsort()
        mask = torch.zeros_like(view.mask)
        mask[order[: int(view.mask.sum())]] = True
        return Move(mask)


class TestADynamicMethodOfTheUsersOwn(DynamicContract):
    @pytest.fixture
    def method(self) -> Dynamic:
        return Wandering()


class Backwards:
    """An executor: the last of the jobs that can be asked for first."""

    def run(self, jobs: Iterable[Job[OutcomeT] | None]) -> Iterator[tuple[Job[OutcomeT], OutcomeT]]:
        asked, held = iter(jobs), list[Job[OutcomeT]]()
        while True:
            while (job := next(asked, None)) is not None:
                held.append(job)
            if not held:
                return
            job = held.pop()
            yield job, execute(job)


class TestAnExecutorOfTheUsersOwn(ExecutorContract):
    @pytest.fixture
    def executor(self) -> Executor:
        return Backwards()


# --- the suites can fail ---


class Careless(Extreme):
    """Depends on the global random state."""

    def __call__(self, problem: Problem, density: float, rounds: Rounds = METHODS_OWN) -> PruneResult:
        result = super().__call__(problem, density, rounds)
        return replace(result, scores=torch.rand_like(result.scores))


class Forgetful(Wandering):
    """Draws from the global random state."""

    def move(self, view: View) -> Move:
        return super().move(replace(view, generator=torch.default_generator))


class Lossy(Backwards):
    """Leaves the last job out."""

    def run(self, jobs: Iterable[Job[OutcomeT] | None]) -> Iterator[tuple[Job[OutcomeT], OutcomeT]]:
        return super().run(list(jobs)[:-1])


def test_a_suite_finds_what_breaks_its_contract() -> None:
    with pytest.raises(AssertionError):
        PrunerContract().test_equal_problems_give_equal_masks_whatever_the_global_random_state(
            Careless(), residual_problem()
        )
    with pytest.raises(AssertionError):
        DynamicContract().test_a_saved_state_goes_on_to_the_same_weights(Forgetful())
    with pytest.raises(AssertionError):
        ExecutorContract().test_every_job_comes_once_with_the_outcome_that_it_has_in_this_process(Lossy())
