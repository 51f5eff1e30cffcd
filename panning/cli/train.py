"""``panning train``: train one network, dense, with a mask or with masks that move; read the test part once at the end."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from panning.cli import options, output

if TYPE_CHECKING:
    from panning.jobs.by import DynamicSpec
    from panning.training import Recipe

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
    shape: Annotated[
        str | None, typer.Option("--shape", help="With --dynamic: every mask keeps 2:4, or whole blocks (4x1).")
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Of weights, batches and everything random. Default: the mask's, or 0.")
    ] = None,
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
    start: Annotated[
        str | None,
        typer.Option(
            "--start", help="Of the kept weights: gain, gain:0.7, fan_in, isometry, supar or none. Default: the mask's."
        ),
    ] = None,
    weights: options.Weights = None,
    out: options.Out = None,
    data_root: options.DataRoot = None,
    download: options.Download = False,
    device: options.Device = "cpu",
    dry_run: options.DryRun = False,
    log: options.Log = None,
    tensorboard: options.TensorBoard = None,
    wandb: options.WandB = None,
    mlflow: options.MLflow = None,
    formats: options.Formats = "png",
    as_json: options.AsJson = False,
) -> None:
    """Train a network at its initial weights: dense, under a mask, or with masks that move while it trains.

    Without --seed a mask's own weights are trained. With --dynamic, --mask is the first mask, and the last is left in the
    folder.

    Examples:

        panning train --model lenet5 --data fashion_mnist --mask runs/x/mask.safetensors --recipe lenet5-fashion_mnist/short

        panning train --model lenet5 --data fashion_mnist --dynamic dpf/lenet5-fashion_mnist/short --density 0.02
    """
    from torch import get_num_threads

    from panning.foundation.files import file_digest
    from panning.foundation.pictures import parse_formats
    from panning.jobs.runs import run_folder
    from panning.jobs.single import TrainingPlan, train_in_folder
    from panning.masks.file import fingerprint, load_masks
    from panning.masks.masks import check_masks_fit, digest_of
    from panning.measure.dry_run import dry_run as measured_run
    from panning.measure.estimate import training_stage
    from panning.tasks import DataSource, TaskSpec, load_task

    wanted = parse_formats(formats)
    given = {
        "epochs": epochs, "learning_rate": learning_rate, "batch_size": batch_size, "weight_decay": weight_decay,
        "schedule": schedule, "precision": precision, "start": start,
    }  # fmt: skip
    if dynamic is None and (density is not None or numbers or all_alive or shape is not None):
        raise typer.BadParameter("--density, --set, --all-alive and --shape need --dynamic")
    if dynamic is not None and density is None and shape is None:
        raise typer.BadParameter("--dynamic needs --density, or a --shape like 2:4, which says it")
    chosen, moves = _chosen(recipe, given, dynamic, _numbers(numbers or []))
    masks = load_masks(mask) if mask is not None else None
    if start is None and (noted := chosen.noted(masks)).start != chosen.start and noted.start is not None:
        chosen, text = noted, noted.start.text
        output.note(f"note: the mask asks for the start {text}, and gets it: --start none trains the weights as drawn")
    if masks is None and moves is None and chosen.start is not None:
        raise typer.BadParameter("--start is that of kept weights: give a --mask, or a method with --dynamic")
    made_for = None if masks is None else masks.manifest.get("seed")
    made_for = made_for if type(made_for) is int else None
    seed = (made_for or 0) if seed is None else seed
    source = DataSource.at(data_root, download, device)
    spec, of_weights = TaskSpec(model=model, data=data), {}
    if weights is not None:
        spec, of_weights = spec.with_network(source, weights=weights), {"weights": file_digest(weights)}
    task = load_task(spec, seed, source, allow_import=True)
    if masks is not None:
        check_masks_fit(task.problem.model, masks)
        if made_for not in (None, seed):
            output.note(
                f"note: the mask was made for the weights of seed {made_for}, and this trains those of seed {seed}: "
                f"--seed {made_for}, or no --seed, trains the mask's own"
            )
        if masks.manifest.get("weights") != of_weights.get("weights"):
            output.note("note: the mask was made for other weights: give the file that it was made for as --weights")
    identity: dict[str, Any] = {
        "model": model, "data": data, "seed": seed, "recipe": chosen.model_dump(mode="json"),
        "mask": None if masks is None else [fingerprint(masks.layout), digest_of(masks.flat)], **of_weights,
    }  # fmt: skip
    plan = TrainingPlan(task, chosen, seed, masks)
    if moves is not None:
        plan = plan.moving(moves, density, all_alive, shape)
        identity["dynamic"] = {**moves.model_dump(mode="json"), "density": density, "all_alive": all_alive}
        identity["dynamic"] |= {} if shape is None else {"shape": shape}
    how = moves.name if moves is not None else "dense" if masks is None else "masked"
    folder = out or run_folder("train", identity, model, data, how, f"s{seed}")
    if dry_run:
        once = measured_run(lambda pricing: [training_stage(plan, pricing)], 0, get_num_threads())
        output.print_dry_run(once, as_json)
        return
    track = options.Tracked(log, tensorboard, wandb, mlflow).by(folder, identity)
    with track as tell, output.listener(tell) as listen:
        figures, columns, rows = train_in_folder(plan, identity, folder, listen, wanted)
    if as_json:
        output.print_json({key: value for key, value in figures.items() if key != "history"})
        return
    output.print_table(columns, rows)
    together = f" of {figures['n_networks']} networks together" if figures["n_networks"] > 1 else ""
    full = ""
    if "test_accuracy_of_full" in figures:
        test, validation = (100 * figures[f"{part}_accuracy_of_full"] for part in ("test", "validation"))
        full = f"; of the full network {test:.2f} % (validation {validation:.2f} %)"
    output.say(
        f"test accuracy{together} {100 * figures['test_accuracy']:.2f} % at density {figures['density']:.6g}, effective "
        f"{figures['effective_density']:.6g}{full}"
    )
    output.say(f"Weights, {'masks, ' if moves is not None else ''}records and picture: {folder}")


def _chosen(
    recipe: str | None, given: dict[str, Any], dynamic: str | None, numbers: dict[str, Any]
) -> tuple[Recipe, DynamicSpec | None]:
    """The recipe and how masks move: presets, and what the command line changes of them."""
    from panning.foundation.config import parse_config
    from panning.jobs.by import DynamicSpec
    from panning.training import Recipe, make_dynamic
    from panning.training.presets import load_dynamic_preset, load_recipe

    changed: dict[str, Any] = {}
    try:
        preset = load_recipe(recipe).model_dump() if recipe is not None else {}
        if dynamic is not None and "/" in dynamic:
            setting = load_dynamic_preset(dynamic)
            preset, changed = preset or setting.recipe.model_dump(), dict(setting.options)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    chosen = parse_config(Recipe, preset | {key: value for key, value in given.items() if value is not None}, "options")
    if dynamic is None:
        return chosen, None
    name = dynamic.partition("/")[0]
    method = make_dynamic(name, changed | numbers, "--set")
    return chosen, DynamicSpec(name=name, options=method.model_dump(mode="json"))


def _numbers(texts: list[str]) -> dict[str, Any]:
    """``key=value`` with values as YAML has them."""
    from panning.foundation.config import yaml_value

    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise typer.BadParameter(f"--set takes NAME=VALUE, as every=50, given '{text}'")
        found[key.strip()] = yaml_value(value, text)
    return found
