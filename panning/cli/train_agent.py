"""``panning train-agent``: train a panning agent alone."""

from __future__ import annotations

import math
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
    from panning import agents
    from panning.agents.pictures import reward_picture
    from panning.agents.rollouts import read_rollouts
    from panning.foundation.config import dump_config
    from panning.foundation.files import write_atomic
    from panning.foundation.pictures import parse_formats, save
    from panning.foundation.tables import write_table
    from panning.measure.dry_run import dry_run as measured_run
    from panning.measure.estimate import agent_stage
    from panning.searches.kinds import AGENT, named_config
    from panning.tasks import load_task

    wanted = parse_formats(formats)
    found = named_config(AGENT, config, changes or ())
    settings = found.config.with_data(data_root, download, device).with_network(model, weights)
    for task in settings.env.tasks:
        # Before Ray starts: wrong input is answered at once.
        load_task(task, settings.env.seeds[0], settings.source.on_cpu)
    folder = out or Path("runs") / f"agent-{found.stem}"
    n_workers = options.worker_count(workers)
    if dry_run:
        output.print_dry_run(measured_run(lambda pricing: [agent_stage(settings, pricing)], n_workers), as_json)
        return
    with (
        options.Tracked(log, tensorboard, wandb, mlflow).by(folder, settings.model_dump(mode="json")) as track,
        options.ray(n_workers, ray_address, settings.device) as start_ray,
        output.listener(track) as listen,
    ):
        agents.train_agent(
            settings, folder, n_workers=n_workers, listen=listen, cache=not no_cache, start_workers=start_ray
        )
    write_atomic(folder / "config.yaml", dump_config(settings))
    records = read_rollouts(folder / "rollouts.jsonl")
    columns = [name for name in records[-1].metrics if name not in ("episodes", "timesteps")]
    rows = [[r.config["rollout"] + 1, *(f"{r.metrics.get(name, math.nan):.4g}" for name in columns)] for r in records]
    write_table(folder, ["rollout", *columns], rows)
    save(reward_picture(folder / "rollouts.jsonl", settings.env), folder / "reward", wanted)
    if as_json:
        output.print_json({"policy": str(folder / "policy.safetensors"), "last_rollout": records[-1].metrics})
        return
    output.say(f"Policy: {folder / 'policy.safetensors'}")
