"""A network of the caller's own: a module, or a function or class that makes one for each seed."""

from __future__ import annotations

import copy
from itertools import chain

import torch
from torch import nn

from panning.foundation.errors import ModelError
from panning.foundation.own import Own, code_of, content_hash
from panning.foundation.seeding import derive_seed, isolated_torch_rng
from panning.foundation.tensorfile import tensor_bytes
from panning.foundation.wrappers import unwrapped
from panning.models.check import check_model_fits
from panning.models.graph_network import GraphNetwork
from panning.models.imported import Factory, call_factory, factory_name


class OwnModel(Own):
    """A module or a factory in place of a model's name.

    A module is copied at once, out of wrappers, and is the network of every seed: seeds then differ in batches and in the
    order of training alone. A factory makes a network for each seed. A factory has the name and the hash of what it makes
    once ``settled`` has looked at that; until then two factories are equal if they are the same object.

    >>> import torch
    >>> from panning.models.own import OwnModel
    >>> OwnModel(torch.nn.Linear(4, 2)).label
    'Linear'

    Args:
        label: what tables call it; None takes the name of its class, or that of the function until it is settled.

    Raises:
        ModelError: if it is neither, or the module cannot be copied.
    """

    def __init__(self, model: nn.Module | Factory, label: str | None = None) -> None:
        if isinstance(model, nn.Module):
            module = _copied(unwrapped(model))
            super().__init__(label or _label_of(module), fingerprint(module))
        elif callable(model):
            super().__init__(label or factory_name(model).rpartition(".")[2].strip("<>"), "")
        else:
            raise ModelError(
                f"The model is a {type(model).__name__}, but must be a name, a torch.nn.Module, or a function or class that "
                "makes one."
            )
        self.made_from = module if isinstance(model, nn.Module) else model
        self._given_label = label

    @property
    def _identity(self) -> object:
        return self.name if self.content else id(self.made_from)

    @property
    def code_modules(self) -> set[str]:
        """Names of the Python modules that its code lies in."""
        if not isinstance(self.made_from, nn.Module):
            return {getattr(self.made_from, "__module__", "builtins")}
        return {kind.__module__ for part in self.made_from.modules() for kind in type(part).__mro__}

    def build(self, input_shape: tuple[int, ...], n_classes: int, seed: int) -> nn.Module:
        """The network at the initial weights of ``seed``."""
        if isinstance(self.made_from, nn.Module):
            return copy.deepcopy(self.made_from)
        with isolated_torch_rng(derive_seed(seed, "init")):
            return call_factory(self.made_from, factory_name(self.made_from), input_shape, n_classes)

    def settled(
        self, input_shape: tuple[int, ...], n_classes: int, dtype: torch.dtype | None = torch.float32
    ) -> OwnModel:
        """The same with a name that holds a hash of the network of seed 0, if that network fits the data.

        Args:
            dtype: of the inputs; None looks at no inputs.

        Raises:
            ModelError: if it does not, or a factory makes two networks of one seed.
        """
        network, again = (self.build(input_shape, n_classes, 0) for _ in range(2))
        if dtype is not None:
            check_model_fits(network, input_shape, n_classes, dtype)
        if self.content:
            return self
        settled = copy.copy(self)
        settled.label, settled.content = self._given_label or _label_of(network), fingerprint(network)
        if settled.content != fingerprint(again):
            name = factory_name(self.made_from)
            raise ModelError(
                f"'{name}' makes another network each time that it is called with one seed: draw the weights with "
                "torch's global generator alone."
            )
        return settled


def _label_of(module: nn.Module) -> str:
    return module.label if isinstance(module, GraphNetwork) else type(module).__name__


def fingerprint(module: nn.Module) -> str:
    """A hash of a network's structure, code and state: equal for equal networks, another one for other weights."""
    kinds = sorted({type(part) for part in module.modules()}, key=lambda kind: (kind.__module__, kind.__qualname__))
    code = (code_of(kind) for kind in kinds if not kind.__module__.startswith("torch."))
    state = chain(module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False))
    hashed: list[bytes | memoryview] = [repr(module).encode(), *code]
    for name, tensor in state:
        hashed += [f"{name} {tensor.dtype} {tuple(tensor.shape)} {tensor.requires_grad}".encode(), tensor_bytes(tensor)]
    return content_hash(*hashed)


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model).cpu()
    except Exception as error:  # a user's __deepcopy__ may raise anything
        raise ModelError(
            f"The {type(model).__name__} cannot be copied ({type(error).__name__}: {error}); pass a function that makes it."
        ) from error
