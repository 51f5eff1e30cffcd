"""What a network file may name: layers, functions and methods. Nothing else is run, and nothing is imported by a name.

A row of ``LAYERS`` is a class of torch, made again from the arguments of its constructor; parts of compact networks have
rows of their own. Functions that make Python numbers or lists are ours, with bounds: ``3 * x`` of a list is a list of any
length.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from panning.models.graph import MAX_NUMBER, MAX_VALUES
from panning.models.parts import ByMode, Gather, PartialSum


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


TORCH = _names("""
    abs add addcdiv addcmul addmm amax amin arange argmax argmin baddbmm bmm cat chunk clamp clone concat cos
    cosine_similarity cumsum diff div einsum eq erf exp flatten flip full full_like gather ge gt index_select le lerp
    log log1p logical_and logical_not logical_or logsumexp lt masked_fill matmul max maximum mean min minimum mm
    movedim mul narrow ne neg norm ones ones_like permute pow prod reciprocal relu repeat_interleave reshape roll
    rsqrt select sigmoid sign sin softmax split sqrt square squeeze stack std sub sum swapaxes swapdims take_along_dim
    tanh tensor_split tile transpose tril triu true_divide unbind unflatten unsqueeze var where zeros zeros_like
""")
FUNCTIONAL = _names("""
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
    adaptive_max_pool3d alpha_dropout avg_pool1d avg_pool2d avg_pool3d batch_norm bilinear celu conv1d conv2d conv3d
    conv_transpose1d conv_transpose2d conv_transpose3d dropout dropout1d dropout2d dropout3d elu embedding
    feature_alpha_dropout fold gelu glu group_norm hardshrink hardsigmoid hardswish hardtanh instance_norm interpolate
    layer_norm leaky_relu linear local_response_norm log_softmax logsigmoid lp_pool1d lp_pool2d max_pool1d max_pool2d
    max_pool3d mish normalize one_hot pad pixel_shuffle pixel_unshuffle prelu relu relu6 rms_norm
    scaled_dot_product_attention selu sigmoid silu softmax softmin softplus softshrink softsign tanh tanhshrink
    threshold unfold
""")
METHODS = _names("""
    abs add addmm amax amin argmax bmm chunk clamp clone contiguous cos cumsum detach dim div double eq exp expand
    expand_as flatten flip float ge gt half index_select bfloat16 le log lt masked_fill matmul max mean min mm movedim
    mul narrow ndimension ne neg new_full new_ones new_zeros norm numel permute pow prod ravel reciprocal relu repeat
    repeat_interleave reshape reshape_as roll rsqrt select sigmoid sin size softmax split sqrt square squeeze std sub
    sum swapaxes swapdims t tanh tile to transpose tril triu type_as unbind unflatten unfold unsqueeze var view
    view_as
""")
#: Layers of a recurrent layer.
MAX_STACKED = 100
#: Arguments of functions that may say whether the network is being trained.
MODES = {"training", "use_input_stats"}
#: Attributes of a tensor that a graph may read.
ATTRIBUTES = ("shape", "dtype", "ndim", "device", "T", "mT", "H", "mH")
LAYER_NAMES = _names("""
    AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d AdaptiveMaxPool1d AdaptiveMaxPool2d AdaptiveMaxPool3d
    AlphaDropout AvgPool1d AvgPool2d AvgPool3d BatchNorm1d BatchNorm2d BatchNorm3d Bilinear CELU ChannelShuffle
    ConstantPad1d ConstantPad2d ConstantPad3d Conv1d Conv2d Conv3d ConvTranspose1d ConvTranspose2d ConvTranspose3d
    Dropout Dropout1d Dropout2d Dropout3d ELU Embedding FeatureAlphaDropout Flatten Fold GELU GLU GRU GroupNorm
    Hardshrink Hardsigmoid Hardswish Hardtanh Identity InstanceNorm1d InstanceNorm2d InstanceNorm3d LSTM LayerNorm
    LeakyReLU Linear LocalResponseNorm LogSigmoid LogSoftmax MaxPool1d MaxPool2d MaxPool3d Mish MultiheadAttention
    PReLU PixelShuffle PixelUnshuffle RMSNorm RNN ReLU ReLU6 ReflectionPad1d ReflectionPad2d ReplicationPad1d
    ReplicationPad2d SELU SiLU Sigmoid Softmax Softmax2d Softmin Softplus Softshrink Softsign Tanh Tanhshrink
    Threshold Unflatten Unfold Upsample ZeroPad1d ZeroPad2d ZeroPad3d
""")


@dataclass(frozen=True)
class Layer:
    """A row of ``LAYERS``.

    Attributes:
        fields: of a module, plain values that ``make`` makes an equal one from, apart from its numbers.
    """

    kind: type[nn.Module]
    fields: Callable[[nn.Module], dict[str, Any]]
    make: Callable[..., nn.Module]


def _of_constructor(kind: type[nn.Module]) -> Layer:
    signature = inspect.signature(kind.__init__).parameters
    names = [name for name in signature if name not in ("self", "device", "dtype", "args", "kwargs") and name[0] != "_"]
    if "args" in signature:  # the recurrent layers, whose constructors pass everything on
        own = {nn.LSTM: ["proj_size"], nn.RNN: ["nonlinearity"]}.get(kind, [])
        names = ["input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional", *own]

    def fields(module: nn.Module) -> dict[str, Any]:
        found = {name: getattr(module, name) for name in names if hasattr(module, name)}
        return {name: isinstance(value, Tensor) if name == "bias" and not isinstance(value, bool) else value
                for name, value in found.items()}  # fmt: skip

    def make(**fields: Any) -> nn.Module:
        if (n := fields.get("num_layers", 1)) not in range(1, MAX_STACKED + 1):  # each is a turn of a loop
            raise ValueError(f"{n!r:.20} layers in one, not 1 to {MAX_STACKED}")
        return kind(**fields)

    return Layer(kind, fields, make)


def _attention_fields(module: nn.Module) -> dict[str, Any]:
    assert isinstance(module, nn.MultiheadAttention)
    return {
        "embed_dim": module.embed_dim, "num_heads": module.num_heads, "dropout": module.dropout,
        "bias": module.in_proj_bias is not None, "add_bias_kv": module.bias_k is not None,
        "add_zero_attn": module.add_zero_attn, "kdim": module.kdim, "vdim": module.vdim, "batch_first": module.batch_first,
    }  # fmt: skip


def _make_gather(axis: int, n_units: int) -> Gather:
    return Gather(axis, torch.empty(n_units, dtype=torch.int64))


def _partial_sum_fields(module: nn.Module) -> dict[str, Any]:
    assert isinstance(module, PartialSum)
    parts = [getattr(module, f"index{number}") for number in range(module.n_parts)]
    shifts = [getattr(module, f"shift{number}") for number in range(module.n_shifts)]
    return {
        "axis": module.axis, "n_units": module.n_units,
        "parts": [None if index is None else len(index) for index in parts],
        "shifts": [[len(values), isinstance(values, nn.Parameter)] for values in shifts],
    }  # fmt: skip


def _make_partial_sum(axis: int, n_units: int, parts: list[int | None], shifts: list[tuple[int, bool]]) -> PartialSum:
    def index(n: int) -> Tensor:
        return torch.empty(n, dtype=torch.int64)

    made = [(nn.Parameter(torch.empty(n)) if is_trained else torch.empty(n), index(n)) for n, is_trained in shifts]
    return PartialSum(axis, n_units, [None if n is None else index(n) for n in parts], made)


def _by_mode_fields(module: nn.Module) -> dict[str, Any]:
    assert isinstance(module, ByMode)
    if (name := name_of(module.function)) is None:
        raise ValueError(f"its forward calls {module.extra_repr()}, which is not in the table.")
    return {"function": name, "positions": list(module.positions), "keywords": list(module.keywords)}


def _make_by_mode(function: str, positions: list[int], keywords: list[str]) -> ByMode:
    names = list(inspect.signature(FUNCTIONS[function]).parameters)
    if not {*keywords, *(names[position] for position in positions)} <= MODES:  # shapes must not hang on the mode
        raise ValueError(f"an argument of {function} follows the mode and is none of {', '.join(sorted(MODES))}")
    return ByMode(FUNCTIONS[function], positions, keywords)


#: Kind -> how such a layer is told and made again.
LAYERS: dict[str, Layer] = {
    **{name: _of_constructor(getattr(nn, name)) for name in LAYER_NAMES},
    "MultiheadAttention": Layer(nn.MultiheadAttention, _attention_fields, nn.MultiheadAttention),
    "Gather": Layer(Gather, lambda gather: {"axis": gather.axis, "n_units": len(gather.index)}, _make_gather),  # type: ignore[arg-type]
    "PartialSum": Layer(PartialSum, _partial_sum_fields, _make_partial_sum),
    "ByMode": Layer(ByMode, _by_mode_fields, _make_by_mode),
}
KINDS: Mapping[type[nn.Module], str] = {row.kind: name for name, row in LAYERS.items()}


def _is_text(*values: Any) -> bool:
    return any(isinstance(value, str | bytes) for value in values)


def _arithmetic(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """An operator for tensors and for the numbers and tuples that shapes are made of."""

    def bounded(a: Any, b: Any) -> Any:
        both = isinstance(a, tuple | list) and isinstance(b, tuple | list)
        if _is_text(a, b) or (not both and (isinstance(a, tuple | list) or isinstance(b, tuple | list))):
            raise ValueError(f"{function.__name__} of {type(a).__name__} and {type(b).__name__}")
        if both and len(a) + len(b) > MAX_VALUES:
            raise ValueError(f"a list of {len(a) + len(b)} values")
        if function is operator.pow and isinstance(a, int) and isinstance(b, int) and abs(b) > 64:
            raise ValueError(f"a power of {b}")
        result = function(a, b)
        if isinstance(result, int | float) and not abs(result) <= MAX_NUMBER**2:
            raise ValueError("a number beyond all sizes")
        return result

    bounded.__name__ = function.__name__
    return bounded


def _getattr(value: Any, name: str) -> Any:
    if name not in ATTRIBUTES:
        raise ValueError(f"the attribute {name!r:.40}")
    return getattr(value, name)


_OPERATORS = _names("add sub mul truediv floordiv mod pow matmul eq ne lt le gt ge and_ or_")

#: Name -> what is called.
FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{f"torch.{name}": getattr(torch, name) for name in TORCH if hasattr(torch, name)},
    **{f"F.{name}": getattr(F, name) for name in FUNCTIONAL if hasattr(F, name)},
    **{f"operator.{name}": _arithmetic(getattr(operator, name)) for name in _OPERATORS},
    "operator.getitem": operator.getitem,
    "operator.neg": operator.neg,
    "getattr": _getattr,
}
#: What a trace holds -> its name.
NAMES: dict[Any, str] = {
    **{function: name for name, function in reversed(FUNCTIONS.items())},
    **{getattr(operator, name): f"operator.{name}" for name in _OPERATORS},
    getattr: "getattr",
    torch.nn.functional.max_pool2d: "F.max_pool2d",
}


def _stochastic_depth(inputs: Tensor, p: float, mode: str, training: bool = True) -> Tensor:
    """torchvision's function of this name, with its draws: whole samples, or the whole batch, are zero at rate p."""
    if mode not in ("batch", "row"):
        raise ValueError(f"the mode {mode!r:.20} of stochastic depth")
    if not training or p == 0.0:
        return inputs
    survival = 1.0 - p
    size = [inputs.shape[0] if mode == "row" else 1, *[1] * (inputs.ndim - 1)]
    noise = torch.empty(size, dtype=inputs.dtype, device=inputs.device).bernoulli_(survival)
    return inputs * (noise.div_(survival) if survival > 0.0 else noise)


def _tensor_split(input: Tensor, indices_or_sections: Any, dim: int = 0) -> Any:  # noqa: A002 (torch's name)
    if isinstance(indices_or_sections, int) and indices_or_sections > MAX_VALUES:
        raise ValueError(f"{indices_or_sections} pieces of a tensor")  # torch takes memory for them before all else
    return torch.tensor_split(input, indices_or_sections, dim)


FUNCTIONS["torch.tensor_split"] = _tensor_split
FUNCTIONS["stochastic_depth"] = _stochastic_depth
NAMES[_stochastic_depth] = "stochastic_depth"


def name_of(function: Any) -> str | None:
    """The name of a function that a trace met; None if it is not in the table."""
    if getattr(function, "__module__", "") == "torchvision.ops.stochastic_depth":
        return "stochastic_depth"
    try:
        return NAMES.get(function)
    except TypeError:  # not hashable
        return None
