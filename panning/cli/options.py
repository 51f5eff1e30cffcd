"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from panning.foundation.machine import usable_cores
from panning.foundation.progress import Listener
from panning.foundation.tracking import tracking

if TYPE_CHECKING:
    from panning.foundation.config import ConfigT
    from panning.jobs import workers as of_jobs
    from panning.searches.kinds import ConfigKind

Config = Annotated[
    str,
    typer.Argument(help="A config file, or the name of a packaged config (panning configs list).", show_default=False),
]
OneConfig = Annotated[
    str | None,
    typer.Argument(
        metavar="[CONFIG]", help="A config file or the name of a packaged config; without it, options say all.",
        show_default=False,
    ),
]  # fmt: skip
Records = Annotated[
    list[Path], typer.Argument(metavar="RECORDS...", help="Record files, or folders of grids.", show_default=False)
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
ShipData = Annotated[
    bool, typer.Option("--ship-data", help="Send the data to Ray workers that lack them, once for each node.")
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
_MODEL = "A model's name, torchvision:NAME, timm:NAME, network:FILE, or package.module:factory"
Model = Annotated[str, typer.Option("--model", help=f"{_MODEL}.")]
OtherModel = Annotated[str | None, typer.Option("--model", help=f"{_MODEL}. Default: the config's.")]
Weights = Annotated[
    Path | None,
    typer.Option("--weights", help="Start from these weights (safetensors, or a state_dict), for every seed."),
]
OtherData = Annotated[
    str | None, typer.Option("--data", help="A data set's name, npz:PATH or folder:PATH. Default: the config's.")
]

MaxFailed = Annotated[
    float,
    typer.Option(
        "--max-failed", min=0.0, max=1.0,
        help="End the run once more than this share of its trials fails by errors, memory, time or lost workers.",
    ),
]  # fmt: skip
Reuse = Annotated[
    list[Path] | None,
    typer.Option(
        "--reuse", metavar="RUN", show_default=False,
        help="Take evaluations that this other run's folder holds from there; may be given several times.",
    ),
]  # fmt: skip
MaxTrials = Annotated[
    int | None, typer.Option("--max-trials", min=1, help="Of order: free; at most so many candidates at each density.")
]
MaxCost = Annotated[
    float | None,
    typer.Option("--max-cost", min=0.0, help="Of order: free; at most so many dense epochs of short trainings in all."),
]
Budget = Annotated[
    str | None,
    typer.Option(
        "--budget", metavar="TIME", show_default=False,
        help="Of order: free; after so long in all (30m, 1h30m) try nothing more, and train what was chosen.",
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


def one_config(
    kind: ConfigKind[ConfigT],
    config: str | None,
    changes: Sequence[str] | None,
    model: str | None,
    given: Mapping[str, Any],
) -> ConfigT:
    """The config of one mask or training: of a file where one is named, with changes, and with options over both.

    Args:
        model: a name, or an import path, whose code is run.
        given: fields by their dotted names; what is None or False was not given.
    """
    from panning.searches.kinds import made_config, named_config

    if config is not None and "=" in config and not Path(config).exists():
        changes, config = [config, *(changes or ())], None
    if config is None and (model is None or given["task.data"] is None):
        raise typer.BadParameter("name a config, or give --model and --data")
    said = {name: _as_said(value) for name, value in given.items() if value is not None and value is not False}
    if config is None:
        return made_config(kind, {}, "options", changes or (), said, model)
    return named_config(kind, config, changes or (), said, model).config


def _as_said(value: Any) -> Any:
    """An option's value as a config has it: files that a command names lie where the command runs."""
    return str(value.absolute()) if isinstance(value, Path) else value


def workers_of(n: int | None, ray_address: str | None, ship_data: bool = False) -> of_jobs.Workers:
    """The workers that the options ask for; without ``--workers``, one Ray worker for each core."""
    from panning.jobs import workers as of_jobs

    return of_jobs.Workers(usable_cores() if n is None else n, ray_address, ship_data)
