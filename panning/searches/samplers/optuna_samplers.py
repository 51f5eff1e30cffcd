"""Samplers of Optuna: TPE, CMA-ES, quasi-random points. They learn from the first rung, in which all are judged alike.

A network without a path through it is worth accuracy 0, and no more than the worst before it; a candidate whose mask was
tried before says nothing.
"""

from __future__ import annotations

import warnings
from collections import defaultdict, deque
from collections.abc import Callable

from panning.foundation.extras import extra_packages
from panning.jobs.ways import Way
from panning.searches.samplers.base import Result, Sampler, Setting
from panning.searches.samplers.space import Space

with extra_packages():
    import cmaes  # noqa: F401  # Optuna imports it when it first samples; said now if it is not there
    import optuna
    import scipy  # noqa: F401
    from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
    from optuna.samplers import BaseSampler, CmaEsSampler, QMCSampler, RandomSampler, TPESampler
    from optuna.trial import TrialState

#: Seeds of Optuna's samplers are of NumPy's older generators.
MAX_SEED = 2**32
#: Name -> what makes Optuna's sampler of a seed.
MADE: dict[str, Callable[[int], BaseSampler]] = {
    "tpe": lambda seed: TPESampler(seed=seed),
    "cma_es": lambda seed: CmaEsSampler(
        seed=seed, warn_independent_sampling=False, independent_sampler=RandomSampler(seed)
    ),
    "qmc": lambda seed: QMCSampler(
        qmc_type="sobol",
        scramble=True,
        seed=seed,
        independent_sampler=RandomSampler(seed),
        warn_independent_sampling=False,
    ),
}


class OfOptuna(Sampler):
    """A study in memory, which is asked and told.

    Args:
        name: of ``MADE``.
    """

    def __init__(self, setting: Setting, name: str) -> None:
        self.space = Space.of(setting)
        self._asked: dict[Way, deque[int]] = defaultdict(deque)
        said = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                sampler = MADE[name](setting.seed % MAX_SEED)
            self._study = optuna.create_study(direction="maximize", sampler=sampler)
        finally:
            optuna.logging.set_verbosity(said)
        choices = self.space.choices
        self._entries: dict[str, BaseDistribution] = {
            name: FloatDistribution(-1.0, 1.0) if choices is None else IntDistribution(0, choices[n] - 1)
            for n, name in enumerate(self.space.names)
        }

    def ask(self) -> Way | None:
        trial = self._study.ask(self._entries)
        way = self.space.way([trial.params[name] for name in self._entries])
        self._asked[way].append(trial.number)
        return way

    def tell(self, result: Result) -> None:
        if result.rung != 1 or not self._asked.get(result.way):
            return
        number = self._asked[result.way].popleft()
        if result.is_repeated:
            self._study.tell(number, state=TrialState.FAIL)
        else:
            self._study.tell(number, result.value)
