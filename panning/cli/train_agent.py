"""``panning train-agent``: train a panning agent alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from panning.cli import options, output

app = typer.Typer()


@app.command("train-agent")
def train_agent(
    config: options.Config,
    changes: options.Changes = None,
    out: options.Out = None,
    workers: options.Workers = None,
    ray_address: options.RayAddress = None,
    ship_data: options.ShipData = False,
    model: options.OtherModel = None,
    weights: options.Weights = None,
    data_root: options.DataRoot = None,
    download: options.Download = False,
    device: options.RunDevice = None,
    dry_run: options.DryRun = False,
    log: options.Log = None,
    tensorboard: options.TensorBoard = None,
    wandb: options.WandB = None,
    mlflow: options.MLflow = None,
    formats: options.Formats = "png",
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Train for every reward anew; nothing is looked up or kept on disk.")
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """Train an agent; leaves policy.safetensors, which a search config or `panning prune --policy` takes.

    Example: panning train-agent agent/digits ppo.n_rollouts=10
    """
    from panning.foundation.pictures import parse_formats
    from panning.searches.kinds import AGENT, named_config
    from panning.searches.whole import How, whole_agent

    wanted, where = parse_formats(formats), options.workers_of(workers, ray_address, ship_data)
    found = named_config(AGENT, config, changes or ())
    settings = found.config.with_data(data_root, download, device).with_network(model, weights)
    folder = out or Path("runs") / f"agent-{found.stem}"
    output.note_slow_precision(settings.model_dump(mode="json"), settings.device)
    if dry_run:
        from panning.searches.cost import dry_run_of

        output.print_dry_run(dry_run_of(settings, where.n), as_json)
        return
    with (
        options.Tracked(log, tensorboard, wandb, mlflow).by(folder, settings.model_dump(mode="json")) as track,
        output.listener(track) as listen,
    ):
        _, records = whole_agent(settings, folder, How(where, listen, wanted, cache=not no_cache))
    if as_json:
        output.print_json({"policy": str(folder / "policy.safetensors"), "last_rollout": records[-1].metrics})
        return
    output.say(f"Policy: {folder / 'policy.safetensors'}")
