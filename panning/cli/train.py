"""``panning train``: train one network, dense or with a mask, and read the test part once at the end."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from panning.cli import options, output

app = typer.Typer()


@app.command()
def train(
    model: options.Model,
    data: options.Data,
    mask: Annotated[Path | None, typer.Option("--mask", help="A mask file; without it the dense network.")] = None,
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
    as_json: options.AsJson = False,
) -> None:
    """Train a network at its initial weights, dense or under a mask. The seed must be the mask's for its own weights.

    Example: panning train --model lenet5 --data fashion_mnist --mask runs/x/mask.safetensors --recipe
    lenet5-fashion_mnist/short
    """
    from safetensors.torch import save

    from panning.benchmark.presets import load_recipe
    from panning.cli.report import draw_lines, write_record, write_table
    from panning.config import parse_config
    from panning.maskfile import fingerprint, load_masks
    from panning.masks import check_masks_fit
    from panning.records import RunRecord, claim_folder, content_key, environment_info, write_atomic
    from panning.tasks import DataSource, TaskSpec, load_task
    from panning.training import Recipe, evaluate
    from panning.training import train as run_training

    given = {
        "epochs": epochs, "learning_rate": learning_rate, "batch_size": batch_size, "weight_decay": weight_decay,
        "schedule": schedule, "precision": precision,
    }  # fmt: skip
    try:
        preset = load_recipe(recipe).model_dump() if recipe is not None else {}
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    chosen = parse_config(Recipe, preset | {key: value for key, value in given.items() if value is not None}, "options")
    masks = load_masks(mask) if mask is not None else None
    source = DataSource.at(data_root, download)
    task = load_task(TaskSpec(model=model, data=data), seed, source, allow_import=True)
    network = task.problem.model
    if masks is not None:
        check_masks_fit(network, masks)
        if masks.manifest.get("seed", seed) != seed:
            output.note(f"note: the mask was made for the weights of seed {masks.manifest['seed']}, not {seed}")
    identity: dict[str, Any] = {
        "model": model, "data": data, "seed": seed, "recipe": chosen.model_dump(mode="json"),
        "mask": None if masks is None else [fingerprint(masks.layout), content_key(masks.flat.nonzero().tolist())],
    }  # fmt: skip
    folder = out or Path("runs") / f"train-{content_key(identity)[:10]}"
    claim_folder(folder, identity)
    with output.progress("training", math.ceil(chosen.epochs)) as advance:
        result = run_training(
            network, task.data, chosen, seed=seed, masks=masks, checkpoint=folder / "checkpoint.safetensors",
            on_epoch=lambda entry: advance(1, note=f"validation {100 * entry['accuracy']:.2f} %"),
        )  # fmt: skip
    test = evaluate(network, task.data, task.data.test_split(), chosen.precision)
    figures: dict[str, Any] = {
        "test_accuracy": test["accuracy"], "validation_accuracy": result.final["accuracy"],
        "density": 1.0 if masks is None else masks.density,
        "effective_density": 1.0 if masks is None else masks.effective_density(network, task.data.input_shape),
        "images_seen": result.images_seen, "wall_s": result.wall_s, "history": list(result.history),
    }  # fmt: skip
    write_atomic(folder / "model.safetensors", save({k: v.contiguous() for k, v in network.state_dict().items()}))
    write_record(folder, RunRecord(content_key(identity), "train", identity, figures, environment_info()))
    history = [[f"{e['epoch']:g}", f"{e['train_loss']:.4f}", f"{100 * e['accuracy']:.2f}"] for e in result.history]
    write_table(folder, ["epoch", "train loss", "validation accuracy %"], history)
    lines = {
        "train loss": [e["train_loss"] for e in result.history],
        "validation accuracy, %": [100 * e["accuracy"] for e in result.history],
    }
    draw_lines(folder / "curve.png", lines, [row[0] for row in history])
    if as_json:
        output.print_json({key: value for key, value in figures.items() if key != "history"})
        return
    output.print_table(["epoch", "train loss", "validation accuracy %"], history)
    output.say(
        f"test accuracy {100 * test['accuracy']:.2f} % at density {figures['density']:.6g}, effective "
        f"{figures['effective_density']:.6g}"
    )
    output.say(f"Weights, records and picture: {folder}")
