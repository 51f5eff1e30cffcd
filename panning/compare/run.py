"""Run a grid, or go on with one, wherever jobs run: here, on Ray, or in shares on several machines."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from panning.alive.connectivity import Connectivity
from panning.compare.cells import check_cell, join_records
from panning.compare.grid import GridConfig, Group, groups
from panning.compare.plan import CELLS, RATES, SHORT, grid_stages
from panning.compare.told import with_rows
from panning.foundation.config import dump_config
from panning.foundation.files import claim_folder, sole_writer, write_atomic
from panning.foundation.progress import Listener, plan_event
from panning.foundation.records import RecordStore, RunRecord
from panning.jobs.executor import Executor
from panning.jobs.outcome import CellOutcome
from panning.jobs.reuse import OtherRuns
from panning.jobs.store import MAX_FAILED, JobStore
from panning.jobs.work import Job
from panning.masks.masks import n_kept_at
from panning.tasks import DataSource, Task, TaskSpec, load_task
from panning.training import Recipe

#: (i, n): every n-th group of a grid, from the i-th on.
Share = tuple[int, int]


def run_grid(
    config: GridConfig, folder: Path, out: Path, executor: Executor, listen: Listener, share: Share = (0, 1),
    max_failed: float = MAX_FAILED, others: OtherRuns | None = None,
) -> list[RunRecord]:  # fmt: skip
    """Run every cell that ``out`` has no record of; all records of ``out``.

    A grid may be extended: another config of the same name goes on in the same folder.

    Args:
        folder: of the config, where policy files are looked for.
        share: only a part of the grid; ``merge_records`` puts the records of all parts together.
        max_failed, others: as for ``JobStore``.

    Raises:
        ConfigError: if the folder holds a grid of another name.
    """
    claim_folder(out, {"command": "bench", "name": config.name})
    with sole_writer(out):
        write_atomic(out / "config.yaml", dump_config(config))
        store = JobStore(out, max_failed, others)
        for record in join_records(_held(store.records)).values():
            check_cell(record)  # it may come from elsewhere, and cells are built on it

        def work(
            stage: str, jobs: Sequence[Job[CellOutcome]], listen: Listener = listen
        ) -> dict[str, CellOutcome]:  # fmt: skip
            return store.run(jobs, executor, listen, stage)

        listen(plan_event(config.name, grid_stages(config, folder, share)))
        first, n_shares = share
        mine = groups(config, folder)[first::n_shares]
        trials = [job for group in mine for recipe in group.tried for job in group.jobs(recipe, test=False)]
        tried = work(RATES, trials) if trials else {}
        chosen = [(group, _tuned(group, tried)) for group in mine]
        rows = [(group, group.jobs(recipe, test=True)) for group, recipe in chosen]
        work(CELLS, _seed_by_seed(jobs for _, jobs in rows), with_rows(listen, rows, store.records))
        if config.short:
            short = (
                group.jobs(recipe.model_copy(update={"start": full.start}), test=False)
                for group, full in chosen
                for recipe in config.short
            )
            work(SHORT, _seed_by_seed(short))
        return list(store.records)


def _held(records: RecordStore) -> list[Path]:
    """The file of a store, if it is there."""
    return [records.path] if records.path.exists() else []


def check_task(spec: TaskSpec, seed: int, source: DataSource, densities: Sequence[float]) -> Task:
    """The task, on the CPU, if each density may leave a path through its network."""
    task = load_task(spec, seed, source.on_cpu)
    connectivity = Connectivity.of(task.problem)
    for density in densities:
        connectivity.check_reachable(n_kept_at(density, task.problem.layout.n_prunable))
    return task


def check_grid(config: GridConfig, folder: Path) -> tuple[int, int]:
    """Raise what is wrong with a grid's data, models, policies or densities before anything starts.

    Returns:
        The number of cells, and that of trainings, with short ones and those that try learning rates.
    """
    made = groups(config, folder)
    for task in config.tasks:
        densities = (task.densities or config.densities) if task.shares_of == "weights" else ()
        problem = check_task(task.task, config.seeds[0], config.source, densities).problem
        for group in made:
            if densities and group.task == task and group.way.by is not None:
                group.way.by.form.n_kept(problem.model, problem.layout, group.density)
    n_trainings = sum(1 + len(config.short) + len(group.tried) for group in made)
    return len(made) * len(config.seeds), n_trainings * len(config.seeds)


def merge_records(files: Sequence[Path], out: Path) -> int:
    """Add the cells that other machines ran, in files or folders, to the folder ``out``; the number of records added.

    Raises:
        PanningError: if two records of one cell say different things, timing apart; nothing is added then.
    """
    with sole_writer(out):
        store = RecordStore(out / "records.jsonl")
        joined = join_records([*_held(store), *files])
        new = [record for key, record in joined.items() if record.kind == "cell" and key not in store]
        for record in new:
            store.append(record)
        return len(new)


def _seed_by_seed(jobs: Iterable[list[Job[CellOutcome]]]) -> list[Job[CellOutcome]]:
    """All jobs, those of the first seed first: a grid that is stopped is whole for the seeds that it has."""
    return [job for of_seed in zip(*jobs, strict=True) for job in of_seed]


def _tuned(group: Group, tried: dict[str, CellOutcome]) -> Recipe:
    """The recipe of a group: with the learning rate and the start that are best on the validation part of those tried."""
    if not group.tried:
        return group.recipe

    def mean(recipe: Recipe) -> float:
        return statistics.fmean(tried[job.key].accuracy for job in group.jobs(recipe, test=False))

    ordered = sorted(group.tried, key=lambda recipe: (recipe.learning_rate, recipe.start.label if recipe.start else ""))
    return max(ordered, key=mean)  # the first of equals, as tables choose
