"""Candidates in free order: asked for, tried and promoted in one stream over all densities (``panning.searches.asking``)."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Hashable
from typing import Any

from panning.foundation.errors import ConfigError, JobError, PanningWarning
from panning.foundation.progress import Event
from panning.foundation.seeding import derive_seed
from panning.foundation.stopping import check_stop
from panning.jobs.outcome import PruneOutcome
from panning.jobs.store import job_event, running_event
from panning.jobs.watch import Running, Watch, watched
from panning.jobs.ways import Way
from panning.jobs.work import Job
from panning.searches.asking import Asking
from panning.searches.candidates import is_sampled, named, plain, replay_of
from panning.searches.config import SearchConfig
from panning.searches.journal import FILE, Journal
from panning.searches.lanes import Allowed, Candidate, Dropped, Lane, Steps, Trial
from panning.searches.plan import TRYING, expected_steps, prices_of
from panning.searches.samplers import SAMPLERS, Result, Sampler, Setting
from panning.searches.trials import Trials, Verdict, identity_of

#: Why no new candidate was asked for -> in words.
ENDED = {
    "samplers": "the samplers had no more",
    "max_trials": "more were not allowed (max_trials)",
    "max_cost": "more would have cost too much (max_cost)",
    "budget": "the time was over (budget)",
    "vain": "no new mask was found any more",
}

#: Why a mask is not tried.
NO_PATH = "its mask leaves no path through the network; keep more weights"


class FreeOrder:
    """The stage between the agent and the winners. It goes on where the journal of the folder ends.

    Args:
        n_train: images of the training part.
        began: when this call of the search began, in ``time.monotonic`` seconds.
    """

    def __init__(self, trials: Trials, n_train: int, began: float) -> None:
        self.trials = trials
        self.config = trials.config
        self.n_train = n_train
        self.journal = Journal(trials.store.out, began)
        lanes = [lane_of(self.config, density, n_train) for density in self.config.densities]
        self.asking = Asking(
            lanes, self._steps, trials.store.get, self.journal, is_late=self._is_late, judged=self._heard
        )
        self._seen: dict[float, dict[Hashable, int]] = defaultdict(dict)
        self._best: dict[float, tuple[int, int]] = {}

    def winners(self) -> dict[float, Way]:
        """The best candidate of each density."""
        store, asking, expected = self.trials.store, self.asking, expected_steps(self.config, self.n_train)

        ended = store.outcomes(asking.jobs(list(self.journal)), self.trials.executor)
        self.trials.listen(Event(TRYING, asking.n_told, max(expected, asking.n_told)))

        def total() -> int:
            return max(expected, asking.n_told + asking.n_open)

        def heard(running: Running) -> None:
            more = self._facts_of(running.job)
            self.trials.listen(running_event(TRYING, asking.n_told, total(), running, **more))

        try:
            with watched(Watch(heard, asking.is_wanted)):
                for job, outcome in ended:
                    asking.tell(job, outcome)
                    self.trials.listen(job_event(TRYING, asking.n_told, total(), job, outcome))
                    check_stop()
        finally:
            store.index()
        self.trials.listen(Event(TRYING, asking.n_told, asking.n_told))
        if asking.n_passed_over:
            warnings.warn(
                f"{asking.n_passed_over} lines of {store.out / FILE} do not fit what is there now, as after trials were let "
                "run again, or with samplers of another version; results hold, what is tried next may be another.",
                PanningWarning,
                stacklevel=2,
            )
        return {lane.density: self._winner(lane) for lane in asking.lanes.values()}

    @property
    def sentences(self) -> list[str]:
        """How many candidates were tried at each density, and what ended the asking."""
        return [
            f"At density {lane.density:g}, candidates tried: {len(lane.candidates)}; {ENDED[lane.closed]}{_withdrawn(lane)}."
            for lane in self.asking.lanes.values()
            if lane.closed is not None
        ]

    def _facts_of(self, job: Job[Any]) -> dict[str, Any]:
        """The candidate and rung that a job is for."""
        if (found := self.asking.waits_for(job)) is None:
            return {}
        lane, trial = found
        return {"item": trial.candidate.way.label, "density": lane.density, "rung": trial.rung}

    # --- trials ---

    def _steps(self, lane: Lane, candidate: Candidate, number: int) -> Steps:
        """What a candidate asks for in a rung; in the first, whether it is one comes before anything is trained."""
        trials, rung = self.trials, self.config.rungs[number - 1]
        density, seeds = lane.density, self.config.seeds[: rung.n_seeds]
        pruned: list[PruneOutcome] = []
        if number == 1:
            candidate.way = named(candidate.asked, candidate.sampler)
            if is_sampled(candidate.way):
                (sampled,) = yield [trials.prune_job(density, plain(candidate.way), seeds[0])]
                if sampled.error is not None:
                    return Dropped(sampled.error)
                candidate.way = replay_of(candidate.way, sampled.actions)
            (first,) = yield [trials.prune_job(density, candidate.way, seeds[0])]
            candidate.actions = first.actions
            if (identity := identity_of(candidate.way, first)) is None:
                return Dropped(first.error or NO_PATH)
            if (same := self._seen[density].setdefault(identity, candidate.number)) != candidate.number:
                return Dropped(f"its mask is that of {lane.candidates[same].way.label}", is_repeated=True)
            pruned.append(first)
        if others := [trials.prune_job(density, candidate.way, seed) for seed in seeds[len(pruned) :]]:
            pruned += yield others
        jobs = [
            trials.train_job(candidate.way, seed, made.mask, rung.recipe) if made.mask is not None else None
            for seed, made in zip(seeds, pruned, strict=True)
        ]
        if any(job is None for job in jobs):
            return Verdict.failed(*(made.error for made in pruned))
        trained = yield [job for job in jobs if job is not None]
        return Verdict.of(list(zip(pruned, trained, strict=True)), self.config.cost_weight)

    def _heard(self, lane: Lane, trial: Trial, said: Verdict | Dropped) -> None:
        """Tell what was judged, and leave the best masks so far on disk."""
        if not isinstance(said, Verdict):
            return
        self.trials.tell_rung(trial.rung, lane.density, [said.entry(trial.candidate.way)])
        best = lane.ladder.best
        if self.trials.has_ended:  # its masks stay those of its result until there is another
            return
        if best is not None and self._best.get(lane.density) != best:
            self._best[lane.density] = best
            way = lane.candidates[best[0]].way
            seeds = self.config.seeds[: self.config.rungs[best[1] - 1].n_seeds]
            made = {seed: self.trials.store.get(self.trials.prune_job(lane.density, way, seed)) for seed in seeds}
            self.trials.write_choice(lane.density, {seed: one.mask for seed, one in made.items() if one is not None})

    def _winner(self, lane: Lane) -> Way:
        """The best candidate of a density; what was tried there goes into the result."""
        self.trials.images[lane.density] = lane.paid
        if (best := lane.ladder.best) is None:
            raise JobError(
                f"No candidate of {len(lane.candidates)} could be judged at density {lane.density:g}: "
                f"{'; '.join(sorted(lane.reasons))[:500]}"
            )
        for height, rung in enumerate(lane.ladder.rungs, start=1):
            for number, verdict in rung.ranked():
                kept = number in rung.promoted or (number, height) == best
                entry = verdict.entry(lane.candidates[number].way, kept)
                sampler = lane.candidates[number].sampler
                self.trials.rungs.append({"density": lane.density, "rung": height, "sampler": sampler, **entry})
        return lane.candidates[best[0]].way

    def _is_late(self) -> bool:
        return self.config.budget_s is not None and self.journal.spent_s >= self.config.budget_s


def _withdrawn(lane: Lane) -> str:
    """What is said of the trials that were withdrawn as the time was over."""
    n = len(lane.running)
    return f"; {n} trial{'s were' if n > 1 else ' was'} withdrawn" if n else ""


def lane_of(config: SearchConfig, density: float, n_train: int) -> Lane:
    """A density before anything was asked for."""
    samplers: dict[str, Sampler] = {}
    for number, part in enumerate(config.samplers):
        setting = Setting(
            density, config.agent, config.baselines, config.n_samples,
            seed=derive_seed(part.seed, "sampler", number, f"{density!r}"), per_round=part.per_round,
        )  # fmt: skip
        made = SAMPLERS[part.name].make(setting)
        samplers[part.name if part.name not in samplers else f"{part.name} {number}"] = (
            made if part.n is None else AtMost(made, part.n)
        )
    share = {} if config.max_cost is None else {"images": config.max_cost * n_train / len(config.densities)}
    allowed = Allowed(prices_of(config, n_train), n_train, config.max_trials, **share)
    return Lane(density, samplers, [float(rung.keep) for rung in config.rungs[:-1]], allowed)


def check_max_cost(config: SearchConfig, n_train: int) -> None:
    """Raise ConfigError if a search may not pay for one candidate."""
    least = len(config.densities) * sum(prices_of(config, n_train)) / n_train
    if config.max_cost is not None and config.max_cost < least:
        raise ConfigError(
            f"max_cost is {config.max_cost:g}, but one candidate of each density through all rungs costs up to {least:g} "
            "dense epochs: give more, or fewer densities, seeds or epochs in the rungs."
        )


class AtMost(Sampler):
    """A sampler that is asked so often and not more."""

    def __init__(self, sampler: Sampler, n: int) -> None:
        self._sampler = sampler
        self._left = n

    def ask(self) -> Way | None:
        self._left -= 1
        return self._sampler.ask() if self._left >= 0 else None

    def tell(self, result: Result) -> None:
        self._sampler.tell(result)
