"""``panning train``: train one network, dense, with a mask or with masks that move; read the test part once at the end."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Annotated, Any

import typer

from panning.cli import options, output

if TYPE_CHECKING:
    from torch import nn

    from panning.masks.masks import Masks
    from panning.tasks import Task
    from panning.training import Movement, Recipe, TrainResult
    from panning.training.moving.method import Dynamic

app = typer.Typer()


@app.command()
def train(
    model: options.Model,
    data: options.Data,
    mask: Annotated[Path | None, typer.Option("--mask", help="A mask file; without it the dense network.")] = None,
    dynamic: Annotated[
        str | None,
        typer.Option(
            "--dynamic",
            help="A method that moves masks while training (panning methods), or a preset with a recipe: "
            "dpf/resnet20-cifar10/short.",
        ),
    ] = None,
    density: Annotated[float | None, typer.Option("--density", help="At the end; with --dynamic.")] = None,
    numbers: Annotated[
        list[str] | None, typer.Option("--set", help="A number of the dynamic method, as every=50; repeat for more.")
    ] = None,
    all_alive: Annotated[
        bool,
        typer.Option("--all-alive", help="With --dynamic: after every move, give the budget of dead weights back."),
    ] = False,
    seed: options.Seed = 0,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", help="A preset, as lenet5-fashion_mnist/short; the options below change it."),
    ] = None,
    epochs: Annotated[float | None, typer.Option("--epochs", help="Default: 10.")] = None,
    learning_rate: Annotated[float | None, typer.Option("--learning-rate", help="Default: 0.1.")] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", help="Default: 128.")] = None,
    weight_decay: Annotated[float | None, typer.Option("--weight-decay", help="Default: 0.0005.")] = None,
    schedule: Annotated[
        str | None, typer.Option("--schedule", help="cosine, one_cycle, steps or constant. Default: cosine.")
    ] = None,
    precision: Annotated[str | None, typer.Option("--precision", help="float32 or bfloat16. Default: float32.")] = None,
    out: options.Out = None,
    data_root: options.DataRoot = None,
    download: options.Download = False,
    device: options.Device = "cpu",
    as_json: options.AsJson = False,
) -> None:
    """Train a network at its initial weights: dense, under a mask, or with masks that move while it trains.

    The seed must be the mask's for its own weights. With --dynamic, --mask is the first mask, and the last is left in the
    folder.

    Examples:

        panning train --model lenet5 --data fashion_mnist --mask runs/x/mask.safetensors --recipe lenet5-fashion_mnist/short

        panning train --model lenet5 --data fashion_mnist --dynamic dpf/lenet5-fashion_mnist/short --density 0.02
    """
    from panning.cli.report import write_record
    from panning.foundation.config import parse_config
    from panning.foundation.device import accelerator_name
    from panning.foundation.files import claim_folder
    from panning.foundation.machine import environment_info
    from panning.foundation.records import RunRecord, content_key
    from panning.masks.file import fingerprint, load_masks
    from panning.masks.masks import check_masks_fit, digest_of
    from panning.tasks import DataSource, TaskSpec, load_task
    from panning.training import Recipe, make_dynamic
    from panning.training import train as run_training
    from panning.training.loop import check_training
    from panning.training.presets import load_dynamic_preset, load_recipe

    given = {
        "epochs": epochs, "learning_rate": learning_rate, "batch_size": batch_size, "weight_decay": weight_decay,
        "schedule": schedule, "precision": precision,
    }  # fmt: skip
    if (dynamic is None) != (density is None) or (dynamic is None and (numbers or all_alive)):
        raise typer.BadParameter("--dynamic needs --density; --density, --set and --all-alive need --dynamic")
    changed: dict[str, Any] = {}
    try:
        preset = load_recipe(recipe).model_dump() if recipe is not None else {}
        if dynamic is not None and "/" in dynamic:
            setting = load_dynamic_preset(dynamic)
            preset, changed = preset or setting.recipe.model_dump(), dict(setting.options)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    chosen = parse_config(Recipe, preset | {key: value for key, value in given.items() if value is not None}, "options")
    name = None if dynamic is None else dynamic.partition("/")[0]
    method = None if name is None else make_dynamic(name, changed | _numbers(numbers or []), "--set")
    masks = load_masks(mask) if mask is not None else None
    task = load_task(
        TaskSpec(model=model, data=data), seed, DataSource.at(data_root, download, device), allow_import=True
    )
    network = task.problem.model
    if masks is not None:
        check_masks_fit(network, masks)
        if masks.manifest.get("seed", seed) != seed:
            output.note(f"note: the mask was made for the weights of seed {masks.manifest['seed']}, not {seed}")
    identity: dict[str, Any] = {
        "model": model, "data": data, "seed": seed, "recipe": chosen.model_dump(mode="json"),
        "mask": None if masks is None else [fingerprint(masks.layout), digest_of(masks.flat)],
    }  # fmt: skip
    movement = None
    if name is not None and method is not None and density is not None:
        movement, masks = _movement(task, name, method, density, all_alive, masks)
        check_training(chosen, len(task.data.train), movement, masks)  # before anything is written
        moves = {"name": name, "options": method.model_dump(mode="json"), "density": density, "all_alive": all_alive}
        identity["dynamic"] = moves
    folder = out or Path("runs") / f"train-{content_key(identity)[:10]}"
    claim_folder(folder, identity)
    checkpoint = folder / "checkpoint.safetensors"
    with output.listener() as listen:
        result = run_training(
            network.to(task.device), task.data, chosen, seed=seed, masks=masks, movement=movement,
            keep_best=movement is not None, checkpoint=checkpoint, listen=listen,
        )  # fmt: skip
    masks = masks if movement is None else result.masks
    figures = _figures(task, chosen, masks, result)
    _write_networks(folder, network, result, masks if movement is not None else None, identity)
    environment = environment_info(accelerator_name(str(task.device)))
    write_record(folder, RunRecord(content_key(identity), "train", identity, figures, environment))
    columns, lines = _history(result, folder)
    checkpoint.unlink(missing_ok=True)  # only now: until all is written, it is what there is of the training
    if as_json:
        output.print_json({key: value for key, value in figures.items() if key != "history"})
        return
    output.print_table(columns, lines)
    together = f" of {len(result.members)} networks together" if len(result.members) > 1 else ""
    full = ""
    if result.whole is not None:
        test, validation = (100 * figures[f"{part}_accuracy_of_full"] for part in ("test", "validation"))
        full = f"; of the full network {test:.2f} % (validation {validation:.2f} %)"
    output.say(
        f"test accuracy{together} {100 * figures['test_accuracy']:.2f} % at density {figures['density']:.6g}, effective "
        f"{figures['effective_density']:.6g}{full}"
    )
    output.say(f"Weights, {'masks, ' if movement is not None else ''}records and picture: {folder}")


def _numbers(texts: list[str]) -> dict[str, Any]:
    """``key=value`` with values as YAML has them."""
    import yaml

    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        try:
            found[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError:
            equals = ""
        if not equals or not key.strip():
            raise typer.BadParameter(f"--set takes NAME=VALUE, as every=50, given '{text}'")
    return found


def _movement(
    task: Task, name: str, method: Dynamic, density: float, all_alive: bool, masks: Masks | None
) -> tuple[Movement, Masks]:
    """How masks move, and the first ones."""
    from dataclasses import replace

    from panning.training import DYNAMICS, Movement
    from panning.training.moving.methods import first_mask

    problem = task.problem if masks is None else replace(task.problem, layout=masks.layout)
    first = masks or first_mask(problem, method, density, DYNAMICS[name])
    return Movement(method, problem, density, all_alive), first


def _figures(task: Task, recipe: Recipe, masks: Masks | None, result: TrainResult) -> dict[str, Any]:
    """Of several networks, of which they predict together, accuracies are theirs and densities the mean of their masks.

    The test part is read here, once, for every network that the training gives.
    """
    from panning.training import evaluate, evaluate_mean

    networks, of_each, validation = [task.problem.model], [masks], result.final
    if len(result.members) > 1:
        networks, of_each = result.networks(task.problem.model), list(result.member_masks)
        validation = evaluate_mean(networks, task.data, task.data.validation, recipe.precision)
    split = task.data.test_split()
    test = evaluate_mean(networks, task.data, split, recipe.precision)
    shape = task.data.input_shape
    effective = [1.0 if one is None else one.effective_density(task.problem.model, shape) for one in of_each]
    figures: dict[str, Any] = {
        "test_accuracy": test["accuracy"], "validation_accuracy": validation["accuracy"],
        "density": mean(1.0 if one is None else one.density for one in of_each), "effective_density": mean(effective),
        "images_seen": result.images_seen, "wall_s": result.wall_s, "train_epochs": result.dense_epochs,
        "n_networks": len(networks), "history": list(result.history),
    }  # fmt: skip
    if (whole := result.whole_network(task.problem.model)) is not None:
        for name, part in (("validation", task.data.validation), ("test", split)):
            figures[f"{name}_accuracy_of_full"] = evaluate(whole, task.data, part, recipe.precision)["accuracy"]
    return figures


def _write_networks(
    folder: Path, network: nn.Module, result: TrainResult, moved: Masks | None, identity: dict[str, Any]
) -> None:
    """``model.safetensors`` and, if masks moved, ``mask.safetensors``, as training ended; of several networks each.

    ``model_full.safetensors`` is the network without its mask, where that was trained to work, too.
    """
    from panning.export.folder import write_tensors
    from panning.masks.file import save_masks

    files = [("", network.state_dict(), moved)]
    if result.whole is not None:
        files.append(("_full", result.whole, None))
    if len(result.members) > 1:
        members = zip(result.members, result.member_masks, strict=True)
        files += [(str(number), weights, mask) for number, ((_, weights), mask) in enumerate(members, start=1)]
    facts = {key: identity[key] for key in ("model", "data", "seed")}
    for which, weights, mask in files:
        path = folder / f"model{which}.safetensors"
        write_tensors(weights, path)
        if mask is not None:
            manifest = {"method": identity["dynamic"]["name"], **facts}
            save_masks(mask.with_manifest(**manifest), folder / f"mask{which}.safetensors")


def _history(result: TrainResult, folder: Path) -> tuple[list[str], list[list[str]]]:
    """Writes table and picture of the epochs; the table's columns and rows."""
    from panning.cli.report import draw_lines
    from panning.foundation.tables import write_table

    shown = {
        "train loss": ("train_loss", 1.0, ".4f"),
        "validation accuracy %": ("accuracy", 100.0, ".2f"),
        "density": ("density", 1.0, ".5g"),
        "effective density": ("effective_density", 1.0, ".5g"),
    }
    kept = {label: row for label, row in shown.items() if row[0] in result.history[0]}
    columns = ["epoch", *kept]
    rows = [
        [f"{e['epoch']:g}", *(f"{scale * e[name]:{form}}" for name, scale, form in kept.values())]
        for e in result.history
    ]
    write_table(folder, columns, rows)
    lines = {label: [scale * e[name] for e in result.history] for label, (name, scale, _) in kept.items()}
    draw_lines(folder / "curve.png", lines, [row[0] for row in rows])
    return columns, rows
