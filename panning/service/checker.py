"""The check process: looks at configs for the server, which has no torch. It reads requests as JSON, one a line, and answers
each with one; a request that takes too long ends it, and its memory is bounded.

    python -P -m panning.service.checker '{"data_root": null, "memory_bytes": 3221225472}'
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
from pathlib import Path
from typing import Any

from panning.foundation.errors import PanningError
from panning.foundation.text import one_line
from panning.service.folder import Caps
from panning.service.runner import limit_memory

#: Networks with more parameters are not built to tell what they cost.
MOST_PARAMETERS = 200_000_000

FIRST = {"kind": "prune", "task": {"model": "mlp", "data": "digits"}, "density": 0.1, "method": "snip"}


class Checker:
    """Answers requests.

    >>> from panning.service.checker import Checker
    >>> checker = Checker(None)
    >>> config = {"kind": "prune", "task": {"model": "mlp", "data": "digits"}, "density": 0.1, "method": "snpi"}
    >>> "Did you mean 'snip'" in checker.answer({"what": "config", "config": config})["refused"]
    True

    Args:
        data_root: the folder of data sets.
    """

    def __init__(self, data_root: Path | None) -> None:
        self.data_root = data_root
        self.whats = {"config": self.config, "cost": self.cost, "methods": self.methods, "data": self.data}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request: ``found``, or ``refused`` with the reason, or ``failed``."""
        from panning.jobs.failure import is_memory

        try:
            return {"found": self.whats[request["what"]](request.get("config"))}
        except PanningError as error:
            return {"refused": str(error)}
        except Exception as error:
            if isinstance(error, MemoryError) or is_memory(error):
                return {"refused": "Looking at this config takes more memory than is allowed: ask for less."}
            return {"failed": f"{type(error).__name__}: {one_line(str(error))}"}

    def config(self, values: Any) -> None:
        """Raise what is wrong with a config."""
        from panning.searches.kinds import any_config

        any_config(values)

    def cost(self, values: Any) -> dict[str, Any]:
        """What a run of a config costs."""
        from panning.searches.cost import Limits, cost_of
        from panning.searches.kinds import any_config

        config = any_config(values).config.with_data(self.data_root, download=False)
        return cost_of(config, limits=Limits(n_parameters=MOST_PARAMETERS)).as_json()

    def methods(self, _: Any) -> list[dict[str, Any]]:
        """All methods."""
        from panning.measure.methods import dynamic_rows, method_rows

        tables = {"before": method_rows(), "during": dynamic_rows()}
        return [{"when": when, **row} for when, rows in tables.items() for row in rows]

    def data(self, _: Any) -> dict[str, bool]:
        """Each data set's name, and whether it is here."""
        from panning.data import DATASETS

        found = {}
        for name, row in DATASETS.items():
            try:
                row.read(self.data_root, False)
                found[name] = True
            except PanningError:
                found[name] = False
        return found


def main(arguments: list[str]) -> None:
    """Answer requests until there are no more.

    Args:
        arguments: the settings, as JSON.
    """
    settings = json.loads(arguments[0])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    limit_memory(Caps(memory_bytes=settings["memory_bytes"]))
    root = settings["data_root"] or os.environ.get("PANNING_DATA")
    checker = Checker(None if root is None else Path(root))
    import panning.searches.kinds  # noqa: F401  # takes seconds, for which no request is to wait

    print(json.dumps({"found": "ready"}), file=answers, flush=True)
    if not select.select([sys.stdin], [], [], 0)[0]:
        checker.answer({"what": "cost", "config": FIRST})  # imports and reads more
    for line in sys.stdin:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, request["seconds"])  # ends this process, wherever it is
        answer = json.dumps(checker.answer(request), allow_nan=False)
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(answer, file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
