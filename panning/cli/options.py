"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from panning.cli import output
from panning.foundation.machine import usable_cores
from panning.foundation.progress import Listener
from panning.foundation.tracking import tracking

if TYPE_CHECKING:
    from panning.jobs.executor import Executor

Config = Annotated[
    str,
    typer.Argument(help="A config file, or the name of a packaged config (panning configs list).", show_default=False),
]
Changes = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Changes of the config, as seeds=[0,1].", show_default=False),
]
Out = Annotated[Path | None, typer.Option("--out", help="Folder of this run; an interrupted run goes on there.")]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers", min=0, help="Ray workers; 0 runs here, without Ray. Default: one for each core that we may use."
    ),
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
Formats = Annotated[str, typer.Option("--format", help="Of pictures: png, pdf, svg; several with commas.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
_MODEL = "A model's name, torchvision:NAME, timm:NAME, or package.module:factory"
Model = Annotated[str, typer.Option("--model", help=f"{_MODEL}.")]
OtherModel = Annotated[str | None, typer.Option("--model", help=f"{_MODEL}. Default: the config's.")]
Weights = Annotated[
    Path | None,
    typer.Option("--weights", help="Start from these weights (safetensors, or a state_dict), for every seed."),
]
Data = Annotated[str, typer.Option("--data", help="A data set's name, npz:PATH or folder:PATH.")]
Seed = Annotated[int, typer.Option("--seed", help="Of initial weights, batches and everything random.")]

MaxFailed = Annotated[
    float,
    typer.Option(
        "--max-failed", min=0.0, max=1.0,
        help="End the run once more than this share of its trials fails by errors, memory, time or lost workers.",
    ),
]  # fmt: skip
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Only say how many jobs, dense epochs and minutes it would be, and stop.")
]
Log = Annotated[Path | None, typer.Option("--log", help="Append every event to this file, a line of JSON each.")]
TensorBoard = Annotated[
    Path | None,
    typer.Option("--tensorboard", metavar="DIR", help="Write the figures of events there, for TensorBoard."),
]
WandB = Annotated[
    str | None, typer.Option("--wandb", metavar="PROJECT", help="Track the run in this project of Weights & Biases.")
]
MLflow = Annotated[
    str | None,
    typer.Option(
        "--mlflow", metavar="URI/EXPERIMENT", help="Track the run in MLflow, as http://localhost:5000/pruning."
    ),
]


@dataclass(frozen=True)
class Tracked:
    """The values of ``--log``, ``--tensorboard``, ``--wandb`` and ``--mlflow``: where a command writes its events."""

    log: Path | None
    tensorboard: Path | None
    wandb: str | None
    mlflow: str | None

    @contextmanager
    def by(self, folder: Path, config: Mapping[str, Any]) -> Iterator[Listener]:
        """A listener for the run in ``folder``; what cannot be opened is said before anything starts."""
        with tracking(**vars(self), name=folder.name, config=config, folder=folder) as tell:
            yield tell


def worker_count(workers: int | None) -> int:
    """What ``--workers`` means: one a core where nothing is said."""
    return usable_cores() if workers is None else workers


@contextmanager
def executor(n_workers: int, job_timeout_s: float, device: str, start_ray: Callable[[], None]) -> Iterator[Executor]:
    """Where jobs run: in this process for 0 workers, else on Ray, which ``start_ray`` starts (``ray``)."""
    from panning.jobs.executor import executor_of

    with executor_of(n_workers, job_timeout_s, device, start_ray) as workers:
        yield workers


@contextmanager
def ray(n_workers: int, address: str | None, device: str) -> Iterator[Callable[[], None]]:
    """What starts Ray for the time of the block, once it is needed; nothing where there are no workers.

    A busy machine takes minutes to start it, and a run that has nothing left to do does not.
    """
    if n_workers == 0:
        if address is not None:
            raise typer.BadParameter(
                "--ray-address joins a cluster, and --workers 0 runs without Ray; leave one of them out."
            )
        yield lambda: None
        return
    from panning.jobs.ray_cluster import ray_when_needed

    with ray_when_needed(n_workers, address, device, lambda text: output.progress_note(f"{text} ...")) as start:
        yield start
