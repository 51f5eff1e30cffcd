"""What fails in a flow, said so that the user finds the place: the innermost module, the line, and the way out."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from panning.foundation.errors import ForwardError, ModelError, PanningError
from panning.foundation.nests import tensors_in, told

PACKAGE = Path(__file__).resolve().parents[1]
#: What to do, by whether the pass goes along paths or takes a loss.
WAY_OUT = {
    True: "This pass sends ones through the network, by rules for the functions that docs/layers.md names. If the network "
    "itself fails on ones of this shape, give the input_shape or the example_inputs that it takes; if it does not, write "
    "this part with other functions, or with layers of torch.nn.",
    False: "If model.eval() itself fails on such inputs, give the data or the input_shape that it takes, or a forward=; if "
    "it does not, write this part with other functions, or with layers of torch.nn.",
}


#: What an error says -> why it came up, and what to do instead.
REASONS = {
    r"^AssertionError: Guard failed|^RuntimeError: Expected input at ": "The network comes of torch.export, which has "
    "fixed a size of its inputs, most often the batch; panning runs it on other batches. Give torch.export a dynamic size "
    "(dynamic_shapes=), or pass the network that was exported.",
}
#: Why code fails that takes one dtype alone, where the flow's dtype is none of the network's.
IN_FLOAT64 = (
    "This pass computes in float64, and the line takes another dtype alone. Let it take every real dtype, or take a method "
    "that computes in the network's own (magnitude, snip)."
)


@contextmanager
def explained(model: nn.Module, inputs: Any, paths: bool = False) -> Iterator[None]:
    """A forward pass whose errors name the module.

    Args:
        paths: whether the pass follows paths, or takes a loss.
    """
    try:
        yield
    except ForwardError:
        raise
    except ModelError as error:  # a rule refuses what it has met
        raise ModelError(f"In {_place(error, model)}: {error}") from error
    except Exception as error:
        raise ForwardError(
            f"{_place(error, model)} fails in a pass of panning over {told(inputs)}: {_said(error)}. "
            f"{_reason(error, model, inputs) or WAY_OUT[paths]}"
        ) from error


def gradients(
    outputs: Tensor | list[Tensor], at: Tensor | list[Tensor], of: list[Tensor] | None = None, *,
    create_graph: bool = False, retain_graph: bool | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """``torch.autograd.grad``, zeros where nothing depends, with errors that say where the backward pass fails.

    Args:
        of: the gradient of ``outputs``; None for a scalar's.

    Raises:
        ForwardError: if a backward pass of the network fails.
    """
    with _of_the_network():
        return torch.autograd.grad(outputs, at, of, retain_graph, create_graph, materialize_grads=True)


def backward(outputs: Tensor | list[Tensor], at: list[Tensor], of: list[Tensor] | None = None) -> None:
    """``torch.autograd.backward``, for hooks that take gradients at ``at`` as they appear; errors as of ``gradients``."""
    with _of_the_network():
        torch.autograd.backward(outputs, of, inputs=at)


@contextmanager
def _of_the_network() -> Iterator[None]:
    try:
        yield
    except PanningError:
        raise
    except Exception as error:
        raise ForwardError(
            f"The backward pass of the network fails{_line(error)}: {_said(error)}. If output.sum().backward() of the "
            "plain network fails too, the fault is in that function; if it does not, write this part with other functions, "
            "or with layers of torch.nn."
        ) from error


def _said(error: Exception) -> str:
    """The kind and the first line; torch goes on with all the ways to call a function."""
    return f"{type(error).__name__}: {error}".splitlines()[0].rstrip(".: ")


def _reason(error: Exception, model: nn.Module, inputs: Any) -> str:
    """Why an error came up, where what it says tells; else nothing."""
    said = _said(error)
    for pattern, reason in REASONS.items():
        if re.search(pattern, said):
            return reason
    in_float64 = any(x.dtype is torch.float64 for x in tensors_in(inputs))
    if not in_float64 or any(p.dtype is torch.float64 for p in model.parameters()):
        return ""
    if isinstance(error, AssertionError):  # the line says what its author's words may not
        said += traceback.extract_tb(error.__traceback__)[-1].line or ""
    return IN_FLOAT64 if re.search(r"dtype|float(16|32|64)|Float|Double|Half", said) else ""


def _place(error: Exception, model: nn.Module) -> str:
    """The innermost module of the network in which an error came up, and the user's line."""
    names = {id(module): name for name, module in model.named_modules()}
    inside: nn.Module = model
    for frame, _ in traceback.walk_tb(error.__traceback__):
        module = frame.f_locals.get("self")
        if isinstance(module, nn.Module) and id(module) in names:
            inside = module
    kind, name = type(inside).__name__, names[id(inside)]
    return f"{f'module {name!r}' if name else 'the network'} ({kind}{_line(error, ', ')})"


def _line(error: Exception, before: str = " at ") -> str:
    """The innermost line that belongs neither to torch nor to panning."""
    torch_home = Path(torch.__file__).parent
    found = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        path = Path(frame.f_code.co_filename)
        if path.is_file() and not path.is_relative_to(PACKAGE) and not path.is_relative_to(torch_home):
            found = f"{before}{path.name}, line {line}, in {frame.f_code.co_qualname}"
    return found
