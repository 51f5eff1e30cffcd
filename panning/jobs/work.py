"""Jobs: the units of work that executors run. Pure functions of descriptions (``panning.jobs.spec``), equal on every worker.

What belongs to a job but not to its identity, like where the data lie, travels beside the description; masks and policies
are in the identity by their hash.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, Self, TypeVar

import torch

from panning.alive.connectivity import Connectivity
from panning.alive.report import MaskReport, report
from panning.compaction.cost import compute_left
from panning.data.shipped import WAY_OUT
from panning.episode.policy_net import PolicyNet, parse_policy
from panning.foundation.device import accelerator_name
from panning.foundation.errors import DataError, NonFiniteError
from panning.foundation.machine import environment_info
from panning.foundation.own import Own
from panning.foundation.records import content_key
from panning.foundation.seeding import derive_seed
from panning.jobs.by import Actions
from panning.jobs.failure import OF_MACHINE, failed
from panning.jobs.outcome import CellOutcome, Outcome, OutcomeT, PruneOutcome, Timing, TrainOutcome
from panning.jobs.spec import CellSpec, PruneSpec, TrainSpec, digest, key_of
from panning.jobs.trained import Ensemble, Trained, train_one
from panning.jobs.ways import Episode, Way
from panning.masks.file import dump_masks, fingerprint, parse_masks
from panning.masks.masks import Masks, digest_of
from panning.pruners import PLAIN_FORM
from panning.pruners.described import Described, described
from panning.pruners.rounds import METHODS_OWN, PruneResult, Rounds
from panning.pruners.targets import Target, meet
from panning.scoring.problem import Problem
from panning.tasks import DataSource, Task, TaskSpec, data_fingerprint, load_task, named_fingerprint
from panning.training import DYNAMICS, Movement
from panning.training.loop import train_copy
from panning.training.moving.methods import first_mask

Gives = TypeVar("Gives", bound=Outcome, covariant=True)


class Spec(Protocol[Gives]):
    """A description of ``panning.jobs.spec``."""

    @property
    def kind(self) -> str: ...
    @property
    def outcome(self) -> type[Gives]: ...
    @property
    def task(self) -> TaskSpec: ...
    @property
    def seed(self) -> int: ...
    @property
    def plugins(self) -> dict[str, str]: ...
    def model_dump(self, *, mode: str) -> dict[str, Any]: ...
    def model_copy(self, *, update: dict[str, Any]) -> Self: ...


@dataclass(frozen=True, eq=False)
class Job(Generic[OutcomeT]):
    """A unit of work.

    Attributes:
        spec: what is asked; equal descriptions give equal outcomes.
        source: where the data lie.
        attachment: the bytes of the mask or policy file that the description names.
    """

    spec: Spec[OutcomeT]
    source: DataSource = DataSource()
    attachment: bytes | None = None

    @property
    def own(self) -> dict[str, Own]:
        """What is the caller's own in its task, by name."""
        return self.spec.task.own

    def by_name(self) -> Job[OutcomeT]:
        """The same job without what is the caller's own, which travels beside it once and not with every job."""
        return self._of(self.spec.task.by_name())

    def with_own(self, held: Mapping[str, Own]) -> Job[OutcomeT]:
        """The same job with what is the caller's own put back."""
        return self._of(self.spec.task.with_own(held))

    def _of(self, task: TaskSpec) -> Job[OutcomeT]:
        return replace(self, spec=self.spec.model_copy(update={"task": task}))

    @functools.cached_property
    def config(self) -> dict[str, Any]:
        """The description as JSON."""
        return self.spec.model_dump(mode="json")

    @functools.cached_property
    def key(self) -> str:
        return key_of(self.spec.kind, self.config)

    @property
    def data(self) -> str | None:
        """The fingerprint of its data on this machine; None of data that travel with it.

        Raises:
            DataError: if they are not here.
        """
        return named_fingerprint(self.spec.task, self.source)

    @property
    def facts(self) -> dict[str, Any]:
        """What listeners are told of it: the row of tables that it belongs to, if it makes a mask, and the seed."""
        named = {"item": self.spec.label} if isinstance(self.spec, Way) else {}
        return {**named, "seed": self.spec.seed}


def check_data(job: Job[Any], data: str | None, node: str) -> None:
    """Raise DataError if the data of a job are others here than ``data``, their fingerprint where the job comes from."""
    if data is None:
        return
    try:
        here = data_fingerprint(job.spec.task, job.source)
    except DataError as error:
        raise DataError(f"On the node {node}: {error} {WAY_OUT}") from None
    if here != data:
        raise DataError(
            f"The node {node} has other data under the name '{job.spec.task.data}' than this machine; copy the files there."
        )


def execute(job: Job[OutcomeT]) -> OutcomeT:
    """Run a job in this process, on one thread, so that its result is the same everywhere.

    Whatever it raises is its outcome, but for what is the machine's fault or the user's wish (``panning.jobs.failure``).

    Raises:
        DataError, DeviceError, MissingExtraError, OutputError, PluginError: of this machine.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    accelerator = None
    try:
        task = load_task(job.spec.task, job.spec.seed, job.source)
        accelerator = accelerator_name(str(task.device))
        outcome: OutcomeT = _RUN[job.spec.kind](job, job.spec, task)
    except OF_MACHINE:
        raise
    except (Exception, SystemExit) as error:
        outcome = job.spec.outcome(**failed(error))
    finally:
        torch.set_num_threads(threads)
    return outcome.model_copy(update={"environment": environment_info(accelerator, job.spec.plugins)})


# --- prune ---


def make_mask(
    task: Task,
    way: Way,
    density: float | Target,
    net: PolicyNet | None = None,
    rounds: Rounds = METHODS_OWN,
    **said: Any,
) -> tuple[Described, Actions]:
    """A mask of a task's network with its manifest, and the actions of the last episode that made it.

    Args:
        density: or the multiply-adds or parameters that are to be left.
        net: the agent, where the way asks for it.
        said: more for the manifest.
    """
    result, actions, met = _meeting(task.problem, way, density, net, rounds)
    by = way.by
    method, plugins, form = ("dense", {}, PLAIN_FORM) if by is None else (by.method_name, by.plugins, by.form)
    made = described(
        task.problem, result, method=method, all_alive=way.all_alive, form=form, model=str(task.spec.model),
        data=task.data.label, n_classes=task.data.n_classes, plugins={**task.spec.plugins, **plugins}, **said, **met,
    )  # fmt: skip
    return made, actions


def _meeting(
    problem: Problem, way: Way, asked: float | Target, net: PolicyNet | None, rounds: Rounds = METHODS_OWN
) -> tuple[PruneResult, Actions, dict[str, Any]]:
    """The mask of a density or a target, the actions of the last episode that made it, and what it says of its target."""
    actions: Actions = ()

    def prune(density: float) -> PruneResult:
        nonlocal actions
        result, actions = way.prune(problem, density, net, rounds)
        return result

    result, met = meet(problem, asked, prune) if isinstance(asked, Target) else (prune(asked), {})
    return result, actions, met


def _prune(job: Job[PruneOutcome], spec: PruneSpec, task: Task) -> PruneOutcome:
    told: list[dict[str, Any]] = []
    # Only of an episode: looking at the rounds of a method costs as much as some of the rounds.
    rounds = (
        Rounds(listen=lambda event: told.append(dict(event.facts))) if isinstance(spec.by, Episode) else METHODS_OWN
    )
    made, actions = make_mask(task, spec, spec.asked, _net(job), rounds)
    figures, content = _mask_figures(task, made.masks, made.facts), content_of(made.masks)
    mask = dump_masks(made.masks)
    return PruneOutcome(**figures, actions=actions, rounds=tuple(told), content=content, file=digest(mask), mask=mask)


def content_of(masks: Masks) -> str:
    """A hash of a mask's layout and bits, whatever its manifest says and whichever version wrote its file."""
    return content_key([fingerprint(masks.layout), digest_of(masks.flat)])


def _mask_figures(task: Task, masks: Masks, facts: MaskReport) -> dict[str, Any]:
    """The fields of ``MaskFigures``."""
    return {
        "n_kept": facts.n_kept, "density": facts.density, **facts.facts(),
        "compute_left": compute_left(task.problem, masks), "layer_densities": list(masks.layer_densities().items()),
    }  # fmt: skip


def _net(job: Job[Any]) -> PolicyNet | None:
    return None if job.attachment is None else parse_policy(job.attachment, "the agent's policy")


# --- train ---


def _train(job: Job[TrainOutcome], spec: TrainSpec, task: Task) -> TrainOutcome:
    masks = parse_masks(job.attachment, "the job's mask") if job.attachment is not None else None
    _, result = train_copy(task, masks, spec.recipe.noted(masks), derive_seed(spec.seed, "training"))
    final: dict[str, Any] = {name: result.final[name] for name in ("accuracy", "loss", "train_loss")}
    if not all(math.isfinite(value) for value in final.values()):
        return TrainOutcome(error="the evaluation loss is not finite")
    return TrainOutcome(**final, images_seen=result.images_seen, wall_s=round(result.wall_s, 3))


# --- cell ---


def _cell(job: Job[CellOutcome], spec: CellSpec, task: Task) -> CellOutcome:
    net, firsts, parts, prune_s = _net(job), [], [], 0.0
    for one in _members(job, spec, task):
        started = time.perf_counter()
        first = _first_masks(spec, one, net)
        firsts.append(first)
        prune_s = round(prune_s + time.perf_counter() - started, 3)
        try:
            parts.append(_trained(spec, one, first))
        except NonFiniteError as error:
            facts = _facts(job, one, first.masks, first, net)
            return CellOutcome(**facts, timing=Timing(prune_s=prune_s), error=str(error))
    timing = Timing(prune_s=prune_s, train_s=round(sum(part.result.wall_s for part in parts), 3))
    facts = {**_facts(job, task, parts[0].masks, firsts[0], net), "timing": timing}
    if not all(part.result.members for part in parts):
        return CellOutcome(**facts, error="no epoch ended with the masks at their final density")
    figures = _figures(Ensemble(task, spec.recipe, parts), spec.test)
    histories = [entry for part in parts for entry in part.result.history]
    if not all(math.isfinite(value) for entry in (figures, *histories) for value in entry.values()):
        return CellOutcome(**facts, error="a loss is not finite")
    return CellOutcome(**facts, **figures, history=parts[0].result.history)


def _members(job: Job[CellOutcome], spec: CellSpec, task: Task) -> list[Task]:
    """The task, and beside it a network of other weights for each further member."""
    seeds = [derive_seed(spec.seed, "member", number) for number in range(1, spec.by.members if spec.by else 1)]
    return [task, *(load_task(spec.task, seed, job.source) for seed in seeds)]


@dataclass(frozen=True, eq=False)
class _First:
    """What a training starts from.

    Attributes:
        masks: None is the dense network.
        start: of the kept weights, where a policy chose it.
        seen: what the way notes of the dense network.
    """

    masks: Masks | None = None
    start: str | None = None
    seen: tuple[tuple[str, float], ...] = ()


def _first_masks(spec: CellSpec, task: Task, net: PolicyNet | None) -> _First:
    by, asked = spec.by, spec.asked
    if by is None:
        return _First()
    if by.dynamic is not None:
        row = DYNAMICS[by.dynamic.name]
        if by.first is None:
            return _First(first_mask(task.problem, by.dynamic.method, spec.density, row))
        asked = max(row.start_density or spec.density, spec.density)
    result, _, _ = _meeting(task.problem, spec, asked, net)
    return _First(result.masks, result.start, by.looks(task.problem, spec.density))


def _trained(spec: CellSpec, task: Task, first: _First) -> Trained:
    movement = None
    if spec.by is not None and (moves := spec.by.dynamic) is not None:
        movement = Movement(moves.method, task.problem, spec.density, bool(spec.all_alive), spec.by.form.shape)
    recipe = spec.recipe if first.start is None else spec.recipe.starting(first.start, "the policy")
    return train_one(task, recipe, derive_seed(task.problem.seed, "training"), first.masks, movement)


def _facts(
    job: Job[CellOutcome], task: Task, masks: Masks | None, first: _First, net: PolicyNet | None
) -> dict[str, Any]:
    """What tables say of a cell's mask and its data."""
    masks = Masks.dense(task.problem.layout) if masks is None else masks
    return {
        **_mask_figures(task, masks, report(Connectivity.of(task.problem), masks.flat)),
        "mask": digest(masks.flat.cpu().numpy().tobytes()), "n_train": len(task.data.train),
        "data": data_fingerprint(task.spec, job.source), "data_label": task.data.label,
        "search_images": 0 if net is None else net.facts.get("images_seen", 0),
        **({} if first.start is None else {"start": first.start}), **({"seen": first.seen} if first.seen else {}),
    }  # fmt: skip


def _figures(networks: Ensemble, test: bool) -> dict[str, Any]:
    """What tables say of a cell's training."""
    results, last = [part.result for part in networks.parts], networks.last
    figures: dict[str, Any] = {
        **{name: networks.validation[name] for name in ("accuracy", "loss")},
        "best_epoch": results[0].members[-1][0]["epoch"], "best_accuracy": networks.best_validation,
        "images_seen": sum(result.images_seen for result in results),
        "train_epochs": sum(result.dense_epochs for result in results),
    }  # fmt: skip
    if len(last) > 1:
        figures["n_members"] = len(last)
    if test:
        best = {} if networks.ends_best else {"best": networks.best}
        found = networks.read_test(last=last, **best)
        figures |= {
            "test_accuracy": found["last"]["accuracy"], "test_loss": found["last"]["loss"],
            "test_accuracy_of_best": found["best" if best else "last"]["accuracy"],
        }  # fmt: skip
    return figures


_RUN: dict[str, Callable[[Job[Any], Any, Task], Any]] = {"prune": _prune, "train": _train, "cell": _cell}
