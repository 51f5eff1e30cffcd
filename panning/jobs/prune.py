"""One mask in a folder of its own: its config, the check of its input, and the run."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from panning.episode.policy_net import PolicyNet, load_policy
from panning.foundation.config import Name, Seed, dump_config
from panning.foundation.errors import PanningError, PolicyError
from panning.foundation.files import check_claim, write_atomic
from panning.foundation.progress import Listener, silent
from panning.foundation.records import content_key
from panning.foundation.stopping import ShouldStop, stops_when
from panning.jobs.artefacts import tell_artefacts
from panning.jobs.runs import run_folder, said_of, started_from
from panning.jobs.single import stream_task, write_mask
from panning.jobs.ways import Agent, Bounds, Method, Way
from panning.jobs.work import make_mask
from panning.masks.masks import Density
from panning.pruners import PRUNERS, AllAlive, Form, Rounds, variant_of
from panning.pruners.described import Described
from panning.pruners.targets import Target, check_asked
from panning.scoring.schedules import SCHEDULES
from panning.streaming import check_streamed
from panning.tasks import NamedTask, RunConfig, Task, TaskSpec, load_task
from panning.training import DYNAMICS
from panning.training.recipe import StartOrNone

#: What prunes where nothing is named.
DEFAULT_METHOD = "synflow"
#: Fields that say how a method prunes; a policy has a say of its own.
OF_METHODS = (
    "method", "rounds", "schedule", "released", "control", "quotas", "place", "shape", "min_density", "max_density",
)  # fmt: skip


class PruneConfig(RunConfig):
    """One mask for a network at its initial weights.

    >>> from panning.jobs.prune import PruneConfig
    >>> PruneConfig(task={"model": "mlp", "data": "digits"}, density=0.05, method="snip").way.label
    'SNIP'

    Attributes:
        density: the fraction of weights that is kept; a shape like ``2:4`` says it alone; or
        target_macs, target_parameters: what is left, a share (up to 1) or a number (``panning.pruners.targets``).
        round_to: of methods of units: channels up to a multiple of so many.
        method: a row of ``PRUNERS``; None takes SynFlow, or what quotas and place say alone.
        policy: an agent's policy file in place of a method; a relative path lies beside the config.
        all_alive: give the budget of dead weights to weights that can be alive, of any layer or ``in_layers``.
        released, control, quotas, place, shape, min_density, max_density: as for ``panning.prune``.
        rounds, schedule: in place of the method's own.
        start: noted in the mask for the training (``panning.training.recipe.Start``).
        streaming: hold the scores of one layer at a time (``panning.streaming``); a run that was killed goes on.
        weights: a file to start from in place of the weights of the seed; a relative path lies beside the config.
    """

    #: Fields that name files; a relative path is looked for beside the config.
    FILES: ClassVar = ("policy", "weights")

    kind: Literal["prune"] = "prune"
    task: NamedTask
    density: Density | None = None
    target_macs: Annotated[float, Field(gt=0)] | None = None
    target_parameters: Annotated[float, Field(gt=0)] | None = None
    round_to: Annotated[int, Field(ge=1)] = 1
    method: str | None = None
    policy: str | None = None
    all_alive: AllAlive = False
    released: bool = False
    control: str | None = None
    quotas: str | None = None
    place: str | None = None
    shape: str | None = None
    min_density: Bounds = None
    max_density: Bounds = None
    rounds: Annotated[int, Field(ge=1)] | None = None
    schedule: Annotated[str, Name(SCHEDULES, "schedule")] | None = None
    start: StartOrNone = None
    streaming: bool = False
    seed: Seed = 0
    weights: str | None = None

    @model_validator(mode="after")
    def _goes_together(self) -> PruneConfig:
        given = [name for name in OF_METHODS if getattr(self, name) not in (None, False)]
        if self.policy is not None and given:
            raise ValueError(f"a policy goes its own way: {' and '.join(given)} cannot go with it")
        method = self._method
        try:
            target = self.target
            if target is None and self.density is None and self.shape is None:
                raise ValueError("say how much is kept: density, target_macs or target_parameters")
            if method is not None:
                variant_of(method, self.released, self.control)  # says best what is wrong with them
            if self.policy is None:
                check_asked(target, self._form, method, self.all_alive)
            if self.streaming:
                whole = {
                    "policy": self.policy,
                    "all_alive": self.all_alive,
                    "control": self.control,
                    "a target": target,
                }
                check_streamed(method, self.released, {**whole, **self._form.facts()})
        except PanningError as error:
            raise ValueError(str(error)) from None
        return self

    @property
    def target(self) -> Target | None:
        """What is left, where that is not said by a density."""
        return Target.of_call(self.target_macs, self.target_parameters, self.density, self.round_to)

    @property
    def way(self) -> Way:
        """How a method makes the mask."""
        form: dict[str, Any] = self._form.facts()
        by = Method(method=self._method, released=self.released, control=self.control, **form)
        return Way(by=by, all_alive=self.all_alive)

    @property
    def _form(self) -> Form:
        return Form(self.quotas, self.place, self.shape, dict(self.min_density or ()), dict(self.max_density or ()))

    @property
    def _method(self) -> str | None:
        says_all = self.quotas is not None and self.place is not None
        method = self.method or (None if says_all else DEFAULT_METHOD)
        if method in DYNAMICS and method not in PRUNERS:
            raise ValueError(
                f"'{method}' moves masks while a network trains: panning train --dynamic {method} --density "
                f"{self.density or 0.1:g}. A mask before training takes a method that finds one (panning methods)"
            )
        return method

    def with_tasks(self, change: Callable[[TaskSpec], TaskSpec]) -> Self:
        return self.model_copy(update={"task": change(self.task)})


@dataclass(frozen=True)
class PruneRun:
    """A mask that is about to be made, after its input was checked (``check_prune``).

    Attributes:
        amount: density, or what is to be left.
        net: the agent, if one prunes.
        noted: more for the mask's manifest.
        identity: all that the mask depends on, as JSON.
    """

    config: PruneConfig
    task: Task
    way: Way
    amount: float | Target
    net: PolicyNet | None
    noted: dict[str, Any]
    identity: dict[str, Any]

    @property
    def folder(self) -> Path:
        """Where the run goes that is given no folder."""
        config, amount = self.config, self.amount
        named = (config.task.model_name, str(config.task.data), self.identity["method"])
        said = amount.short if isinstance(amount, Target) else f"d{amount:g}"
        return run_folder("prune", self.identity, *named, said, f"s{config.seed}")


@dataclass(frozen=True)
class PruneReport:
    """A mask that was made, in its folder.

    >>> from panning.jobs.prune import PruneConfig, check_prune, run_prune
    >>> config = PruneConfig(task={"model": "mlp", "data": "digits"}, density=0.05, method="snip")
    >>> report = run_prune(check_prune(config), "runs/one", formats=())
    >>> report.path.name, report.made.masks.n_kept, report.figures["n_kept"]
    ('mask.safetensors', 2522, 2522)

    Attributes:
        out: the run's folder.
        made: the mask with its manifest, facts and doubts.
        figures: of its record.
    """

    out: Path
    made: Described
    figures: dict[str, Any]

    @property
    def path(self) -> Path:
        """The mask's file."""
        return self.out / "mask.safetensors"


def check_prune(config: PruneConfig) -> PruneRun:
    """Load what a config names.

    Raises:
        PanningError: for what is wrong with the network, the data, the policy or the density; nothing was written.
    """
    net = None if config.policy is None else load_policy(config.policy)
    way = config.way
    if net is not None:
        agent = Agent(policy="agent", n_rounds=net.n_rounds, action=net.spec)
        way = Way(by=agent, all_alive=config.all_alive)
    assert way.by is not None
    noted: dict[str, Any] = {"released": config.released, "control": config.control}
    started, of_weights = started_from(config, config.weights)
    noted |= of_weights
    if config.start is not None and way.by.chooses_start:
        raise PolicyError("The policy's actions choose the start, which the mask notes: leave start out.")
    if config.start is not None:
        noted["start"] = config.start.text
    task = load_task(started.task, config.seed, config.source)
    amount: float | Target | None = config.target
    if amount is None:
        n_kept = way.by.form.n_kept(task.problem.model, task.problem.layout, config.density)
        amount = config.density or n_kept / task.problem.layout.n_prunable  # a shape n:m says it
    return PruneRun(config, task, way, amount, net, noted, _identity(config, way, amount, net, noted))


def _identity(
    config: PruneConfig, way: Way, amount: float | Target, net: PolicyNet | None, noted: dict[str, Any]
) -> dict[str, Any]:
    """The run's identity, with the keys that folders of earlier versions have, so that their runs go on."""
    assert way.by is not None
    wishes = {name: getattr(config, name) for name in ("target_macs", "target_parameters", "round_to")}
    task = config.task
    return {
        "model": str(task.model), "data": str(task.data), "density": None if isinstance(amount, Target) else amount,
        **{name: value for name, value in wishes.items() if value not in (None, 1)},
        "method": way.by.method_name, "all_alive": config.all_alive, "seed": config.seed, "rounds": config.rounds,
        "schedule": config.schedule, "policy": content_key(net.facts) if net is not None else None, **noted,
        **way.by.form.facts(), **said_of(task),
        "include": list(task.include) if task.include else None, "exclude": list(task.exclude),
    }  # fmt: skip


def run_prune(
    run: PruneRun, out: str | Path | None = None, *, listen: Listener = silent, formats: Sequence[str] = ("png",),
    should_stop: ShouldStop | None = None,
) -> PruneReport:  # fmt: skip
    """Make the mask and leave it in the folder ``out`` with config, record, table and picture.

    Args:
        out: None takes ``run.folder``.
        listen: hears of each round.
        formats: of the picture.
        should_stop: asked after each round, and after each layer where scores are streamed.

    Raises:
        ConfigError: if the folder holds another run.
        StoppedError: if ``should_stop`` said so; with ``streaming`` the same call goes on, else it begins anew.
    """
    config, folder = run.config, run.folder if out is None else Path(out)
    check_claim(folder, run.identity)  # before any work
    rounds = Rounds(config.rounds, config.schedule, listen, round_to=config.round_to)
    by = run.way.by
    with stops_when(should_stop):
        if config.streaming and isinstance(by, Method) and by.method is not None and not isinstance(run.amount, Target):
            made = stream_task(run.task, run.amount, by.method, rounds, folder / "rounds", **run.noted)
        else:
            made, _ = make_mask(run.task, run.way, run.amount, run.net, rounds, **run.noted)
    figures = write_mask(made, run.task, run.identity, folder, formats)
    shutil.rmtree(folder / "rounds", ignore_errors=True)  # only now: until all is written, it is what there is
    write_atomic(folder / "config.yaml", dump_config(config))
    tell_artefacts(folder, listen)
    return PruneReport(folder, made, figures)
