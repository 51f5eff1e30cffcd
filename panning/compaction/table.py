"""The rules by operation.

A function or method without a rule of its own is run, to see whether it treats every unit by itself. One that does not, and
a module without a rule, stays whole: it is given every unit and returns every unit.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from panning.compaction.elementwise import Activation, KeepsZero, Pass, WithNumber
from panning.compaction.joins import Concatenation, Flatten, Product, Sum, ZeroPad
from panning.compaction.layers import BatchNorm, Layer
from panning.compaction.probing import MOVES, KeepsApart, Moves, not_followed
from panning.compaction.rule import Analysis, Rule
from panning.compaction.unit_by_unit import UnitByUnit
from panning.models.parts import ByMode

_PASS, _KEEPS_ZERO, _ACTIVATION = Pass(), KeepsZero(), Activation()
_FLATTEN, _SUM, _PRODUCT, _WITH_NUMBER, _UNIT_BY_UNIT = Flatten(), Sum(), Product(), WithNumber(), UnitByUnit()

#: By the exact type of a module: the forward of a subclass may do anything.
MODULES: dict[type[nn.Module], Rule] = {
    **dict.fromkeys((nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d), Layer()),
    **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), Layer()),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm), BatchNorm()),
    **dict.fromkeys(
        (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh,
         nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Softplus, nn.LogSigmoid, nn.Softsign, nn.Tanhshrink,
         nn.Hardshrink, nn.Softshrink, nn.Threshold),
        _ACTIVATION,
    ),
    **dict.fromkeys(
        (nn.Identity, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d,
         nn.AdaptiveMaxPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
        _PASS,
    ),
    **dict.fromkeys(
        (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.Upsample,
         nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d),
        _KEEPS_ZERO,
    ),
    nn.Flatten: _FLATTEN,
}  # fmt: skip

FUNCTIONS: dict[Any, Rule] = {
    **dict.fromkeys(
        (F.relu, torch.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish, F.sigmoid,
         torch.sigmoid, F.tanh, torch.tanh, F.hardswish, F.hardsigmoid, F.hardtanh, F.softplus, F.logsigmoid,
         F.softsign, F.tanhshrink, F.hardshrink, F.softshrink, torch.clamp, torch.square, torch.abs, torch.neg,
         operator.neg),
        _ACTIVATION,
    ),
    **dict.fromkeys(
        (F.max_pool1d, F.max_pool2d, F.max_pool3d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d,
         F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d),
        _PASS,
    ),
    **dict.fromkeys(
        (F.dropout, F.dropout1d, F.dropout2d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d),
        _KEEPS_ZERO,
    ),
    torch.flatten: _FLATTEN,
    torch.reshape: _FLATTEN,
    **dict.fromkeys((operator.add, operator.iadd, torch.add), _SUM),
    **dict.fromkeys((operator.mul, operator.imul, torch.mul), _PRODUCT),
    **dict.fromkeys((operator.sub, operator.truediv, operator.pow), _WITH_NUMBER),
    **dict.fromkeys((torch.cat, torch.concat), Concatenation()),
    F.pad: ZeroPad(),
}  # fmt: skip

#: By module and name, for libraries that are not imported unless a network needs them.
OF_LIBRARIES: dict[tuple[str, str], Rule] = {("torchvision.ops.stochastic_depth", "stochastic_depth"): _KEEPS_ZERO}

METHODS: dict[str, Rule] = {
    **dict.fromkeys(("relu", "relu_", "sigmoid", "tanh", "clamp", "abs", "square"), _ACTIVATION),
    **dict.fromkeys(("contiguous", "clone"), _PASS),
    **dict.fromkeys(("flatten", "view", "reshape"), _FLATTEN),
    "add": _SUM,
    "add_": _SUM,
    "mul": _PRODUCT,
}


#: What a forward may call instead of a layer; ``follow`` finds the module whose weight it takes.
LAYERS: dict[Any, Rule] = {F.batch_norm: MODULES[nn.BatchNorm2d]}
_LAYER, _MOVES, _KEEPS_APART = MODULES[nn.Linear], Moves(), KeepsApart()


def rules_of(at: Analysis, node: fx.Node) -> list[Rule]:
    """Rules for a node's operation, the most exact first; none if it has to stay whole."""
    rule: Rule | None = None
    if node.op == "call_module" and str(node.target) not in at.whole:
        module = at.module(node)
        if "function" in node.meta:
            rule = LAYERS.get(node.meta["function"], _LAYER)
        else:
            rule = _of_function(module.function) if isinstance(module, ByMode) else MODULES.get(type(module))
    elif node.op == "call_method":
        rule = METHODS.get(str(node.target))
    elif node.op == "call_function":
        rule = _of_function(node.target)
        if isinstance(rule, Sum | Product) and sum(isinstance(arg, fx.Node) for arg in node.args) == 1:
            rule = _WITH_NUMBER
    rules = [] if rule is None else [rule]
    if at.in_place and node.op in ("call_function", "call_method"):
        name = str(getattr(node.target, "__name__", node.target))
        rules += [_MOVES] if name in MOVES else [] if node.target is not_followed else [_KEEPS_APART]
    if node.op in ("call_function", "call_method"):
        rules.append(_UNIT_BY_UNIT)
    return [rule for rule in rules if _fits(at, node, rule)]


def _of_function(function: Any) -> Rule | None:
    place = getattr(function, "__module__", None), getattr(function, "__name__", None)
    return FUNCTIONS.get(function) or OF_LIBRARIES.get(place)  # type: ignore[arg-type]


def _fits(at: Analysis, node: fx.Node, rule: Rule) -> bool:
    operands = rule.operands(node)
    if (
        not operands
        or any(not at.shape(o) for o in operands)
        or (node.meta.get("part") is not None and rule is not _MOVES)
    ):
        return False
    return isinstance(rule, Flatten) or not set(node.all_input_nodes) - set(operands)
