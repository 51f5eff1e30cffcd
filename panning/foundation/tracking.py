"""Sinks of the one event stream (``panning.foundation.progress``): a file of JSON lines, TensorBoard, W&B, MLflow.

A sink hears what every listener hears, and no result depends on it: one that fails midway warns once, and the run goes on.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from panning.foundation.errors import OutputError, PanningError, PanningWarning
from panning.foundation.extras import extra_packages
from panning.foundation.progress import Event, Listener
from panning.foundation.records import content_key
from panning.foundation.text import first_line


@dataclass(frozen=True)
class Run:
    """What a sink is told of a run before its first event.

    Attributes:
        name: as trackers show it.
        config: JSON-able.
        folder: for what a tracker leaves on this machine.
    """

    name: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None

    @property
    def key(self) -> str | None:
        """Equal for a run and what goes on with it after an interruption; None for a run without a name."""
        return None if self.name is None else content_key([self.name, dict(self.config)])


class Sink(Protocol):
    """Takes in events until it is closed."""

    def hear(self, event: Event) -> None: ...

    def close(self, finished: bool) -> None: ...


@contextlib.contextmanager
def tracking(
    *,
    log: str | Path | None = None,
    tensorboard: str | Path | None = None,
    wandb: str | None = None,
    mlflow: str | None = None,
    name: str | None = None,
    config: Mapping[str, Any] | None = None,
    folder: str | Path | None = None,
) -> Iterator[Listener]:
    """A listener that writes every event to the sinks that are named; within the block it goes wherever events are told.

    >>> import panning, pathlib, torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> with panning.tracking(log="events.jsonl") as tell:
    ...     masks = panning.prune(model, density=0.25, n_rounds=20, input_shape=(4,), on_round=tell)
    >>> len(pathlib.Path("events.jsonl").read_text().splitlines())
    20

    Args:
        log: a file that gets a line of JSON for each event.
        tensorboard: a folder that gets the figures of events as scalars.
        wandb: a project of Weights & Biases; ``WANDB_MODE=offline`` needs no account.
        mlflow: URI/EXPERIMENT, as ``http://localhost:5000/pruning`` or ``sqlite:///mlflow.db/pruning``.
        name: of the run in W&B and MLflow. A run of this name and config that is there already goes on.
        config: what W&B and MLflow show as the run's settings.
        folder: where W&B leaves its files; None takes the present one.

    Raises:
        PanningError: if a sink cannot be opened. One that fails later warns once and hears no more.
    """
    wanted = {"log": log, "tensorboard": tensorboard, "wandb": wandb, "mlflow": mlflow}
    run = Run(name, config or {}, None if folder is None else Path(folder))
    with contextlib.ExitStack() as opened:
        sinks = [
            opened.enter_context(_opened(kind, str(where), run)) for kind, where in wanted.items() if where is not None
        ]

        def tell(event: Event) -> None:
            for hear in sinks:
                hear(event)

        yield tell


@contextlib.contextmanager
def _opened(kind: str, where: str, run: Run) -> Iterator[Listener]:
    """What a sink hears by. From its first failure on it hears nothing."""
    if not where:
        raise OutputError(f"{kind} is '': say where the events go, or leave {kind} out.")
    try:
        with extra_packages():
            sink = SINKS[kind](where, run)
    except PanningError:
        raise
    except Exception as error:  # each library has errors of its own
        raise OutputError(f"{kind} cannot write to '{where}': {_reason(error)}") from error
    failed = False

    def guarded(act: Callable[[], None]) -> None:
        nonlocal failed
        if failed:
            return
        try:
            act()
        except Exception as error:
            failed = True
            text = f"{kind} cannot write to '{where}' any more: {_reason(error)} The run goes on without it."
            warnings.warn(text, PanningWarning, stacklevel=3)

    finished = False
    try:
        yield lambda event: guarded(lambda: sink.hear(event))
        finished = True
    finally:
        guarded(lambda: sink.close(finished))


def _reason(error: Exception) -> str:
    text = first_line(error)
    return text if text.endswith(".") else f"{text}."


#: Facts that are numbers and no figures: a curve over them says nothing.
NAMES = {"seed", "rung", "round"}
#: Kinds that say something beside the steps of a stage: on its axis they would stand among its figures.
UNDRAWN = {"plan", "running", "rung", "row", "artefact"}


def figures(event: Event) -> dict[str, float]:
    """The finite numbers among the facts of a stage's step.

    Examples:
        >>> from panning.foundation.progress import Event
        >>> from panning.foundation.tracking import figures
        >>> figures(Event("training", 1, 2, "epoch", {"accuracy": 0.5, "item": "snip", "loss": float("nan")}))
        {'accuracy': 0.5}
    """
    if event.kind in UNDRAWN:
        return {}
    return {
        name: float(value)
        for name, value in event.facts.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and name not in NAMES
    }


class JsonLines:
    """A line for each event, with the seconds since 1970; a file that is there goes on."""

    def __init__(self, where: str, run: Run) -> None:
        Path(where).parent.mkdir(parents=True, exist_ok=True)
        self.file = open(where, "a", encoding="utf-8")  # noqa: SIM115  # closed by close()

    def hear(self, event: Event) -> None:
        self.file.write(json.dumps({"time": round(time.time(), 3), **event.as_json()}, allow_nan=False) + "\n")
        self.file.flush()

    def close(self, finished: bool) -> None:
        self.file.close()


class TensorBoard:
    """A scalar ``STAGE/FIGURE`` for each figure, over the steps of its stage."""

    def __init__(self, where: str, run: Run) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(where)

    def hear(self, event: Event) -> None:
        for name, value in figures(event).items():
            self.writer.add_scalar(f"{event.stage}/{name}", value, event.done)
        self.writer.flush()

    def close(self, finished: bool) -> None:
        self.writer.close()


class WandB:
    """A run of Weights & Biases; each stage's figures over the steps of the stage."""

    def __init__(self, where: str, run: Run) -> None:
        import wandb

        place = run.folder or Path.cwd()
        place.mkdir(parents=True, exist_ok=True)
        self.run = wandb.init(
            project=where, name=run.name, id=run.key, resume="allow" if run.key else None, config=dict(run.config),
            dir=os.fspath(place), settings=wandb.Settings(silent=True, console="off"),
        )  # fmt: skip
        self.stages: set[str] = set()

    def hear(self, event: Event) -> None:
        step = f"{event.stage}/done"
        if event.stage not in self.stages:
            self.stages.add(event.stage)
            self.run.define_metric(step, hidden=True)
            self.run.define_metric(f"{event.stage}/*", step_metric=step)
        self.run.log({step: event.done, **{f"{event.stage}/{name}": value for name, value in figures(event).items()}})

    def close(self, finished: bool) -> None:
        self.run.finish(exit_code=0 if finished else 1)


class MLflow:
    """A run of an MLflow experiment, at a server, a database or in a folder."""

    def __init__(self, where: str, run: Run) -> None:
        from mlflow import MlflowClient

        uri, _, experiment = where.rpartition("/")
        if not uri or not experiment:
            raise OutputError(f"MLflow is given '{where}', but takes URI/EXPERIMENT, as http://localhost:5000/pruning.")
        self.client = MlflowClient(tracking_uri=uri)
        found = self.client.get_experiment_by_name(experiment)
        number = self.client.create_experiment(experiment) if found is None else found.experiment_id
        same = [] if run.key is None else self.client.search_runs([number], f"tags.panning_key = '{run.key}'")
        tags = {} if run.key is None else {"panning_key": run.key}
        one = same[0] if same else self.client.create_run(number, run_name=run.name, tags=tags)
        self.id = one.info.run_id
        for name, value in () if same else _flat(run.config):
            self.client.log_param(self.id, _mlflow_name(name), str(value)[:500])

    def hear(self, event: Event) -> None:
        for name, value in figures(event).items():
            self.client.log_metric(self.id, _mlflow_name(f"{event.stage}/{name}"), value, step=event.done)

    def close(self, finished: bool) -> None:
        self.client.set_terminated(self.id, "FINISHED" if finished else "FAILED")


def _mlflow_name(text: str) -> str:
    """MLflow's names have letters, digits and ``_-. /`` alone."""
    return re.sub(r"[^\w\-. /]", "", text)


def _flat(config: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


#: Option of a command and argument of ``tracking`` -> what opens the sink.
SINKS: dict[str, Callable[[str, Run], Sink]] = {
    "log": JsonLines,
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "mlflow": MLflow,
}
