"""``panning bench``: methods compared under one protocol, and what things cost on this machine."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from panning.cli import options, output
from panning.cli.levers import levers
from panning.cli.shape import Group
from panning.foundation.packaged import packaged_configs
from panning.foundation.registry import nearest


class _ConfigOrCommand(Group):
    """``panning bench CONFIG`` is ``panning bench run CONFIG``."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        first = args[0]
        names = [*self.commands, *_packaged()]
        is_command = first.startswith("-") or first in self.commands or nearest(first, names) in self.commands
        if Path(first).exists() or first.endswith((".yaml", ".yml")) or not is_command:
            args = ["run", *args]
        return super().resolve_command(ctx, args)


def _packaged() -> set[str]:
    return {name for full in packaged_configs("bench") for name in (full, full.removeprefix("bench/"))}


app = typer.Typer(
    name="bench", help="Compare methods (panning bench CONFIG), and measure what pruning costs on this machine.",
    cls=_ConfigOrCommand, no_args_is_help=True,
)  # fmt: skip


@app.command()
def run(
    config: options.Config,
    changes: options.Changes = None,
    out: options.Out = None,
    share: Annotated[
        str, typer.Option("--share", metavar="I/N", help="Only the I-th of N parts; panning bench merge joins them.")
    ] = "1/1",
    no_controls: Annotated[
        bool, typer.Option("--no-controls", help="Run a grid that lacks controls; its report says so.")
    ] = False,
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
    dry_run: options.DryRun = False,
    log: options.Log = None,
    tensorboard: options.TensorBoard = None,
    wandb: options.WandB = None,
    mlflow: options.MLflow = None,
    as_json: options.AsJson = False,
) -> None:
    """Prune and train every cell of a grid that is not there yet: models, data, densities, methods, seeds.

    Example: panning bench digits-mlp
    """
    from panning.compare.run import check_grid
    from panning.jobs.reuse import reused_sentences
    from panning.searches.kinds import BENCH, named_config
    from panning.searches.whole import How, whole_grid

    where, part = options.workers_of(workers, ray_address, ship_data), _share(share)
    found = named_config(BENCH, config, [*(changes or ()), *(["controls=false"] if no_controls else [])])
    grid, beside = found.config.with_data(data_root, download, device).with_network(model, weights), found.path.parent
    n_cells, n_trainings = check_grid(grid, beside)
    output.note(f"{n_cells} cells" + (f", {n_trainings} trainings" if n_trainings > n_cells else ""))
    output.note_slow_precision(grid.model_dump(mode="json"), grid.device)
    folder = out or Path("runs") / f"bench-{grid.name}"
    if dry_run:
        from panning.searches.cost import dry_run_of

        output.print_dry_run(dry_run_of(grid, where.n, beside, part), as_json)
        return
    with (
        options.Tracked(log, tensorboard, wandb, mlflow).by(folder, grid.model_dump(mode="json")) as track,
        output.listener(track) as listen,
    ):
        how = How(where, listen, max_failed=max_failed, reuse=reuse or ())
        records = whole_grid(grid, beside, folder, how, part)
    failed = [record for record in records if record.metrics["error"] is not None]
    for record in failed:
        output.note(f"failed: {record.config['by']} at {record.config['density']:g}: {record.metrics['error']}")
    if as_json:
        said = {"records": str(folder / "records.jsonl"), "n_records": len(records)}
        output.print_json({**said, "failed": {record.key: record.metrics["error"] for record in failed}})
        return
    output.say(f"{len(records)} records, {len(failed)} of them failures: {folder / 'records.jsonl'}")
    for sentence in reused_sentences(records):
        output.say(sentence)
    output.say(f"Tables and pictures: panning bench report {shlex.quote(str(folder))}")


@app.command()
def merge(
    records: Annotated[
        list[Path],
        typer.Argument(metavar="RECORDS...", help="Record files, or folders of a grid's shares.", show_default=False),
    ],
    out: Annotated[Path, typer.Option("--out", help="The folder that takes them in.", show_default=False)],
    as_json: options.AsJson = False,
) -> None:
    """Join what several machines ran; a cell that two of them ran is kept once, and must say the same.

    Example: panning bench merge a/records.jsonl b/records.jsonl --out runs/bench-all
    """
    from panning.compare.run import merge_records

    n_added = merge_records(records, out)
    if as_json:
        output.print_json({"records": str(out / "records.jsonl"), "n_added": n_added})
        return
    output.say(f"{n_added} records added: {out / 'records.jsonl'}")


@app.command()
def fidelity(
    records: options.Records,
    out: Annotated[Path | None, typer.Option("--out", help="Write the table there, as fidelity.md.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """Say how well the short trainings of a grid foresee its full ones.

    Example: panning bench fidelity runs/bench-fidelity-lenet5
    """
    from panning.compare import fidelity as judged
    from panning.compare.cells import read_cells
    from panning.foundation.files import write_atomic

    found = read_cells(records)
    rows = judged.foresights(found)
    if out is not None:
        write_atomic(out / "fidelity.md", judged.markdown(found))
    if as_json:
        output.print_json([row.as_json() for row in rows])
        return
    output.print_table(judged.COLUMNS, judged.table_cells(rows))


@app.command()
def variance(
    records: options.Records,
    out: Annotated[Path | None, typer.Option("--out", help="Write the tables there, as variance.md.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """Say which part of the difference between masks is quotas, which places, which start.

    Example: panning bench variance runs/bench-levers-lenet5
    """
    from panning.compare import variance as judged
    from panning.compare.cells import read_cells
    from panning.foundation.files import write_atomic

    cells = read_cells(records)
    found = judged.analyses(cells)
    if out is not None:
        write_atomic(out / "variance.md", judged.markdown(cells))
    if as_json:
        output.print_json([one.as_json() for one in found])
        return
    for title, some in judged.by_title(found).items():
        output.say(title)
        output.print_table(*judged.share_cells(some))
        output.print_table(*judged.level_cells(some))


app.command()(levers)


@app.command()
def report(
    records: options.Records,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Where tables and pictures go. Default: the first folder of RECORDS; of a file, one of its name.",
        ),
    ] = None,
    formats: options.Formats = "png",
    as_json: options.AsJson = False,
) -> None:
    """Make the tables and pictures of a grid from its records, and say which differences hold.

    Example: panning bench report runs/bench-digits-mlp
    """
    from panning.compare import report as grid_report
    from panning.compare.cells import read_cells
    from panning.foundation.pictures import parse_formats

    first = records[0]
    folder = out or (
        first if first.is_dir() else first.parent if first.name == "records.jsonl" else first.with_suffix("")
    )
    tables = grid_report.write_report(read_cells(records), folder, parse_formats(formats))
    if as_json:
        output.print_json(grid_report.as_json(tables))
        return
    for table in tables:
        output.say(table.title)
        output.print_table(*grid_report.short_cells(table))
        output.say(grid_report.READING)
        for sentence in (*grid_report.marks(table), *grid_report.findings(table)):
            output.say(sentence)
    output.say(f"Report, tables and pictures: {folder / 'report.md'}")


def _share(text: str) -> tuple[int, int]:
    """The part's number, from 0, and the number of parts."""
    first, _, n = text.partition("/")
    if not (first.isdecimal() and n.isdecimal() and 1 <= int(first) <= int(n)):
        raise typer.BadParameter(f"--share is '{text}', but must be I/N with 1 <= I <= N, as 1/4.")
    return int(first) - 1, int(n)


@app.command()
def speed(
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            help="A model's name, torchvision:NAME, timm:NAME or decoder-1m, -10m, -100m; repeatable. Default: six of them.",
        ),
    ] = None,
    threads: Annotated[
        list[int] | None, typer.Option("--threads", min=1, help="Repeatable. Default: 1, and all cores.")
    ] = None,
    samples: Annotated[
        int | None, typer.Option("--samples", min=1, help="In the batch. Default: 100, for those of libraries 8.")
    ] = None,
    item: Annotated[
        str | None, typer.Option("--item", metavar="PATTERN", help="Only what has this in its name, as 'method s*'.")
    ] = None,
    large: Annotated[
        bool, typer.Option("--large", help="Also ViT-B/16 and a decoder of 100 million weights: gigabytes, and longer.")
    ] = False,
    budget_s: Annotated[
        float, typer.Option("--budget-s", min=0.0, help="Seconds for the repetitions of one item.")
    ] = 10.0,
    device: options.Device = "cpu",
    out: options.Out = None,
    formats: options.Formats = "png",
    as_json: options.AsJson = False,
) -> None:
    """Time every pruning method and rounds of the environment, in passes of plain PyTorch, with peak memory.

    Beside them runs a step of the Panning authors' environment, in plain PyTorch. On one thread of a processor all ratios
    are of processor times, which other work on the machine changes little. An interrupted benchmark goes on where it was.

    Example: panning bench speed --model lenet5 --threads 1
    """
    from panning.foundation.pictures import parse_formats
    from panning.measure import report as report
    from panning.measure.run import cases, matching_items, run_speed

    matching_items(item)  # a wrong name is answered at once
    wanted = cases(model or (), threads or (), samples, device, large)
    forms = parse_formats(formats)
    folder = out or Path("runs") / "bench-speed"
    with output.listener() as listen:
        records = run_speed(wanted, folder, item, budget_s=budget_s, listen=listen)
    report.write_report(records, folder, forms)
    if as_json:
        output.print_json(report.as_json(records))
        return
    output.print_table(report.COLUMNS, report.table_cells(records))
    if parts := report.part_cells(records):
        output.say("An episode of an agent's training, in parts")
        output.print_table(report.PART_COLUMNS, parts)
    for line in report.failures(records):
        output.note(f"failed: {line}")
    output.say(f"Records and table: {folder}")


@app.command()
def compaction(
    masks: Annotated[
        list[Path], typer.Argument(metavar="MASK...", help="Mask files of the model.", show_default=False)
    ],
    model: options.Model,
    threads: Annotated[list[int] | None, typer.Option("--threads", min=1, help="Repeatable. Default: 1.")] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=2, help="Inputs in a batch.")] = 128,
    budget_s: Annotated[
        float, typer.Option("--budget-s", min=0.0, help="Seconds for the repetitions of one mask.")
    ] = 20.0,
    device: options.Device = "cpu",
    out: options.Out = None,
    as_json: options.AsJson = False,
) -> None:
    """Time a training step and an inference under masks, dense against compact, side by side.

    Other work on the machine spoils the numbers. An interrupted benchmark goes on where it was.

    Example: panning bench compaction runs/masks/*.safetensors --model vgg19 --threads 1 --threads 2
    """
    from panning.measure import compaction as bench

    folder = out or Path("runs") / "bench-compaction"
    with output.listener() as listen:
        records = bench.run_compaction(
            masks,
            model,
            folder,
            threads=threads or (1,),
            batch_size=batch_size,
            budget_s=budget_s,
            device=device,
            listen=listen,
        )
    bench.write_report(records, folder)
    if as_json:
        output.print_json([{**record.config, **record.metrics} for record in records])
        return
    output.print_table(bench.COLUMNS, bench.table_cells(records))
    output.say(f"Records and table: {folder}")
