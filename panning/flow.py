"""Forward passes of the user's own network under other rules, without touching it.

A *flow* runs the model with given parameters while a ``TorchFunctionMode`` replaces some functions: BatchNorm by batch
statistics that update nothing (scoring), every norm by a positive scaling and every bias by zero (SynFlow), or all
arithmetic by exact booleans (connectivity). The replacement happens per function call, so it works for modules and for
functional code alike, on any architecture, and no copy of the model is made. The model's parameters, buffers, gradients,
training flags and the global random state are as they were afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from panning.errors import ModelError
from panning.seeding import isolated_torch_rng

Rule = Callable[..., Any]  # called as rule(function, *args, **kwargs) in place of function(*args, **kwargs)

LINEAR = (F.linear,)
CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
BATCH_NORMS = (F.batch_norm,)
OTHER_NORMS = (F.layer_norm, torch.layer_norm, F.group_norm, torch.group_norm, F.rms_norm, torch.rms_norm)
UNSCALED_NORMS = (F.instance_norm, F.local_response_norm)
DROPOUTS = (
    F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout, torch.dropout,
)  # fmt: skip
ACTIVATIONS = (
    F.relu, torch.relu, torch.relu_, torch.Tensor.relu, torch.Tensor.relu_, F.relu6, F.elu, F.selu, F.celu, F.gelu,
    F.silu, F.mish, F.leaky_relu, F.prelu, torch.prelu, F.rrelu, F.hardswish, F.hardtanh, F.softplus, F.softsign,
    F.tanh, torch.tanh, torch.Tensor.tanh, F.log_softmax, torch.log_softmax, torch.Tensor.log_softmax,
    F.softmax, torch.softmax, torch.Tensor.softmax, F.logsigmoid,
)  # fmt: skip
GATES = (F.sigmoid, torch.sigmoid, torch.Tensor.sigmoid, F.hardsigmoid)
MAX_POOLS = {
    torch.max_pool1d: F.avg_pool1d, torch.max_pool2d: F.avg_pool2d, torch.max_pool3d: F.avg_pool3d,
    F.max_pool1d: F.avg_pool1d, F.max_pool2d: F.avg_pool2d, F.max_pool3d: F.avg_pool3d,
}  # fmt: skip
ADAPTIVE_MAX_POOLS = {
    F.adaptive_max_pool1d: F.adaptive_avg_pool1d, F.adaptive_max_pool2d: F.adaptive_avg_pool2d,
    F.adaptive_max_pool3d: F.adaptive_avg_pool3d, torch.adaptive_max_pool1d: F.adaptive_avg_pool1d,
}  # fmt: skip


class _Flow(TorchFunctionMode):
    def __init__(self, rules: Mapping[Any, Rule]) -> None:
        super().__init__()
        self.rules = rules

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        rule = self.rules.get(func)
        return func(*args, **(kwargs or {})) if rule is None else rule(func, *args, **(kwargs or {}))


def run(
    model: nn.Module, parameters: Mapping[str, Tensor], inputs: Tensor, rules: Mapping[Any, Rule], dtype: torch.dtype
) -> Tensor:
    """The output of ``model`` on ``inputs`` with other parameters and under ``rules``; differentiable.

    Buffers are cloned (floating ones cast to ``dtype``), all modules are in evaluation mode during the pass, and what it
    draws at random does not depend on, nor change, the global random state.
    """
    buffers = {
        name: buffer.detach().to(dtype, copy=True) if buffer.is_floating_point() else buffer.clone()
        for name, buffer in model.named_buffers()
    }
    with (
        _in_evaluation_mode(model),
        isolated_torch_rng(0),
        _Flow(rules),
        torch.autocast(inputs.device.type, enabled=False),
    ):
        output = functional_call(model, {**parameters, **buffers}, (inputs,))
    if not isinstance(output, Tensor):
        raise ModelError(f"The model returns {type(output).__name__}; a tensor of logits [batch, classes] is needed.")
    return output


@contextmanager
def _in_evaluation_mode(model: nn.Module) -> Iterator[None]:
    flags = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in flags:
            module.training = False
        yield
    finally:
        for module, training in flags:
            module.training = training


# --- rules: scoring with the loss -----------------------------------------------------------------------------------


def _batch_statistics(
    function: Any, x: Tensor, mean: Any, var: Any, weight: Any = None, bias: Any = None, training: bool = False,
    momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    if x.numel() == x.shape[1]:  # one value per channel has no variance; its normalised value is 0
        x = x.expand(2, *x.shape[1:])
        return F.batch_norm(x, None, None, weight, bias, True, 0.0, eps)[:1]
    return F.batch_norm(x, None, None, weight, bias, True, 0.0, eps)


#: Normalise with the statistics of the batch (as in the first training step) and update no running average.
BATCH_STATISTICS: dict[Any, Rule] = {norm: _batch_statistics for norm in BATCH_NORMS}


# --- rules: SynFlow's linearised network ----------------------------------------------------------------------------


def _without_bias(function: Any, x: Tensor, weight: Tensor, bias: Any = None, *args: Any, **kwargs: Any) -> Tensor:
    result: Tensor = function(x, weight, None, *args, **kwargs)
    return result


def _first_argument(function: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return x


def _scale_channels(function: Any, x: Tensor, mean: Any, var: Any, weight: Any = None, *args: Any, **kw: Any) -> Tensor:
    return x if weight is None else x * weight.view(1, -1, *[1] * (x.dim() - 2))


def _scale_last(function: Any, x: Tensor, shape: Any, weight: Any = None, *args: Any, **kwargs: Any) -> Tensor:
    if weight is None:
        return x
    if function in (F.group_norm, torch.group_norm):
        return x * weight.view(1, -1, *[1] * (x.dim() - 2))
    return x * weight


#: Biases and means gone, norms reduced to their scale, activations and dropout the identity (ReLU is that on positive
#: values; tanh or ReLU6 would saturate). With absolute parameters and a positive input the output is the sum over all
#: paths of the product of |weights|.
POSITIVE_LINEAR: dict[Any, Rule] = {
    **{function: _without_bias for function in (*LINEAR, *CONVOLUTIONS)},
    **{function: _scale_channels for function in BATCH_NORMS},
    **{function: _scale_last for function in OTHER_NORMS},
    **{function: _first_argument for function in (*UNSCALED_NORMS, *DROPOUTS, *ACTIVATIONS)},
}


# --- rules: boolean reachability ------------------------------------------------------------------------------------


class _Boolean(torch.autograd.Function):
    """1 where above a threshold, else 0; the same for the gradient on its way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, forward_above: float, backward_above: float) -> Tensor:
        ctx.backward_above = backward_above
        return (x > forward_above).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return (grads[0] > ctx.backward_above).to(grads[0].dtype), None, None


def _boolean_product(function: Any, x: Tensor, weight: Tensor, bias: Any = None, *args: Any, **kwargs: Any) -> Tensor:
    # Between the two gates there are only sums of products of 0 and 1, which are integers: one half parts 0 from the
    # rest whatever the rounding of the convolution algorithm.
    x = _Boolean.apply(x, 0.0, 0.5)
    result: Tensor = _Boolean.apply(function(x, weight, None, *args, **kwargs), 0.5, 0.0)
    return result


def _average_like(pool: Any) -> Rule:
    def rule(function: Any, x: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
             ceil_mode: bool = False, return_indices: bool = False) -> Tensor:  # fmt: skip
        # Max-pooling hands the gradient to one tap of a tie only; the average reaches every tap that can win.
        return pool(x, kernel_size, stride or None, padding, ceil_mode)

    return rule


def _adaptive_average_like(pool: Any) -> Rule:
    return lambda function, x, output_size, return_indices=False: pool(x, output_size)


def _open_gate(function: Any, x: Tensor, *_: Any, **__: Any) -> Tensor:
    return 1.0 + x  # a sigmoid is positive also where nothing reaches it, so it never cuts what it multiplies


#: Every value is 0 (no unmasked path from the input arrives) or positive; every gradient likewise from the output.
BOOLEAN: dict[Any, Rule] = {
    **{function: _boolean_product for function in (*LINEAR, *CONVOLUTIONS)},
    **{
        function: _first_argument for function in (*BATCH_NORMS, *OTHER_NORMS, *UNSCALED_NORMS, *DROPOUTS, *ACTIVATIONS)
    },
    **{function: _open_gate for function in GATES},
    **{function: _average_like(pool) for function, pool in MAX_POOLS.items()},
    **{function: _adaptive_average_like(pool) for function, pool in ADAPTIVE_MAX_POOLS.items()},
}
