"""``panning train``: train one network, dense, with a mask or with masks that move; read the test part once at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from panning.cli import options, output

app = typer.Typer()


@app.command()
def train(
    config: options.OneConfig = None,
    changes: options.Changes = None,
    model: options.OtherModel = None,
    data: options.OtherData = None,
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
    device: options.RunDevice = None,
    dry_run: options.DryRun = False,
    log: options.Log = None,
    tensorboard: options.TensorBoard = None,
    wandb: options.WandB = None,
    mlflow: options.MLflow = None,
    formats: options.Formats = "png",
    as_json: options.AsJson = False,
) -> None:
    """Train a network at its initial weights: dense, under a mask, or with masks that move while it trains.

    A CONFIG says what no option does. Without --seed a mask's own weights are trained.
    With --dynamic, --mask is the first mask, and the last is left in the
    folder.

    Examples:

        panning train --model lenet5 --data fashion_mnist --mask runs/x/mask.safetensors --recipe lenet5-fashion_mnist/short

        panning train --model lenet5 --data fashion_mnist --dynamic dpf/lenet5-fashion_mnist/short --density 0.02

        panning train train/digits-mlp recipe.epochs=5
    """
    from panning.foundation.pictures import parse_formats
    from panning.jobs.train import check_train, run_train
    from panning.searches.kinds import TRAIN

    wanted = parse_formats(formats)
    if numbers and dynamic is None and config is None:
        raise typer.BadParameter("--set needs --dynamic")
    given = {
        "task.data": data, "mask": mask, "recipe": recipe, "dynamic": dynamic, "density": density, "all_alive": all_alive,
        "shape": shape, "seed": seed, "weights": weights, "data_root": data_root, "download": download, "device": device,
        "recipe.epochs": epochs, "recipe.learning_rate": learning_rate, "recipe.batch_size": batch_size,
        "recipe.weight_decay": weight_decay, "recipe.schedule": schedule, "recipe.precision": precision,
        "recipe.start": start, **{f"dynamic.options.{key}": value for key, value in _numbers(numbers or []).items()},
    }  # fmt: skip
    settings = options.one_config(TRAIN, config, changes, model, given)
    output.note_slow_precision(settings.model_dump(mode="json"), settings.device)
    if dry_run:
        from panning.searches.cost import dry_run_of

        output.print_dry_run(dry_run_of(settings), as_json)
        return
    ready = check_train(settings)
    for text in ready.notes:
        output.note(f"note: {text}")
    folder = out or ready.folder
    track = options.Tracked(log, tensorboard, wandb, mlflow).by(folder, ready.identity)
    with track as tell, output.listener(tell) as listen:
        report = run_train(ready, folder, listen=listen, formats=wanted)
    figures = report.figures
    if as_json:
        output.print_json({key: value for key, value in figures.items() if key != "history"})
        return
    output.print_table(report.columns, report.rows)
    together = f" of {figures['n_networks']} networks together" if figures["n_networks"] > 1 else ""
    full = ""
    if "test_accuracy_of_full" in figures:
        test, validation = (100 * figures[f"{part}_accuracy_of_full"] for part in ("test", "validation"))
        full = f"; of the full network {test:.2f} % (validation {validation:.2f} %)"
    output.say(
        f"test accuracy{together} {100 * figures['test_accuracy']:.2f} % at density {figures['density']:.6g}, effective "
        f"{figures['effective_density']:.6g}{full}"
    )
    output.say(f"Weights, {'masks, ' if ready.plan.moves is not None else ''}records and picture: {folder}")


def _numbers(texts: list[str]) -> dict[str, Any]:
    """``key=value`` with values as YAML has them."""
    from panning.foundation.config import yaml_value
    from panning.foundation.errors import ConfigError

    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        wrong = f"--set takes NAME=VALUE, as every=50, given '{text[:100]}'"
        if not equals or not key.strip():
            raise typer.BadParameter(wrong)
        try:
            found[key.strip()] = yaml_value(value, text)
        except ConfigError:
            raise typer.BadParameter(wrong) from None
    return found
