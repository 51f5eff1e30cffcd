"""What must hold for everything that runs jobs."""

from __future__ import annotations

import pytest

from panning.foundation.errors import UnknownNameError
from panning.jobs.executor import Executor
from panning.jobs.work import Job, execute, prune_job
from panning.tasks import DataSource, TaskSpec

TASK = TaskSpec(model="mlp", data="digits", n_train=100)


class ExecutorContract:
    """A suite for one executor; the fixture ``executor`` gives it, ready to run and closed afterwards."""

    @pytest.fixture
    def executor(self) -> Executor:
        raise NotImplementedError("a subclass gives the executor")

    def test_every_job_comes_once_with_the_outcome_that_it_has_in_this_process(self, executor: Executor) -> None:
        jobs = [job(seed, method) for seed in (0, 1) for method in ("magnitude", "erk", "synflow")]
        found = {done.key: outcome for done, outcome in executor.run(jobs)}
        assert executor.n_workers >= 1 and found == {asked.key: execute(asked) for asked in jobs}

    def test_no_jobs_have_no_outcomes(self, executor: Executor) -> None:
        assert list(executor.run([])) == []

    def test_work_that_fails_is_an_outcome_and_the_next_job_runs(self, executor: Executor) -> None:
        outcomes = dict((done.key, outcome) for done, outcome in executor.run([job(0, "erk", 1e-9), job(0, "erk")]))
        failed, good = outcomes[job(0, "erk", 1e-9).key], outcomes[job(0, "erk").key]
        assert failed.error is not None and "keeps none" in failed.error and good.error is None

    def test_wrong_input_arrives_as_its_own_error(self, executor: Executor) -> None:
        with pytest.raises(UnknownNameError, match="Did you mean 'synflow'"):
            list(executor.run([job(0, "synflo")]))


def job(seed: int, method: str, density: float = 0.1) -> Job:
    """A small piece of work."""
    return prune_job(TASK, DataSource(), seed, density, {"method": method}, all_alive=False)
