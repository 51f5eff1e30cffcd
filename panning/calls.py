"""Whole runs from Python: ``panning.search``, ``panning.train_agent`` and ``panning.make_env``, on any network and data.

What they leave in a folder is what the commands leave there; called again, they go on where they were.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from panning.envs import PanningEnv
from panning.envs.arguments import as_task
from panning.episode.policy_net import PolicyNet
from panning.flow import Forward
from panning.foundation.course import lines
from panning.foundation.errors import ConfigError, PanningWarning
from panning.foundation.keywords import keywords
from panning.foundation.progress import Listener, check_listener
from panning.foundation.stopping import ShouldStop
from panning.jobs.runs import chosen_mask
from panning.jobs.workers import Workers
from panning.masks.file import load_masks
from panning.masks.masks import Masks
from panning.models import OwnModel
from panning.scoring.losses import Loss
from panning.tasks import TaskSpec

if TYPE_CHECKING:  # what these need is not in the plain package
    from panning.agents import AgentConfig
    from panning.searches import SearchConfig
    from panning.searches.cost import Cost, Limits
    from panning.tasks import RunConfig


@dataclass(frozen=True)
class SearchReport:
    """The result of a search.

    Attributes:
        out: the run's folder, with tables, pictures and all masks.
        winner: the name of the chosen way to make masks, for each density.
        masks: by density and seed, ``masks[0.05][0]``.
        table: a row a method and density, as plain values (``pandas.DataFrame(report.table)``).
        sentences: what was chosen at each density, and how surely it is better than the others.
        records: the file with a line for each finished job.
        policy: the file of the agent that was trained; None if one was given.
    """

    out: Path
    winner: Mapping[float, str]
    masks: Mapping[float, Mapping[int, Masks]] = field(repr=False)
    table: tuple[Mapping[str, Any], ...] = field(repr=False)
    sentences: tuple[str, ...]
    records: Path
    policy: Path | None


@dataclass(frozen=True)
class TrainedAgent:
    """An agent after its training.

    Attributes:
        policy: for ``panning.prune(policy=...)``.
        path: its file.
        rollouts: the figures of each rollout: ``reward``, its terms, ``effective_density``, ...
        records: the file with a line for each rollout.
        out: the run's folder.
    """

    policy: PolicyNet
    path: Path
    rollouts: tuple[Mapping[str, Any], ...] = field(repr=False)
    records: Path
    out: Path


@keywords("densities", "agent={'n_rounds': ...}, the rounds of the agent's episodes")
def search(
    model: Any = None,
    data: Any = None,
    *,
    out: str | Path,
    densities: Sequence[float] | None = None,
    config: str | Path | SearchConfig | Mapping[str, Any] | None = None,
    workers: int = 0,
    ray_address: str | None = None,
    ship_data: bool = False,
    reuse: str | Path | Sequence[str | Path] = (),
    on_event: Listener | None = None,
    should_stop: ShouldStop | None = None,
    **settings: Any,
) -> SearchReport:
    """Train an agent, search for masks, and train the winner, the agent's masks and all baselines in full.

    >>> import panning, torch
    >>> def net():
    ...     return torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    >>> inputs = torch.randn(300, 6)
    >>> report = panning.search(
    ...     net, (inputs, inputs[:, :3].argmax(1)), densities=[0.2], out="runs/mine", seeds=(0,), n_samples=0,
    ...     baselines=("snip", "synflow"), recipe={"epochs": 1, "batch_size": 32},
    ...     agent={"n_rounds": 2, "ppo": {"n_rollouts": 1, "n_envs": 1, "n_steps": 4, "batch_size": 4}},
    ...     on_event=lambda event: None,
    ... )
    >>> [masks.n_kept for masks in report.masks[0.2].values()], report.policy.name
    ([29], 'policy.safetensors')
    >>> {row["density"] for row in report.table}
    {0.2, 1.0}

    Args:
        model: a module, a function or class that makes one, a name, a task (``panning.tasks.TaskSpec``), or "MODEL/DATA".
            A function makes other initial weights for each seed, as a module cannot: of a module all seeds start alike.
        data: a name, (inputs, labels), a Dataset, a DataLoader, or a mapping of such with the keys train, validation and
            test (``panning.data.OwnData``); not with a task.
        out: the run's folder. Called again with the same arguments, the search goes on there; with another network or other
            data it is refused.
        densities: each is searched for on its own.
        config: a packaged config's name, a config file, a ``SearchConfig`` or its keys; what else is passed replaces its
            values.
        workers: Ray workers; 0 runs in this process, without Ray. The results are the same.
        ray_address: of a cluster; None starts Ray on this machine.
        ship_data: send named data to workers that lack them, once for each node; data that are passed go there anyway.
        reuse: folders of other searches or benchmarks, whose evaluations are not paid for again where all that they depend
            on is the same.
        on_event: hears how far the search is (``panning.foundation.progress.Event``); None prints lines on stderr.
        should_stop: a function without arguments, asked after each job, rollout, epoch and round, and each second while Ray
            computes. Once it is true, the call ends with ``StoppedError`` and leaves no worker; the same call goes on.
        settings: further keys of ``panning.searches.SearchConfig``: ``seeds``, ``recipe``, ``rungs``, ``agent``,
            ``baselines``, ``n_samples``, ``device``, ... Without rungs, candidates are trained for a tenth and for half
            of the recipe's epochs. With ``order="free"`` no worker waits for another, and ``samplers``, ``max_trials``,
            ``max_cost`` and ``budget_s`` say what is tried and how far (docs/search.md).

    Raises:
        PanningError: with what was given, what is allowed and what to do; wrong input is refused before anything starts.
        StoppedError: if ``should_stop`` said so.
    """
    from panning.searches.given import search_config
    from panning.searches.report import as_json, choices
    from panning.searches.whole import How, whole_search

    tell, folder, where = _listener(on_event), _folder(out), Workers(workers, ray_address, ship_data)
    folders = [Path(one) for one in ([reuse] if isinstance(reuse, str | Path) else reuse)]
    found = search_config(model, data, densities, config, {"name": folder.name, **settings})
    _warn_of_one_start((found.task,), found.seeds)
    result, table = whole_search(found, folder, How(where, tell, reuse=folders, should_stop=should_stop))
    policy = folder / "agent" / "policy.safetensors"
    return SearchReport(
        out=folder, winner={density: way.label for density, way in result.winners.items()},
        masks={density: _masks_of(folder, density, found.seeds) for density in result.winners},
        table=tuple(as_json(result, table)["rows"]), sentences=(*choices(result, table), *result.ended),
        records=folder / "records.jsonl", policy=policy if found.agent.policy is None else None,
    )  # fmt: skip


@keywords("densities", "n_rounds, or ppo={'n_rollouts': ...} for the length of the training")
def train_agent(
    model: Any = None,
    data: Any = None,
    *,
    out: str | Path,
    densities: Sequence[float] | None = None,
    forward: Forward | None = None,
    loss: Loss | None = None,
    config: str | Path | AgentConfig | Mapping[str, Any] | None = None,
    workers: int = 0,
    ray_address: str | None = None,
    ship_data: bool = False,
    on_event: Listener | None = None,
    should_stop: ShouldStop | None = None,
    **settings: Any,
) -> TrainedAgent:
    """Train an agent with PPO on your networks; ``panning.prune(policy=...)`` prunes any network with it.

    >>> import panning, torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    >>> inputs = torch.randn(300, 6)
    >>> batch = inputs, inputs[:, :3].argmax(1)
    >>> agent = panning.train_agent(
    ...     net, batch, densities=[0.2], out="runs/agent", n_rounds=2, on_event=lambda event: None,
    ...     ppo={"n_rollouts": 2, "n_envs": 1, "n_steps": 4, "batch_size": 4},
    ... )
    >>> len(agent.rollouts), panning.prune(net, batch, density=0.2, policy=agent.policy).n_kept
    (2, 29)

    Args:
        model: as for ``panning.search``, or a list of models or tasks, of which each episode draws one.
        data: of all the models.
        forward, loss: as for ``panning.envs.PanningEnv``.
        out: the run's folder. Called again with the same arguments, the training goes on there.
        densities: targets; each episode draws one.
        config: a packaged config's name, a config file, an ``AgentConfig`` or its keys; what else is passed replaces its
            values.
        workers, ray_address, ship_data, on_event, should_stop: as for ``panning.search``.
        settings: further keys of ``panning.agents.EnvSpec`` (``seeds``, ``n_rounds``, ``action``, ``reward``,
            ``observations``) and of ``panning.agents.AgentConfig`` (``ppo``, ``seed``, ``device``, ``data_root``, ...).

    Raises:
        PanningError: with what was given, what is allowed and what to do; wrong input is refused before anything starts.
        StoppedError: if ``should_stop`` said so.
    """
    from panning.searches.given import agent_config
    from panning.searches.whole import How, whole_agent

    tell, folder, where = _listener(on_event), _folder(out), Workers(workers, ray_address, ship_data)
    found = agent_config((model, data, forward, loss), densities, config, settings)
    policy, records = whole_agent(found, folder, How(where, tell, formats=(), should_stop=should_stop))
    path, rollouts = folder / "policy.safetensors", tuple(record.metrics for record in records)
    return TrainedAgent(policy, path, rollouts, folder / "rollouts.jsonl", folder)


@keywords("densities", "n_rounds", rest=PanningEnv)
def make_env(
    model: Any,
    data: Any = None,
    *,
    densities: Sequence[float] = (0.05,),
    forward: Forward | None = None,
    loss: Loss | None = None,
    **settings: Any,
) -> PanningEnv:
    """The environment in which an agent prunes your network (``panning.envs.PanningEnv``).

    >>> import numpy as np
    >>> import panning, torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    >>> env = panning.make_env(net, (torch.randn(90, 6), torch.arange(90) % 3), densities=[0.2], n_rounds=1)
    >>> observation, _ = env.reset(seed=0)
    >>> *_, info = env.step(env.action_space.sample())
    >>> info["masks"].n_kept
    29

    Args:
        model, data: as for ``panning.search``, or a list of models or tasks, of which each episode draws one.
        densities: targets; each episode draws one.
        forward, loss: as for ``PanningEnv``.
        settings: further arguments of ``PanningEnv``: ``seeds``, ``n_rounds``, ``action``, ``reward``, ...

    Raises:
        ConfigError: for wrong arguments.
    """
    given = model if isinstance(model, list | tuple) else [model]
    return PanningEnv([as_task(one, data, forward, loss) for one in given], densities, **settings)


def cost(config: str | Path | Mapping[str, Any] | RunConfig, *, limits: Limits | None = None) -> Cost:
    """Estimate what a run of a config will cost, and start nothing: parameters, dense epochs, memory, bytes on disk.

    >>> import panning
    >>> task = {"model": "mlp", "data": "digits"}
    >>> found = panning.cost({"kind": "train", "task": task, "recipe": {"epochs": 3, "batch_size": 1}})
    >>> found.n_parameters, found.dense_epochs
    (50826, 3.0)

    Args:
        config: a config file, a packaged config's name, its keys with their ``kind``, or a config as an object.
        limits: refuses what is above them (``panning.searches.cost.Limits``).

    Raises:
        PanningError: for wrong input, and for a run above the limits.
    """
    from panning.searches.cost import Limits, cost_of
    from panning.searches.kinds import any_config

    found = any_config(config)
    return cost_of(found.config, found.path.parent, limits or Limits())


def _warn_of_one_start(tasks: Sequence[TaskSpec], seeds: Sequence[int]) -> None:
    for task in tasks:
        if len(seeds) > 1 and isinstance(task.model, OwnModel) and isinstance(task.model.made_from, nn.Module):
            warnings.warn(
                f"{task.model.label} is one module: all {len(seeds)} seeds start from its weights, and their spread is that "
                "of batches and of the order of training alone. A function that makes the module starts each seed anew.",
                PanningWarning,
                stacklevel=4,  # the caller's line: one frame is the decorator's
            )


def _masks_of(folder: Path, density: float, seeds: Sequence[int]) -> dict[int, Masks]:
    """The winner's masks; of a seed on which it failed there is none."""
    paths = {seed: chosen_mask(folder, density, seed) for seed in seeds}
    return {seed: load_masks(path) for seed, path in paths.items() if path.exists()}


def _listener(on_event: Listener | None) -> Listener:
    if on_event is None:
        return lines(partial(print, file=sys.stderr, flush=True))
    check_listener("on_event", on_event)
    return on_event


def _folder(out: str | Path) -> Path:
    if not isinstance(out, str | os.PathLike) or not str(out):
        raise ConfigError(f"out is {out!r}; pass the folder of the run, like out='runs/mine'.")
    return Path(out)
