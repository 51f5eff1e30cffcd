"""A dry run: jobs, dense epochs and minutes of every stage, before anything starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from panning.foundation.course import duration
from panning.foundation.progress import Stage
from panning.measure.estimate import Measured, Pricing, measured
from panning.tasks import Task
from panning.training import Recipe
from panning.training.recipe import Plan

COLUMNS = ["stage", "at most", "dense epochs", "minutes"]


@dataclass(frozen=True)
class DryRun:
    """The stages of a run, with their cost in seconds of one worker.

    Attributes:
        n_workers: that share the jobs of a stage.
        basis: what was measured, by network and data.
        beside: what else it costs, as JSON: parameters, memory, disk.
        said: the same in sentences.
    """

    stages: Sequence[Stage]
    n_workers: int
    basis: dict[str, Measured]
    beside: Mapping[str, Any] = field(default_factory=dict)
    said: tuple[str, ...] = ()

    def seconds(self, stage: Stage) -> float:
        """Of a stage that all workers share; the last jobs may leave some of them without work."""
        shares = max(1, stage.width or stage.steps)
        return stage.cost * -(-shares // self.n_workers) / shares

    @property
    def total_seconds(self) -> float:
        return sum(map(self.seconds, self.stages))

    def rows(self) -> list[list[str]]:
        """A row of ``COLUMNS`` for each stage, and one for all."""
        rows = [
            [one.name, f"{one.steps} {one.kind}s", f"{one.epochs:.1f}", f"{self.seconds(one) / 60:.1f}"]
            for one in self.stages
        ]
        n_jobs = sum(one.steps for one in self.stages if one.kind == "job")
        epochs = sum(one.epochs for one in self.stages)
        total = ["all", f"{n_jobs} jobs" if n_jobs else "", f"{epochs:.1f}", f"{self.total_seconds / 60:.1f}"]
        return [*rows, total] if len(rows) > 1 else rows

    def sentences(self) -> list[str]:
        """What the estimate rests on."""
        workers = "one process" if self.n_workers == 1 else f"{self.n_workers} workers"
        found = [
            f"About {duration(self.total_seconds)} in {workers}, if nothing else runs here: an estimate, and at most, for "
            "compact networks train faster, and equal masks train once. Nothing was started or written."
        ]
        for name, one in self.basis.items():
            threads = "one thread" if one.threads == 1 else f"{one.threads} threads"
            found.append(
                f"Measured just now for {name}, on {threads}, the median of {one.n}: {1000 * one.image * one.batch:.3g} ms "
                f"for a training step of {one.batch} images, {1000 * one.scoring:.3g} ms for a scoring pass of "
                f"{one.samples}."
            )
        return [*found, *self.said]

    def as_json(self) -> dict[str, Any]:
        """The same for programs."""
        return {
            "stages": [
                {
                    "name": one.name,
                    "steps": one.steps,
                    "kind": one.kind,
                    "dense_epochs": one.epochs,
                    "seconds": self.seconds(one),
                }
                for one in self.stages
            ],  # fmt: skip
            "n_workers": self.n_workers,
            "seconds": self.total_seconds,
            **self.beside,
            "measured": {name: vars(one) for name, one in self.basis.items()},
        }


def dry_run(stages: Callable[[Pricing], Sequence[Stage]], n_workers: int, threads: int = 1) -> DryRun:
    """Price the stages of a run by what is measured here, once for each network and batch.

    Args:
        stages: of the run, by a pricing.
        n_workers: 0 is this process alone.
        threads: of torch, in each.
    """
    basis: dict[str, Measured] = {}

    def price(task: Task, recipe: Recipe) -> Measured:
        batch = Plan.of(recipe, len(task.data.train)).images_per_step
        name = f"{task.spec.model_name} on {task.data.label}, {recipe.precision}, batches of {batch}"
        if name not in basis:
            basis[name] = measured(task, recipe, threads)
        return basis[name]

    return DryRun(stages(price), max(1, n_workers), basis)
