"""The names of what the speed benchmark times, and how fast and small we want it: goals, never tests.

Times are ratios to a plain pass of the same batch, measured side by side, so that they mean the same on any machine. All
goals are for one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

PASS = "pass"
STEP = "training step"
ENFORCED_STEP = "training step, mask enforced"
PASS_OF_ONE = "pass of one, float64"
SNIP = "SNIP"
SECOND_ORDER = "SNIP + GraSP + loss + gradient norm"
SYNFLOW = "SynFlow round"
ALLOCATION = "allocation"
ALIVE = "alive test"
ROUND = "environment round, first order"
ROUND_SECOND_ORDER = "environment round, second order"

#: One step of the Panning authors' released ``PruningEnv`` in their own dense forward and gradient passes, on a CPU with one
#: thread and this many samples (METHODS A11b).
AUTHORS_STEP = {"lenet5": 5.5, "resnet32x2": 4.9, "vgg19": 5.8}
AUTHORS_SAMPLES = 100


@dataclass(frozen=True)
class Figures:
    """What was measured of one model, with one number of samples and threads: item -> metrics."""

    metrics: Mapping[str, Mapping[str, Any]]

    def value(self, item: str, metric: str) -> float | None:
        """None if the item was not measured, failed, or has no such metric on this system."""
        found = self.metrics.get(item, {}).get(metric)
        return None if found is None else float(found)

    def ratio(self, item: str) -> float | None:
        """Of the item's time to its reference's."""
        return self.value(item, "ratio")

    def memory_ratio(self, item: str) -> float | None:
        """Of the item's peak memory to a training step's."""
        return quotient(self.value(item, "peak_bytes"), self.value(STEP, "peak_bytes"))


def quotient(above: float | None, below: float | None) -> float | None:
    """None where either is unknown, or there is nothing to divide by."""
    return None if above is None or not below else above / below


@dataclass(frozen=True)
class Goal:
    """A bound that a measured value should stay at or below.

    Attributes:
        bound: one for all models, or one for each that has one.
        n_samples: it holds for a batch of this size alone.
    """

    name: str
    measure: Callable[[Figures], float | None]
    bound: float | Mapping[str, float]
    n_samples: int | None = None

    def bound_for(self, model: str, n_samples: int) -> float | None:
        """None where the goal does not apply."""
        if self.n_samples not in (None, n_samples):
            return None
        return self.bound.get(model) if isinstance(self.bound, Mapping) else self.bound


def _choice_and_alive_share(figures: Figures) -> float | None:
    parts = [figures.value(ALLOCATION, "seconds"), figures.value(ALIVE, "seconds")]
    known = [part for part in parts if part is not None]
    return quotient(sum(known), figures.value(ROUND, "seconds")) if len(known) == len(parts) else None


def _gigabytes_of_a_round(figures: Figures) -> float | None:
    """Of the whole process, weights, data and Python included: that is what was measured of the authors' code."""
    peaks = [figures.value(item, "process_peak_bytes") for item in (ROUND, ROUND_SECOND_ORDER)]
    known = [peak for peak in peaks if peak is not None]
    return max(known) / 1e9 if known else None


GOALS = (
    Goal("training step with an enforced mask, in training steps", lambda f: f.ratio(ENFORCED_STEP), {"resnet20": 1.03}),
    Goal("SNIP, in passes", lambda f: f.ratio(SNIP), 1.15),
    Goal("SNIP, GraSP, loss and gradient norm, in passes", lambda f: f.ratio(SECOND_ORDER), 3.5),
    Goal("SynFlow round, in passes of one in float64", lambda f: f.ratio(SYNFLOW), 1.5),
    Goal("allocation and alive test, share of a first-order environment round", _choice_and_alive_share, 0.10),
    Goal("memory of a first-order environment round, in training steps", lambda f: f.memory_ratio(ROUND), 1.5),
    Goal(
        "memory of a second-order environment round, in training steps",
        lambda f: f.memory_ratio(ROUND_SECOND_ORDER), 1.5,
    ),
    Goal(
        "first-order environment round, in passes: a fifth of the Panning authors' step",
        lambda f: f.ratio(ROUND), {model: step / 5 for model, step in AUTHORS_STEP.items()}, AUTHORS_SAMPLES,
    ),
    Goal(
        "second-order environment round, in passes: two fifths of the Panning authors' step",
        lambda f: f.ratio(ROUND_SECOND_ORDER), {model: step / 2.5 for model, step in AUTHORS_STEP.items()},
        AUTHORS_SAMPLES,
    ),
    Goal(
        "process with an environment round, in GB (the Panning authors' has 5.3)",
        _gigabytes_of_a_round, {"vgg19": 1.5}, AUTHORS_SAMPLES,
    ),
)  # fmt: skip
