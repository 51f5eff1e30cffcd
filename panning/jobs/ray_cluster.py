"""Ray for the time of a block: the cluster that is there, or a local one."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from typing import Any

import ray

from panning.foundation.errors import WorkerError
from panning.foundation.ray_gpus import gpu_share


@contextlib.contextmanager
def ray_running(n_workers: int, address: str | None = None, device: str = "cpu") -> Iterator[None]:
    """Ray for the time of a block: the cluster at ``address`` or ``RAY_ADDRESS`` if given, else a local one.

    A Ray that runs already in this process is used as it is and left running.

    Args:
        device: on which workers will compute.

    Raises:
        WorkerError: if there is no cluster at the address, or it has fewer cores than workers.
        DeviceError: if it has no such device.
    """
    if ray.is_initialized():
        gpu_share(device, n_workers)
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS") or None
    _check_answers(address)
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    try:
        if address is None or address == "local":
            ray.init("local", num_cpus=n_workers, include_dashboard=False, **quiet)
        else:
            ray.init(address, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise WorkerError(f"No Ray cluster at '{address}': {error}") from None
    try:
        if (n_cores := int(ray.cluster_resources().get("CPU", 0))) < n_workers:
            raise WorkerError(
                f"The Ray cluster has {n_cores} cores for {n_workers} workers; ask for fewer (--workers)."
            )
        gpu_share(device, n_workers)
        yield
    finally:
        ray.shutdown()


def _check_answers(address: str | None) -> None:
    """Raise WorkerError if nobody listens at HOST:PORT; Ray itself tries for minutes before it says so."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=5.0).close()
    except (OSError, OverflowError) as error:
        raise WorkerError(f"No Ray cluster at '{address}': {error}") from None
