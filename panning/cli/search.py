"""``panning search`` and ``panning demo``: the main job, from the agent to the table."""

from __future__ import annotations

from pathlib import Path

import typer

from panning.cli import options, output

app = typer.Typer()


@app.command()
def search(
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
    max_failed: options.MaxFailed = 0.2,
    reuse: options.Reuse = None,
    max_trials: options.MaxTrials = None,
    max_cost: options.MaxCost = None,
    budget: options.Budget = None,
    dry_run: options.DryRun = False,
    log: options.Log = None,
    tensorboard: options.TensorBoard = None,
    wandb: options.WandB = None,
    mlflow: options.MLflow = None,
    formats: options.Formats = "png",
    as_json: options.AsJson = False,
) -> None:
    """Train an agent, search for masks, train the winner, the agent's masks and all baselines, write the table.

    panning search resume FOLDER goes on with the search in a folder, by its own config.

    Examples:

        panning search fashion-lenet5 --data-root DIR

        panning search mine.yaml seeds=[0,1] agent.ppo.n_rollouts=5

        panning search resume runs/mine --budget 2h
    """
    from panning.compare.report import READING, short_cells
    from panning.foundation.course import seconds_of
    from panning.foundation.pictures import parse_formats
    from panning.searches import report
    from panning.searches.kinds import SEARCH, named_config
    from panning.searches.whole import How, whole_search

    wanted, where = parse_formats(formats), options.workers_of(workers, ray_address, ship_data)
    config, changes, out = _resumed(config, changes or [], out)
    limits = {
        "max_trials": max_trials,
        "max_cost": max_cost,
        "budget_s": None if budget is None else seconds_of(budget),
    }
    given = {name: limit for name, limit in limits.items() if limit is not None}
    found = named_config(SEARCH, config, changes, given)
    settings = found.config.with_data(data_root, download, device).with_network(model, weights)
    folder = out or Path("runs") / found.stem
    output.note_slow_precision(settings.model_dump(mode="json"), settings.device)
    if dry_run:
        from panning.searches.cost import dry_run_of

        output.print_dry_run(dry_run_of(settings, where.n), as_json)
        return
    with (
        options.Tracked(log, tensorboard, wandb, mlflow).by(folder, settings.model_dump(mode="json")) as track,
        output.listener(track) as listen,
    ):
        how = How(where, listen, wanted, max_failed=max_failed, reuse=reuse or ())
        result, table = whole_search(settings, folder, how)
    if as_json:
        output.print_json(report.as_json(result, table))
        return
    output.print_table(*short_cells(table))
    output.say(READING)
    for sentence in (*report.choices(result, table), *result.ended):
        output.say(sentence)
    output.say(f"Masks, table, pictures and records: {folder}")


def _resumed(config: str, changes: list[str], out: Path | None) -> tuple[str, list[str], Path | None]:
    """The config, changes and folder of a search; ``resume FOLDER`` names the folder, which holds the config."""
    if config != "resume" or Path(config).exists():
        return config, changes, out
    if not changes or out is not None:
        raise typer.BadParameter("resume takes the folder of a search, and no --out: panning search resume runs/mine")
    folder = Path(changes[0])
    if not (folder / "config.yaml").is_file():
        raise typer.BadParameter(f"there is no search in {folder}: it has no config.yaml")
    return str(folder / "config.yaml"), changes[1:], folder


@app.command()
def demo(
    out: options.Out = None,
    workers: options.Workers = None,
    ray_address: options.RayAddress = None,
    device: options.RunDevice = None,
    as_json: options.AsJson = False,
) -> None:
    """Run the whole job on the embedded digits in a few minutes; run it again to go on after an interruption."""
    search("demo/digits", None, out or Path("runs") / "demo", workers, ray_address, device=device, as_json=as_json)
