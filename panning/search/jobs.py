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
from dataclasses import dataclass, field
from typing import Any

import torch

from panning.connectivity import Connectivity, MaskReport, report
from panning.errors import DensityError, NonFiniteError, PanningError
from panning.export.cost import compute_left
from panning.maskfile import dump_masks, parse_masks
from panning.pruners import PruneResult, make_all_alive, prune_problem
from panning.pruners.actions import ActionSpec
from panning.pruners.episode import Policy, run_policy
from panning.pruners.policies import Replay, make_policy
from panning.pruners.policy_net import PolicyNet, parse_policy
from panning.records import content_key
from panning.seeding import derive_seed, numpy_rng
from panning.tasks import DataSource, Task, TaskSpec, data_fingerprint, load_task
from panning.training import Recipe, evaluate, train
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
        by: as for ``prune_job``; None trains the dense network.
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
    except (NonFiniteError, DensityError) as error:
        return Outcome(error=str(error))
    finally:
        torch.set_num_threads(threads)


def _prune(job: Job, task: Task) -> Outcome:
    result, actions = _pruned(job, task)
    facts = report(Connectivity.of(task.problem), result.mask)
    return Outcome(
        {**_mask_facts(task, result, facts), "actions": actions}, _mask_file(job, task, result, facts.facts())
    )


def _pruned(job: Job, task: Task) -> tuple[PruneResult, list[list[float]]]:
    """The mask, and the actions of the episode if it is one."""
    config, by = job.config, job.config["by"]
    problem, density = task.problem, config["density"]
    actions: list[list[float]] = []
    if "method" in by:
        variant = {"released": by.get("released", False), "control": by.get("control")}
        result = prune_problem(problem, density, by["method"], **variant)
    else:
        spec = ActionSpec.model_validate(by["action"])
        result, taken = run_policy(problem, density, _policy(job, spec), spec, by["n_rounds"])
        actions = [[float(value) for value in action] for action in taken]
    return (make_all_alive(problem, result) if config["all_alive"] else result), actions


def _mask_facts(task: Task, result: PruneResult, facts: MaskReport) -> dict[str, Any]:
    """What every table says of a mask."""
    return {
        "n_kept": facts.n_kept, "density": facts.density, **facts.facts(),
        "compute_left": compute_left(task.problem, result.masks),
        "layer_densities": [list(pair) for pair in result.masks.layer_densities().items()],  # records sort keys
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
    return lambda observation: net.sample(observation, rng)


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
    config = job.config
    recipe = Recipe.model_validate(config["recipe"])
    started = time.perf_counter()
    if config["by"] is None:
        everything = torch.ones_like(task.problem.weight, dtype=torch.bool)
        result, masks = PruneResult(task.problem.layout, everything, task.problem.weight.abs()), None
    else:
        result, _ = _pruned(job, task)
        masks = result.masks
    timing = {"prune_s": round(time.perf_counter() - started, 3)}
    seen = report(Connectivity.of(task.problem), result.mask)
    facts = {
        **_mask_facts(task, result, seen), "mask": digest(result.mask.numpy().tobytes()), "n_train": len(task.data.train),
        "data": data_fingerprint(task.spec, job.source), "data_label": task.data.label, "timing": timing,
        "search_images": 0 if job.attachment is None else _agent(job).facts.get("images_seen", 0),
    }  # fmt: skip
    model = copy.deepcopy(task.problem.model)
    try:
        trained = train(
            model, task.data, recipe, seed=derive_seed(config["seed"], "training"), masks=masks, keep_best=True
        )
    except NonFiniteError as error:
        return Outcome(facts, error=str(error))
    timing["train_s"] = round(trained.wall_s, 3)
    assert trained.best is not None  # asked for
    best, weights = trained.best
    figures: dict[str, Any] = {
        "accuracy": trained.final["accuracy"], "loss": trained.final["loss"], "best_epoch": best["epoch"],
        "best_accuracy": best["accuracy"], "images_seen": trained.images_seen,
    }  # fmt: skip
    if config["test"]:
        split = task.data.test_split()
        last = evaluate(model, task.data, split, recipe.precision)
        model.load_state_dict(weights)
        of_best = evaluate(model, task.data, split, recipe.precision)["accuracy"]
        figures |= {"test_accuracy": last["accuracy"], "test_loss": last["loss"], "test_accuracy_of_best": of_best}
    if not all(math.isfinite(value) for entry in (figures, *trained.history) for value in entry.values()):
        return Outcome(facts, error="a loss is not finite")
    return Outcome({**facts, **figures, "history": list(trained.history)})
