"""What every network of a sweep over a library must give: exact counts, finite scores, nothing touched, SNIP as by hand."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import panning
from panning.alive.connectivity import Connectivity
from panning.episode.agent_pruner import AgentPruner
from panning.foundation.errors import ModelError
from panning.foundation.torch_private import slots
from panning.foundation.wrappers import own_parameters
from panning.masks.layout import first_layout, prunable_layout
from panning.pruners import PruneResult, Rounds, prune_problem
from panning.scoring.interface import problem_of
from panning.scoring.problem import Problem

DENSITY = 0.1
N_STEPS = 20
METHODS = ("magnitude", "snip", "synflow", "grasp", "agent")
POLICY = Path(__file__).parent.parent / "configs/bench/fashion-lenet5.safetensors"


def untouched(model: nn.Module) -> list[Any]:
    """All that scoring must leave as it was."""
    return [
        {name: tensor.clone() for name, tensor in model.state_dict().items()},
        [(id(owner), name, id(tensor)) for owner in model.modules() for name, tensor in slots(owner).buffers.items()],
        [buffer.clone() for buffer in model.buffers()],
        [module.training for module in model.modules()],
        [p.requires_grad for p in model.parameters()],
        torch.get_rng_state(),
    ]


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return a.shape == b.shape and bool(torch.equal(torch.nan_to_num(a), torch.nan_to_num(b)))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def snip_by_hand(problem: Problem) -> Tensor:
    """|w dL/dw| by plain autograd: evaluation mode, batch norms by the statistics of the batch."""
    model = copy.deepcopy(problem.model).eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()
    inputs, targets = problem.batch(0)
    parameters = own_parameters(model)
    for parameter in parameters.values():
        parameter.grad = None
    with warnings.catch_warnings(action="ignore"):
        problem.loss(problem.forward(model, inputs), targets).backward()
    parts = [parameters[name] for name in problem.layout.names]
    return torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.detach() * p.grad).abs().flatten() for p in parts]
    ).detach()


def assert_close_scores(problem: Problem, scores: Tensor, expected: Tensor, tolerance: float = 2e-3) -> None:
    views, others = problem.layout.views(scores.double()), problem.layout.views(expected.double())
    for name, view in views.items():
        top = float(others[name].max())
        assert float((view - others[name]).abs().max()) <= tolerance * top + 1e-12, f"SNIP differs in {name}"


#: Tables that are added to activations, and what a recurrence decays by: no weights of a layer.
ADDED = ("pos_embed", "position_embeddings", "bias_table", "attention_biases", "A_log", "pos_embed_0", "pos_embed_1")


def dense_unsaid(problem: Problem) -> list[str]:
    """The matrices and kernels that stay dense, and of which nothing is said."""
    modules = dict(problem.model.named_modules())
    return [
        name
        for name, p in own_parameters(problem.model).items()
        if sum(size > 1 for size in p.shape) > 1
        and name not in problem.layout.names
        and name not in problem.layout.dense
        and not isinstance(modules.get(name.rpartition(".")[0]), nn.Embedding)
        and not name.endswith(ADDED)
    ]


def problem_with(model: nn.Module, batch: Any, **told: Any) -> Problem:
    """The problem as ``panning.prune`` sees it."""
    first = first_layout(model)
    example = None if first is None else problem_of(model, first, batch, **told).example
    return problem_of(model, prunable_layout(model, example=example), batch, **told)


def check(
    model: nn.Module, batch: Any, *, forward: Any = None, loss: Any = None, not_for: tuple[str, ...] = (),
    steps: bool = True, report: Callable[[str, str], None] = lambda method, said: None,
) -> None:  # fmt: skip
    """Every claim on one network.

    Args:
        not_for: methods that must refuse it, with a ``ModelError``.
        steps: also train masked.
    """
    model.train()
    before = untouched(model)
    problem = problem_with(model, batch, forward=forward, loss=loss)
    assert dense_unsaid(problem) == []
    n = problem.layout.n_prunable
    k = int(DENSITY * n + 0.5)
    net = Connectivity.of(problem)
    report("weights", f"{n / 1e6:.2f} M")

    def prune(method: str, row: str, **options: Any) -> PruneResult:
        start = time.perf_counter()
        pruner = AgentPruner.of(POLICY) if method == "agent" else method
        result = prune_problem(problem, DENSITY, pruner, rounds=Rounds(2 if method == "agent" else 1), **options)
        report(row, f"{time.perf_counter() - start:.1f} {net.n_alive(result.mask) / k:4.0%}")
        assert int(result.mask.sum()) == k and bool(torch.isfinite(result.scores).all()), method
        return result

    for method in METHODS:
        if method in not_for:
            try:
                prune(method, method)
            except ModelError:
                continue
            raise AssertionError(f"{method} runs by now: take it from not_for")
        result = prune(method, method)
        if method == "snip":
            assert_close_scores(problem, result.scores, snip_by_hand(problem))
    alive = prune("snip", "all alive", all_alive_weights=True)
    assert net.n_alive(alive.mask) == k
    assert equal(untouched(model), before), "scoring has touched the network"
    if steps:
        take_steps(model, problem, alive)


def take_steps(model: nn.Module, problem: Problem, result: PruneResult) -> None:
    """Train under the mask: masked weights stay 0, and no kept one is lost."""
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
    masks = result.masks
    panning.enforce_masks(model, masks, optimizer)
    inputs, targets = problem.batch(0)
    for _ in range(N_STEPS):
        optimizer.zero_grad()
        with warnings.catch_warnings(action="ignore"):
            problem.loss(problem.forward(model, inputs), targets).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    parameters = own_parameters(model)
    for name, mask in masks.items():
        weight = parameters[name].detach()
        assert not bool(weight[~mask].any()), name
        assert bool(torch.isfinite(weight).all()), name


def masks_of(model: nn.Module, batch: Any, method: str) -> panning.Masks:
    with warnings.catch_warnings(action="ignore"):
        return panning.prune(model, batch, density=DENSITY, method=method, n_rounds=1)
