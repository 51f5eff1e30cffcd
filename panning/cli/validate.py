"""``panning validate``: check configuration files without running them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

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
    import yaml

    from panning.agents import AgentConfig
    from panning.config import Config, load_config
    from panning.errors import ConfigError
    from panning.search import SearchConfig

    kinds: dict[str, type[Config]] = {"search": SearchConfig, "agent": AgentConfig}
    failed = []
    for file in files:
        try:
            keys: Any = yaml.safe_load(file.read_text()) if file.is_file() else {}
            shared = {
                name: len(set(keys) & set(kind.model_fields)) if isinstance(keys, dict) else 0
                for name, kind in kinds.items()
            }
            name = max(shared, key=lambda kind: shared[kind])
            load_config(kinds[name], file)
            output.say(f"{file}: a well-formed {name} config")
        except yaml.YAMLError as error:
            failed.append(f"{file} is not valid YAML: {error}")
        except ConfigError as error:
            failed.append(str(error))
    if failed:
        raise ConfigError("\n".join(failed))
