"""Scores of networks whose forward pass hides something: the masks of the same network without it, exactly, or an error.

A network here is three linear layers and what the second one is part of, given as two functions of (network, activations):
the odd way to write it, and the plain one.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import panning
from panning.alive.connectivity import Connectivity
from panning.episode.actions import ActionSpec
from panning.episode.episode import run_policy
from panning.episode.policies import make_policy
from panning.foundation.errors import DataError, ForwardError, ModelError, PanningError
from panning.foundation.torch_private import HIDING
from panning.pruners import PRUNERS
from panning.scoring.problem import Problem
from panning.scoring.signals import Signals

X = torch.randn(16, 20, generator=torch.Generator().manual_seed(0))
Y = torch.arange(16) % 3
Part = Callable[["Net", Tensor], Tensor]


class Net(nn.Module):
    def __init__(self, part: Part) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.a, self.b, self.c = nn.Linear(20, 16), nn.Linear(16, 16), nn.Linear(16, 3)
        self.part = part

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.part(self, F.relu(self.a(x))))


def problem_of(net: nn.Module) -> Problem:
    return Problem.of(net, (20,), lambda number: (X, Y))


def block(net: Net, h: Tensor) -> Tensor:
    return F.relu(net.b(h))


def product(net: Net, h: Tensor) -> Tensor:
    return h @ net.b.weight.t()


class OwnLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return x @ w.t()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        return grads[0] @ w, grads[0].t() @ x


class OwnLinearApart(torch.autograd.Function):
    """The other way to write one, with keywords of its own."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, w: Tensor, transposed: bool = True) -> Tensor:
        return x @ w.t()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        x, w = ctx.saved_tensors
        return grads[0] @ w, grads[0].t() @ x, None


class OwnSwish(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return grads[0] * s * (1 + x * (1 - s))


class OwnReLUInPlace(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        ctx.save_for_backward(x.clamp_(min=0))
        return x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grads[0] * (x > 0)


class OwnSigmoid(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(y := 1 / (1 + (-x).exp()))
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return grads[0] * y * (1 - y)


class Halved(torch.autograd.Function):
    """Two results, one of them without a gradient; code that detaches and turns gradients off, as no forward needs to."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            half = x.detach() * 0.5
        ctx.mark_non_differentiable(sign := x.sign())
        return half, sign

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * 0.5


class OwnNumPy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.from_numpy(x.detach().numpy() - x.detach().numpy().mean(-1, keepdims=True))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] - grads[0].mean(-1, keepdim=True)


class OwnCheckpoint(torch.autograd.Function):
    """Activation checkpointing as several libraries write it: the backward pass runs the function again."""

    @staticmethod
    def forward(ctx: Any, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        ctx.function = function
        ctx.save_for_backward(x)
        with torch.no_grad():
            return function(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            y = ctx.function(x)
        torch.autograd.backward(y, grads)
        return None, x.grad


class OwnQuantiser(torch.autograd.Function):
    """Of a weight, with a scale that is learnt."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, scale: Tensor) -> Tensor:
        return (w / scale).clamp(-8, 7).round() * scale

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class OwnProduct(torch.autograd.Function):
    """Its backward pass is right, and cuts its graph."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor) -> Tensor:
        ctx.save_for_backward(q, k)
        return q * k

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        q, k = (x.detach().requires_grad_() for x in ctx.saved_tensors)
        with torch.enable_grad():
            product = q * k
        return torch.autograd.grad(product, (q, k), grads[0])


own_linear, own_swish = OwnLinear.apply, OwnSwish.apply  # bound when a module is imported, as many do


def in_sequence(net: Net, h: Tensor, reentrant: bool) -> Tensor:
    return checkpoint_sequential([net.b, nn.ReLU(), nn.Identity()], 2, h, use_reentrant=reentrant)


def scattered(net: Net, h: Tensor, zeros: Callable[[Tensor], Tensor]) -> Tensor:
    """Message passing on a ring of five nodes."""
    nodes, ring = net.b(h).unsqueeze(1).expand(-1, 5, -1), torch.arange(5)
    summed = zeros(nodes).index_add(1, ring.roll(1), nodes)
    index = ring.view(1, 5, 1).expand_as(nodes)
    return (summed + zeros(nodes).scatter_add(1, index, nodes)).mean(1)


def sampled(net: Net, h: Tensor, like: Tensor | None) -> Tensor:
    theta = torch.eye(2, 3) if like is None else torch.eye(2, 3).to(like)
    grid = F.affine_grid(theta.expand(len(h), 2, 3), [len(h), 1, 4, 4], align_corners=False)
    return F.grid_sample(net.b(h).view(-1, 1, 4, 4), grid, align_corners=False).flatten(1)


@torch.library.custom_op("panning_tests::own_relu", mutates_args=())
def registered_relu(x: Tensor) -> Tensor:
    return x.clamp(min=0)


@torch.library.custom_op("panning_tests::own_product", mutates_args=())
def registered_product(x: Tensor, w: Tensor) -> Tensor:
    return x @ w.t()


@torch.library.custom_op("panning_tests::for_float32", mutates_args=())
def registered_for_float32(x: Tensor) -> Tensor:
    if x.dtype != torch.float32:
        raise RuntimeError(f"expected float32, got {x.dtype}")
    return x.clone()


@torch.library.custom_op("panning_tests::own_norm", mutates_args=())
def registered_norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:])


registered_relu.register_autograd(
    lambda ctx, g: g * (ctx.saved_tensors[0] > 0),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)
registered_product.register_autograd(
    lambda ctx, g: (g @ ctx.saved_tensors[1], g.t() @ ctx.saved_tensors[0]),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)
registered_for_float32.register_autograd(lambda ctx, g: g, setup_context=lambda ctx, inputs, output: None)
registered_norm.register_autograd(lambda ctx, g: g, setup_context=lambda ctx, inputs, output: None)


def summed_over_a_ring(net: Net, h: Tensor, like: Tensor | None) -> Tensor:
    """A graph layer whose neighbours are a float32 matrix of its own, sparse or dense."""
    ring = torch.arange(16)
    ring = torch.sparse_coo_tensor(torch.stack([ring, ring.roll(1)]), torch.ones(16), (16, 16), check_invariants=True)
    y = net.b(h).t()
    return (torch.sparse.mm(ring, y) if like is None else torch.mm(ring.to_dense().to(like), y)).t()


TABLE = torch.linspace(0.5, 1.5, 16)  # float32, and no buffer

#: Name -> (the odd way, the plain one).
ODD: dict[str, tuple[Part, Part]] = {
    "reentrant": (lambda net, h: checkpoint(lambda x: block(net, x), h, use_reentrant=True), block),
    "not reentrant": (lambda net, h: checkpoint(lambda x: block(net, x), h, use_reentrant=False), block),
    "one in the other": (
        lambda net, h: checkpoint(
            lambda x: checkpoint(lambda y: block(net, y), x, use_reentrant=True), h, use_reentrant=False
        ),
        block,
    ),
    "sequential, reentrant": (lambda net, h: in_sequence(net, h, True), block),
    "sequential": (lambda net, h: in_sequence(net, h, False), block),
    "to(device=, dtype=)": (lambda net, h: block(net, h).to(device=h.device, dtype=torch.float32), block),
    "constant.to(device=, dtype=)": (
        lambda net, h: block(net, h) * TABLE.to(device=h.device, dtype=torch.float32),
        lambda net, h: block(net, h) * TABLE,
    ),
    "to(dtype=), to(tensor=)": (lambda net, h: block(net, h).to(dtype=h.dtype).to(tensor=h), block),
    "max(other=)": (
        lambda net, h: torch.max(net.b(h), other=h) + torch.min(input=h, other=net.b(h)),
        lambda net, h: torch.max(net.b(h), h) + torch.min(h, net.b(h)),
    ),
    "max(dim=), amax(axis=)": (
        lambda net, h: net.b(h) + torch.max(input=h, dim=1, keepdim=True)[0] + torch.amax(h, axis=1, keepdims=True),
        lambda net, h: net.b(h) + torch.max(h, 1, True)[0] + torch.amax(h, 1, True),
    ),
    "where(other=, input=)": (
        lambda net, h: torch.where(TABLE > 1, other=h, input=net.b(h)),
        lambda net, h: torch.where(TABLE > 1, net.b(h), h),
    ),
    "x.where(other=, condition=)": (
        lambda net, h: net.b(h).where(other=h, condition=TABLE > 1),
        lambda net, h: torch.where(TABLE > 1, net.b(h), h),
    ),
    "std(dim, unbiased, keepdim)": (
        lambda net, h: net.b(h) / (h.std(1, False, True) + torch.var(h, (1,), False, True)),
        lambda net, h: net.b(h) / (h.std(dim=1, unbiased=False, keepdim=True) + h.var(dim=1, correction=0, keepdim=True)),
    ),
    "layers by name": (
        lambda net, h: torch.relu_(input=F.linear(weight=net.b.weight, bias=net.b.bias, input=h)), block,
    ),
    "products by name": (
        lambda net, h: torch.addmm(mat2=net.b.weight.t(), mat1=h, input=net.b.bias) + torch.mul(other=h, input=h),
        lambda net, h: torch.addmm(net.b.bias, h, net.b.weight.t()) + torch.mul(h, h),
    ),
    "shapes by name": (
        lambda net, h: torch.permute(input=torch.reshape(shape=(-1, 4, 4), input=block(net, h)), dims=(0, 2, 1)).flatten(1),
        lambda net, h: block(net, h).reshape(-1, 4, 4).permute(0, 2, 1).flatten(1),
    ),
    "lerp and masks by name": (
        lambda net, h: torch.lerp(h, weight=0.5, end=net.b(h)).masked_fill(value=0.0, mask=TABLE > 1.2),
        lambda net, h: torch.lerp(h, net.b(h), 0.5).masked_fill(TABLE > 1.2, 0.0),
    ),
    "float32 zeros": (
        lambda net, h: scattered(net, h, lambda x: torch.zeros(x.shape)),
        lambda net, h: scattered(net, h, torch.zeros_like),
    ),
    "float32 grid": (lambda net, h: sampled(net, h, None), lambda net, h: sampled(net, h, h)),
    "float32 table": (
        lambda net, h: torch.baddbmm(net.b(h).unsqueeze(1), h.unsqueeze(1), TABLE.diag().expand(len(h), 16, 16)).squeeze(1),
        lambda net, h: net.b(h) + h @ TABLE.diag(),
    ),
    "float32 and nothing else": (
        lambda net, h: F.relu(registered_for_float32(net.b(h))), block,
    ),
    "float32 neighbours, sparse": (
        lambda net, h: summed_over_a_ring(net, h, None),
        lambda net, h: summed_over_a_ring(net, h, h),
    ),
    "operators by their names": (
        lambda net, h: torch.ops.aten.relu(torch.ops.aten.linear.default(h, net.b.weight, bias=net.b.bias)),
        block,
    ),
    "registered activation": (lambda net, h: registered_relu(net.b(h)), block),
    "registered product": (
        lambda net, h: F.relu(registered_product(h, net.b.weight)),
        lambda net, h: F.relu(F.linear(h, net.b.weight)),
    ),
    "compiled part": (lambda net, h: torch.compile(lambda x: block(net, x), backend="aot_eager")(h), block),
    "decorated": (lambda net, h: decorated(net, h), block),
    "vmap of rows": (
        lambda net, h: torch.func.vmap(lambda row: net.b.weight @ row)(h),
        lambda net, h: torch.stack([net.b.weight @ row for row in h]),
    ),
    "vmap of a layer": (lambda net, h: torch.vmap(lambda row: F.relu(net.b(row)))(h), block),
    "vmap of weights": (
        lambda net, h: torch.func.vmap(
            lambda x, parts: {"sum": F.linear(x["h"], parts) * 1.0}, in_dims=({"h": None}, 0), out_dims={"sum": -1}
        )({"h": h}, net.b.weight.view(4, 4, 16))["sum"].transpose(1, 2).flatten(1),
        lambda net, h: F.linear(h, net.b.weight),
    ),
    "vmap in vmap": (
        lambda net, h: torch.vmap(
            lambda x: torch.vmap(lambda row: (row * x).sum(), chunk_size=3)(net.b.weight), randomness="different"
        )(h),
        lambda net, h: torch.stack([torch.stack([(row * x).sum() for row in net.b.weight]) for x in h]),
    ),
    "own linear": (lambda net, h: OwnLinear.apply(h, net.b.weight), product),
    "own linear, bound before": (lambda net, h: own_linear(h, net.b.weight), product),
    "own linear, context apart": (lambda net, h: OwnLinearApart.apply(h, net.b.weight), product),
    "own linear in vmap": (
        lambda net, h: torch.vmap(lambda x: OwnLinearApart.apply(x, net.b.weight))(h.unsqueeze(1)).squeeze(1),
        lambda net, h: torch.stack([x @ net.b.weight.t() for x in h.unsqueeze(1)]).squeeze(1),
    ),
    "own swish": (lambda net, h: own_swish(net.b(h)), lambda net, h: F.silu(net.b(h))),
    "own swish of a weight": (
        lambda net, h: F.linear(h, OwnSwish.apply(net.b.weight)),
        lambda net, h: F.linear(h, F.silu(net.b.weight)),
    ),
    "own ReLU in place": (lambda net, h: in_place(net, h), block),
    "own sigmoid, a gate": (
        lambda net, h: h * OwnSigmoid.apply(net.b(h)),
        lambda net, h: h * torch.sigmoid(net.b(h)),
    ),
    "own with two results": (
        lambda net, h: (lambda half, sign: half)(*Halved.apply(net.b(h))) + h,
        lambda net, h: net.b(h) * 0.5 + h,
    ),
}  # fmt: skip


@torch.compile(backend="aot_eager")
def decorated(net: Net, h: Tensor) -> Tensor:
    return block(net, h)


def in_place(net: Net, h: Tensor) -> Tensor:
    y = net.b(h)
    OwnReLUInPlace.apply(y)
    return y


METHODS = ("magnitude", "snip", "synflow", "grasp", "prospr", "ntk_sap", "panning_staged")


def methods_for(name: str) -> tuple[str, ...]:
    """Those that torch can compute: until 2.9 it has no second derivative of ``grid_sample``."""
    images, grid = torch.ones(1, 1, 2, 2, requires_grad=True), torch.zeros(1, 2, 2, 2)
    (grad,) = torch.autograd.grad(
        F.grid_sample(images, grid, align_corners=False).square().sum(), images, create_graph=True
    )
    try:
        torch.autograd.grad(grad.sum(), images)
    except RuntimeError:
        return tuple(m for m in METHODS if name != "float32 grid" or not PRUNERS[m].second_order)
    return METHODS


@pytest.mark.parametrize("name", ODD)
def test_odd_forwards_are_scored_as_plain_ones(name: str) -> None:
    odd, plain = (Net(part) for part in ODD[name])
    for method in methods_for(name):
        expected, found = (
            panning.prune(net, (X, Y), density=0.2, method=method, n_rounds=1, all_alive=method == "synflow")
            for net in (plain, odd)
        )
        assert found.flat.equal(expected.flat), method
        for fact in ("effective_density", "n_dead_units", "collapsed_layers"):
            assert found.manifest[fact] == expected.manifest[fact], (method, fact)


@pytest.mark.parametrize(
    "name", ["own linear", "own swish", "own ReLU in place", "vmap of rows", "reentrant", "decorated"]
)
def test_scores_are_those_by_hand(name: str) -> None:
    net, plain = (Net(part) for part in ODD[name])
    signals = Signals(problem_of(net), torch.ones(problem_of(net).layout.n_prunable, dtype=torch.bool))
    names = problem_of(net).layout.names
    F.cross_entropy(plain(X), Y).backward()
    by_hand = torch.cat([plain.get_parameter(n).grad.flatten() for n in names])  # type: ignore[union-attr]
    torch.testing.assert_close(signals.grad, by_hand, rtol=1e-5, atol=1e-7)

    a, b, c = (net.get_parameter(n).detach().double().abs().requires_grad_() for n in names)
    (torch.ones(1, 20, dtype=torch.float64) @ a.t() @ b.t() @ c.t()).sum().backward()
    paths = torch.cat([p.grad.flatten() for p in (a, b, c)])  # type: ignore[union-attr]
    scale = signals.path_grad[0] / paths[0]  # a product of two activations is scaled as a whole
    torch.testing.assert_close(signals.path_grad, paths * scale)


def test_second_derivatives_through_a_function_of_ones_own_are_exact() -> None:
    grads = []
    for part in ODD["own linear"]:
        problem = problem_of(Net(part))
        grads.append(Signals(problem, torch.ones(problem.layout.n_prunable, dtype=torch.bool)).hessian_grad)
    torch.testing.assert_close(*grads)


def test_paths_lead_through_rounding() -> None:
    def quantised(net: Net, h: Tensor) -> Tensor:
        return F.relu(F.linear(h.round(), OwnQuantiser.apply(net.b.weight, h.new_tensor(0.05)), net.b.bias))

    found, plain = (panning.prune(Net(p), density=0.2, method="synflow", input_shape=(20,)) for p in (quantised, block))
    assert found == plain and found.manifest["effective_density"] == plain.manifest["effective_density"]


def test_a_backward_pass_that_cuts_its_graph_is_refused_by_methods_of_second_order() -> None:
    net = Net(lambda net, h: OwnProduct.apply(net.b(h), h))
    plain = Net(lambda net, h: net.b(h) * h)
    found, expected = (panning.prune(n, (X, Y), density=0.2, method="snip") for n in (net, plain))
    assert found == expected
    with pytest.raises(ModelError, match="second order.*'OwnProduct', whose backward pass cuts its graph"):
        panning.prune(net, (X, Y), density=0.2, method="grasp")


@pytest.mark.parametrize(
    "part",
    [
        lambda net, h: F.normalize(net.b(h)) + h,
        lambda net, h: F.normalize(net.b(h), dim=-1, p=2.0) + h,
        lambda net, h: net.b(h) / (net.b(h).norm(dim=-1, keepdim=True) + 1.0) + h,
        lambda net, h: net.b(h) / (1.0 + torch.linalg.vector_norm(net.b(h), 2, -1, True)) + h,
        lambda net, h: net.b(h) * torch.norm(net.b(h)) + h,
    ],
)
def test_second_derivatives_are_numbers_where_a_norm_is_taken_of_zeros(part: Part) -> None:
    net = Net(part)
    nn.init.zeros_(net.b.bias)
    problem = problem_of(net)
    every = torch.ones(problem.layout.n_prunable, dtype=torch.bool)
    weights = [net.get_parameter(name) for name in problem.layout.names]
    grads = torch.autograd.grad(F.cross_entropy(net(X), Y), weights, create_graph=True)
    by_hand = torch.autograd.grad(0.5 * sum(g.square().sum() for g in grads), weights)
    found = Signals(problem, every).hessian_grad
    torch.testing.assert_close(found, torch.cat([h.flatten() for h in by_hand]), rtol=1e-4, atol=1e-6)
    without_b = every.clone()
    problem.layout.views(without_b)["b.weight"].fill_(False)
    assert Signals(problem, without_b).hessian_grad.isfinite().all()


@pytest.mark.parametrize("part", ["whole", "in place"])
def test_a_compiled_network_is_scored_as_the_plain_one(part: str) -> None:
    for method in METHODS:
        net = Net(block)
        if part == "whole":
            net = torch.compile(net, backend="aot_eager")  # type: ignore[assignment]
        else:
            net.compile(backend="aot_eager")
        found = panning.prune(net, (X, Y), density=0.2, method=method, n_rounds=1)
        assert found.flat.equal(panning.prune(Net(block), (X, Y), density=0.2, method=method, n_rounds=1).flat), method


@pytest.mark.parametrize("axis", [None, 1])
def test_fake_quantisation_is_an_activation_along_paths(axis: int | None) -> None:
    def quantised(net: Net, h: Tensor) -> Tensor:
        y = net.b(h)
        if axis is None:
            return F.relu(torch.fake_quantize_per_tensor_affine(y, 0.25, 0, -128, 127))
        scales = torch.linspace(0.1, 0.4, 16)
        return F.relu(
            torch.fake_quantize_per_channel_affine(y, scales, torch.zeros(16, dtype=torch.int32), 1, -128, 127)
        )

    net = Net(quantised)
    found, expected = (panning.prune(n, density=0.2, method="synflow", input_shape=(20,)) for n in (net, Net(block)))
    assert found == expected and found.effective_density(net) == expected.effective_density(Net(block))
    F.cross_entropy(net(X), Y).backward()  # SNIP sees the quantised values
    problem = problem_of(net)
    by_hand = torch.cat([net.get_parameter(n).grad.flatten() for n in problem.layout.names])  # type: ignore[union-attr]
    torch.testing.assert_close(Signals(problem, torch.ones_like(problem.noise, dtype=torch.bool)).grad, by_hand)


def derivative(net: Net, h: Tensor) -> Tensor:
    h = h if h.requires_grad else h.requires_grad_()
    return torch.autograd.grad(net.b(h).square().sum(), h, create_graph=True)[0]


REFUSED: dict[str, tuple[Part, str]] = {
    "own checkpoint": (
        lambda net, h: OwnCheckpoint.apply(lambda x: block(net, x), h),
        r"module 'b' \(Linear, test_any_forward.py.*autograd.Function.*weight 'b.weight'.*Switch",
    ),
    "own checkpoint of a module": (lambda net, h: OwnCheckpoint.apply(net.b, h), r"In module 'b' \(Linear.*'b.weight'"),
    "own code that torch does not see": (lambda net, h: OwnNumPy.apply(net.b(h)), "Function 'OwnNumPy' .* no path"),
    "registered norm": (lambda net, h: registered_norm(net.b(h)), "'panning_tests.own_norm.* neither element by element"),
    "derivative": (derivative, r"takes a derivative \(torch.autograd.grad\)"),
    "torch.func.grad": (
        lambda net, h: torch.func.grad(lambda x: net.b(x).square().sum())(h), "differentiated by torch.func",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_flow_can_follow_is_refused_by_name(name: str) -> None:
    part, message = REFUSED[name]
    net = Net(part)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    for method in ("magnitude", "snip", "synflow"):
        with pytest.raises(ModelError, match=message):
            panning.prune(net, (X, Y), density=0.2, method=method, n_rounds=1)
    assert all(value.equal(before[key]) for key, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


class Faulty(nn.Module):
    """Fails as it is told: in the forward or in the backward pass, in a float64 pass only, or with a wrong shape."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.inner, self.fault = nn.Linear(16, 16), fault

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        match self.fault:
            case "key":
                return {"y": x}["z"]
            case "shape":
                return x @ torch.ones(3, 3)
            case "backward":
                return BadBackward.apply(x)
            case "float64":
                if x.dtype == torch.float64:
                    raise ValueError("I know float32 only")
            case "asserted":
                assert x.dtype == torch.float32
        return x


class BadBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 1.0

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        raise KeyError("lost")


class WithFault(Net):
    def __init__(self, fault: str) -> None:
        super().__init__(lambda net, h: net.deep(h))
        self.deep = nn.Sequential(nn.Identity(), Faulty(fault))


FAULTS = {
    "key": r"module 'deep.1' \(Faulty, test_any_forward.py, line \d+, in Faulty.forward\) fails.*KeyError: 'z'",
    "shape": r"module 'deep.1' \(Faulty.*RuntimeError: (mm: )?(mat1 and mat2|16 inputs do not fit a weight)",
    "backward": r"backward pass .* fails at test_any_forward.py, line \d+, in BadBackward.backward: KeyError: 'lost'",
    "float64": r"Method 'synflow'.*'path_grad'.*module 'deep.1' \(Faulty.*ValueError: I know float32 only.*in float64, and",
    "asserted": r"Method 'synflow'.*module 'deep.1' \(Faulty.*AssertionError.*in float64, and",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_error_in_the_network_names_the_module_whoever_asks(fault: str) -> None:
    net = WithFault(fault)
    with_convolutions = ("uniform_plus", "smart_ratio", "smart_ratio_vgg")
    methods = [name for name in PRUNERS if name not in with_convolutions] if fault in ("key", "shape") else []
    for method in methods or ["snip" if fault == "backward" else "synflow"]:
        with pytest.raises(ForwardError, match=FAULTS[fault]):
            panning.prune(net, (X, Y), density=0.4, method=method)
    if fault not in ("float64", "asserted"):
        return
    masks = panning.prune(net, (X, Y), density=0.4, method="snip")  # the others do without
    assert masks.effective_density(net) == masks.manifest["effective_density"]


def test_an_exported_network_of_a_fixed_batch_is_refused_by_what_it_is() -> None:
    plain = nn.Sequential(nn.Linear(20, 8), nn.ReLU(), nn.Linear(8, 3))
    fixed = torch.export.export(plain, (X,)).module()
    with pytest.raises(ModelError, match=r"comes of torch\.export, which has fixed a size .*dynamic_shapes="):
        panning.prune(fixed, (X, Y), density=0.4, method="snip")
    dynamic = torch.export.export(plain, (X,), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
    found, expected = (panning.prune(net, (X, Y), density=0.4, method="snip") for net in (dynamic, plain))
    assert found.flat.equal(expected.flat)


def test_effective_density_moving_masks_and_the_environment_say_it_too() -> None:
    net = WithFault("none")
    masks = panning.prune(net, density=0.4, method="erk", input_shape=(20,))
    broken = WithFault("key")
    with pytest.raises(ForwardError, match=FAULTS["key"]):
        masks.effective_density(broken)
    optimizer, method = torch.optim.SGD(broken.parameters(), 0.1), panning.make_dynamic("rigl", {"every": 2})
    with pytest.raises(ForwardError, match=FAULTS["key"]):
        panning.move_masks(broken, optimizer, method, density=0.4, n_steps=6, input_shape=(20,))
    with pytest.raises(ForwardError, match=FAULTS["key"]):
        run_policy(problem_of(broken), 0.4, make_policy("staged", ActionSpec()), ActionSpec(), 3)  # as the environment
    with pytest.raises(ForwardError, match=FAULTS["key"]):
        Connectivity.of(problem_of(broken)).output_layers  # noqa: B018


def test_a_loss_that_fails_while_scoring_is_a_sentence() -> None:
    problem = problem_of(Net(block))
    mask = torch.ones(problem.layout.n_prunable, dtype=torch.bool)
    for loss, error, message in (
        (lambda outputs, targets: outputs["logits"], DataError, r"loss fails on outputs \(16, 3\)"),
        (lambda outputs, targets: 1.0, ModelError, "scalar, given float"),
    ):
        with pytest.raises(error, match=message):
            Signals(replace(problem, loss=loss), mask).grad  # noqa: B018


def test_flows_leave_torch_as_they_found_it() -> None:
    before = {name: vars(owner).get(attribute) for name, (owner, attribute) in HIDING.items()}
    inside = {}

    def looking(net: Net, h: Tensor) -> Tensor:
        inside.update({name: vars(owner).get(attribute) for name, (owner, attribute) in HIDING.items()})
        return block(net, h)

    for part in (looking, lambda net, h: h["nothing"]):
        with contextlib.suppress(PanningError):
            panning.prune(Net(part), (X, Y), density=0.2, method="snip")
    assert not any(inside[name] is before[name] for name in HIDING)
    assert before == {name: vars(owner).get(attribute) for name, (owner, attribute) in HIDING.items()}


def test_another_thread_runs_its_network_as_it_is_while_a_flow_runs() -> None:
    """Its checkpoints save memory, its Functions and vmaps are torch's own."""
    seen: list[Tensor] = []

    def train() -> None:
        net = Net(ODD["reentrant"][0])
        h = torch.ones(2, 16, requires_grad=True)
        for part in (ODD["reentrant"][0], ODD["not reentrant"][0], ODD["vmap of rows"][0], ODD["own swish"][0]):
            y = part(net, h)
            seen.append(torch.autograd.grad(y.sum(), h)[0] if part is not ODD["reentrant"][0] else y)

    def with_a_thread(net: Net, h: Tensor) -> Tensor:
        thread = threading.Thread(target=train)
        thread.start()
        thread.join()
        return block(net, h)

    train()
    expected, seen = seen, []
    panning.prune(Net(with_a_thread), density=0.2, method="erk", input_shape=(20,))
    assert len(seen) >= len(expected) and all(a.equal(b) for a, b in zip(seen, expected, strict=False))
