"""Jobs: the units of work that executors run. A pure function of a JSON-able description, equal on every worker.

- ``prune``: one network, one density, one policy or method -> a mask.
- ``train``: one network, one mask or none, one recipe -> validation (and, for the final table, test) accuracy.
- ``cell``: both in one, with everything a benchmark tells of a row; it needs no other job's outcome.

What belongs to a job but not to its identity, like where the data lie, travels beside the description; masks and policies
are in the identity by their hash.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import math
import time
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from panning.alive.connectivity import Connectivity, MaskReport, report
from panning.compaction.cost import compute_left
from panning.episode.actions import ActionSpec
from panning.episode.episode import Policy, run_policy
from panning.episode.policies import Replay, make_policy
from panning.episode.policy_net import PolicyNet, parse_policy
from panning.foundation.errors import DensityError, MaskError, NonFiniteError, PanningError
from panning.foundation.records import content_key
from panning.foundation.seeding import derive_seed, numpy_rng
from panning.masks.file import dump_masks, parse_masks
from panning.masks.masks import Masks
from panning.pruners import PruneResult, make_all_alive, prune_problem
from panning.tasks import DataSource, Task, TaskSpec, data_fingerprint, load_task
from panning.training import DYNAMICS, Movement, Recipe, TrainResult, evaluate, evaluate_mean, make_dynamic, train
from panning.training.moving.method import Dynamic
from panning.training.moving.methods import first_mask
from panning.training.short import train_copy


@dataclass(frozen=True, eq=False)
class Job:
    """A unit of work.

    Attributes:
        kind: ``prune``, ``train`` or ``cell``.
        config: the JSON-able description; equal descriptions give equal outcomes.
        source: where the data lie.
        attachment: the bytes of a mask file (``train``) or policy file (``prune`` by the agent), hashed in ``config``.
    """

    kind: str
    config: dict[str, Any]
    source: DataSource = DataSource()
    attachment: bytes | None = None

    @functools.cached_property
    def key(self) -> str:
        return content_key({"kind": self.kind, **self.config})


@dataclass(frozen=True)
class Outcome:
    """What a job gives: JSON-able metrics and, for ``prune``, a mask file's bytes.

    ``error`` is set instead where the work was possible but failed: a diverged training, a network that cannot be pruned
    so far. It belongs to the result of a comparison, and is recorded as one.
    """

    metrics: dict[str, Any] = field(default_factory=dict)
    mask: bytes | None = None
    error: str | None = None


def digest(data: bytes) -> str:
    """The hash by which a job's identity names its attachment."""
    return hashlib.sha256(data).hexdigest()[:20]


def prune_job(
    task: TaskSpec, source: DataSource, seed: int, density: float, by: dict[str, Any], all_alive: bool,
    policy: bytes | None = None,
) -> Job:  # fmt: skip
    """A job that makes a mask.

    Args:
        by: ``{"method": row of PRUNERS}``, with ``"released"`` and ``"control"`` if they are wanted; or an episode:
            ``{"policy": row of POLICIES | "agent" | "actions", "n_rounds", "action"}``, with ``"sample": number`` for a
            sampled episode of the agent and ``"actions"`` for a replay.
        policy: the agent's file, where ``by`` asks for it.
    """
    config = {
        "task": task.model_dump(mode="json"), "seed": seed, "density": density, "by": by, "all_alive": all_alive,
        "policy": digest(policy) if policy is not None else None,
    }  # fmt: skip
    return Job("prune", config, source, policy)


def train_job(
    task: TaskSpec, source: DataSource, seed: int, mask: bytes | None, recipe: Recipe, test: bool = False
) -> Job:
    """A job that trains a network under a mask file, or dense; only with ``test`` is the test part read, at the end."""
    config = {
        "task": task.model_dump(mode="json"), "seed": seed, "mask": digest(mask) if mask is not None else None,
        "recipe": recipe.model_dump(mode="json"), "test": test,
    }  # fmt: skip
    return Job("train", config, source, mask)


def cell_job(
    task: TaskSpec, source: DataSource, seed: int, recipe: Recipe, *, density: float = 1.0,
    by: dict[str, Any] | None = None, all_alive: bool = False, policy: bytes | None = None, test: bool = True,
) -> Job:  # fmt: skip
    """A job that prunes, trains, and evaluates the last epoch and the one that was best on the validation part.

    Args:
        by: as for ``prune_job``; None trains the dense network. With ``"dynamic": {"name": row of DYNAMICS, "options"}`` it
            makes the first mask, which is the row's own if nothing else is named; with ``"members": n`` so many networks,
            each with weights and masks of its own, predict together.
        test: read the test part, once, at the end; without it only the validation part is looked at.
    """
    config = {
        "task": task.model_dump(mode="json"), "seed": seed, "density": density, "by": by, "all_alive": all_alive,
        "policy": digest(policy) if policy is not None else None, "recipe": recipe.model_dump(mode="json"), "test": test,
    }  # fmt: skip
    return Job("cell", config, source, policy)


def execute(job: Job) -> Outcome:
    """Run a job in this process, on one thread, so that its result is the same everywhere."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        task = load_task(TaskSpec.model_validate(job.config["task"]), job.config["seed"], job.source)
        return {"prune": _prune, "train": _train, "cell": _cell}[job.kind](job, task)
    except (NonFiniteError, DensityError, MaskError) as error:
        return Outcome(error=str(error))
    finally:
        torch.set_num_threads(threads)


def _prune(job: Job, task: Task) -> Outcome:
    result, actions = _pruned(job, task)
    facts = report(Connectivity.of(task.problem), result.mask)
    return Outcome(
        {**_mask_facts(task, result.masks, facts), "actions": actions}, _mask_file(job, task, result, facts.facts())
    )


def _pruned(job: Job, task: Task, density: float | None = None) -> tuple[PruneResult, list[list[float]]]:
    """The mask, and the actions of the episode if it is one."""
    config, by = job.config, job.config["by"]
    problem, density = task.problem, config["density"] if density is None else density
    actions: list[list[float]] = []
    if "method" in by:
        variant = {"released": by.get("released", False), "control": by.get("control")}
        result = prune_problem(problem, density, by["method"], **variant)
    else:
        spec = ActionSpec.model_validate(by["action"])
        result, taken = run_policy(problem, density, _policy(job, spec), spec, by["n_rounds"])
        actions = [[float(value) for value in action] for action in taken]
    return (make_all_alive(problem, result) if config["all_alive"] else result), actions


def _mask_facts(task: Task, masks: Masks, facts: MaskReport) -> dict[str, Any]:
    """What every table says of a mask."""
    return {
        "n_kept": facts.n_kept, "density": facts.density, **facts.facts(),
        "compute_left": compute_left(task.problem, masks),
        "layer_densities": [list(pair) for pair in masks.layer_densities().items()],  # records sort keys
    }  # fmt: skip


def _mask_file(job: Job, task: Task, result: PruneResult, facts: dict[str, Any]) -> bytes:
    by = job.config["by"]
    policy = by.get("policy")
    method = by.get("method") or ("panning agent" if policy in ("agent", "actions") else f"panning policy {policy}")
    masks = result.masks.with_manifest(
        model=job.config["task"]["model"], data=task.data.label, method=method, all_alive=job.config["all_alive"],
        seed=job.config["seed"], input_shape=list(task.problem.input_shape), n_classes=task.data.n_classes, **facts,
    )  # fmt: skip
    return dump_masks(masks)


def _policy(job: Job, spec: ActionSpec) -> Policy:
    by = job.config["by"]
    if by["policy"] == "actions":
        return Replay(by["actions"])
    if by["policy"] != "agent":
        return make_policy(by["policy"], spec)
    net = _agent(job)
    if (sample := by.get("sample")) is None:
        return net
    rng = numpy_rng(job.config["seed"], "sampled episode", sample)
    return replace(net, rng=rng)


def _agent(job: Job) -> PolicyNet:
    if job.attachment is None:
        raise PanningError("A job for the agent carries no policy file.")
    return parse_policy(job.attachment, "the agent's policy")


def _train(job: Job, task: Task) -> Outcome:
    config = job.config
    masks = parse_masks(job.attachment, "the job's mask") if job.attachment is not None else None
    recipe = Recipe.model_validate(config["recipe"])
    model, result = train_copy(task, masks, recipe, derive_seed(config["seed"], "training"))
    metrics: dict[str, Any] = {
        "accuracy": result.final["accuracy"], "loss": result.final["loss"],
        "train_loss": result.final["train_loss"], "images_seen": result.images_seen, "wall_s": round(result.wall_s, 3),
    }  # fmt: skip
    if config["test"]:
        test = evaluate(model, task.data, task.data.test_split(), recipe.precision)
        metrics.update(test_accuracy=test["accuracy"], test_loss=test["loss"])
    if not all(math.isfinite(value) for value in metrics.values()):
        return Outcome(error="the evaluation loss is not finite")
    return Outcome(metrics)


def _cell(job: Job, task: Task) -> Outcome:
    by, timing = job.config["by"] or {}, {"prune_s": 0.0}
    tasks = [task]
    for number in range(1, by.get("members", 1)):
        tasks.append(load_task(task.spec, derive_seed(job.config["seed"], "member", number), job.source))
    networks: list[_Trained] = []
    for one in tasks:
        started = time.perf_counter()
        first = _first_masks(job, one)
        timing["prune_s"] = round(timing["prune_s"] + time.perf_counter() - started, 3)
        try:
            networks.append(_trained(job, one, first))
        except NonFiniteError as error:
            return Outcome(_cell_facts(job, one, first) | {"timing": timing}, error=str(error))
    facts = _cell_facts(job, task, networks[0].masks) | {"timing": timing}
    timing["train_s"] = round(sum(network.result.wall_s for network in networks), 3)
    if not all(network.result.members for network in networks):
        return Outcome(facts, error="no epoch ended with the masks at their final density")
    figures = _figures(job, task, networks)
    histories = [entry for network in networks for entry in network.result.history]
    if not all(math.isfinite(value) for entry in (figures, *histories) for value in entry.values()):
        return Outcome(facts, error="a loss is not finite")
    if len(networks) > 1 or len(networks[0].result.members) > 1:
        figures["n_members"] = len(networks) if len(networks) > 1 else len(networks[0].result.members)
    return Outcome({**facts, **figures, "history": list(networks[0].result.history)})


@dataclass(frozen=True, eq=False)
class _Trained:
    """A trained network, the masks it ended with (None: dense), and how it went."""

    model: nn.Module
    masks: Masks | None
    result: TrainResult


def _first_masks(job: Job, task: Task) -> Masks | None:
    """What a training starts from; None is the dense network."""
    by = job.config["by"]
    if by is None:
        return None
    if "dynamic" not in by:
        return _pruned(job, task)[0].masks
    row, density = DYNAMICS[by["dynamic"]["name"]], job.config["density"]
    if "method" in by or "policy" in by:
        return _pruned(job, task, max(row.start_density or density, density))[0].masks
    return first_mask(task.problem, _dynamic(by), density, row)


def _dynamic(by: dict[str, Any]) -> Dynamic:
    return make_dynamic(by["dynamic"]["name"], by["dynamic"]["options"], "the job's dynamic method")


def _trained(job: Job, task: Task, first: Masks | None) -> _Trained:
    config, by = job.config, job.config["by"] or {}
    movement = None
    if "dynamic" in by:
        movement = Movement(_dynamic(by), task.problem, config["density"], config["all_alive"])
    model = copy.deepcopy(task.problem.model)
    result = train(
        model, task.data, Recipe.model_validate(config["recipe"]), seed=derive_seed(task.problem.seed, "training"),
        masks=first, movement=movement, keep_best=True,
    )  # fmt: skip
    return _Trained(model, first if movement is None else result.masks, result)


def _cell_facts(job: Job, task: Task, masks: Masks | None) -> dict[str, Any]:
    """What tables say of a cell's mask and its data."""
    masks = Masks.dense(task.problem.layout) if masks is None else masks
    seen = report(Connectivity.of(task.problem), masks.flat)
    return {
        **_mask_facts(task, masks, seen), "mask": digest(masks.flat.numpy().tobytes()), "n_train": len(task.data.train),
        "data": data_fingerprint(task.spec, job.source), "data_label": task.data.label,
        "search_images": 0 if job.attachment is None else _agent(job).facts.get("images_seen", 0),
    }  # fmt: skip


def _figures(job: Job, task: Task, networks: list[_Trained]) -> dict[str, Any]:
    """What tables say of a cell's training. Several networks predict by the mean of their probabilities."""
    recipe = Recipe.model_validate(job.config["recipe"])
    last = [network.model for network in networks]
    best = [one for network in networks for one in network.result.networks(network.model)]
    alone = len(networks) == 1 and len(best) == 1
    final, members = networks[0].result.final, networks[0].result.members
    of_best = members[0][0]["accuracy"]
    if not alone:
        last = best if len(networks) == 1 else last  # of one training with several members these are its last, too
        final = evaluate_mean(last, task.data, task.data.validation, recipe.precision)
        of_best = evaluate_mean(best, task.data, task.data.validation, recipe.precision)["accuracy"]
    figures: dict[str, Any] = {
        "accuracy": final["accuracy"], "loss": final["loss"], "best_epoch": members[-1][0]["epoch"],
        "best_accuracy": of_best, "images_seen": sum(network.result.images_seen for network in networks),
        "train_epochs": sum(network.result.dense_epochs for network in networks),
    }  # fmt: skip
    if job.config["test"]:
        split = task.data.test_split()
        test = evaluate_mean(last, task.data, split, recipe.precision)
        test_of_best = evaluate_mean(best, task.data, split, recipe.precision)["accuracy"]
        figures |= {"test_accuracy": test["accuracy"], "test_loss": test["loss"], "test_accuracy_of_best": test_of_best}
    return figures
