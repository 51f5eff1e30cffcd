"""Ray for the time of a run: a local one or a cluster, started when the first worker is needed and not before."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

from panning.foundation.errors import WorkerError
from panning.foundation.extras import extra_packages
from panning.foundation.progress import Event, Listener, silent
from panning.foundation.ray_gpus import gpu_share
from panning.foundation.stopping import check_stop
from panning.foundation.text import first_line

with extra_packages():
    import ray


@contextlib.contextmanager
def ray_when_needed(
    n_workers: int, address: str | None = None, device: str = "cpu", listen: Listener = silent
) -> Iterator[Callable[[], None]]:
    """A function that starts Ray (``ray_running``) when it is first called, for the time of the block.

    A run that has nothing left to do calls it never.

    Args:
        listen: hears of a stage "Starting Ray (2 workers)", as Ray starts and once it runs.
    """
    with contextlib.ExitStack() as stack:
        runs = False

        def start() -> None:
            nonlocal runs
            if not runs:
                stage = f"Starting Ray ({n_workers} worker{'s' if n_workers > 1 else ''})"
                listen(Event(stage, 0, 1))
                stack.enter_context(ray_running(n_workers, address, device))
                runs = True
                listen(Event(stage, 1, 1))

        yield start


@contextlib.contextmanager
def ray_running(n_workers: int, address: str | None = None, device: str = "cpu") -> Iterator[None]:
    """Ray for the time of a block: the cluster at ``address`` or ``RAY_ADDRESS`` if given, else a local one.

    A Ray that runs already in this process is used as it is and left running.

    Args:
        device: on which workers will compute.

    Raises:
        WorkerError: if Ray does not start, if there is no cluster at the address, or it has fewer cores than workers.
        DeviceError: if it has no such device.
    """
    if ray.is_initialized():
        gpu_share(device, n_workers)
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS") or None
    _check_answers(address)
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    of_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        if address is None or address == "local":
            ray.init("local", num_cpus=n_workers, include_dashboard=False, **quiet)
        else:
            ray.init(address, **quiet)
    except Exception as error:  # Ray has no type of its own for a start that fails: some of it is a bare Exception
        ray.shutdown()
        raise WorkerError(_no_ray(address, first_line(error))) from None
    except BaseException as error:
        ray.shutdown()
        _put_back(of_sigterm)
        if isinstance(error, SystemExit) and error.code == signal.SIGTERM and callable(of_sigterm):
            of_sigterm(signal.SIGTERM, None)  # it came while Ray's own was there
            check_stop()
        raise
    try:
        _put_back(of_sigterm)
        if (n_cores := int(ray.cluster_resources().get("CPU", 0))) < n_workers:
            raise WorkerError(f"The Ray cluster has {n_cores} cores for {n_workers} workers; ask for fewer.")
        gpu_share(device, n_workers)
        yield
    finally:
        ray.shutdown()


def _put_back(of_sigterm: Any) -> None:
    """Let SIGTERM do what it did before Ray started: Ray's own ends the process without its last words."""
    if of_sigterm is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, of_sigterm)


def _no_ray(address: str | None, reason: str) -> str:
    if address is None or address == "local":
        return (
            f"Ray did not start on this machine ({reason}): try 0 workers, which gives the same results without Ray, or "
            "fewer workers."
        )
    return f"No Ray cluster at '{address}': {reason}"


def _check_answers(address: str | None) -> None:
    """Raise WorkerError if nobody listens at HOST:PORT; Ray itself tries for minutes before it says so."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=5.0).close()
    except (OSError, OverflowError) as error:
        raise WorkerError(f"No Ray cluster at '{address}': {error}") from None
