"""One search from the agent to the table, resumable at every job.

1. The agent is trained, on networks of other seeds (or a policy file is read).
2. Every candidate prunes the first seed's network; dead networks go out.
3. Rungs of short trainings, judged on the validation part, leave one winner for each density.
4. The winner, the agent, the baselines and the dense network are cells of a benchmark on every seed; only now is the test
   part read.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from panning import agents
from panning.compare.cells import CHOSEN, NamedCell
from panning.compare.grid import GridTask, Group
from panning.compare.run import check_task
from panning.compare.told import with_rows
from panning.episode.policy_net import load_policy
from panning.foundation.config import dump_config
from panning.foundation.errors import JobError, PolicyError
from panning.foundation.files import claim_folder, sole_writer, write_atomic
from panning.foundation.progress import Event, Listener, plan_event
from panning.foundation.records import RunRecord
from panning.jobs.begun import check_begun_alike
from panning.jobs.executor import Executor
from panning.jobs.outcome import PruneOutcome, TrainOutcome
from panning.jobs.runs import chosen_mask
from panning.jobs.spec import PruneSpec, TrainSpec, digest
from panning.jobs.store import MAX_FAILED, JobStore
from panning.jobs.ways import Way
from panning.jobs.work import Job
from panning.masks.file import parse_masks
from panning.searches.candidates import agent_itself, fixed_candidates, replay_candidates, sample_of
from panning.searches.config import Rung, SearchConfig
from panning.searches.plan import search_stages
from panning.training import Recipe

Candidates = dict[float, list[Way]]
#: Density, way, seed.
Network = tuple[float, Way, int]


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
    """

    config: SearchConfig
    winners: dict[float, Way]
    rungs: list[dict[str, Any]]
    cells: list[RunRecord]
    agent_images: int
    search_images: int
    n_train: int


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
        self.executor = where.executor
        self._listen = listen
        self._last = Event(self.config.name, 0, 0)
        self.rung_log: list[dict[str, Any]] = []
        self.images: dict[float, dict[str, int]] = defaultdict(dict)  # density -> job -> images trained on
        self.policy = b""  # the agent's file, once there is one

    def run(self) -> SearchResult:
        config = self.config
        claim_folder(self.out, config.identity(self.ready.policy))
        check_begun_alike(self.out, config.task, config.source)
        write_atomic(self.out / "config.yaml", dump_config(config))
        self.listen(plan_event(config.name, search_stages(config)))
        self.policy, agent_images = self._agent()
        candidates = self._candidates()
        for number, rung in enumerate(config.rungs, start=1):
            candidates = self._rung(number, rung, candidates)
        winners = {density: left[0] for density, left in candidates.items()}
        self._save_winners_masks(winners)
        cells = self._final(winners, agent_images)
        return SearchResult(
            config, winners, self.rung_log, cells, agent_images, sum(map(self._images_at, winners)), self.ready.n_train
        )

    def listen(self, event: Event) -> None:
        """Tell an event, and know the last."""
        self._last = event
        self._listen(event)

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

    def _candidates(self) -> Candidates:
        """For each density, all candidates that leave a path through the first seed's network, without duplicates."""
        config, seed = self.config, self.config.seeds[0]
        samples = [sample_of(config.agent, number) for number in range(config.n_samples)]
        sampled = self._prune("sampling the agent", [(d, way, seed) for d in config.densities for way in samples])
        found = {density: fixed_candidates(config.agent, config.baselines) for density in config.densities}
        for (density, _, _), outcome in sampled.items():
            if outcome.error is None:
                found[density] += replay_candidates(config.agent, outcome.actions)
        networks = [(density, way, seed) for density, ways in found.items() for way in ways]
        pruned = self._prune("pruning with every candidate", networks)
        return {density: _distinct(density, [(way, pruned[density, way, seed]) for way in found[density]])
                for density in config.densities}  # fmt: skip

    def _rung(self, number: int, rung: Rung, candidates: Candidates) -> Candidates:
        """Train every candidate shortly; keep the best of each density by mean validation accuracy less cost."""
        seeds = self.config.seeds[: rung.n_seeds]
        networks = [(d, way, seed) for d, left in candidates.items() for way in left for seed in seeds]
        pruned = self._prune(f"rung {number}: pruning", networks)
        trained = self._train(f"rung {number}: short trainings", pruned, rung.recipe)
        kept: Candidates = {}
        for density, left in candidates.items():
            scored = []
            for way in left:
                both = [(pruned[density, way, seed], trained.get((density, way, seed))) for seed in seeds]
                scored.append((way, _Verdict.of(both, self.config.cost_weight)))
            scored.sort(key=lambda pair: pair[1].rank, reverse=True)  # stable: candidates come in a fixed order
            if not math.isfinite(scored[0][1].rank[0]):
                reasons = {t.error for (d, _, _), t in trained.items() if d == density and t.error is not None}
                raise JobError(
                    f"Every candidate failed in rung {number} at density {density:g}: {'; '.join(sorted(reasons))[:500]}"
                )
            kept[density] = [way for way, _ in scored[: rung.keep]]
            judged = [
                {"candidate": way.label, "accuracy": verdict.accuracy, "compute_left": verdict.compute_left,
                 "kept": i < rung.keep}
                for i, (way, verdict) in enumerate(scored)
            ]  # fmt: skip
            self.rung_log += [{"density": density, "rung": number, **entry} for entry in judged]
            facts = {"rung": number, "density": density, "candidates": judged}
            self.listen(replace(self._last, kind="rung", facts=facts))
        return kept

    def _save_winners_masks(self, winners: dict[float, Way]) -> None:
        networks = [(density, way, seed) for density, way in winners.items() for seed in self.config.seeds]
        for (density, _, seed), outcome in self._prune("pruning with the winners", networks).items():
            if outcome.mask is not None:
                write_atomic(chosen_mask(self.out, density, seed), outcome.mask)

    def _final(self, winners: dict[float, Way], agent_images: int) -> list[RunRecord]:
        """The comparison on the test part: winner, agent, baselines, dense; the same recipe and seeds for all."""
        ways = [agent_itself(self.config.agent), *(Way(by=method) for method in self.config.baselines)]
        others = [self._group(), *(self._group(way, d) for d in self.config.densities for way in ways)]
        best = [self._group(way, density) for density, way in winners.items()]
        jobs = {group: group.jobs(self.config.recipe, test=True) for group in (*others, *best)}
        every = [job for of_group in jobs.values() for job in of_group]
        listen = with_rows(self.listen, jobs.items(), self.store.records)
        self.store.run(every, self.executor, listen, "training every method in full")
        cells = [self.store.records[job.key] for group in others for job in jobs[group]]
        for group in best:
            images = agent_images + self._images_at(group.density)
            cells += [_winner(self.store.records[job.key], images) for job in jobs[group]]
        return cells

    def _images_at(self, density: float) -> int:
        """What the rungs of a density were trained on; a training that two of them share counts once."""
        return sum(self.images[density].values())

    # --- jobs ---

    def _group(self, way: Way = Way(), density: float = 1.0) -> Group:  # noqa: B008
        config = self.config
        task = GridTask(task=config.task, recipe=config.recipe)
        return Group(task, config.seeds, config.source, way, density, self._policy_of(way))

    def _prune(self, stage: str, networks: Sequence[Network]) -> dict[Network, PruneOutcome]:
        jobs = {network: self._prune_job(*network) for network in networks}
        outcomes = self.store.run(list(jobs.values()), self.executor, self.listen, stage)
        return {network: outcomes[job.key] for network, job in jobs.items()}

    def _policy_of(self, way: Way) -> bytes | None:
        return self.policy if way.needs_policy else None

    def _prune_job(self, density: float, way: Way, seed: int) -> Job[PruneOutcome]:
        policy = self._policy_of(way)
        spec = PruneSpec(
            task=self.config.task, seed=seed, density=density, by=way.by, all_alive=way.all_alive, policy=digest(policy)
        )
        return Job(spec, self.config.source, policy)

    def _train(self, stage: str, pruned: dict[Network, PruneOutcome], recipe: Recipe) -> dict[Network, TrainOutcome]:
        jobs = {}
        for network, outcome in pruned.items():
            if (mask := outcome.mask) is not None:
                its = recipe.model_copy(update={"start": None}) if network[1].chooses_start else recipe
                spec = TrainSpec(task=self.config.task, seed=network[2], mask=digest(mask), recipe=its)
                jobs[network] = Job(spec, self.config.source, mask)
        outcomes = self.store.run(list(jobs.values()), self.executor, self.listen, stage)
        for network, job in jobs.items():
            self.images[network[0]][job.key] = outcomes[job.key].images_seen
        return {network: outcomes[job.key] for network, job in jobs.items()}


def run_search(
    ready: Ready, out: Path, executor: Executor, *, agent_workers: int, listen: Listener,
    start_ray: Callable[[], None] = lambda: None, max_failed: float = MAX_FAILED,
) -> SearchResult:  # fmt: skip
    """Run a search that was checked (``check_search``), or go on with one, in the folder ``out``.

    Args:
        agent_workers, start_ray: as for ``panning.agents.train_agent``.
        max_failed: as for ``JobStore``.

    Raises:
        ConfigError: if the folder holds another search, or was begun with other data.
        OutputError: if another process writes there.
        JobError: if too many trials failed, or no candidate is left.
    """
    with sole_writer(out):
        where = Where(executor, agent_workers, start_ray)
        return Search(ready, out, JobStore(out, max_failed), where, listen).run()


def check_search(config: SearchConfig) -> Ready:
    """Raise what is wrong with a search's data, model or densities before anything is started or written."""
    task = check_task(config.task, config.seeds[0], config.source, config.densities)
    if config.agent.policy is None:
        return Ready(config, None, len(task.data.train))
    policy = load_policy(config.agent.policy)
    if (policy.spec, policy.n_rounds) != (config.agent.action, config.agent.n_rounds):
        raise PolicyError(
            f"{config.agent.policy} was made for other actions:\n"
            f"  file   {policy.spec}, {policy.n_rounds} rounds\n"
            f"  config {config.agent.action}, {config.agent.n_rounds} rounds"
        )
    return Ready(config, Path(config.agent.policy).read_bytes(), len(task.data.train))


def _distinct(density: float, tried: Iterable[tuple[Way, PruneOutcome]]) -> list[Way]:
    """Candidates whose masks leave a path through the network, one a mask and start."""
    found: dict[tuple[bytes, Any], Way] = {}
    for way, outcome in tried:
        if outcome.mask is not None and outcome.effective_density > 0:
            masks = parse_masks(outcome.mask, "a candidate's mask")  # without what else its manifest says of its maker
            start = masks.manifest.get("start") if way.chooses_start else None
            found.setdefault((masks.flat.numpy().tobytes(), start), way)
    if not found:
        raise JobError(f"No candidate leaves a path through the network at density {density:g}; keep more weights.")
    return list(found.values())


def _winner(cell: RunRecord, images: int) -> NamedCell:
    """A winner's cell as tables show it, with the images that the search for it was trained on."""
    metrics = {**cell.metrics, "search_images": images}
    return NamedCell(cell.key, cell.kind, cell.config, metrics, cell.environment, name=CHOSEN)


@dataclass(frozen=True)
class _Verdict:
    """What a rung says of a candidate: means over its seeds, and what it is ranked by, accuracy less cost, then loss."""

    accuracy: float
    compute_left: float
    rank: tuple[float, float]

    @classmethod
    def of(cls, both: list[tuple[PruneOutcome, TrainOutcome | None]], cost_weight: float) -> _Verdict:
        """The verdict on a candidate that was pruned and trained on each seed, if it could be."""
        trained = [training for _, training in both if training is not None and training.error is None]
        if len(trained) < len(both):
            return cls(0.0, 1.0, (float("-inf"), float("-inf")))
        accuracy = statistics.fmean(training.accuracy for training in trained)
        left = statistics.fmean(pruned.compute_left for pruned, _ in both)
        return cls(accuracy, left, (accuracy - cost_weight * left, -statistics.fmean(one.loss for one in trained)))
