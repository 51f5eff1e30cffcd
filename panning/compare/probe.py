"""Can the best choice be read from what is seen of the network? A linear probe with a case, or a network, left out.

For a lever, a ridge regression tells from a case's observations the gain of each level, in standard deviations between the
case's combinations. The level with the largest told gain is taken in the case that was left out, and its real gain there
stands beside two others: that of the level which is best over the other cases, whatever is seen, and that of the case's own
best level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from panning.compare.levers import Level, Study, all_levels
from panning.compare.statistics import interval
from panning.compare.variance import Estimate
from panning.foundation.extras import extra_packages

Array = NDArray[Any]
#: Strengths of the ridge, of which leaving single cases out chooses.
STRENGTHS = tuple(10.0**exponent for exponent in range(-2, 4))
#: What the combinations themselves are called, whose best is chosen as the best level of a lever is.
WHOLE = "whole combination"
FEWEST = 4


@dataclass(frozen=True)
class Probe:
    """How well the best level of one lever is foreseen. Gains are means over cases, accuracies.

    Attributes:
        left_out: "case" or "network".
        own: gain of the case's own best level.
        fixed: of the one that is best over the others.
        probed: of the one that the probe takes.
        more: probed minus fixed, with its interval over what is left out.
        n: cases.
    """

    lever: str
    left_out: str
    own: float
    fixed: float
    probed: float
    more: Estimate
    n: int

    def as_json(self) -> dict[str, Any]:
        """Everything, unrounded."""
        more = {name: None if np.isnan(value) else value for name, value in vars(self.more).items()}
        return {**vars(self), "more": more}


@dataclass(frozen=True)
class Tie:
    """The observation that goes most with the gain of a level over cases.

    Attributes:
        rank_correlation: Spearman's.
    """

    lever: str
    level: Level
    observation: str
    rank_correlation: float
    n: int


def probes(found: Sequence[Study]) -> list[Probe]:
    """The probe of each lever, and of whole combinations, over the cases that have observations and all its levels.

    There is none of fewer than four cases, and none by network of fewer than three networks.
    """
    tables = {lever: _gains_of(found, lever, levels) for lever, levels in all_levels([s.case for s in found]).items()}
    tables[WHOLE] = _combinations(found)
    made = []
    for lever, (some, gains) in tables.items():
        if len(some) < FEWEST or gains.shape[1] < 2:
            continue
        seen, spreads = _observations(some), np.array([study.case.spread for study in some])
        networks = [study.case.network for study in some]
        made.append(_probe(lever, "case", gains, spreads, seen, list(range(len(some)))))
        if len(set(networks)) > 2:
            numbers = {network: i for i, network in enumerate(dict.fromkeys(networks))}
            made.append(_probe(lever, "network", gains, spreads, seen, [numbers[network] for network in networks]))
    return made


def ties(found: Sequence[Study]) -> list[Tie]:
    """For each level the observation that its gain goes with most, over the cases that have both."""
    made = []
    for lever, levels in all_levels([study.case for study in found]).items():
        some, gains = _gains_of(found, lever, levels)
        if len(some) < FEWEST:
            continue
        spreads = np.array([study.case.spread for study in some])
        for j, level in enumerate(levels):
            correlations = {
                name: _rank_correlation([study.case.seen[name] for study in some], gains[:, j] / spreads)
                for name in some[0].case.seen
            }
            if correlations:
                name = max(correlations, key=lambda name: abs(correlations[name]))
                made.append(Tie(lever, level, name, correlations[name], len(some)))
    return made


def _gains_of(found: Sequence[Study], lever: str, levels: Sequence[Level]) -> tuple[list[Study], Array]:
    """The cases with observations and all levels of a lever, and their gains [cases, levels]."""
    some = [study for study in found if _can_be_probed(study) and set(study.gains.get(lever, ())) == set(levels)]
    return some, np.array([[study.gains[lever][level].value for level in levels] for study in some])


def _combinations(found: Sequence[Study]) -> tuple[list[Study], Array]:
    """The same of the combinations that all cases have, their gains as they were found."""
    some = [study for study in found if _can_be_probed(study)]
    common = sorted(set.intersection(*(set(study.case.labels) for study in some))) if some else []
    places = [[study.case.labels.index(label) for label in common] for study in some]
    means = [study.case.means[place] for study, place in zip(some, places, strict=True)]
    return some, np.array([mean - mean.mean() for mean in means]) if common else np.zeros((len(some), 0))


def _can_be_probed(study: Study) -> bool:
    return bool(study.case.seen) and study.case.spread > 0


def _observations(some: Sequence[Study]) -> Array:
    """[cases, observations that all have]."""
    names = sorted(set.intersection(*(set(study.case.seen) for study in some)))
    return np.array([[study.case.seen[name] for name in names] for study in some])


def _probe(lever: str, left_out: str, gains: Array, spreads: Array, seen: Array, groups: Sequence[int]) -> Probe:
    own, fixed, probed = gains.max(1), np.zeros(len(gains)), np.zeros(len(gains))
    of = np.array(groups)
    for group in set(groups):
        there, others = of == group, of != group
        scaled = gains[others] / spreads[others, None]
        fixed[there] = gains[there, scaled.mean(0).argmax()]
        told = _told(seen[others], scaled, seen[there])
        probed[there] = gains[there][np.arange(there.sum()), told.argmax(1)]
    more = np.array([(probed - fixed)[of == group].mean() for group in sorted(set(groups))])
    return Probe(
        lever, left_out, float(own.mean()), float(fixed.mean()), float(probed.mean()),
        Estimate(float(more.mean()), *interval(more)), len(gains),
    )  # fmt: skip


@extra_packages()
def _told(seen: Array, gains: Array, unseen: Array) -> Array:
    """Gains [unseen cases, levels] as a ridge regression on ``seen`` tells them."""
    from sklearn.linear_model import RidgeCV

    centre, scale = seen.mean(0), seen.std(0)
    scale = np.where(scale > 1e-9, scale, np.inf)  # what is equal in all cases tells nothing
    ridge = RidgeCV(STRENGTHS).fit((seen - centre) / scale, gains)
    return np.asarray(ridge.predict((unseen - centre) / scale)).reshape(len(unseen), -1)


@extra_packages()
def _rank_correlation(first: Sequence[float], second: Array) -> float:
    from scipy.stats import spearmanr

    if np.ptp(first) < 1e-9 or np.ptp(second) < 1e-12:
        return 0.0
    return float(spearmanr(first, second).statistic)
