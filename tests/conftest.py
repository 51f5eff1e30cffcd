"""What every test runs under: one thread, no deadlines, the same hypothesis examples each time.

``make test`` runs them in parallel workers, one for each core; ``pytest`` alone runs them in one process.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import settings
from torch import nn

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page
    from postgres import Cluster
    from served import Served

os.environ["PANNING_CACHE"] = "off"  # nothing is kept in the home folder, and no test depends on the one before it
torch.set_num_threads(1)  # the networks are tiny, and several test runs may share the machine

#: The service's packages are an extra of their own; an installation for development has them.
collect_ignore_glob = [] if "CI" in os.environ or find_spec("sqlalchemy") else ["test_service_*.py", "test_page*.py"]

# A timing is never asserted, and a red test must be red again when it is run again.
settings.register_profile("panning", deadline=None, derandomize=True, database=None)
settings.load_profile("panning")


def pytest_configure(config: pytest.Config) -> None:
    """Toys at high sparsity lose layers and outputs; ``test_any_weight.py`` looks at the warnings."""
    for text in (".*layers keep no weight at all", "No kept weight is alive", "No path leads to"):
        config.addinivalue_line("filterwarnings", f"ignore:{text}:panning.PanningWarning")


#: Each worker imports torch, which costs seconds and some 400 MB.
MAX_WORKERS = 8


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """The workers of ``-n auto``."""
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(n_cores, MAX_WORKERS)


#: Files whose tests stay in one worker: Ray starts once, and the searches and the grid that many tests look at run once;
#: those of the page share a browser, and those of the service's store a cluster of Postgres.
TOGETHER = {
    **dict.fromkeys(["test_agents", "test_contracts", "test_python_runs", "test_search", "test_shipping"], "ray"),
    "test_grid": "grid", "test_runs": "runs", "test_service_store": "postgres", "test_service_postgres": "postgres",
}  # fmt: skip


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """NOTE ``--dist loadgroup`` groups nothing under pytest 9.2: it has no ``_nodeid`` that pytest-xdist 3.8 could write."""
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = Path(nodeid.split("::")[0]).stem
            return "browser" if file.startswith("test_page") else TOGETHER.get(file, nodeid)

    return Together(config, log) if config.getvalue("dist") == "load" else None


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Networks that a test builds without a seed of its own are the same whatever ran before."""
    torch.manual_seed(0)


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


@pytest.fixture(scope="session")
def postgres() -> Iterator[Cluster]:
    """A cluster of Postgres for all tests of this process; starting one takes seconds."""
    from postgres import Cluster, missing

    if why := missing():
        pytest.skip(why)
    with Cluster() as cluster:
        yield cluster


@pytest.fixture(params=["sqlite", "postgres"])
def places(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Path | str]:
    """Gives new databases for the service's store, of one backend after the other."""
    if request.param == "postgres":
        cluster: Cluster = request.getfixturevalue("postgres")
        return cluster.new
    numbers = itertools.count(1)
    return lambda: tmp_path / f"service-{next(numbers)}.sqlite"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A running service, for the tests of one file."""
    from served import Served

    made = Served(tmp_path_factory.mktemp("service"))
    yield made
    made.close()


@pytest.fixture
def token(served: Served) -> str:
    """A token of that service, whose jobs are no other test's."""
    from panning.service.words import Quota

    return served.token(quota=Quota(running=2, queued=20))


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A browser, for the tests of one file: Playwright holds the thread's event loop while it is open."""
    from browser import started

    with started() as browser:
        yield browser


@pytest.fixture
def page(chromium: Browser, served: Served, token: str) -> Iterator[Page]:
    """A page of the running service, signed in by ``token``, on a desk; what it does wrong fails the test in the end."""
    from browser import opened

    with opened(chromium, served, token) as made:
        yield made
