"""What a grid will do: its stages with their jobs, dense epochs and cost, before the first begins."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from panning.compare.grid import GridConfig, Group, groups
from panning.foundation.progress import Stage
from panning.measure.estimate import Pricing, Work, cell_work, in_images
from panning.tasks import load_task
from panning.training import Recipe

#: What events call the stages of a grid.
RATES, CELLS, SHORT = "learning rates", "cells", "short trainings"


def grid_stages(
    config: GridConfig, folder: Path, share: tuple[int, int] = (0, 1), pricing: Pricing = in_images
) -> list[Stage]:
    """The stages in their order, under the names that events give them; cells that are there already count.

    Args:
        folder: of the config, where policy files are looked for.
        share: only a part of the grid, as for ``run_grid``.

    Examples:
        >>> from panning.compare.plan import grid_stages
        >>> from panning.searches.kinds import BENCH, named_config
        >>> found = named_config(BENCH, "digits-mlp")
        >>> [(stage.name, stage.steps) for stage in grid_stages(found.config, found.path.parent)]
        [('cells', 110)]
    """
    first, n_shares = share
    mine = groups(config, folder)[first::n_shares]
    recipes = {
        RATES: [(group, group.tried) for group in mine],
        CELLS: [(group, [group.recipe]) for group in mine],
        SHORT: [(group, list(config.short)) for group in mine],
    }
    stages = [_stage(name, asked, pricing) for name, asked in recipes.items()]
    return [one for one in stages if one.steps]


def _stage(name: str, asked: Sequence[tuple[Group, Sequence[Recipe]]], pricing: Pricing) -> Stage:
    steps, cost, epochs = 0, 0.0, 0.0
    for group, recipes in asked:
        task = load_task(group.task.task, group.seeds[0], group.source)
        for recipe in recipes:
            work: Work = cell_work(task, group.way, group.density, recipe) * len(group.seeds)
            steps, epochs = steps + len(group.seeds), epochs + work.epochs
            cost += pricing(task, recipe).of(work)
    return Stage(name, steps, cost, epochs)
