"""What must hold for everything that runs jobs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

from panning.foundation.errors import DataError
from panning.jobs.executor import Executor
from panning.jobs.outcome import PruneOutcome
from panning.jobs.spec import PruneSpec, TrainSpec
from panning.jobs.watch import Running, Watch, watched
from panning.jobs.ways import Method
from panning.jobs.work import Job, execute
from panning.tasks import TaskSpec
from panning.training import Recipe

TASK = TaskSpec(model="mlp", data="digits", n_train=100)


class ExecutorContract:
    """A suite for one executor; the fixture ``executor`` gives it, ready to run and closed afterwards.

    An executor runs one job at a time in a process: a job sets the number of threads, and networks are traced with state of
    the whole process.

    Attributes:
        withdraws: whether it heeds ``panning.jobs.watch``: tells how far jobs are, and withdraws those that are not wanted.
            The executor of the fixture then does so for jobs of any length.
    """

    withdraws: ClassVar[bool] = False

    @pytest.fixture
    def executor(self) -> Executor:
        raise NotImplementedError("a subclass gives the executor")

    def test_every_job_comes_once_with_the_outcome_that_it_has_in_this_process(self, executor: Executor) -> None:
        jobs = [job(seed, method) for seed in (0, 1) for method in ("magnitude", "erk", "synflow")]
        found = {done.key: outcome for done, outcome in executor.run(jobs)}
        assert found == {asked.key: execute(asked) for asked in jobs}

    def test_no_jobs_have_no_outcomes(self, executor: Executor) -> None:
        assert list(executor.run([])) == []

    def test_an_asker_that_waits_for_an_outcome_is_asked_again_once_it_was_told(self, executor: Executor) -> None:
        told: list[int] = []

        def ask() -> Iterator[Job[PruneOutcome] | None]:
            yield job(0, "erk")
            while not told:
                yield None
            yield job(1, "erk")

        for done, _ in executor.run(ask()):
            told.append(done.spec.seed)
        assert told == [0, 1]

    def test_an_asker_that_waits_while_nothing_runs_has_ended(self, executor: Executor) -> None:
        assert [done.spec.seed for done, _ in executor.run(iter([job(0, "erk"), None, None, None]))] == [0]

    def test_work_that_fails_is_an_outcome_and_the_next_job_runs(self, executor: Executor) -> None:
        impossible, possible = job(0, "erk", 1e-9), job(0, "erk")
        errors = {done.key: outcome.error for done, outcome in executor.run([impossible, possible])}
        assert errors[possible.key] is None and "keeps none" in str(errors[impossible.key])

    def test_who_watches_changes_no_outcome(self, executor: Executor) -> None:
        jobs = [job(seed, "erk") for seed in (0, 1)]
        with watched(Watch(lambda running: None)):
            found = {done.key: outcome for done, outcome in executor.run(jobs)}
        assert found == {asked.key: execute(asked) for asked in jobs}

    def test_a_job_tells_how_far_it_is_and_is_withdrawn_once_it_is_not_wanted(self, executor: Executor) -> None:
        if not self.withdraws:
            pytest.skip("this executor lets every job run to its end")
        hours = Job(TrainSpec(task=TASK, seed=0, mask=None, recipe=Recipe(epochs=10**6, batch_size=50)))
        heard: list[Running] = []
        watch = Watch(
            lambda running: heard.append(running) if running.job.key == hours.key else None,
            lambda job: job.key != hours.key or not heard,
        )
        asked: list[Job[Any]] = [hours, job(0, "erk"), job(1, "erk")]
        with watched(watch):
            found = [done.key for done, _ in executor.run(asked)]
        assert sorted(found) == sorted([job(0, "erk").key, job(1, "erk").key])
        reached = heard[0].reached
        assert (reached.unit, reached.total) == ("epoch", 10**6) and 0 < reached.done < 10**6 and heard[0].seconds >= 0
        assert [done.key for done, _ in executor.run([job(0, "erk")])] == [job(0, "erk").key]

    def test_wrong_input_arrives_as_its_own_error(self, executor: Executor) -> None:
        absent = job(0, "erk", task=TaskSpec(model="mlp", data="npz:absent.npz"))
        with pytest.raises(DataError, match="absent.npz"):
            list(executor.run([absent]))


def job(seed: int, method: str, density: float = 0.1, task: TaskSpec = TASK) -> Job[PruneOutcome]:
    """A small piece of work."""
    return Job(PruneSpec(task=task, seed=seed, density=density, by=Method(method=method)))
