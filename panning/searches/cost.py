"""Estimates of what a run of a config will cost, made before anything of the run starts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import get_num_threads, nn

from panning.agents import AgentConfig
from panning.compare.grid import GridConfig
from panning.compare.plan import grid_stages
from panning.compare.run import Share, check_grid
from panning.data import OwnBatches
from panning.foundation.errors import ConfigError, ModelError
from panning.foundation.progress import Stage
from panning.foundation.torchvision_sizes import MILLIONS
from panning.jobs.prune import PruneConfig, check_prune
from panning.jobs.train import TrainConfig, check_train
from panning.jobs.ways import Method, Way
from panning.measure.dry_run import DryRun, dry_run
from panning.measure.estimate import Pricing, agent_stages, in_images, pruning_stage, training_stage
from panning.measure.footprint import PROCESS_BYTES, RECORD_BYTES, REPORT_BYTES, Footprint
from panning.models import MODELS, is_sized
from panning.models.imported import call_factory
from panning.models.libraries import LIBRARIES, build_from_library
from panning.models.sized import build_sized
from panning.pruners import PRUNERS
from panning.searches.config import SearchConfig
from panning.searches.plan import search_stages
from panning.searches.run import check_search
from panning.tasks import RunConfig, TaskSpec, load_task, load_task_data
from panning.training import Recipe
from panning.training.recipe import Plan

#: A mask and a training have the process to themselves; jobs have a thread each.
ALONE = (PruneConfig, TrainConfig)


#: The stages of a run, by a pricing and by which part of a grid is run.
Priced = Callable[[Pricing, Share], Sequence[Stage]]
WHOLE: Share = (0, 1)


def stages_of(config: RunConfig, folder: Path = Path()) -> Priced:
    """The stages of a run, whose input is checked here, once for all pricings.

    Args:
        folder: of a grid's config, where policy files are looked for.
    """
    match config:
        case PruneConfig():
            mask = check_prune(config)
            return lambda pricing, _: [pruning_stage(mask, pricing)]
        case TrainConfig():
            plan = check_train(config).plan
            return lambda pricing, _: [training_stage(plan, pricing)]
        case SearchConfig():
            check_search(config)
            return lambda pricing, _: search_stages(config, pricing)
        case AgentConfig():
            return lambda pricing, _: agent_stages(config, pricing)
        case GridConfig():
            check_grid(config, folder)
            return lambda pricing, share: grid_stages(config, folder, share, pricing)
    raise ConfigError(f"A {type(config).__name__} is no config of a run.")


def dry_run_of(config: RunConfig, n_workers: int = 0, folder: Path = Path(), share: Share = WHOLE) -> DryRun:
    """The stages of a run with their minutes on this machine, where a step of training and of scoring is timed.

    Args:
        folder: of a grid's config, where policy files are looked for.
        share: only the stages of a part of a grid; memory and disk are those of the whole grid.
    """
    threads = get_num_threads() if isinstance(config, ALONE) else 1
    cost, stages = _priced(config, folder, Limits())
    beside = {name: getattr(cost, name) for name in ("n_parameters", "memory_bytes", "disk_bytes")}
    run = dry_run(lambda pricing: stages(pricing, share), n_workers, threads)
    return replace(run, beside=beside, said=(cost.sentence(),))


#: More networks than this are told by their range, as those of a population.
MOST_NAMED = 8


@dataclass(frozen=True)
class Limits:
    """What a run may cost at most; None is no limit."""

    n_parameters: int | None = None
    dense_epochs: float | None = None
    memory_bytes: int | None = None
    disk_bytes: int | None = None
    n_steps: int | None = None


@dataclass(frozen=True)
class Cost:
    """What a run costs: at most, and by estimates upwards.

    Attributes:
        networks: the sizes of each network with its data.
        stages: with steps and dense epochs.
        memory_bytes: peak of one process; each worker is a process.
        disk_bytes: of all files that the run leaves, and of its checkpoint.
    """

    networks: tuple[Footprint, ...]
    stages: tuple[Stage, ...]
    memory_bytes: int
    disk_bytes: int

    @property
    def n_parameters(self) -> int:
        """Of the largest network."""
        return max(one.n_parameters for one in self.networks)

    @property
    def dense_epochs(self) -> float:
        """What is trained, in passes of the dense network over the training part."""
        return sum(stage.epochs for stage in self.stages)

    @property
    def n_steps(self) -> int:
        """Rounds, epochs, rollouts and jobs of all stages."""
        return sum(stage.steps for stage in self.stages)

    def as_json(self) -> dict[str, Any]:
        """The same for programs."""
        sums = {name: getattr(self, name) for name in ("n_parameters", "dense_epochs", "n_steps")}
        return {
            **sums, "memory_bytes": self.memory_bytes, "disk_bytes": self.disk_bytes,
            "networks": [asdict(one) for one in self.networks],
            "stages": [{"name": one.name, "steps": one.steps, "dense_epochs": one.epochs} for one in self.stages],
        }  # fmt: skip

    def sentence(self) -> str:
        """Parameters, memory and disk in words."""
        sizes = [one.n_parameters for one in self.networks]
        if len(sizes) > MOST_NAMED:
            networks = f"{len(sizes)} networks have {min(sizes):,} to {max(sizes):,} parameters"
        else:
            networks = ", ".join(f"{one.name} has {one.n_parameters:,} parameters" for one in self.networks)
        return (
            f"{networks}; a process takes about {self.memory_bytes / 2**30:.2g} GiB of memory, the run leaves at most "
            f"{self.disk_bytes / 2**20:,.0f} MiB on disk."
        )

    def check(self, limits: Limits) -> None:
        """Raise what is above the limits.

        Raises:
            ConfigError: with what the run costs, what is allowed, and which fields lower it.
        """
        lower = {
            "n_parameters": "model", "dense_epochs": "epochs, seeds, densities, n_samples, n_rollouts",
            "memory_bytes": "model, batch_size, scoring_per_class", "disk_bytes": "model, n_samples, densities, seeds",
            "n_steps": "seeds, densities, n_samples, baselines, n_rollouts",
        }  # fmt: skip
        above = []
        for name, fields in lower.items():
            most, cost = getattr(limits, name), getattr(self, name)
            if most is not None and cost > most:
                above.append(f"  {name} is {cost:,.10g}, at most {most:,.10g} are allowed: lower {fields}")
        if above:
            raise ConfigError("\n".join(["This run costs too much:", *above]))


def cost_of(config: RunConfig, folder: Path = Path(), limits: Limits = Limits()) -> Cost:  # noqa: B008
    """Estimate from above what a run of a config will cost. The input is checked; nothing is started or written.

    Args:
        folder: of a grid's config, where policy files are looked for.
        limits: refused is what is above them, networks before their weights are drawn.

    Raises:
        PanningError: for wrong input.
        ConfigError: if the run is above the limits.
    """
    return _priced(config, folder, limits)[0]


def _priced(config: RunConfig, folder: Path, limits: Limits) -> tuple[Cost, Priced]:
    for spec, _, _ in _work(config):
        _check_size(spec, config, limits)
    priced = stages_of(config, folder)
    stages = tuple(priced(in_images, WHOLE))
    networks, memory = [], 0.0
    for spec, recipes, items in _work(config):
        task = load_task(spec, 0, config.source.on_cpu)
        sizes = Footprint.of(task)
        n_scoring = spec.scoring_per_class * (task.labelled.n_classes if task.labelled else 1)
        peaks = [sizes.pruning_bytes(n_scoring, items)]
        if task.labelled is not None:
            peaks += [sizes.training_bytes(Plan.of(one, len(task.data.train)).images_per_step) for one in recipes]
        networks.append(sizes)
        memory = max(memory, sizes.data_bytes + max(peaks))
    disk = max(_disk_bytes(config, sizes, stages) for sizes in networks)
    found = Cost(tuple(dict.fromkeys(networks)), stages, int(PROCESS_BYTES + memory), disk)
    found.check(limits)
    return found, priced


def _work(config: RunConfig) -> Iterator[tuple[TaskSpec, list[Recipe], list[tuple[str, bool]]]]:
    """Each task with the recipes that train it, and what prunes it, as ``Footprint.pruning_bytes`` takes it."""
    match config:
        case PruneConfig():
            yield config.task, [], _items([config.way] if config.policy is None else [], config.policy is not None)
        case TrainConfig():
            yield config.task, [config.recipe], []
        case SearchConfig():
            ways = [Way(by=method) for method in config.baselines]
            recipes = [config.recipe, *(rung.recipe for rung in config.rungs)]
            yield config.task, [*recipes, config.agent.reward.recipe], _items(ways, True)
            for spec in config.agent.tasks:
                yield spec, [config.agent.reward.recipe], _items([], True)
        case AgentConfig():
            for spec in config.env.every_task:
                yield spec, [config.env.reward.recipe] if config.env.reward.trains else [], _items([], True)
        case GridConfig():
            ways = [Way(by=one) for one in config.methods if one.method is not None]
            agents = any(one.policy is not None for one in config.methods)
            for task in config.tasks:
                yield task.task, [task.recipe, *config.short], _items(ways, agents)


def _items(ways: Iterable[Way], agent: bool) -> list[tuple[str, bool]]:
    methods = [by.method for way in ways if isinstance(by := way.by, Method) and by.method is not None]
    found = [(f"method {name}", PRUNERS[name].second_order) for name in methods]
    return [*found, ("environment round, second order", True)] if agent else found


def _check_size(spec: TaskSpec, config: RunConfig, limits: Limits) -> None:
    """Refuse a network by the number of its parameters before it takes any memory."""
    if limits.n_parameters is None or not isinstance(spec.model, str) or isinstance(spec.data, OwnBatches):
        return
    data = load_task_data(spec, config.source.on_cpu)
    network = _without_memory(spec.model, data.input_shape, data.n_classes)
    if network is None:  # nothing of this name, or its code computes with what has no values
        n = int(1e6 * MILLIONS.get(spec.model.removeprefix("torchvision:"), 0.0))
    else:
        n = sum(parameter.numel() for parameter in network.parameters())
    if n > limits.n_parameters:
        raise ConfigError(
            f"model is {spec.model}, with {n:,} parameters for this data, at most {limits.n_parameters:,} are allowed: "
            "take a smaller network."
        )


def _without_memory(model: str, input_shape: tuple[int, ...], n_classes: int) -> nn.Module | None:
    """A named network that has shapes and no weights; None where there is none."""
    prefix, colon, bare = model.rpartition(":")
    with torch.device("meta"), contextlib.suppress(ModelError):
        if is_sized(model):
            return build_sized(model, input_shape, n_classes)
        if model in MODELS:
            return call_factory(MODELS[model].factory, model, input_shape, n_classes)
        library = prefix if colon else "torchvision"
        known = library in LIBRARIES and bare in LIBRARIES[library].names()
        return build_from_library(library, bare, input_shape, n_classes) if known else None
    return None


def _disk_bytes(config: RunConfig, sizes: Footprint, stages: Sequence[Stage]) -> int:
    steps = sum(stage.steps for stage in stages)
    if isinstance(config, PruneConfig):
        return sizes.mask_bytes + REPORT_BYTES
    if isinstance(config, TrainConfig):
        return 8 * sizes.weights_bytes + 2 * sizes.mask_bytes + REPORT_BYTES + steps * RECORD_BYTES
    masks = sum(stage.steps for stage in stages if "pruning" in stage.name or "sampling" in stage.name)
    chosen = len(config.densities) * len(config.seeds) if isinstance(config, SearchConfig) else 0
    return steps * RECORD_BYTES + (masks + chosen) * sizes.mask_bytes + 2 * REPORT_BYTES
