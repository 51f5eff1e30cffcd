"""How what is the caller's own (``panning.foundation.own``) gets to Ray workers: by cloudpickle, from this process alone."""

from __future__ import annotations

import contextlib
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType

from panning.foundation.errors import WorkerError
from panning.foundation.extras import extra_packages
from panning.foundation.own import Own

with extra_packages():
    from ray import cloudpickle


@contextlib.contextmanager
def sent_with_code(things: Iterable[Own]) -> Iterator[None]:
    """Within, what is pickled for Ray carries the code of these things, where workers may lack it: scripts and modules that
    are not installed lie on this machine alone.

    Raises:
        WorkerError: if something of them cannot be pickled.
    """
    registered = [module for module in _modules(things) if not _is_installed(module)]
    for module in registered:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    except Exception as error:  # what a user pickles may raise anything
        names, reason = ", ".join(thing.label for thing in things), str(error).strip().partition("\n")[0]
        raise WorkerError(
            f"{names} cannot be sent to Ray workers ({reason}): leave out what cannot be pickled, or pass workers=0."
        ) from None
    finally:
        for module in registered:
            cloudpickle.unregister_pickle_by_value(module)


def _modules(things: Iterable[Own]) -> list[ModuleType]:
    names = {name for thing in things for name in thing.code_modules} - {"__main__", "builtins"}
    return [sys.modules[name] for name in sorted(names) if name in sys.modules]


def _is_installed(module: ModuleType) -> bool:
    file = getattr(module, "__file__", None)
    if file is None or module.__name__.partition(".")[0] == "panning":
        return True
    places = {sysconfig.get_path(key) for key in ("stdlib", "platstdlib", "purelib", "platlib")}
    return any(Path(file).resolve().is_relative_to(Path(place).resolve()) for place in places)
