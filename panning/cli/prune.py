"""``panning prune``: one mask by any method."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from panning.cli import options, output

if TYPE_CHECKING:
    from panning.jobs.prune import PruneReport, PruneRun

app = typer.Typer()


@app.command()
def prune(
    config: options.OneConfig = None,
    changes: options.Changes = None,
    model: options.OtherModel = None,
    data: options.OtherData = None,
    density: Annotated[float | None, typer.Option("--density", help="Fraction of weights to keep, in (0, 1].")] = None,
    target_macs: Annotated[
        float | None,
        typer.Option("--target-macs", help="Instead: multiply-adds to leave, a share (up to 1) or a number."),
    ] = None,
    target_parameters: Annotated[
        float | None,
        typer.Option("--target-parameters", help="Instead: parameters to leave, a share (up to 1) or a number."),
    ] = None,
    round_to: Annotated[
        int | None, typer.Option("--round-to", min=1, help="Of methods of units: channels up to a multiple of so many.")
    ] = None,
    method: Annotated[
        str | None, typer.Option("--method", help="A pruning method; panning methods lists all. Default: synflow.")
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option(
            "--policy", help="Prune with this trained agent, a file or a name of panning policies, instead of a method."
        ),
    ] = None,
    all_alive: Annotated[
        bool, typer.Option("--all-alive", help="Give the budget of dead weights to weights that can be alive.")
    ] = False,
    in_layers: Annotated[
        bool, typer.Option("--all-alive-in-layers", help="The same, with as many weights in each layer as before.")
    ] = False,
    quotas: Annotated[
        str | None,
        typer.Option(
            "--quotas", help="Weights a layer: as erk, as another method has them, or '0.3 erk + 0.7 synflow'."
        ),
    ] = None,
    place: Annotated[
        str | None,
        typer.Option("--place", help="Which weights of a layer: by an index, by lot, or balanced:INDEX, balanced:lot."),
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option(
            "--shape", help="2:4 keeps 2 of each 4 consecutive inputs, and needs no --density; 4x1 blocks of 4 outputs."
        ),
    ] = None,
    min_density: Annotated[
        list[str] | None, typer.Option("--min-density", metavar="PATTERN=D", help="Of layers by name; may be repeated.")
    ] = None,
    max_density: Annotated[
        list[str] | None, typer.Option("--max-density", metavar="PATTERN=D", help="Of layers by name; may be repeated.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Of initial weights, batches and everything random. Default: 0.")
    ] = None,
    rounds: Annotated[
        int | None, typer.Option("--rounds", min=1, max=10_000, help="Instead of the method's own number.")
    ] = None,
    schedule: Annotated[str | None, typer.Option("--schedule", help="Density over the rounds.")] = None,
    streaming: Annotated[
        bool,
        typer.Option(
            "--streaming", help="Hold the scores of one layer at a time; the same mask, and a killed run goes on."
        ),
    ] = False,
    released: Annotated[
        bool,
        typer.Option("--released", help="The method as its authors' code has it, where that departs from the paper."),
    ] = False,
    control: Annotated[
        str | None,
        typer.Option(
            "--control", help="shuffle, shuffle_alive, reinitialise or invert: what layer quotas alone are worth."
        ),
    ] = None,
    include: Annotated[
        list[str] | None, typer.Option("--include", help="Prune only weights of this name pattern; may be repeated.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option("--exclude", help="Leave weights of this name pattern dense; may be repeated.")
    ] = None,
    start: Annotated[
        str | None,
        typer.Option("--start", help="Noted in the mask for panning train: gain, gain:0.7, fan_in, isometry or supar."),
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
    """Find one mask for a network at its initial weights and write it; a CONFIG says what no option does.

    Examples:

        panning prune --model lenet5 --data fashion_mnist --density 0.02 --method snip --all-alive

        panning prune prune/digits-mlp density=0.02
    """
    from panning.episode.shelf import located
    from panning.foundation.pictures import parse_formats
    from panning.jobs.prune import check_prune, run_prune
    from panning.searches.kinds import PRUNE

    wanted = parse_formats(formats)
    given = {
        "task.data": data, "task.include": include, "task.exclude": exclude, "density": density,
        "target_macs": target_macs, "target_parameters": target_parameters, "round_to": round_to, "method": method,
        "policy": policy and located(policy), "all_alive": "in_layers" if in_layers else all_alive, "quotas": quotas,
        "place": place,
        "shape": shape, "min_density": _bounds("--min-density", min_density),
        "max_density": _bounds("--max-density", max_density),
        "seed": seed, "rounds": rounds, "schedule": schedule, "released": released, "control": control, "start": start,
        "streaming": streaming, "weights": weights, "data_root": data_root, "download": download, "device": device,
    }  # fmt: skip
    settings = options.one_config(PRUNE, config, changes, model, given)
    if dry_run:
        from panning.searches.cost import dry_run_of

        output.print_dry_run(dry_run_of(settings), as_json)
        return
    ready = check_prune(settings)
    folder = out or ready.folder
    track = options.Tracked(log, tensorboard, wandb, mlflow).by(folder, ready.identity)
    with track as tell, output.listener(tell) as listen:
        report = run_prune(ready, folder, listen=listen, formats=wanted)
    if as_json:
        output.print_json({"mask": str(report.path), **report.figures})
        return
    _print(ready, report)


def _print(ready: PruneRun, report: PruneReport) -> None:
    masks, facts, target = report.made.masks, report.made.facts, ready.config.target
    output.print_table(["layer", "density"], [[n, f"{d:.5f}"] for n, d in masks.layer_densities().items()])
    output.say(
        f"{ready.identity['method']}: {facts.n_kept} of {masks.n_prunable} weights kept, density {facts.density:.6g}, "
        f"{facts.sentence}"
    )
    if target is not None:
        output.say(target.told(masks.manifest))
    for doubt in report.made.doubts:
        output.note(f"warning: {doubt}")
    for layer in facts.collapsed_layers:
        output.note(f"warning: layer '{layer}' has no alive weight")
    if facts.n_reached_outputs < facts.n_outputs:
        output.note(
            f"warning: no path from the input leads to {facts.n_outputs - facts.n_reached_outputs} of the "
            f"{facts.n_outputs} outputs, which are the same for all inputs"
        )
    output.say(f"Mask: {report.path}")


def _bounds(option: str, texts: list[str] | None) -> dict[str, float] | None:
    """``PATTERN=DENSITY`` of an option that may be repeated."""
    found = {}
    for text in texts or []:
        pattern, equals, value = text.rpartition("=")
        try:
            found[pattern] = float(value)
        except ValueError:
            equals = ""
        if not equals or not pattern:
            raise typer.BadParameter(f"'{text}' is no bound: give {option} 'PATTERN=DENSITY', as {option} 'fc*=0.1'")
    return found or None
