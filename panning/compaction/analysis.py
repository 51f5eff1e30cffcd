"""The two passes over a traced network: forward for the constants, backward for the units that are wanted."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, fx

from panning.compaction.layers import BatchNorm, Layer
from panning.compaction.rule import Analysis
from panning.compaction.table import rules_of


def find_constants(at: Analysis) -> None:
    """Find what is known of each tensor's units: ``at.units``."""
    for node in at.network.graph.nodes:
        at.units[node] = None
        for rule in rules_of(at, node):
            try:
                units = rule.units(at, node)
            except Exception:  # a call that the rule does not expect: what is tried on a copy may stay whole
                if not at.in_place:
                    raise
                continue
            if units is None:
                continue
            if not isinstance(rule, Layer | BatchNorm):  # these have constants of their own
                units = replace(units, only_here=at.read_once(rule.operands(node)))
            at.units[node], at.rules[node] = units, rule
            break


def find_kept(at: Analysis) -> None:
    """Find the units that the compact network computes: ``at.kept``."""
    wanted: dict[fx.Node, Tensor] = {}
    for node in reversed(at.network.graph.nodes):
        units, rule = at.units[node], at.rules.get(node)
        if units is None or rule is None:
            at.kept[node] = None
            for operand in node.all_input_nodes if not _asks_for_a_size(node) else ():
                if (x := at.units[operand]) is not None:
                    wanted[operand] = torch.ones(len(x), dtype=torch.bool)
            continue
        kept = wanted.get(node, torch.zeros(len(units), dtype=torch.bool))
        if any(_asks_for_a_size(user) for user in node.users) and not kept.any():
            kept[0] = True
        at.kept[node] = kept = rule.closure(at, node, kept) if kept.any() else kept
        if not kept.any():
            continue
        for operand, some in zip(rule.operands(node), rule.wants(at, node, kept), strict=True):
            if (x := at.units[operand]) is not None:
                wanted[operand] = wanted.get(operand, torch.zeros(len(x), dtype=torch.bool)) | some


def _asks_for_a_size(node: fx.Node) -> bool:
    """Whether a node asks for x.size(0), x.dim() or the first entry of x.shape: no unit is needed to answer."""
    if node.op == "call_method" and node.target == "dim":
        return True
    if node.op == "call_method" and node.target == "size" and len(node.args) == 2:
        return bool(node.args[1] == 0)
    if (node.op == "call_method" and node.target == "size") or (node.target is getattr and node.args[1] == "shape"):
        return all(user.op == "call_function" and user.args[1:] == (0,) for user in node.users)
    return False
