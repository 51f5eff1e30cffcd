"""One search from the agent to the table, resumable at every job.

1. The agent is trained, on networks of other seeds (or a policy file is read).
2. Every candidate prunes the first seed's network; dead networks go out.
3. Rungs of short trainings, judged on the validation part, leave one winner for each density. In fixed order 2 and 3 are
   stages (``fixed_order``), in free order one stream (``free_order``).
4. The winner, the agent, the baselines and the dense network are cells of a benchmark on every seed; only now is the test
   part read.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from panning import agents
from panning.compare.cells import CHOSEN, NamedCell
from panning.compare.grid import GridTask, Group
from panning.compare.run import check_task
from panning.compare.told import with_rows
from panning.episode.policy_net import load_policy
from panning.episode.shelf import located
from panning.foundation.config import dump_config
from panning.foundation.errors import PolicyError
from panning.foundation.files import claim_folder, sole_writer, write_atomic
from panning.foundation.progress import Listener, plan_event
from panning.foundation.records import RunRecord
from panning.jobs.begun import check_begun_alike
from panning.jobs.executor import Executor
from panning.jobs.reuse import OtherRuns, reused_sentences
from panning.jobs.store import MAX_FAILED, JobStore
from panning.jobs.ways import Way
from panning.searches.candidates import agent_itself
from panning.searches.config import SearchConfig
from panning.searches.fixed_order import FixedOrder
from panning.searches.free_order import FreeOrder, check_max_cost, lane_of
from panning.searches.plan import search_stages
from panning.searches.trials import Trials


@dataclass(frozen=True)
class Ready:
    """A search whose input was checked, with what that loaded.

    Attributes:
        policy: the bytes of the policy file that the config names.
        n_train: images of the training part.
    """

    config: SearchConfig
    policy: bytes | None
    n_train: int


@dataclass(frozen=True)
class SearchResult:
    """What a search found, and what it cost in images trained on.

    Attributes:
        winners: by density.
        rungs: an entry a candidate and rung, as JSON.
        cells: of the final comparison: every method, and the winners once more under their name.
        agent_images: of the rewards that the agent was trained on.
        search_images: of the rungs.
        ended: of free order, how many candidates were tried at each density, and what ended that; and how many evaluations
            other runs have paid for.
    """

    config: SearchConfig
    winners: dict[float, Way]
    rungs: list[dict[str, Any]]
    cells: list[RunRecord]
    agent_images: int
    search_images: int
    n_train: int
    ended: tuple[str, ...] = ()


@dataclass(frozen=True)
class Where:
    """Where a search computes.

    Attributes:
        agent_workers: Ray actors for the agent's rollouts; 0 runs them in this process.
        start_ray: called before the first of them.
    """

    executor: Executor
    agent_workers: int = 0
    start_ray: Callable[[], None] = lambda: None


class Search:
    """A search in its folder. ``run`` goes through the stages; each asks the store for what is done already."""

    def __init__(self, ready: Ready, out: Path, store: JobStore, where: Where, listen: Listener) -> None:
        self.ready = ready
        self.config = ready.config
        self.out = out
        self.store = store
        self.where = where
        self.listen = listen

    def run(self) -> SearchResult:
        config, began = self.config, time.monotonic()
        claim_folder(self.out, config.identity(self.ready.policy))
        check_begun_alike(self.out, config.task, config.source)
        write_atomic(self.out / "config.yaml", dump_config(config))
        self.listen(plan_event(config.name, search_stages(config)))
        policy, agent_images = self._agent()
        trials = Trials(config, policy, self.store, self.where.executor, self.listen)
        if config.order == "free":
            order: FixedOrder | FreeOrder = FreeOrder(trials, self.ready.n_train, began)
        else:
            order = FixedOrder(trials)
        winners = order.winners()
        self._save_winners_masks(trials, winners)
        cells = self._final(trials, winners, agent_images)
        search_images = sum(map(trials.images_at, winners))
        return SearchResult(
            config,
            winners,
            trials.rungs,
            cells,
            agent_images,
            search_images,
            self.ready.n_train,
            (*order.sentences, *reused_sentences(self.store.records)),
        )

    # --- stages ---

    def _agent(self) -> tuple[bytes, int]:
        """The policy's file, and how many images the agent's rewards were trained on."""
        if self.ready.policy is not None:
            return self.ready.policy, 0
        config = self.config.agent_config()
        policy = agents.train_agent(
            config, self.out / "agent", n_workers=self.where.agent_workers, start_workers=self.where.start_ray,
            listen=self.listen,
        )  # fmt: skip
        return (self.out / "agent" / "policy.safetensors").read_bytes(), int(policy.facts["images_seen"])

    def _save_winners_masks(self, trials: Trials, winners: dict[float, Way]) -> None:
        seeds = self.config.seeds
        jobs = {(d, seed): trials.prune_job(d, way, seed) for d, way in winners.items() for seed in seeds}
        outcomes = self.store.run(list(jobs.values()), trials.executor, self.listen, "pruning with the winners")
        for density in winners:
            trials.write_choice(density, {seed: outcomes[jobs[density, seed].key].mask for seed in seeds})

    def _final(self, trials: Trials, winners: dict[float, Way], agent_images: int) -> list[RunRecord]:
        """The comparison on the test part: winner, agent, baselines, dense; the same recipe and seeds for all."""
        ways = [agent_itself(self.config.agent), *(Way(by=method) for method in self.config.baselines)]
        others = [self._group(trials), *(self._group(trials, way, d) for d in self.config.densities for way in ways)]
        best = [self._group(trials, way, density) for density, way in winners.items()]
        jobs = {group: group.jobs(self.config.recipe, test=True) for group in (*others, *best)}
        every = [job for of_group in jobs.values() for job in of_group]
        listen = with_rows(self.listen, jobs.items(), self.store.records)
        self.store.run(every, trials.executor, listen, "training every method in full")
        cells = [self.store.records[job.key] for group in others for job in jobs[group]]
        for group in best:
            images = agent_images + trials.images_at(group.density)
            cells += [_winner(self.store.records[job.key], images) for job in jobs[group]]
        return cells

    def _group(self, trials: Trials, way: Way = Way(), density: float = 1.0) -> Group:  # noqa: B008
        config = self.config
        task = GridTask(task=config.task, recipe=config.recipe)
        return Group(task, config.seeds, config.source, way, density, trials.policy_of(way))


def run_search(
    ready: Ready, out: Path, executor: Executor, *, agent_workers: int, listen: Listener,
    start_ray: Callable[[], None] = lambda: None, max_failed: float = MAX_FAILED, others: OtherRuns | None = None,
) -> SearchResult:  # fmt: skip
    """Run a search that was checked (``check_search``), or go on with one, in the folder ``out``.

    Args:
        agent_workers, start_ray: as for ``panning.agents.train_agent``.
        max_failed, others: as for ``JobStore``.

    Raises:
        ConfigError: if the folder holds another search, or was begun with other data.
        OutputError: if another process writes there.
        JobError: if too many trials failed, or no candidate is left.
    """
    with sole_writer(out):
        where = Where(executor, agent_workers, start_ray)
        return Search(ready, out, JobStore(out, max_failed, others), where, listen).run()


def check_search(config: SearchConfig) -> Ready:
    """Raise what is wrong with a search's data, model or densities before anything is started or written."""
    task = check_task(config.task, config.seeds[0], config.source, config.densities)
    if config.order == "free":
        check_max_cost(config, len(task.data.train))
        lane_of(config, config.densities[0], len(task.data.train))  # its samplers may need packages
    if config.agent.policy is None:
        return Ready(config, None, len(task.data.train))
    policy = load_policy(config.agent.policy)
    if (policy.spec, policy.n_rounds) != (config.agent.action, config.agent.n_rounds):
        raise PolicyError(
            f"{config.agent.policy} was made for other actions:\n"
            f"  file   {policy.spec}, {policy.n_rounds} rounds\n"
            f"  config {config.agent.action}, {config.agent.n_rounds} rounds"
        )
    return Ready(config, located(config.agent.policy).read_bytes(), len(task.data.train))


def _winner(cell: RunRecord, images: int) -> NamedCell:
    """A winner's cell as tables show it, with the images that the search for it was trained on."""
    metrics = {**cell.metrics, "search_images": images}
    return NamedCell(cell.key, cell.kind, cell.config, metrics, cell.environment, name=CHOSEN)
