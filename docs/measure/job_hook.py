"""Stands in for ``panning.jobs.work.execute`` in every process that has a folder on its path, Ray's workers too."""

from __future__ import annotations

from pathlib import Path

#: Text of a sitecustomize.py, which Python runs at its start: ``wrapped`` gets panning.jobs.work once that is loaded.
SITE = """
import importlib.abc, importlib.machinery, json, os, sys, time

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "panning.jobs.work":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        load = spec.loader.exec_module
        spec.loader.exec_module = lambda module: (load(module), wrapped(module))
        return spec

sys.meta_path.insert(0, Finder())
"""


def write_hook(folder: Path, wrapped: str) -> None:
    """Put it into a folder.

    Args:
        wrapped: the text of a function of this name, which changes the module that it is given.
    """
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(f"{SITE}\n{wrapped}")
