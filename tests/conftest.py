"""What every test runs under: one thread, no deadlines, the same hypothesis examples each time.

``make test`` runs them in parallel workers, one for each core; ``pytest`` alone runs them in one process.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings
from torch import nn

torch.set_num_threads(1)  # the networks are tiny, and several test runs may share the machine

# A timing is never asserted, and a red test must be red again when it is run again.
settings.register_profile("panning", deadline=None, derandomize=True, database=None)
settings.load_profile("panning")

#: Each worker imports torch, which costs seconds and some 400 MB.
MAX_WORKERS = 8


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """The workers of ``-n auto``."""
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(n_cores, MAX_WORKERS)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Ray starts in one worker: the tests that need it run there."""
    for item in items:
        if item.get_closest_marker("ray") is not None:
            item.add_marker(pytest.mark.xdist_group("ray"))


@pytest.fixture
def tiny_mlp() -> nn.Module:
    """4 inputs, 3 hidden units, 2 outputs; 18 prunable weights, the same in every test."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """One Ray for all tests that need it; starting one takes seconds."""
    import ray

    ray.init("local", num_cpus=4, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    yield
    ray.shutdown()
