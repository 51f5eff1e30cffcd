"""The clock of all measurements: wall time of a call, with what an accelerator has still to do for it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch

Key = TypeVar("Key")
Run = Callable[[], object]


def seconds(run: Run) -> float:
    """The wall time of one call; what it returns is freed after the clock has stopped."""
    _wait_for_accelerator()
    start = time.perf_counter()
    result = run()
    _wait_for_accelerator()
    taken = time.perf_counter() - start
    del result
    return taken


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
