"""``panning reproduce``: one row of a benchmark again, compared with its record."""

from __future__ import annotations

import reprlib
from pathlib import Path
from typing import Annotated

import typer

from panning.cli import options, output

app = typer.Typer()

SHOWN = ("density", "effective_density", "accuracy", "test_accuracy", "test_accuracy_of_best", "error")


@app.command()
def reproduce(
    records: Annotated[
        Path, typer.Argument(metavar="RECORDS", help="A records.jsonl, or its folder.", show_default=False)
    ],
    key: Annotated[str | None, typer.Option("--key", help="The record's key, or how it begins.")] = None,
    policy: Annotated[Path | None, typer.Option("--policy", help="The agent's file, for a row of the agent.")] = None,
    data_root: options.DataRoot = None,
    download: options.Download = False,
    device: options.Device = "cpu",
    as_json: options.AsJson = False,
) -> None:
    """Run one cell again from its record's config and seed, and say whether it gives the same. Exit code 1 if not.

    Example: panning reproduce docs/results/fashion-lenet5.jsonl --key 621aa1
    """
    from panning.compare.cells import read_cells, row_name
    from panning.compare.reproduce import differences, find_record, row_spread, run_again, version_of
    from panning.foundation.machine import environment_info
    from panning.foundation.making import VERSIONS, making
    from panning.tasks import DataSource

    cells = read_cells([records])
    record = find_record(cells, key)
    config = record.config
    output.note(
        f"{row_name(config)} at density {config['density']:g}, seed {config['seed']}: {config['task']['model']}"
    )
    if (version := version_of(record)) != making():
        says = VERSIONS.get(version, "not known here")
        output.note(
            f"Its mask is made by version {version} ({says}), as it was then; masks are made by {making()} now."
        )
    again = run_again(record, DataSource.at(data_root, download, device), policy)
    found = differences(record, again)
    if as_json:
        changed = {name: [before, now] for name, before, now in found}
        output.print_json({"key": record.key, "making": version, "same": not found, "differences": changed})
    else:
        rows = [[name, str(record.metrics.get(name)), str(again.metrics.get(name))] for name in SHOWN]
        output.print_table(["figure", "recorded", "now"], rows)
    if not found:
        output.note("The same in every figure.")
        return
    for name, before, now in found:
        output.note(f"differs: {name}: {reprlib.repr(before)} -> {reprlib.repr(now)}")
    before, now = (figures.metrics.get("test_accuracy") for figures in (record, again))
    if before is not None and now is not None:
        spread = row_spread(cells, record)
        beside = (
            f"; over the seeds of this row its standard deviation is {100 * spread:.2f}" if spread is not None else ""
        )
        output.note(f"Test accuracy differs by {100 * (now - before):+.2f} points{beside}.")
    here = environment_info()
    for name in ("versions", "hardware", "commit"):
        if (then := record.environment.get(name)) != here[name]:
            output.note(f"recorded with another {name}: {then}; here {here[name]}")
    raise typer.Exit(1)
