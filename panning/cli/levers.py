"""``panning bench levers``: what each lever is worth, from the records of a grid that holds combinations of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from panning.cli import options, output


def levers(
    records: options.Records,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Write the page there, as levers.md, and its pictures with their numbers."),
    ] = None,
    best: Annotated[
        float,
        typer.Option(
            "--best",
            min=0.01,
            max=1.0,
            help="Look at this share of the masks, the best: what is below counts as the worst of them.",
        ),
    ] = 1.0,
    formats: options.Formats = "png",
    as_json: options.AsJson = False,
) -> None:
    """Say which levers carry gains, which level is best in which network, and whether that can be read from the network.

    Example: panning bench levers runs/bench-levers-study --out runs/bench-levers-study
    """
    from panning.compare import lever_text as told
    from panning.compare.cells import read_cells
    from panning.compare.lever_pictures import pictures
    from panning.compare.levers import studies
    from panning.compare.probe import probes, ties
    from panning.foundation.files import write_atomic
    from panning.foundation.pictures import parse_formats, save

    forms = parse_formats(formats)
    found = studies(read_cells(records), best=best)
    if out is not None:
        write_atomic(out / "levers.md", told.page(found))
        for picture, stem in pictures(found):
            save(picture, out / f"levers-{stem}", forms)
    if as_json:
        output.print_json({
            "cases": [study.as_json() for study in found], "probes": [probe.as_json() for probe in probes(found)],
            "ties": [vars(tie) for tie in ties(found)],
        })  # fmt: skip
        return
    _print(told.best_cells(found))
    for title, some in told.by_network(found).items():
        output.say(title)
        _print(told.share_cells(some))
        _print(told.gain_cells(some))
    if made := probes(found):
        _print(told.probe_cells(made))


def _print(cells: tuple[list[str], list[list[str]]]) -> None:
    """A table without the marks of bold type."""
    columns, lines = cells
    output.print_table(columns, [[cell.replace("**", "") for cell in line] for line in lines])
