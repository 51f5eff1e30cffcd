"""``panning configs``: the configs that come with the package, by name, and what a config may say."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from panning.cli import options, output
from panning.cli.shape import Group
from panning.foundation.errors import OutputError

app = typer.Typer(
    name="configs", help="List, show and copy the configs of the package; print the schema of a kind.", cls=Group,
    no_args_is_help=True,
)  # fmt: skip

Name = Annotated[str, typer.Argument(metavar="NAME", help="As panning configs list shows it.", show_default=False)]


@app.command("list")
def list_(as_json: options.AsJson = False) -> None:
    """List every config with what takes it."""
    from panning.searches.kinds import listed

    rows = listed()
    if as_json:
        output.print_json([{"name": row.name, "kind": row.kind, "used": row.used, "about": row.about} for row in rows])
        return
    output.print_table(["name", "for", "what it is"], [[row.name, row.used, row.about] for row in rows])


@app.command()
def show(name: Name) -> None:
    """Print a config.

    Example: panning configs show search/fashion-lenet5
    """
    from panning.searches.kinds import config_path

    print(config_path(name).read_text(), end="")


@app.command()
def copy(
    name: Name,
    to: Annotated[Path, typer.Argument(metavar="TO", help="A file, or a folder that is there.", show_default=False)],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
) -> None:
    """Copy a config, to be changed.

    Example: panning configs copy search/fashion-lenet5 mine.yaml
    """
    from panning.foundation.files import write_atomic
    from panning.searches.kinds import config_path

    source = config_path(name)
    target = to / source.name if to.is_dir() else to
    if target.exists() and not overwrite:
        raise OutputError(f"{target} is there already: give another name, or --overwrite to replace it.")
    write_atomic(target, source.read_bytes())
    output.say(f"wrote {target}")


@app.command()
def schema(
    kind: Annotated[
        str, typer.Argument(help="prune, train, search, train-agent, bench, recipe or dynamic.", show_default=False)
    ],
) -> None:
    """Print the JSON schema of a kind of config, which editors complete and check by.

    Example: panning configs schema search > search.schema.json
    """
    from panning.searches import kinds

    output.print_json(kinds.schema(kind))
