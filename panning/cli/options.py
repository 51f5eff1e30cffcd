"""Options that several commands share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from panning.jobs.executor import Executor

Out = Annotated[Path | None, typer.Option("--out", help="Folder of this run; an interrupted run goes on there.")]
Workers = Annotated[
    int | None,
    typer.Option("--workers", min=0, help="Ray workers; 0 runs in this process, without Ray. Default: one a core."),
]
RayAddress = Annotated[
    str | None, typer.Option("--ray-address", help="Join this Ray cluster. Default: $RAY_ADDRESS, else start one here.")
]
DataRoot = Annotated[Path | None, typer.Option("--data-root", help="Where data sets lie. Default: $PANNING_DATA.")]
Download = Annotated[bool, typer.Option("--download", help="Fetch a torchvision data set that is not there.")]
Device = Annotated[
    str, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps; a seed gives the same everywhere on cpu alone.")
]
RunDevice = Annotated[
    str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps. Default: the config's, which is cpu.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Model = Annotated[str, typer.Option("--model", help="A model's name, torchvision:NAME, or package.module:factory.")]
Data = Annotated[str, typer.Option("--data", help="A data set's name, npz:PATH or folder:PATH.")]
Seed = Annotated[int, typer.Option("--seed", help="Of initial weights, batches and everything random.")]


def worker_count(workers: int | None) -> int:
    """What ``--workers`` means: one a core where nothing is said."""
    return os.cpu_count() or 1 if workers is None else workers


@contextmanager
def executor(n_workers: int, ray_address: str | None, job_timeout_s: float, device: str) -> Iterator[Executor]:
    """Where jobs run: in this process for 0 workers, else on Ray, which runs for the time of the block."""
    from panning.foundation.device import find_device
    from panning.jobs.executor import SerialExecutor

    if n_workers == 0:
        find_device(device)  # said at once
        yield SerialExecutor()
        return
    from panning.jobs.ray_executor import RayExecutor, ray_running

    with ray_running(n_workers, ray_address, device), RayExecutor(n_workers, job_timeout_s, device) as workers:
        yield workers
