"""``panning explain``: what a mask is like beside SynFlow's and ERK's, and how it was made."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from panning.cli import options, output

app = typer.Typer()


@app.command()
def explain(
    what: Annotated[
        Path,
        typer.Argument(
            metavar="MASK|RUN", help="A mask file, or the folder of a run that made one.", show_default=False
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option("--model", help="The network of a mask file that names none: a name, or package.module:factory."),
    ] = None,
    data_root: options.DataRoot = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write explanation.md, explanation.json and a picture there.")
    ] = None,
    formats: options.Formats = "png",
    as_json: options.AsJson = False,
) -> None:
    """Say what distinguishes a mask, in two sentences and tables, beside SynFlow's and ERK's masks of the same density.

    Of a run's folder (prune, search, train-agent) the mask is made again, to tell what each round did.

    Example: panning explain runs/demo
    """
    import json

    from panning.explaining import explain as explained
    from panning.foundation.files import write_atomic
    from panning.foundation.pictures import parse_formats, save

    forms = parse_formats(formats)
    found = explained(what, model=model, data_root=data_root)
    if out is not None:
        from panning.explaining.pictures import explanation_picture

        write_atomic(out / "explanation.md", found.markdown)
        write_atomic(out / "explanation.json", json.dumps(found.as_json(), indent=2))
        save(explanation_picture(found), out / "explanation", forms)
    if as_json:
        output.print_json(found.as_json())
        return
    for sentence in found.sentences:
        output.say(sentence)
    output.print_table(*found.figure_cells())
    output.print_table(*found.layer_cells())
    if found.rounds:
        output.print_table(*found.round_cells())
    for sentence in found.missing:
        output.note(sentence)
