"""The runner of a job: one process that reads the folder's order, checks it, runs it, and writes how it ended.

    python -P -m panning.service.runner FOLDER

It alone imports what prunes and trains. Its supervisor (``panning.service.supervisor``) waits for it. The file ``stop`` in
the folder, or SIGTERM, asks it to end between two steps; what is done is kept for the next attempt.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from panning.foundation.errors import ConfigError, JobError, PanningError, StoppedError
from panning.foundation.places import without_places
from panning.foundation.progress import Listener
from panning.foundation.remote import Bounds, check_remote
from panning.foundation.stopping import ShouldStop
from panning.foundation.text import one_line
from panning.service.events import EventLog
from panning.service.folder import Caps, JobFolder, LeaseOf, Order, Outcome
from panning.service.inputs import Inputs

if TYPE_CHECKING:  # torch comes with them, and the limit of memory comes first
    from panning.tasks import RunConfig

#: How often the file ``stop`` is looked for at most.
LOOK_S = 0.2
MAX_MESSAGE = 2_000


@dataclass
class Stop:
    """Says whether the run should stop.

    >>> from pathlib import Path
    >>> from panning.service.folder import JobFolder
    >>> from panning.service.runner import Stop
    >>> Stop(JobFolder(Path("jobs/1")))()
    False
    """

    folder: JobFolder
    reason: str = ""
    _looked: float = field(default=-1e9)

    def __call__(self) -> bool:
        if not self.reason and time.monotonic() - self._looked > LOOK_S:
            self._looked = time.monotonic()
            if self.folder.stop.exists():
                self.reason = self.folder.stop.read_text()
        return bool(self.reason)

    def hear(self, *_: object) -> None:
        """SIGTERM or Ctrl-C came."""
        self.reason = self.reason or "shutdown"


@dataclass(frozen=True)
class Way:
    """How a run of any kind goes on.

    Attributes:
        out: the run's folder.
    """

    out: Path
    listen: Listener
    should_stop: ShouldStop
    workers: int = 0


def _prune(config: Any, way: Way) -> None:
    from panning.jobs.prune import check_prune, run_prune

    run_prune(check_prune(config), way.out, listen=way.listen, should_stop=way.should_stop)


def _train(config: Any, way: Way) -> None:
    from panning.jobs.train import check_train, run_train

    run_train(check_train(config), way.out, listen=way.listen, should_stop=way.should_stop)


def _whole(config: Any, way: Way) -> None:
    from panning.jobs.workers import Workers
    from panning.searches.whole import How, whole_agent, whole_grid, whole_search

    how = How(Workers(way.workers), way.listen, should_stop=way.should_stop)
    if config.kind == "search":
        whole_search(config, way.out, how)
    elif config.kind == "train-agent":
        whole_agent(config, way.out, how)
    else:
        whole_grid(config, Path(), way.out, how)


#: Kind of config -> what runs it.
RUN: dict[str, Callable[[Any, Way], None]] = {
    "prune": _prune, "train": _train, "search": _whole, "train-agent": _whole, "bench": _whole,
}  # fmt: skip


class OverLimitError(ConfigError):
    """A run that would cost more than the job may."""


def run_job(folder: JobFolder, stop: Stop) -> Outcome:
    """Run the order of a folder to its end; how it ended. Whatever is raised is an outcome."""
    try:
        order = folder.order()
        limit_memory(order.caps)
        check_remote(order.config, Bounds(uploads=True))
        with EventLog(folder.events) as log:
            config = _config_of(order)
            RUN[str(order.config["kind"])](config, Way(folder.run, log.hear, stop, order.workers))
    except StoppedError:
        return Outcome("stopped", reason=stop.reason, message="It was told to stop; what is done is kept.")
    except OverLimitError as error:
        return Outcome("failed", "quota", message=_said(error))
    except PanningError as error:
        return Outcome("failed", "error" if isinstance(error, JobError) else "config", message=_said(error))
    except Exception as error:
        traceback.print_exc()
        return Outcome("failed", "memory" if _is_memory(error) else "error", message=_said(error))
    return Outcome("succeeded")


def limit_memory(caps: Caps) -> None:
    """Let this process, and each that it starts, have no more data than the job may."""
    if caps.memory_bytes:
        resource.setrlimit(resource.RLIMIT_DATA, (caps.memory_bytes, caps.memory_bytes))


def _config_of(order: Order) -> RunConfig:
    from panning.searches.kinds import any_config

    if order.data_root is not None:
        os.environ["PANNING_DATA"] = order.data_root  # no field of the config: what a run leaves names no place
    config = any_config(Inputs(order.files, order.data_sets).placed(order.config)).config.with_data(
        None, download=False
    )
    if order.caps.n_parameters or order.caps.dense_epochs:
        _check_cost(config, order.caps)
    return config


def _check_cost(config: RunConfig, caps: Caps) -> None:
    from panning.searches.cost import cost_of

    cost = cost_of(config)
    for said, found, most in (
        ("parameters", cost.n_parameters, caps.n_parameters), ("dense epochs", cost.dense_epochs, caps.dense_epochs)
    ):  # fmt: skip
        if most and found > most:
            raise OverLimitError(f"This run has {found:,.6g} {said}, and {most:,.6g} are allowed.")


def _is_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError):
        return True
    from panning.jobs.failure import is_memory

    return is_memory(error)


def _said(error: BaseException) -> str:
    said = str(error) if isinstance(error, PanningError) else f"{type(error).__name__}: {one_line(str(error))}"
    return without_places(said)[:MAX_MESSAGE]


def main(arguments: list[str]) -> None:
    """Run the job of a folder.

    Args:
        arguments: the folder.
    """
    LeaseOf().keep()
    folder = JobFolder(Path(arguments[0]))
    stop = Stop(folder)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop.hear)
    attempt = folder.order().attempt
    folder.end(attempt, run_job(folder, stop))
    sys.stdout.flush()
    os._exit(0)  # all is written; threads and atexit functions of libraries may take seconds


if __name__ == "__main__":
    main(sys.argv[1:])
