"""One search from the agent to the table, resumable at every job.

1. The agent is trained, on networks of other seeds (or a policy file is read).
2. Every candidate prunes the first seed's network; dead networks go out.
3. Rungs of short trainings, judged on the validation part, leave one winner for each density.
4. The winner, the baselines and the dense network are trained in full on every seed; only now is the test part read.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from panning.agents.train import ShowRollouts, train_agent
from panning.alive.connectivity import Connectivity, report
from panning.episode.policy_net import load_policy
from panning.foundation.config import dump_config
from panning.foundation.errors import JobError, PolicyError
from panning.foundation.files import claim_folder, sole_writer, write_atomic
from panning.foundation.records import read_records
from panning.jobs.executor import Executor
from panning.jobs.store import JobStore, OnJob
from panning.jobs.work import Job, Outcome, prune_job, train_job
from panning.masks.file import parse_masks
from panning.masks.masks import n_kept_at
from panning.search.candidates import Candidate, baseline, fixed_candidates, replay_candidates, sample_by
from panning.search.config import Rung, SearchConfig
from panning.tasks import load_task, load_task_data

Advance = Callable[..., None]


class ShowProgress(Protocol):
    """Called with what is done and in how many steps; the block calls what it gets after each step."""

    def __call__(self, description: str, total: int) -> AbstractContextManager[Advance]: ...


@dataclass(frozen=True)
class Row:
    """One method at one density in the final table.

    Attributes:
        test, validation: accuracies in [0, 1], one per seed; None where the training or pruning failed.
        compute_left: the share of the dense network's multiply-adds that compaction leaves.
    """

    density: float
    method: str
    detail: str
    effective_density: list[float]
    dead_units: list[int]
    collapsed_layers: list[int]
    test: list[float | None]
    validation: list[float | None]
    compute_left: list[float]
    layer_densities: dict[str, float]
    errors: tuple[str, ...] = ()


@dataclass(frozen=True)
class SearchResult:
    """Winners, table rows, and what the search cost in images trained on, per image of the training part."""

    config: SearchConfig
    data_label: str
    winners: dict[float, Candidate]
    rungs: list[dict[str, Any]]
    rows: list[Row]
    search_epochs: float
    agent_epochs: float
    final_epochs: float


class Search:
    """A search in its folder. ``run`` goes through the stages; each asks the store for what is done already."""

    def __init__(
        self, config: SearchConfig, out: Path, executor: Executor, agent_workers: int, show: ShowProgress
    ) -> None:
        self.config = config
        self.out = out
        self.executor = executor
        self.agent_workers = agent_workers
        self.show = show
        self.store = JobStore(out)
        self.rung_log: list[dict[str, Any]] = []
        self.search_images = 0

    def run(self) -> SearchResult:
        config = self.config
        claim_folder(self.out, config.identity)
        write_atomic(self.out / "config.yaml", dump_config(config))
        data = load_task_data(config.task, config.source)
        policy, agent_images = self._agent()
        candidates = self._candidates(policy)
        for number, rung in enumerate(config.rungs):
            candidates = self._rung(number, rung, candidates, policy)
        winners = {density: left[0] for density, left in candidates.items()}
        rows, final_images = self._final(winners, policy)
        n_train = len(data.train)
        return SearchResult(
            config, data.label, winners, self.rung_log, rows, self.search_images / n_train, agent_images / n_train,
            final_images / n_train,
        )  # fmt: skip

    # --- stages ---

    def _agent(self) -> tuple[bytes, int]:
        """The policy's file, and how many images the agent's rewards were trained on."""
        part = self.config.agent
        if part.policy is not None:
            return Path(part.policy).read_bytes(), 0
        config = self.config.agent_config()
        with self.show("training the agent", config.ppo.n_rollouts) as advance:
            shown = ShowRollouts(advance)
            train_agent(config, self.out / "agent", n_workers=self.agent_workers, listen=shown)
            advance(config.ppo.n_rollouts - shown.done)
        records = read_records(self.out / "agent" / "rollouts.jsonl")
        images = sum(int(record.metrics.get("images_seen", 0)) for record in records)
        return (self.out / "agent" / "policy.safetensors").read_bytes(), images

    def _candidates(self, policy: bytes) -> dict[float, list[Candidate]]:
        """For each density, all candidates that leave a path through the first seed's network, without duplicates."""
        config, seed = self.config, self.config.seeds[0]
        samples = {
            (density, i): prune_job(
                config.task, config.source, seed, density, sample_by(config.agent, i), False, policy
            )
            for density in config.densities
            for i in range(config.n_samples)
        }
        sampled = self._work("sampling the agent", list(samples.values()))
        candidates = {density: fixed_candidates(config.agent, config.baselines) for density in config.densities}
        for (density, number), job in samples.items():
            if (outcome := sampled[job.key]).error is None:
                candidates[density] += replay_candidates(config.agent, number, outcome.metrics["actions"])
        contenders = [(density, c, seed) for density, some in candidates.items() for c in some]
        pruned = self._prune_all(contenders, policy, "pruning with every candidate")
        return {density: self._distinct(density, some, pruned) for density, some in candidates.items()}

    def _distinct(
        self, density: float, candidates: list[Candidate], pruned: dict[tuple[float, str, int], Outcome]
    ) -> list[Candidate]:
        by_mask: dict[bytes, Candidate] = {}
        for candidate in candidates:
            outcome = pruned[density, candidate.key, self.config.seeds[0]]
            if outcome.mask is not None and outcome.metrics["effective_density"] > 0:
                by_mask.setdefault(_mask_bits(outcome.mask), candidate)
        if not by_mask:
            raise JobError(f"No candidate leaves a path through the network at density {density:g}; keep more weights.")
        return list(by_mask.values())

    def _rung(
        self, number: int, rung: Rung, candidates: dict[float, list[Candidate]], policy: bytes
    ) -> dict[float, list[Candidate]]:
        """Train every candidate shortly; keep the best of each density by mean validation accuracy less cost."""
        seeds = self.config.seeds[: rung.n_seeds]
        pruned = self._prune_all([(d, c, s) for d, left in candidates.items() for c in left for s in seeds], policy,
                                 f"rung {number + 1}: pruning")  # fmt: skip
        trainings = {
            key: self._train(key[2], outcome, rung.recipe) for key, outcome in pruned.items() if outcome.error is None
        }
        outcomes = self._work(f"rung {number + 1}: short trainings", list(trainings.values()))
        self.search_images += sum(int(o.metrics.get("images_seen", 0)) for o in outcomes.values())
        kept: dict[float, list[Candidate]] = {}
        for density, left in candidates.items():
            scored = []
            for candidate in left:
                keys = [(density, candidate.key, seed) for seed in seeds]
                trained = [outcomes[trainings[key].key] if key in trainings else None for key in keys]
                scored.append((candidate, _Verdict.of([pruned[key] for key in keys], trained, self.config.cost_weight)))
            scored.sort(key=lambda pair: pair[1].rank, reverse=True)  # stable: candidates come in a fixed order
            kept[density] = [candidate for candidate, _ in scored[: rung.keep]]
            self.rung_log += [
                {"density": density, "rung": number + 1, "candidate": c.name, "accuracy": v.accuracy,
                 "compute_left": v.compute_left, "kept": i < rung.keep}
                for i, (c, v) in enumerate(scored)
            ]  # fmt: skip
        return kept

    def _final(self, winners: dict[float, Candidate], policy: bytes) -> tuple[list[Row], int]:
        """The comparison on the test part: winner, baselines, dense; the same recipe and seeds for all."""
        config = self.config
        baselines = [baseline(name) for name in config.baselines]
        contenders = [(d, c, s) for d in config.densities for c in (winners[d], *baselines) for s in config.seeds]
        pruned = self._prune_all(contenders, policy, "pruning with every method")
        trainings = {
            key: self._train(key[2], outcome, config.recipe, test=True)
            for key, outcome in pruned.items()
            if outcome.error is None
        }
        dense = {s: train_job(config.task, config.source, s, None, config.recipe, test=True) for s in config.seeds}
        outcomes = self._work("training every method in full", [*dense.values(), *trainings.values()])
        rows = []
        for density in config.densities:
            for candidate in (winners[density], *baselines):
                is_winner = candidate is winners[density]
                keys = [(density, candidate.key, seed) for seed in config.seeds]
                rows.append(
                    _row(
                        density,
                        "panning" if is_winner else candidate.name,
                        candidate.name if is_winner else "",
                        [pruned[key] for key in keys],
                        [outcomes[trainings[key].key] if key in trainings else None for key in keys],
                    )  # fmt: skip
                )
            self._save_winner_masks(density, [pruned[density, winners[density].key, seed] for seed in config.seeds])
        problem = load_task(config.task, config.seeds[0], config.source).problem
        facts = report(Connectivity.of(problem), torch.ones_like(problem.weight, dtype=torch.bool))
        whole = Outcome({**facts.facts(), "compute_left": 1.0, "layer_densities": []})
        rows.append(_row(1.0, "dense", "", [whole for _ in config.seeds], [outcomes[j.key] for j in dense.values()]))
        images = sum(int(outcome.metrics.get("images_seen", 0)) for outcome in outcomes.values())
        return rows, images

    # --- jobs ---

    def _prune(self, candidate: Candidate, seed: int, density: float, policy: bytes) -> Job:
        attachment = policy if candidate.by.get("policy") == "agent" else None
        config = self.config
        return prune_job(config.task, config.source, seed, density, candidate.by, candidate.all_alive, attachment)

    def _prune_all(
        self, contenders: Sequence[tuple[float, Candidate, int]], policy: bytes, description: str
    ) -> dict[tuple[float, str, int], Outcome]:
        jobs = {(d, c.key, s): self._prune(c, s, d, policy) for d, c, s in contenders}
        outcomes = self._work(description, list(jobs.values()))
        return {key: outcomes[job.key] for key, job in jobs.items()}

    def _train(self, seed: int, pruned: Outcome, recipe: Any, test: bool = False) -> Job:
        return train_job(self.config.task, self.config.source, seed, pruned.mask, recipe, test)

    def _work(self, description: str, jobs: list[Job]) -> dict[str, Outcome]:
        with self.show(description, len({job.key for job in jobs})) as advance:
            on_job: OnJob = lambda job, outcome: advance(1)  # noqa: E731
            return self.store.run(jobs, self.executor, on_job)

    def _save_winner_masks(self, density: float, outcomes: list[Outcome]) -> None:
        for seed, outcome in zip(self.config.seeds, outcomes, strict=True):
            if outcome.mask is not None:
                write_atomic(self.out / f"panning-density{density:g}-seed{seed}.safetensors", outcome.mask)


def run_search(
    config: SearchConfig, out: Path, executor: Executor, *, agent_workers: int, show: ShowProgress
) -> SearchResult:
    """Run a search, or go on with one, in the folder ``out``.

    Raises:
        ConfigError: if the folder holds another search.
        OutputError: if another process writes there.
    """
    check_search(config)
    with sole_writer(out):
        return Search(config, out, executor, agent_workers, show).run()


def check_search(config: SearchConfig) -> None:
    """Raise what is wrong with a search's data, model or densities before anything is started or written."""
    problem = load_task(config.task, config.seeds[0], config.source).problem
    connectivity = Connectivity.of(problem)
    for density in config.densities:
        connectivity.check_reachable(n_kept_at(density, problem.layout.n_prunable))
    if config.agent.policy is not None:
        policy = load_policy(config.agent.policy)
        if (policy.spec, policy.n_rounds) != (config.agent.action, config.agent.n_rounds):
            raise PolicyError(
                f"{config.agent.policy} was made for other actions:\n"
                f"  file   {policy.spec}, {policy.n_rounds} rounds\n"
                f"  config {config.agent.action}, {config.agent.n_rounds} rounds"
            )


def _mask_bits(mask: bytes) -> bytes:
    """The mask itself, without the manifest that says who made it."""
    return parse_masks(mask, "a candidate's mask").flat.numpy().tobytes()


@dataclass(frozen=True)
class _Verdict:
    """What a rung says of a candidate: means over its seeds, and what it is ranked by, accuracy less cost, then loss."""

    accuracy: float
    compute_left: float
    rank: tuple[float, float]

    @classmethod
    def of(cls, pruned: list[Outcome], trained: list[Outcome | None], cost_weight: float) -> _Verdict:
        good = [run.metrics for run in trained if run is not None and run.error is None]
        if len(good) < len(trained):
            return cls(0.0, 1.0, (float("-inf"), float("-inf")))
        accuracy = statistics.fmean(m["accuracy"] for m in good)
        left = statistics.fmean(p.metrics["compute_left"] for p in pruned)
        return cls(accuracy, left, (accuracy - cost_weight * left, -statistics.fmean(m["loss"] for m in good)))


def _row(density: float, method: str, detail: str, pruned: list[Outcome], trained: list[Outcome | None]) -> Row:
    def accuracy(name: str) -> list[float | None]:
        return [None if t is None or t.error is not None else float(t.metrics[name]) for t in trained]

    errors = [o.error for o in [*pruned, *(t for t in trained if t is not None)] if o.error is not None]
    layers = dict(next((p.metrics["layer_densities"] for p in pruned if p.error is None), []))
    return Row(
        density, method, detail,
        [float(p.metrics["effective_density"]) for p in pruned if p.error is None],
        [int(p.metrics["n_dead_units"]) for p in pruned if p.error is None],
        [len(p.metrics["collapsed_layers"]) for p in pruned if p.error is None],
        accuracy("test_accuracy"), accuracy("accuracy"),
        [float(p.metrics["compute_left"]) for p in pruned if p.error is None], layers, tuple(dict.fromkeys(errors)),
    )  # fmt: skip
