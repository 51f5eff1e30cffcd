"""Schedules: pure functions from a round to a density. Round n of n is the target exactly."""

from __future__ import annotations

from collections.abc import Callable

from panning.foundation.errors import DensityError
from panning.foundation.registry import lookup
from panning.masks.masks import check_density

Schedule = Callable[[int, int, float], float]


def exponential(round_number: int, n_rounds: int, target: float) -> float:
    """target ** (t / n): the same fraction is cut in every round (SynFlow, FORCE)."""
    return float(target ** (round_number / n_rounds))


def linear(round_number: int, n_rounds: int, target: float) -> float:
    """1 - (1 - target) t / n: the same number is cut in every round."""
    return 1.0 - (1.0 - target) * round_number / n_rounds


def cubic(round_number: int, n_rounds: int, target: float) -> float:
    """target + (1 - target) (1 - t/n)^3: fast at first, slow at the end (Zhu & Gupta 2017)."""
    return target + (1.0 - target) * (1.0 - round_number / n_rounds) ** 3


def halving(round_number: int, n_rounds: int, target: float) -> float:
    """target + (1 - target) / 2^t: half of what is left to cut goes in every round, the rest in the last (SNAP-it)."""
    return target + (1.0 - target) / 2.0**round_number


SCHEDULES: dict[str, Schedule] = {
    "exponential": exponential, "linear": linear, "cubic": cubic, "halving": halving
}  # fmt: skip


def densities(name: str, n_rounds: int, target: float) -> list[float]:
    """The density after each of ``n_rounds`` rounds; not increasing, the last is ``target``."""
    if n_rounds < 1:
        raise DensityError(f"Number of rounds is {n_rounds}, but must be at least 1.")
    schedule = lookup(SCHEDULES, name, "schedule")
    values = [schedule(t, n_rounds, check_density(target)) for t in range(1, n_rounds)]
    return [*values, target]
