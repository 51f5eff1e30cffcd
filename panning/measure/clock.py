"""The clock of all measurements: wall and processor time of a call, with what an accelerator has still to do for it.

Other work on a machine lengthens the wall time of a call without bound, and its processor time only by what the jobs take
from each other's caches. So ratios are taken of processor times where there is no accelerator.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch

Key = TypeVar("Key")
Run = Callable[[], object]


@dataclass(frozen=True)
class Spent:
    """What a call took.

    Attributes:
        wall_s: seconds that passed.
        cpu_s: seconds of processor time, of all threads of this process.
    """

    wall_s: float
    cpu_s: float


def spent(run: Run) -> Spent:
    """The time of one call; what it returns is freed after the clock has stopped."""
    _wait_for_accelerator()
    start, start_of_cpu = time.perf_counter(), time.process_time()
    result = run()
    _wait_for_accelerator()
    found = Spent(time.perf_counter() - start, time.process_time() - start_of_cpu)
    del result
    return found


def seconds(run: Run) -> float:
    """The wall time of one call."""
    return spent(run).wall_s


def n_repetitions(budget_s: float, once_s: float, at_least: int, at_most: int) -> int:
    """How many repetitions a budget has room for, within bounds.

    Examples:
        >>> from panning.measure.clock import n_repetitions
        >>> n_repetitions(budget_s=10.0, once_s=3.0, at_least=5, at_most=30)
        5
    """
    return min(max(int(budget_s / once_s), at_least), at_most)


def median_seconds(
    runs: Mapping[Key, Run], budget_s: float = 0.0, at_least: int = 3, at_most: int = 30
) -> tuple[dict[Key, float], int]:
    """The median wall time of each run, and the number of repetitions.

    The runs take turns, so that all of them meet the same machine, whatever else it does. A first turn warms up and says
    how many repetitions ``budget_s`` has room for.
    """

    def turn() -> dict[Key, float]:
        return {key: seconds(run) for key, run in runs.items()}

    n = n_repetitions(budget_s, sum(turn().values()), at_least, at_most)
    turns = [turn() for _ in range(n)]
    return {key: statistics.median(one[key] for one in turns) for key in runs}, n


def _wait_for_accelerator() -> None:
    if torch.accelerator.is_available():
        for index in range(torch.accelerator.device_count()):  # the current one need not be the one that is timed
            torch.accelerator.synchronize(index)
