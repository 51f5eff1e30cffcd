"""What the check process looks at for the page: texts of configs, and the packaged configs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import yaml

from panning.foundation.config import overridden, parse_yaml
from panning.foundation.errors import ConfigError, PanningError
from panning.foundation.remote import RUNS, check_remote


def text(values: Any) -> dict[str, Any]:
    """The values of a text of YAML or JSON with changes, and the text that has them.

    Args:
        values: the text as ``text``, and ``changes`` like "task.model=mlp".

    Raises:
        ConfigError: if it is no YAML, or a change leads nowhere.

    Examples:
        >>> from panning.service.looks import text
        >>> text({"text": "kind: prune", "changes": ["density=0.1"]})
        {'config': {'kind': 'prune', 'density': 0.1}, 'text': 'kind: prune\\ndensity: 0.1\\n'}
    """
    written = values["text"]
    config = parse_yaml(written.encode(errors="replace"), "The text")
    if not isinstance(config, dict):
        raise ConfigError("The text has no keys with values at the top level.")
    if values["changes"]:
        config = overridden(config, values["changes"])
        written = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    return {"config": config, "text": written}


def packaged(_: Any) -> list[dict[str, Any]]:
    """The packaged configs that may be sent as jobs."""
    from panning.foundation.packaged import packaged_configs
    from panning.searches.kinds import KINDS, listed

    found = []
    for one in listed():
        if one.kind in RUNS:
            path = packaged_configs(*KINDS[one.kind].folders)[one.name]
            written = path.read_text()
            try:
                check_remote(parse_yaml(written.encode(), one.name))
            except PanningError:
                continue  # it names a file that lies beside it
            found.append({"name": one.name, "kind": one.kind, "about": one.about, "text": written})
    return found


#: What may be asked -> what looks at it.
WHATS: Mapping[str, Callable[[Any], Any]] = {
    "text": text, "packaged": packaged,
}  # fmt: skip
