"""``panning validate``: check configuration files without running them."""

from __future__ import annotations

from typing import Annotated

import typer

from panning.cli import output

app = typer.Typer()


@app.command()
def validate(
    files: Annotated[list[str], typer.Argument(help="Config files, or names of packaged configs.", show_default=False)],
) -> None:
    """Check configuration files; all errors of a file come at once.

    Example: panning validate mine.yaml search/fashion-lenet5
    """
    from panning.foundation.config import parse_config, read_yaml
    from panning.foundation.errors import ConfigError
    from panning.searches.kinds import KINDS, config_path, kind_of

    failed = []
    for file in files:
        try:
            values = read_yaml(path := config_path(file))
            parse_config(KINDS[name := kind_of(values)].model, values, str(path))
            output.say(f"{file}: a well-formed {name} config")
        except ConfigError as error:
            failed.append(str(error))
    if failed:
        raise ConfigError("\n".join(failed))
