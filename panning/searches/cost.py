"""What a run of a config costs, before anything of it starts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from torch import get_num_threads

from panning.agents import AgentConfig
from panning.compare.grid import GridConfig
from panning.compare.plan import grid_stages
from panning.compare.run import Share, check_grid
from panning.foundation.errors import ConfigError
from panning.foundation.progress import Stage
from panning.jobs.prune import PruneConfig, check_prune
from panning.jobs.train import TrainConfig, check_train
from panning.measure.dry_run import DryRun, dry_run
from panning.measure.estimate import Pricing, agent_stage, in_images, pruning_stage, training_stage
from panning.searches.config import SearchConfig
from panning.searches.plan import search_stages
from panning.searches.run import check_search
from panning.tasks import RunConfig

#: A mask and a training have the process to themselves; jobs have a thread each.
ALONE = (PruneConfig, TrainConfig)


def stages_of(
    config: RunConfig, pricing: Pricing = in_images, folder: Path = Path(), share: Share = (0, 1)
) -> Sequence[Stage]:
    """The stages of a run, after its input was checked.

    Args:
        folder: of a grid's config, where policy files are looked for.
        share: only a part of a grid.
    """
    match config:
        case PruneConfig():
            return [pruning_stage(check_prune(config), pricing)]
        case TrainConfig():
            return [training_stage(check_train(config).plan, pricing)]
        case SearchConfig():
            check_search(config)
            return search_stages(config, pricing)
        case AgentConfig():
            return [agent_stage(config, pricing)]
        case GridConfig():
            check_grid(config, folder)
            return grid_stages(config, folder, share, pricing)
    raise ConfigError(f"A {type(config).__name__} is no config of a run.")


def dry_run_of(config: RunConfig, n_workers: int = 0, folder: Path = Path(), share: Share = (0, 1)) -> DryRun:
    """The stages of a run with their minutes on this machine, where a step of training and of scoring is timed.

    Args:
        folder, share: as for ``stages_of``.
    """
    threads = get_num_threads() if isinstance(config, ALONE) else 1
    return dry_run(partial(stages_of, config, folder=folder, share=share), n_workers, threads)
