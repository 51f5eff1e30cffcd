"""The check process: looks at configs for the server, which has no torch. It reads requests as JSON, one a line, and answers
each with one; a request that takes too long ends it, and its memory is bounded.

    python -P -m panning.service.checker '{"data_root": null, "memory_bytes": 3221225472}'
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from panning.foundation.errors import PanningError
from panning.foundation.text import one_line
from panning.service import looks
from panning.service.folder import Caps
from panning.service.inputs import Inputs
from panning.service.runner import limit_memory

if TYPE_CHECKING:
    from panning.tasks import RunConfig

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
        data_sets: names that the operator has given, with what stands for each in a config.
    """

    def __init__(self, data_root: Path | None, data_sets: Mapping[str, str] = MappingProxyType({})) -> None:
        self.data_root, self.data_sets = data_root, data_sets
        self.whats = {
            "config": self.config, "cost": self.cost, "methods": self.methods, "data": self.data, "file": self.file,
            "compare": self.compare, "policies": self.policies, **looks.WHATS,
        }  # fmt: skip

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request: ``found``, or ``refused`` with the reason, or ``failed``."""
        from panning.jobs.failure import is_memory

        try:
            with at_most(request.get("memory_bytes", 0)):
                return {"found": self.whats[request["what"]](request)}
        except PanningError as error:
            return {"refused": str(error)}
        except Exception as error:
            if isinstance(error, MemoryError) or is_memory(error):
                return {"refused": "Looking at this takes more memory than is allowed: ask for less."}
            return {"failed": f"{type(error).__name__}: {one_line(str(error))}"}

    def config(self, request: Mapping[str, Any]) -> None:
        """Raise what is wrong with a config."""
        self._config(request)

    def cost(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """What a run of a config costs."""
        from panning.searches.cost import Limits, cost_of

        config = self._config(request).with_data(self.data_root, download=False)
        return cost_of(config, limits=Limits(n_parameters=MOST_PARAMETERS)).as_json()

    def file(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """What is in a file that somebody sent."""
        from panning.service.files import look_at

        return look_at(Path(request["config"]["path"]), request["config"]["kind"])

    def compare(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Two mask files layer by layer."""
        from panning.service.compare import compared

        return compared(Path(request["config"]["first"]), Path(request["config"]["second"]))

    def policies(self, _: object) -> list[dict[str, Any]]:
        """The policies on the shelf."""
        from panning.episode.shelf import policies

        return [
            {"name": name, "shipped": one.shipped, **one.card.model_dump(mode="json")}
            for name, one in policies().items()
        ]

    def _config(self, request: Mapping[str, Any]) -> RunConfig:
        from panning.searches.kinds import any_config

        inputs = Inputs(request.get("files", {}), self.data_sets)
        return any_config(inputs.placed(request["config"])).config

    def methods(self, _: object) -> list[dict[str, Any]]:
        """All methods."""
        from panning.measure.methods import dynamic_rows, method_rows

        tables = {"before": method_rows(), "during": dynamic_rows()}
        return [{"when": when, **row} for when, rows in tables.items() for row in rows]

    def data(self, _: object) -> dict[str, bool]:
        """Each data set's name, and whether it is here."""
        from panning.data import DATASETS

        found = {}
        for name, row in DATASETS.items():
            try:
                row.read(self.data_root, False)
                found[name] = True
            except PanningError:
                found[name] = False
        return found | {name: _is_there(place) for name, place in self.data_sets.items()}


def _is_there(place: str) -> bool:
    return Path(place.partition(":")[2]).exists()


@contextmanager
def at_most(n_bytes: int) -> Iterator[None]:
    """Within, this process may have so much more data than it has; 0 leaves its limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if not n_bytes:
        yield
        return
    pages = Path("/proc/self/statm").read_text().split()[5]
    most = int(pages) * resource.getpagesize() + n_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


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
    checker = Checker(None if root is None else Path(root), settings["data_sets"])
    import panning.searches.kinds  # noqa: F401  # takes seconds, for which no request is to wait
    from panning.service.files import warm

    warm()

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
