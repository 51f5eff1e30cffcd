"""ReLU behind max-pooling in place of before it: the same numbers from a part of the entries.

max(relu(x)) = relu(max(x)), and both ways hand the gradient to the same entry: where a window's largest entry is above zero,
ReLU changes nothing of it, and where it is not, no gradient comes through either way. So outputs and gradients are equal bit
for bit.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from panning.compaction.rule import Network

RELUS = {nn.ReLU, F.relu, torch.relu, "relu"}
#: Pools, with the position of their argument ``return_indices`` where they are functions.
POOLS: dict[Any, int] = {
    nn.MaxPool1d: 6, nn.MaxPool2d: 6, nn.MaxPool3d: 6,
    F.max_pool1d: 6, F.max_pool2d: 6, F.max_pool3d: 6,
    nn.AdaptiveMaxPool1d: 2, nn.AdaptiveMaxPool2d: 2, nn.AdaptiveMaxPool3d: 2,
    F.adaptive_max_pool1d: 2, F.adaptive_max_pool2d: 2, F.adaptive_max_pool3d: 2,
}  # fmt: skip


def relu_behind_pools(network: Network, whole: frozenset[str]) -> None:
    """Put each ReLU that only a max-pool reads behind that pool, in the network's graph.

    Args:
        whole: names of modules that stay as they are, as those with hooks.
    """
    for pool in list(network.graph.nodes):
        relu = pool.args[0] if pool.args else None
        if not isinstance(relu, fx.Node) or len(relu.users) > 1 or not relu.args or len(pool.all_input_nodes) > 1:
            continue
        is_pool = _kind(network, pool, whole) in POOLS and not _returns_indices(network, pool)
        if is_pool and _kind(network, relu, whole) in RELUS:
            pool.replace_all_uses_with(relu)
            pool.update_arg(0, relu.args[0])
            relu.update_arg(0, pool)
            pool.append(relu)


def _kind(network: Network, node: fx.Node, whole: frozenset[str]) -> Any:
    """The function or method that a node calls, or the class of its module."""
    if node.op != "call_module":
        return node.target
    return None if node.target in whole else type(network.get_submodule(str(node.target)))


def _returns_indices(network: Network, pool: fx.Node) -> bool:
    if pool.op == "call_module":
        return bool(network.get_submodule(str(pool.target)).return_indices)
    at = POOLS[pool.target]
    return bool(pool.kwargs.get("return_indices", pool.args[at] if len(pool.args) > at else False))
