"""The workers of a run: none, which is this process, or Ray's, for the time of a block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from panning.data.shipped import shipping
from panning.foundation.errors import ConfigError
from panning.foundation.progress import Listener, silent
from panning.jobs.executor import Executor, executor_of


@dataclass(frozen=True)
class Workers:
    """Where a run has its work done. Results do not depend on it.

    >>> from panning.jobs.workers import Workers
    >>> with Workers().executor("cpu", job_timeout_s=60.0) as (executor, _):
    ...     type(executor).__name__
    'SerialExecutor'

    Attributes:
        n: Ray workers; 0 is this process, without Ray.
        address: of a Ray cluster; None starts Ray on this machine.
        ship_data: workers that lack the data of a run get them from this machine, through Ray's object store.

    Raises:
        ConfigError: if the two do not go together.
    """

    n: int = 0
    address: str | None = None
    ship_data: bool = False

    def __post_init__(self) -> None:
        if type(self.n) is not int or self.n < 0:
            raise ConfigError(
                f"workers is {self.n!r}, but must be a whole number: 0 runs in this process, without Ray."
            )
        if self.n == 0 and self.address is not None:
            raise ConfigError("A Ray address joins a cluster, and 0 workers run without Ray: leave one of them out.")

    @contextmanager
    def ray(self, device: str, listen: Listener = silent) -> Iterator[Callable[[], None]]:
        """What starts Ray for the time of the block, once it is called; it does nothing where there are no workers.

        A busy machine takes minutes to start Ray, and a run that has nothing left to do does not.
        """
        if self.n == 0:
            yield lambda: None
            return
        from panning.jobs.ray_cluster import ray_when_needed

        with shipping(self.ship_data), ray_when_needed(self.n, self.address, device, listen) as start:
            yield start

    @contextmanager
    def executor(
        self, device: str, job_timeout_s: float, listen: Listener = silent
    ) -> Iterator[tuple[Executor, Callable[[], None]]]:
        """Where the jobs of a block run, and what starts Ray."""
        with self.ray(device, listen) as start, executor_of(self.n, job_timeout_s, device, start) as executor:
            yield executor, start
