"""Networks of the user, named 'package.module:factory'; for the local command line alone, since importing runs code."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from panning.foundation.errors import ModelError
from panning.foundation.seeding import isolated_torch_rng


def build_imported(path: str, input_shape: tuple[int, ...], n_classes: int) -> nn.Module:
    """What the factory at ``path`` returns, called with ``input_shape`` and ``n_classes`` if it accepts both.

    Modules are looked for in the current directory first, as ``python -m`` does.

    Raises:
        ModelError: if the module, the factory in it or the call fails, or the result is no ``nn.Module``.
    """
    module_name, _, factory_name = path.partition(":")
    with _current_directory_first():
        factory = _factory(path, module_name, factory_name)
        try:
            keywords = {"input_shape": input_shape, "n_classes": n_classes}
            model = factory(**keywords) if _accepts(factory, keywords) else factory()
        except Exception as error:
            raise ModelError(f"'{path}' failed when called: {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"'{path}' returned {type(model).__name__}, but must return a torch.nn.Module.")
    return model


def _factory(path: str, module_name: str, factory_name: str) -> Callable[..., Any]:
    try:
        with isolated_torch_rng(0):  # what a first import draws must not change what the factory draws
            module = importlib.import_module(module_name)
    except Exception as error:  # an import runs the module, which may raise anything
        raise ModelError(
            f"'{path}': module '{module_name}' cannot be imported: {type(error).__name__}: {error}. It is looked for "
            "in the current directory and among the installed packages; the form is package.module:factory."
        ) from error
    factory = getattr(module, factory_name, None)
    if factory is None:
        public = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise ModelError(f"Module '{module_name}' has no '{factory_name}'; it has: {', '.join(sorted(public)[:20])}.")
    if isinstance(factory, nn.Module) or not callable(factory):
        raise ModelError(
            f"'{path}' is {type(factory).__name__}, but must be a function or class that makes a torch.nn.Module."
        )
    made: Callable[..., Any] = factory
    return made


def _accepts(factory: Callable[..., Any], keywords: dict[str, Any]) -> bool:
    try:
        inspect.signature(factory).bind(**keywords)
    except (TypeError, ValueError):  # ValueError: a builtin without a signature
        return False
    return True


@contextmanager
def _current_directory_first() -> Iterator[None]:
    directory = os.getcwd()
    sys.path.insert(0, directory)
    try:
        yield
    finally:
        if directory in sys.path:  # the module may have edited the path itself
            sys.path.remove(directory)
