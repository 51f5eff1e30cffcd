"""Kinds of layers: which parameters of which modules are prunable, and which of their axes belong to the input."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from panning.foundation.errors import ModelError
from panning.foundation.wrappers import own_names


@dataclass(frozen=True)
class Kind:
    """Prunable parameters of one kind of module.

    Attributes:
        module: the type, subclasses included.
        parameters: their names in the module; a name that the module lacks is passed over.
        transposed: the first axis belongs to the input, as in transposed convolutions.
        by_default: whether these parameters are prunable where no include pattern names them.
        inputs: the axes that belong to the input, where a forward pass has shown them; ``transposed`` then says nothing.
    """

    module: type[nn.Module]
    parameters: tuple[str, ...] = ("weight",)
    transposed: bool = False
    by_default: bool = True
    inputs: tuple[int, ...] | None = None


#: What can be pruned. Biases and norm parameters never are (every method agrees). Attention's output
#: projection is a Linear.
KINDS: tuple[Kind, ...] = (
    Kind(nn.Linear),
    Kind(nn.Conv1d),
    Kind(nn.Conv2d),
    Kind(nn.Conv3d),
    Kind(nn.ConvTranspose1d, transposed=True),
    Kind(nn.ConvTranspose2d, transposed=True),
    Kind(nn.ConvTranspose3d, transposed=True),
    Kind(nn.MultiheadAttention, ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")),
    Kind(nn.Embedding, by_default=False, transposed=True),
)

#: Kinds of other packages, which are not imported for them: qualified name of a class -> its kind.
NAMED: dict[str, Kind] = {"transformers.pytorch_utils.Conv1D": Kind(nn.Module, transposed=True)}

#: Kinds that users have registered, by class.
REGISTERED: dict[type[nn.Module], Kind] = {}


def register_kind(
    module: type[nn.Module],
    parameters: Sequence[str] = ("weight",),
    *,
    transposed: bool = False,
    by_default: bool = True,
) -> None:
    """Make parameters of a layer class of your own prunable, in this process.

    A parameter that a forward pass multiplies with activations (``linear``, ``matmul``, ``einsum``, a convolution) is found
    without this. Register a class whose products panning cannot see, or whose parameters are to be prunable only by name.

    The contract: the module's ``forward`` sums products of its input with the parameter, a weight for each pair of an input
    and an output unit, so that a weight of 0 is no connection; the parameter itself is read, not a tensor computed from it.

    Args:
        module: the class; its subclasses count, too. A class that is registered again is replaced.
        parameters: their names in the module.
        transposed: False where the first axis is that of the output units, as in ``nn.Linear`` [out, in]; True where the
            first axis belongs to the input and the second to the output, as in ``nn.ConvTranspose2d``.
        by_default: False where the parameters are prunable only if an include pattern names them.

    Raises:
        ModelError: if ``module`` is no class of modules, or a name is no name.

    Examples:
        >>> import torch
        >>> import panning
        >>> class Mixing(torch.nn.Module):
        ...     def __init__(self, n_in, n_out):
        ...         super().__init__()
        ...         self.matrix = torch.nn.Parameter(torch.randn(n_in, n_out))
        ...
        ...     def forward(self, x):
        ...         return torch.tensordot(x, self.matrix, dims=1)
        >>> panning.register_kind(Mixing, ["matrix"], transposed=True)
        >>> model = torch.nn.Sequential(Mixing(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2))
        >>> masks = panning.prune(model, input_shape=(4,), density=0.5, method="magnitude")
        >>> list(masks), masks.n_kept
        (['0.matrix', '2.weight'], 18)
    """
    if not isinstance(module, type) or not issubclass(module, nn.Module) or module is nn.Module:
        raise ModelError(f"register_kind takes a class of modules, a child of torch.nn.Module; given {module!r}.")
    names = (parameters,) if isinstance(parameters, str) else tuple(parameters)
    if not names or not all(isinstance(name, str) and name.isidentifier() for name in names):
        raise ModelError(f"parameters must be names of parameters of {module.__name__}, given {parameters!r}.")
    REGISTERED[module] = Kind(module, names, transposed, by_default)


def kind_of(module: nn.Module) -> Kind | None:
    """The kind of a module, the user's own first; None if it has none."""
    for cls in type(module).__mro__:
        if cls in REGISTERED:
            return REGISTERED[cls]
        if (named := NAMED.get(f"{cls.__module__}.{cls.__qualname__}")) is not None:
            return named
    return next((kind for kind in KINDS if isinstance(module, kind.module)), None)


def prunable_parameters(model: nn.Module, found: Mapping[str, Kind] | None = None) -> dict[str, tuple[Kind, nn.Module]]:
    """Every parameter that has a kind, by all its names without wrappers, with its kind and its module.

    Args:
        found: kinds of further parameters, by name.
    """
    # A weight that is computed (weight_norm, parametrizations) is no parameter and cannot be masked as one.
    own = own_names(model)
    kinds: dict[str, tuple[Kind, nn.Module]] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        kind = kind_of(module)
        for parameter, tensor in module.named_parameters(recurse=False, remove_duplicate=False):
            name = own[f"{prefix}.{parameter}" if prefix else parameter]
            if kind is not None and parameter in kind.parameters and is_scored(tensor):
                kinds[name] = (kind, module)
            elif name in (found or {}):
                kinds[name] = ((found or {})[name], module)
    return kinds


def by_unit(weights: Tensor, kind: Kind, module: nn.Module) -> Tensor:
    """A parameter as [output units, weights into each]; a view or a copy."""
    if kind.inputs is not None:
        outputs = [axis for axis in range(weights.dim()) if axis not in kind.inputs]
        n_units = weights.numel() // max(1, math.prod(weights.shape[axis] for axis in kind.inputs))
        return weights.permute(*outputs, *kind.inputs).reshape(n_units, -1)
    if not kind.transposed:
        return weights.reshape(weights.shape[0], -1)
    n_groups = getattr(module, "groups", 1)
    n_in, n_out, *rest = weights.shape
    grouped = weights.reshape(n_groups, n_in // n_groups, n_out, *rest)
    return grouped.transpose(1, 2).reshape(n_groups * n_out, -1)


def from_units(by_units: Tensor, like: Tensor, kind: Kind, module: nn.Module) -> Tensor:
    """``by_unit`` undone: the values in the shape of the parameter ``like``."""
    positions = by_unit(torch.arange(like.numel()).view(like.shape), kind, module)
    flat = by_units.new_empty(like.numel())
    flat[positions.reshape(-1)] = by_units.reshape(-1)
    return flat.view(like.shape)


def taps_and_groups(kind: Kind, module: nn.Module, shape: Sequence[int]) -> tuple[int, int]:
    """How many weights of a parameter lie between two units, and how many groups of its units have inputs of their own."""
    if kind.inputs is not None:
        return 1, 1
    return math.prod(shape[2:]), int(getattr(module, "groups", 1)) if hasattr(module, "kernel_size") else 1


def is_scored(tensor: Tensor) -> bool:
    """Whether scores are known for the numbers of a parameter: whole ones and those of 8 bits have none."""
    return (tensor.is_floating_point() and tensor.element_size() > 1) or tensor.is_complex()
