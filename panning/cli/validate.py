"""``panning validate``: check configuration files without running them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from panning.cli import output

app = typer.Typer()


@app.command()
def validate(
    files: Annotated[list[Path], typer.Argument(help="Configuration files (YAML).", show_default=False)],
) -> None:
    """Check configuration files; all errors of a file come at once.

    Example: panning validate configs/search/fashion-lenet5.yaml
    """
    from panning.agents import AgentConfig
    from panning.compare.grid import GridConfig
    from panning.foundation.config import Config, parse_config, read_yaml
    from panning.foundation.errors import ConfigError
    from panning.searches.config import SearchConfig
    from panning.training.presets import Preset

    kinds: dict[str, type[Config]] = {
        "search": SearchConfig, "agent": AgentConfig, "bench": GridConfig, "recipe": Preset,
    }  # fmt: skip
    failed = []
    for file in files:
        try:
            values = read_yaml(file)
            keys = set(values) if isinstance(values, dict) else set()
            name = max(kinds, key=lambda kind: len(keys & set(kinds[kind].model_fields)))
            parse_config(kinds[name], values, str(file))
            output.say(f"{file}: a well-formed {name} config")
        except ConfigError as error:
            failed.append(str(error))
    if failed:
        raise ConfigError("\n".join(failed))
