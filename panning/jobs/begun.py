"""Note in a run's folder with which data and code the run began: a later call with other data is refused, and one with other
code is warned.

The descriptions of jobs name data by where they lie; what lies there may change between two calls, and so may the code.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from panning.foundation.errors import ConfigError, PanningWarning
from panning.foundation.files import MAX_IDENTITY_BYTES, read_regular, strict_json, write_atomic
from panning.foundation.machine import code_versions
from panning.tasks import DataSource, TaskSpec, named_fingerprint

FILE = "begun.json"


def check_begun_alike(out: Path, task: TaskSpec, source: DataSource) -> None:
    """Note in a run's folder with which data and code it begins, or compare with what is noted there.

    Other code gives a warning, since a newer version may go on: each record says which it comes from.

    Raises:
        ConfigError: if it began with other data.
        DataError: if the data are not there.
    """
    data = named_fingerprint(task, source)
    now = {"data": data, "code": code_versions()}
    path = out / FILE
    if not path.exists():
        write_atomic(path, json.dumps(now, indent=2))
        return
    then = _read(path)
    if then.get("data") != data:
        raise ConfigError(
            f"{out} was begun with other data under the name '{task.data}' (fingerprint {then.get('data')!s:.20}, now "
            f"{data}): put the files back, or give another folder."
        )
    if (code := then.get("code")) != now["code"]:
        warnings.warn(
            f"{out} was begun with other code ({_said(code)}; now {_said(now['code'])}): results of both may differ, and "
            "records say which they come from. Another folder begins anew.",
            PanningWarning,
            stacklevel=2,
        )


def began_with(out: Path) -> Any:
    """The fingerprint of the data that a run began with; None where nothing is noted, as of data that came with the call.

    Raises:
        ConfigError: if what is noted cannot be read.
    """
    return _read(out / FILE).get("data") if (out / FILE).exists() else None


def _read(path: Path) -> dict[str, Any]:
    try:
        held = strict_json(read_regular(path, MAX_IDENTITY_BYTES))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); delete it to go on without knowing.") from None
    return held if isinstance(held, dict) else {}


def _said(code: Any) -> str:
    return ", ".join(f"{key} {value!s:.40}" for key, value in code.items()) if isinstance(code, dict) else "unknown"
