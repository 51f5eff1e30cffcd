"""The configs that are installed with the package, by name: ``FOLDER/STEM`` for ``panning.configs``/FOLDER/STEM.yaml."""

from __future__ import annotations

import atexit
import functools
from contextlib import ExitStack
from importlib import resources
from pathlib import Path


@functools.cache
def _root() -> Path:
    """The folder of the configs, for as long as the process lives: an archive is unpacked for it."""
    held = ExitStack()
    atexit.register(held.close)
    return held.enter_context(resources.as_file(resources.files("panning.configs")))


def packaged_configs(*folders: str) -> dict[str, Path]:
    """The files of these folders, in their order, by ``FOLDER/STEM``.

    Examples:
        >>> from panning.foundation.packaged import packaged_configs
        >>> list(packaged_configs("demo"))
        ['demo/digits']
    """
    return {f"{folder}/{path.stem}": path for folder in folders for path in sorted((_root() / folder).glob("*.yaml"))}


def packaged_name(given: str) -> str:
    """A name as one may give it, without what the files have around it.

    Examples:
        >>> from panning.foundation.packaged import packaged_name
        >>> packaged_name("configs/search/fashion-lenet5.yaml"), packaged_name("fashion-lenet5")
        ('search/fashion-lenet5', 'fashion-lenet5')
    """
    return given.removeprefix("configs/").removesuffix(".yaml")
