"""Candidates in fixed order: all of them first, then rung by rung, each when the one before it has ended.

Successive halving (Jamieson & Talwalkar 2016).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence

from panning.foundation.errors import JobError
from panning.jobs.outcome import PruneOutcome, TrainOutcome
from panning.jobs.ways import Way
from panning.searches.candidates import fixed_candidates, replay_candidates, sample_of
from panning.searches.config import Rung
from panning.searches.trials import Network, Trials, Verdict, identity_of
from panning.training import Recipe

Candidates = dict[float, list[Way]]


class FixedOrder:
    """The stages between the agent and the winners; each asks the store for what is done already."""

    sentences: Sequence[str] = ()  # its config says all

    def __init__(self, trials: Trials) -> None:
        self.trials = trials
        self.config = trials.config

    def winners(self) -> dict[float, Way]:
        """The best candidate of each density."""
        candidates = self._candidates()
        for number, rung in enumerate(self.config.rungs, start=1):
            candidates = self._rung(number, rung, candidates)
        return {density: left[0] for density, left in candidates.items()}

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
                scored.append((way, Verdict.of(both, self.config.cost_weight)))
            scored.sort(key=lambda pair: pair[1].rank, reverse=True)  # stable: candidates come in a fixed order
            if not math.isfinite(scored[0][1].rank[0]):
                reasons = {t.error for (d, _, _), t in trained.items() if d == density and t.error is not None}
                raise JobError(
                    f"Every candidate failed in rung {number} at density {density:g}: {'; '.join(sorted(reasons))[:500]}"
                )
            kept[density] = [way for way, _ in scored[: int(rung.keep)]]
            judged = [verdict.entry(way, kept=i < rung.keep) for i, (way, verdict) in enumerate(scored)]
            self.trials.rungs += [{"density": density, "rung": number, **entry} for entry in judged]
            self.trials.tell_rung(number, density, judged)
            if not self.trials.has_ended:
                masks = {seed: pruned[density, kept[density][0], seed].mask for seed in seeds}
                self.trials.write_choice(density, masks)
        return kept

    def _prune(self, stage: str, networks: Sequence[Network]) -> dict[Network, PruneOutcome]:
        trials = self.trials
        jobs = {network: trials.prune_job(*network) for network in networks}
        outcomes = trials.store.run(list(jobs.values()), trials.executor, trials.listen, stage)
        return {network: outcomes[job.key] for network, job in jobs.items()}

    def _train(self, stage: str, pruned: dict[Network, PruneOutcome], recipe: Recipe) -> dict[Network, TrainOutcome]:
        trials = self.trials
        jobs = {
            (density, way, seed): trials.train_job(way, seed, mask, recipe)
            for (density, way, seed), outcome in pruned.items()
            if (mask := outcome.mask) is not None
        }
        outcomes = trials.store.run(list(jobs.values()), trials.executor, trials.listen, stage)
        for (density, _, _), job in jobs.items():
            trials.images[density][job.key] = outcomes[job.key].images_seen
        return {network: outcomes[job.key] for network, job in jobs.items()}


def _distinct(density: float, tried: Iterable[tuple[Way, PruneOutcome]]) -> list[Way]:
    """Candidates whose masks leave a path through the network, one a mask and start."""
    found: dict[Hashable, Way] = {}
    for way, outcome in tried:
        if (identity := identity_of(way, outcome)) is not None:
            found.setdefault(identity, way)
    if not found:
        raise JobError(f"No candidate leaves a path through the network at density {density:g}; keep more weights.")
    return list(found.values())
