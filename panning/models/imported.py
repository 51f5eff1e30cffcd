"""Networks of the user: a factory in Python, or on the local command line its import path 'package.module:factory', or
'network:FILE' (``panning.models.graph_network``)."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import WeakSet

from torch import nn

from panning.foundation.errors import ModelError, PanningError
from panning.foundation.seeding import isolated_torch_rng
from panning.models.graph_network import load_network

#: What stands before the path of a network file.
FROM_FILE = "network:"
#: Makes a network, from ``input_shape`` and ``n_classes`` or from nothing.
Factory = Callable[..., nn.Module]

#: What factories have made and somebody still holds.
MADE: WeakSet[nn.Module] = WeakSet()


def build_imported(path: str, input_shape: tuple[int, ...], n_classes: int) -> nn.Module:
    """The network of the factory at ``path`` (see ``call_factory``). Importing runs code: never for a path from outside.

    Modules are looked for in the current directory first, as ``python -m`` does.

    Raises:
        ModelError: if the module or the factory in it cannot be had, or the factory gives no network.
    """
    with _current_directory_first():
        return call_factory(import_factory(path), path, input_shape, n_classes)


def import_factory(path: str) -> Factory:
    """The factory at ``path``, as ``build_imported`` finds it; the same caution and errors."""
    if path.startswith(FROM_FILE):
        return partial(load_network, path.removeprefix(FROM_FILE))
    with _current_directory_first():
        return _factory(path)


def call_factory(factory: Factory, name: str, input_shape: tuple[int, ...], n_classes: int) -> nn.Module:
    """The network that ``factory`` makes, called with ``input_shape`` and ``n_classes`` if it accepts both.

    Args:
        name: what errors call the factory.

    Raises:
        ModelError: if the factory is a network itself, wants other arguments, fails, or returns no ``nn.Module`` or
            the same one twice.
    """
    if isinstance(factory, nn.Module) or not callable(factory):
        raise ModelError(
            f"'{name}' is {type(factory).__name__}, but must be a function or class that makes a torch.nn.Module."
        )
    keywords: dict[str, Any] = {"input_shape": input_shape, "n_classes": n_classes}
    if not _accepts(factory, keywords):
        if not _accepts(factory, {}):
            raise ModelError(
                f"'{name}' wants other arguments: a factory is called with input_shape and n_classes, or with nothing."
            )
        keywords = {}
    try:
        model = factory(**keywords)
    except PanningError:
        raise
    except Exception as error:  # the user's code may raise anything
        raise ModelError(f"'{name}' failed when called: {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"'{name}' returned {type(model).__name__}, but must return a torch.nn.Module.")
    if model in MADE:
        raise ModelError(
            f"'{name}' returned the very network that a call before has returned, which several tasks would share: make "
            "a new one in every call. To take one network as it is, pass the network itself in place of a factory."
        )
    MADE.add(model)
    return model


def factory_name(factory: Factory) -> str:
    """What messages and manifests call a factory."""
    return getattr(factory, "__qualname__", type(factory).__name__)


def _factory(path: str) -> Factory:
    module_name, _, name = path.partition(":")
    try:
        with isolated_torch_rng(0):  # what a first import draws must not change what the factory draws
            module = importlib.import_module(module_name)
    except Exception as error:  # an import runs the module, which may raise anything
        raise ModelError(
            f"'{path}': module '{module_name}' cannot be imported: {type(error).__name__}: {error}. It is looked for "
            "in the current directory and among the installed packages; the form is package.module:factory."
        ) from error
    factory: Factory | None = getattr(module, name, None)
    if factory is None:
        public = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise ModelError(f"Module '{module_name}' has no '{name}'; it has: {', '.join(sorted(public)[:20])}.")
    return factory


def _accepts(factory: Factory, keywords: dict[str, Any]) -> bool:
    try:
        inspect.signature(factory).bind(**keywords)
    except ValueError:  # a builtin without a signature
        return not keywords
    except TypeError:
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
