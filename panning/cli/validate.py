"""``panning validate``: check configuration files without running them."""

from __future__ import annotations

from typing import Annotated

import typer

from panning.cli import options, output

app = typer.Typer()


@app.command()
def validate(
    files: Annotated[list[str], typer.Argument(help="Config files, or names of packaged configs.", show_default=False)],
    as_json: options.AsJson = False,
) -> None:
    """Check configuration files; all errors of a file come at once.

    Example: panning validate mine.yaml search/fashion-lenet5
    """
    from panning.foundation.errors import ConfigError
    from panning.searches.kinds import checked_kind

    found: list[dict[str, str | None]] = []
    for file in files:
        try:
            found.append({"file": file, "kind": checked_kind(file), "error": None})
        except ConfigError as error:
            found.append({"file": file, "kind": None, "error": str(error)})
    failed = [row["error"] for row in found if row["error"] is not None]
    if as_json:
        output.print_json(found)
        raise typer.Exit(ConfigError.exit_code if failed else 0)
    for row in found:
        if row["kind"] is not None:
            output.say(f"{row['file']}: a well-formed {row['kind']} config")
    if failed:
        raise ConfigError("\n".join(failed))
