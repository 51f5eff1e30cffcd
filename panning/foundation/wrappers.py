"""Wrappers around networks (DistributedDataParallel, FSDP, ``torch.compile``), and names without the wrappers' prefixes.

A wrapper holds a network under an attribute of its own: ``state_dict`` names begin with ``module.`` or ``_orig_mod.``, or
have such a part in their middle. Everything in this package names a parameter as the user's own network does.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from torch import nn
from torch.optim.swa_utils import AveragedModel

from panning.foundation.errors import ModelError
from panning.foundation.torch_private import every_module, slots

#: Names that only wrappers use: those of ``torch.compile``, FSDP and activation checkpointing.
PRIVATE = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
#: The attributes under which wrappers hold a network.
INSIDE = ("module", *PRIVATE)
#: Wrappers whose attribute is called ``module``, as that of many an ordinary class is.
WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside DistributedDataParallel, ``torch.compile`` and the like, nested in any order.

    A class of the user's own stays, whatever its attribute is called: its forward may do more than to call the network.

    Raises:
        ModelError: if ``model`` is no module.
    """
    _check_module(model)
    while (name := _inside(model)) is not None:
        model = model.get_submodule(name)
    return model


def own_names(model: nn.Module) -> dict[str, str]:
    """Every name of every parameter and buffer, as ``state_dict`` has it -> the name without wrappers.

    Beside the known wrappers, classes at the top that hold a ``module`` and nothing else count as wrappers.

    Examples:
        >>> import torch
        >>> from panning.foundation.wrappers import own_names
        >>> own_names(torch.nn.DataParallel(torch.nn.Linear(4, 2)))
        {'module.weight': 'weight', 'module.bias': 'bias'}
    """
    _check_module(model)
    inside = set()
    for path, module in model.named_modules(remove_duplicate=False):
        if (name := _inside(module)) is not None:
            inside.add(_join(path, name))
    path, module = "", model
    while (name := _inside(module) or _only_child(module)) is not None:
        path, module = _join(path, name), module.get_submodule(name)
        inside.add(path)
    tensors = (model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))
    names = [name for named in tensors for name, _ in named]
    own = {name: _without(name, inside) if inside else name for name in names}
    return own if len(set(own.values())) == len(own) else {name: name for name in names}


def own_parameters(model: nn.Module, remove_duplicate: bool = True) -> dict[str, nn.Parameter]:
    """``named_parameters`` under the names that they have without wrappers."""
    _check_module(model)
    modules = every_module(model)
    if remove_duplicate and all(slots(module).modules.keys().isdisjoint(INSIDE) for module in modules):
        return _registered(modules)  # no wrapper anywhere
    names = own_names(model)
    return {names[name]: parameter for name, parameter in model.named_parameters(remove_duplicate=remove_duplicate)}


def _registered(modules: Mapping[nn.Module, str]) -> dict[str, nn.Parameter]:
    """Every parameter of these modules under its first name."""
    found: dict[int, tuple[str, nn.Parameter]] = {}
    for module, path in modules.items():
        for name, parameter in slots(module).parameters.items():
            if parameter is not None:
                found.setdefault(id(parameter), (_join(path, name), parameter))
    return dict(found.values())


def owners(model: nn.Module) -> dict[str, tuple[str, nn.Module]]:
    """Every name of a parameter, without wrappers -> the path of the module that registers the parameter, and the module."""
    modules = dict(model.named_modules(remove_duplicate=False))
    paths = {own: name.rpartition(".")[0] for name, own in own_names(model).items()}
    return {own: (path, modules[path]) for own, path in paths.items()}


def prefix_of(names: Iterable[str]) -> str:
    """The wrappers' prefix that all names begin with, as ``module._orig_mod.``; empty if there is none.

    Examples:
        >>> from panning.foundation.wrappers import prefix_of
        >>> prefix_of(["module._orig_mod.fc.weight", "module._orig_mod.fc.bias"])
        'module._orig_mod.'
    """
    names = list(names)
    prefix = ""
    while names:
        first = names[0][len(prefix) :].partition(".")[0]
        longer = f"{prefix}{first}."
        if first not in INSIDE or not all(name.startswith(longer) for name in names):
            break
        prefix = longer
    return prefix


def matching(given: Iterable[str], known: Collection[str]) -> dict[str, str] | None:
    """Given name -> known name, where necessary without the prefixes of wrappers; None if the names do not fit.

    Examples:
        >>> from panning.foundation.wrappers import matching
        >>> matching(["module.fc.weight"], ["fc.weight", "fc.bias"])
        {'module.fc.weight': 'fc.weight'}
    """
    given = list(given)
    if all(name in known for name in given):
        return {name: name for name in given}
    parts = [[part for part in name.split(".") if part not in PRIVATE] for name in given]
    while parts:
        found = {name: ".".join(rest) for name, rest in zip(given, parts, strict=True)}
        if len(set(found.values())) == len(found) and all(name in known for name in found.values()):
            return found
        if not all(len(rest) > 1 and rest[0] == "module" for rest in parts):
            break
        parts = [rest[1:] for rest in parts]
    bare = {_bare(name): name for name in known}  # the network, too, may have a prefix that the names lack
    found = {name: bare.get(_bare(name), "") for name in given}
    fits = len(bare) == len(known) and all(found.values()) and len(set(found.values())) == len(found)
    return found if fits else None


def _check_module(model: object) -> None:
    """Reject what is no module."""
    if isinstance(model, type):
        raise ModelError(
            f"The model must be a torch.nn.Module, given the class {model.__name__}; pass the network that it makes, like "
            f"{model.__name__}()."
        )
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"The model must be a torch.nn.Module, given {type(model).__name__}. Pass the network itself: torch.compile of "
            "a compiled network, or of a method, is a function."
        )


def _inside(module: nn.Module) -> str | None:
    """The attribute under which a known wrapper holds its network."""
    if isinstance(module, WRAPPERS):
        return "module"
    children = [name for name, _ in module.named_children()]
    return children[0] if len(children) == 1 and children[0] in PRIVATE else None


def _only_child(module: nn.Module) -> str | None:
    children = [name for name, _ in module.named_children()]
    return "module" if children == ["module"] and next(module.parameters(recurse=False), None) is None else None


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _without(name: str, inside: set[str]) -> str:
    """``name`` without the parts at which a wrapper's network begins."""
    parts = name.split(".")
    return ".".join(part for i, part in enumerate(parts) if ".".join(parts[: i + 1]) not in inside)


def _bare(name: str) -> str:
    parts = [part for part in name.split(".") if part not in PRIVATE]
    while len(parts) > 1 and parts[0] == "module":
        parts = parts[1:]
    return ".".join(parts)
