"""``panning bench``: what things cost on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from panning.cli import options, output

app = typer.Typer(name="bench", help="Measure what pruning costs on this machine.", no_args_is_help=True)


@app.command()
def speed(
    model: Annotated[
        list[str] | None,
        typer.Option("--model", help="A model's name or torchvision:NAME; repeatable. Default: four of them."),
    ] = None,
    threads: Annotated[
        list[int] | None, typer.Option("--threads", min=1, help="Repeatable. Default: 1, and all cores.")
    ] = None,
    samples: Annotated[
        int | None, typer.Option("--samples", min=1, help="In the batch. Default: 100, for torchvision's models 8.")
    ] = None,
    item: Annotated[
        str | None, typer.Option("--item", metavar="PATTERN", help="Only what has this in its name, as 'method s*'.")
    ] = None,
    budget_s: Annotated[
        float, typer.Option("--budget-s", min=0.0, help="Seconds for the repetitions of one item.")
    ] = 10.0,
    out: options.Out = None,
    as_json: options.AsJson = False,
) -> None:
    """Time every pruning method and a round of the environment, in passes of plain PyTorch, with peak memory.

    Other work on the machine spoils the numbers. An interrupted benchmark goes on where it was.

    Example: panning bench speed --model lenet5 --threads 1
    """
    from panning.benchmark import speed_report as report
    from panning.benchmark.speed_run import cases, matching_items, run_speed

    items = matching_items(item)
    wanted = cases(model or (), threads or (), samples)
    folder = out or Path("runs") / "bench-speed"
    with output.progress("measuring", len(wanted) * len(items)) as advance:
        records = run_speed(wanted, items, folder, budget_s=budget_s, on_item=lambda name: advance(1, note=name))
    report.write_report(records, folder)
    if as_json:
        output.print_json(report.as_json(records))
        return
    output.print_table(report.COLUMNS, report.table_cells(records))
    if goals := report.goal_cells(records):
        output.print_table(report.GOAL_COLUMNS, goals)
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
    out: options.Out = None,
    as_json: options.AsJson = False,
) -> None:
    """Time a training step and an inference under masks, dense against compact, side by side.

    Other work on the machine spoils the numbers. An interrupted benchmark goes on where it was.

    Example: panning bench compaction runs/masks/*.safetensors --model vgg19 --threads 1 --threads 2
    """
    from panning.benchmark import compaction as bench

    folder = out or Path("runs") / "bench-compaction"
    with output.progress("measuring", len(masks)) as advance:
        records = bench.run_compaction(
            masks, model, folder, threads=threads or (1,), batch_size=batch_size, budget_s=budget_s,
            on_mask=lambda name: advance(1, note=name),
        )  # fmt: skip
    bench.write_report(records, folder)
    if as_json:
        output.print_json([{**record.config, **record.metrics} for record in records])
        return
    output.print_table(bench.COLUMNS, bench.table_cells(records))
    output.say(f"Records and table: {folder}")
