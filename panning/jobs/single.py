"""One mask, or one training, in a folder of its own, as ``panning prune`` and ``panning train`` leave it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from panning.export.folder import write_tensors
from panning.foundation.device import accelerator_name
from panning.foundation.files import claim_folder, sole_writer, write_atomic
from panning.foundation.machine import environment_info
from panning.foundation.pictures import save
from panning.foundation.progress import Listener
from panning.foundation.records import RunRecord, content_key, record_line
from panning.foundation.tables import write_table
from panning.jobs.by import DynamicSpec
from panning.jobs.pictures import curve_picture, mask_picture
from panning.jobs.trained import Ensemble, Trained, train_one
from panning.jobs.ways import REPAIRS
from panning.masks.file import save_masks
from panning.masks.masks import Masks
from panning.pruners import PRUNERS
from panning.pruners.described import Described
from panning.pruners.rounds import Rounds
from panning.streaming import stream_problem
from panning.tasks import Task
from panning.training import DYNAMICS, Movement, Recipe, TrainResult
from panning.training.loop import check_training
from panning.training.moving.in_shape import check_shape, density_in_shape
from panning.training.moving.methods import first_mask

#: Label of a figure of an epoch -> its name in the history, factor and format.
SHOWN = {
    "train loss": ("train_loss", 1.0, ".4f"), "validation accuracy %": ("accuracy", 100.0, ".2f"),
    "density": ("density", 1.0, ".5g"), "effective density": ("effective_density", 1.0, ".5g"),
}  # fmt: skip


def stream_task(
    task: Task, density: float, method: str, rounds: Rounds, checkpoint: Path, *, released: bool = False, **said: Any
) -> Described:
    """A mask of a task's network with its manifest, found a layer at a time (``panning.streaming``).

    Args:
        checkpoint: a folder that a run which was killed goes on from.
        said: more for the manifest.
    """
    return stream_problem(
        task.problem, density, method, rounds=rounds, released=released, checkpoint=checkpoint, plugins=task.spec.plugins,
        **said, **task.said(),
    )  # fmt: skip


def write_mask(
    made: Described, task: Task, identity: dict[str, Any], folder: Path, formats: Sequence[str] = ("png",)
) -> dict[str, Any]:
    """Leave ``mask.safetensors``, ``records.jsonl``, ``table.md``, ``table.csv`` and a picture ``layers``; returns figures.

    Args:
        formats: of the picture.
    """
    densities = made.masks.layer_densities()
    facts = made.facts
    figures = {"n_kept": facts.n_kept, "density": facts.density, **facts.facts(), "layer_densities": densities}
    with sole_writer(folder):
        claim_folder(folder, identity)
        save_masks(made.masks, folder / "mask.safetensors")
        _write_mask_files(made, task, identity, figures, folder, formats)
    return figures


def _write_mask_files(
    made: Described, task: Task, identity: dict[str, Any], figures: dict[str, Any], folder: Path, formats: Sequence[str]
) -> None:
    facts, densities = made.facts, figures["layer_densities"]
    _write_record("prune", identity, figures, folder, task.problem.weight.device, made.masks.manifest.get("plugins"))
    counts = made.masks.counts()
    rows = [[name, n, f"{density:.6f}"] for (name, density), n in zip(densities.items(), counts, strict=True)]
    write_table(folder, ["layer", "kept", "density"], rows)
    method = str(made.masks.manifest.get("method"))
    of_all = f"{facts.n_kept:,} of {made.masks.n_prunable:,} weights, density {facts.density:.4g}, effective"
    title = f"{_named(task)}: density of each layer, {_mask_name(made.masks)}"
    title += f"\n{of_all} {facts.effective_density:.4g}"
    save(mask_picture(densities, counts, title, is_ours=method.startswith("panning")), folder / "layers", formats)


@dataclass(frozen=True)
class TrainingPlan:
    """What is trained.

    Attributes:
        first: the masks that the training starts from; None is the dense network.
        movement: how they move, if they do.
        moves: the same by name.
    """

    task: Task
    recipe: Recipe
    seed: int
    first: Masks | None
    movement: Movement | None = None
    moves: DynamicSpec | None = None

    @property
    def title(self) -> str:
        """What is trained, in words."""
        if self.first is None:
            return f"{_named(self.task)}: training of the dense network"
        name = _mask_name(self.first) if self.moves is None else self.moves.label
        density = self.first.density if self.movement is None else self.movement.density
        start = "" if self.recipe.start is None else f", {self.recipe.start.label}"
        return f"{_named(self.task)}: training with {name}, density {density:.4g}{start}"

    def moving(
        self, moves: DynamicSpec, density: float | None, all_alive: bool, shape: str | None = None
    ) -> TrainingPlan:
        """The same with masks that move; without first masks from those of the method.

        Args:
            density, shape: as for ``panning.move_masks``.

        Raises:
            PanningError: if this network, recipe and density do not go with the method.
        """
        first, problem = self.first, self.task.problem
        problem = problem if first is None else replace(problem, layout=first.layout)
        check_shape(moves.method, shape, all_alive)
        density = density_in_shape(problem, shape, density)
        first = first or first_mask(problem, moves.method, density, DYNAMICS[moves.name])
        movement = Movement(moves.method, problem, density, all_alive, shape)
        check_training(self.recipe, len(self.task.data.train), movement, first)
        return replace(self, first=first, movement=movement, moves=moves)


def train_in_folder(
    plan: TrainingPlan, identity: dict[str, Any], folder: Path, listen: Listener, formats: Sequence[str] = ("png",)
) -> tuple[dict[str, Any], list[str], list[list[str]]]:
    """Train, or go on training, and leave weights, masks that moved, ``records.jsonl``, a table and a picture ``curve``.

    Args:
        formats: of the picture.

    Returns:
        The figures, and the columns and rows of the table, an epoch a row.

    Raises:
        ConfigError: if the folder holds another run.
        OutputError: if another process writes there.
    """
    with sole_writer(folder):
        claim_folder(folder, identity)
        checkpoint = folder / "checkpoint.safetensors"
        trained = train_one(
            plan.task, plan.recipe, plan.seed, plan.first, plan.movement, keep_best=plan.movement is not None,
            checkpoint=checkpoint, listen=listen,
        )  # fmt: skip
        figures = training_figures(Ensemble(plan.task, plan.recipe, [trained]))
        write_networks(trained, plan, folder)
        _write_record("train", identity, figures, folder, plan.task.device, plan.task.spec.plugins)
        columns, rows = _write_history(trained.result, folder)
        save(curve_picture(trained.result.history, plan.title), folder / "curve", formats)
        checkpoint.unlink(missing_ok=True)  # only now: until all is written, it is what there is of the training
    return figures, columns, rows


def training_figures(networks: Ensemble) -> dict[str, Any]:
    """Accuracies, of several networks together, and the mean density of their masks.

    The test part is read here, once, for every network that the training gives.
    """
    (trained,), last, task = networks.parts, networks.last, networks.task
    result = trained.result
    of_each = result.member_masks if len(last) > 1 else (trained.masks,)
    masks = [one for one in of_each if one is not None]
    effective = [one.effective_density(trained.model, task.data.input_shape) for one in masks]
    full = {} if (whole := result.whole_network(trained.model)) is None else {"full": [whole]}
    test = networks.read_test(last=last, **full)
    figures: dict[str, Any] = {
        "test_accuracy": test["last"]["accuracy"], "validation_accuracy": networks.validation["accuracy"],
        "density": mean(one.density for one in masks) if masks else 1.0,
        "effective_density": mean(effective) if masks else 1.0,
        "images_seen": result.images_seen, "wall_s": result.wall_s, "train_epochs": result.dense_epochs,
        "n_networks": len(last), "history": list(result.history),
    }  # fmt: skip
    for networks_of_full in full.values():
        figures["validation_accuracy_of_full"] = networks.judged(networks_of_full, task.data.validation)["accuracy"]
        figures["test_accuracy_of_full"] = test["full"]["accuracy"]
    return figures


def write_networks(trained: Trained, plan: TrainingPlan, folder: Path) -> None:
    """``model.safetensors`` and, if masks moved, ``mask.safetensors``, as training ended; of several networks each.

    ``model_full.safetensors`` is the network without its mask, where that was trained to work, too.
    """
    result = trained.result
    files = [("", trained.model.state_dict(), result.masks)]
    if result.whole is not None:
        files.append(("_full", result.whole, None))
    if len(result.members) > 1:
        members = zip(result.members, result.member_masks, strict=True)
        files += [(str(number), weights, mask) for number, ((_, weights), mask) in enumerate(members, start=1)]
    method, task = None if plan.moves is None else plan.moves.name, plan.task
    for which, weights, mask in files:
        write_tensors(weights, folder / f"model{which}.safetensors")
        if mask is not None:
            said = mask.with_manifest(
                method=method, **task.said(), input_shape=list(task.data.input_shape), seed=plan.seed
            )  # fmt: skip
            save_masks(said, folder / f"mask{which}.safetensors")


def _write_history(result: TrainResult, folder: Path) -> tuple[list[str], list[list[str]]]:
    """The table of the epochs; returns its columns and rows."""
    kept = {label: row for label, row in SHOWN.items() if row[0] in result.history[0]}
    columns = ["epoch", *kept]
    rows = [
        [f"{e['epoch']:g}", *(f"{scale * e[name]:{form}}" for name, scale, form in kept.values())]
        for e in result.history
    ]
    write_table(folder, columns, rows)
    return columns, rows


def _write_record(
    kind: str, identity: dict[str, Any], figures: dict[str, Any], folder: Path, device: torch.device,
    plugins: dict[str, str] | None,
) -> None:  # fmt: skip
    environment = environment_info(accelerator_name(str(device)), plugins)
    record = RunRecord(content_key(identity), kind, identity, figures, environment)
    write_atomic(folder / "records.jsonl", record_line(record))


def _named(task: Task) -> str:
    return f"{task.spec.model_name} on {task.data.label}"


def _mask_name(masks: Masks) -> str:
    """A mask in a title: what made it, as its manifest says."""
    method = masks.manifest.get("method")
    row = PRUNERS.get(str(method))
    name = "a mask" if method is None else str(method) if row is None else row.label
    if form := [f"{key} {masks.manifest[key]}" for key in ("shape", "quotas", "place") if key in masks.manifest]:
        name += f" ({'; '.join(form)})"
    repair = masks.manifest.get("all_alive")
    return name + REPAIRS["in_layers" if repair == "in_layers" else bool(repair)]
