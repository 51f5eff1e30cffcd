"""Any network: every kind of layer is scored, masked, and known alive or dead; what a network may contain breaks nothing."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from toys import OF_UNITS, chain, flat_mask

from panning.alive.connectivity import Connectivity
from panning.alive.report import report
from panning.foundation.errors import ModelError
from panning.masks.allocation import allocate
from panning.masks.layout import KINDS, by_unit, prunable_layout, prunable_parameters
from panning.pruners import PRUNERS, Rounds, prune_problem
from panning.scoring.indices import INDICES
from panning.scoring.problem import Problem
from panning.scoring.signals import Signals


class Called(nn.Module):
    """Named layers and a function that puts them together."""

    def __init__(self, forward: Callable[..., Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.function = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


class Attention(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 8)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.position = nn.Parameter(torch.randn(1, 6, 8))
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **options)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), self.embed(x)], 1) + self.position
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return self.head(x.mean(1))


def text_model(vocabulary: int = 11) -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = x.long()
        x = self.tokens(x) + self.positions(torch.arange(x.shape[1], device=x.device))
        return self.head(torch.relu(self.hidden(x)).mean(1))

    return Called(
        forward, tokens=nn.Embedding(vocabulary, 6), positions=nn.Embedding(5, 6), hidden=nn.Linear(6, 7),
        head=nn.Linear(7, 3),
    )  # fmt: skip


def conv_chain(conv: nn.Module, out: nn.Module) -> nn.Module:
    return Called(lambda self, x: self.out(self.conv(x).flatten(1)), conv=conv, out=out)


#: Kind of layer -> a small network around one, and the shape of an input.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "Linear": (lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)), (4,)),
    "Conv1d": (lambda: conv_chain(nn.Conv1d(2, 4, 3), nn.Linear(24, 3)), (2, 8)),
    "Conv2d": (lambda: conv_chain(nn.Conv2d(2, 4, 3), nn.Linear(64, 3)), (2, 6, 6)),
    "Conv3d": (lambda: conv_chain(nn.Conv3d(2, 4, 2), nn.Linear(32, 3)), (2, 3, 3, 3)),
    "Conv2d, grouped": (lambda: conv_chain(nn.Conv2d(4, 6, 3, groups=2), nn.Linear(96, 3)), (4, 6, 6)),
    "Conv2d, depthwise": (lambda: conv_chain(nn.Conv2d(4, 8, 3, groups=4), nn.Linear(128, 3)), (4, 6, 6)),
    "ConvTranspose1d": (lambda: conv_chain(nn.ConvTranspose1d(2, 4, 3), nn.Linear(40, 3)), (2, 8)),
    "ConvTranspose2d": (lambda: conv_chain(nn.ConvTranspose2d(2, 4, 2, stride=2), nn.Linear(144, 3)), (2, 3, 3)),
    "ConvTranspose2d, grouped": (lambda: conv_chain(nn.ConvTranspose2d(4, 6, 2, groups=2), nn.Linear(96, 3)), (4, 3, 3)),
    "ConvTranspose3d": (lambda: conv_chain(nn.ConvTranspose3d(1, 2, 2), nn.Linear(54, 3)), (1, 2, 2, 2)),
    "MultiheadAttention": (Attention, (5, 3)),
    "MultiheadAttention, separate": (lambda: Called(
        lambda self, x: self.head(self.attention(x, x[..., :2], x[..., :2], need_weights=False)[0].mean(1)),
        attention=nn.MultiheadAttention(4, 2, kdim=2, vdim=2, batch_first=True), head=nn.Linear(4, 3),
    ), (5, 4)),
}  # fmt: skip


def problem_of(name: str) -> Problem:
    factory, shape = NETWORKS[name]
    torch.manual_seed(0)
    model = factory()
    batch = torch.rand(10, *shape), torch.arange(10) % 3
    return Problem.of(model, shape, lambda number: batch)


def kinds_page() -> str:
    """docs/layers.md, from the table of kinds and the networks above."""
    lines = ["# Layers that panning prunes", "", PREFACE, "", "| layer | parameters | pruned | tested on |",
             "| --- | --- | --- | --- |"]  # fmt: skip
    for kind in KINDS:
        parameters = ", ".join(f"`{name}`" for name in kind.parameters)
        when = "always" if kind.by_default else "where an include pattern names it"
        networks = [name for name in NETWORKS if name.split(",")[0] == kind.module.__name__]
        named = "; ".join(networks) or "a small text model"
        lines.append(f"| `{kind.module.__name__}` | {parameters} | {when} | {named} |")
    exact = textwrap.fill("; ".join(EXACT), 120)
    return "\n".join([*lines, "", AFTERWORD.format(exact=exact), ""])


PREFACE = """Generated by `python tests/test_kinds.py > docs/layers.md`; a test keeps it so. Every network in the last
column but the text model is scored by every index and pruned to all-alive masks by magnitude, SynFlow, GraSP and ERK. If
it has no attention, its alive weights are also compared with what changes the output of the plain network."""
AFTERWORD = """\
**Other layers.** A parameter that no row covers is prunable if a forward pass on the data, or on ones, multiplies it
with activations: in `F.linear`, `matmul` and `@`, `mm`, `bmm`, `addmm`, `einsum` or a convolution, itself, a view of it
or a copy (`clone`, `contiguous`, `to` and other dtypes). The axes over which the product sums are those of the inputs.
So layers of your own, CLIP's projections and the `Conv1D` of GPT-2 are covered. What stays dense though it makes
weights is named in a warning and under `left_dense` in the manifest, with the share of all weights: weights that a
parametrization (weight_norm, spectral_norm, orthogonal) or code of the network computes first, packed weights of
quantised layers, recurrent layers, and functions that panning does not know. For these, `panning.register_kind`
declares a class's parameters; a parametrized weight is made plain by
`torch.nn.utils.parametrize.remove_parametrizations`. `panning.compact` may leave such layers at their size; its notes
say so.

**Quantised layers** (`torch.ao.quantization.quantize_dynamic`: linear and recurrent layers, cells; dynamic
convolutions) stay dense, and paths lead through them as through the plain layer with their dequantised weights: one
that is 0 cuts its path. Where a loss is taken, values are the quantised layer's own and gradients those of the plain
layer at these values, as if its inputs were not rounded (the straight-through estimator). Where activations are
quantised too (`torch.ao.quantization.convert`), paths lead through linear layers, convolutions, sums, products and
concatenations, and no gradient of a loss does: methods that need one refuse a network with weights in front of such a
part. Other operators of `torch.ops.quantized` are refused by name where paths would lead through them. Prune before you
quantise.

Biases and the parameters of norms are never pruned. A tensor that several modules share has one mask, under
its first name. `torch.nn` recurrent layers and cells stay dense and are followed step by step; packed sequences are refused.

What lies between the layers is followed as torch functions, not as modules, so that code of your own works as torch's layers
do. Compared with what changes the output of the plain network:

{exact}.

Every place that can be the largest is followed through max-pooling (dilated, padded, adaptive, with indices), `max_unpool`
without overlaps, `x.max(dim)` and `x.amax`.

By convention, not by comparison:

- Biases, and all tensors that are added and do not depend on the input, keep nothing alive. A number that is added opens a
  factor: `1 + s` and `1 - s` never cut what they multiply, as sigmoids and softmaxes do not.
- What leads only to a divisor, an inverse root or a condition (`x > 0`) is dead.
- Of two branches between which the input decides (`where`, `maximum`), both live. Queries live only with their keys.
- A complex number is followed as one real number: a path leads to both of its parts, and from either part on.
- A gate that a constant with zeros multiplies cuts again what it multiplies, like any activation.

A function that no rule knows runs as it is, on ones (`topk`, `sort`, `floor`): a constant that it adds may keep weights
alive, and a gradient of 0 kills them. torchvision's networks run in `pytest -m slow tests/test_torchvision_sweep.py`."""


def test_the_page_of_layers_is_the_table_of_kinds() -> None:
    assert (Path(__file__).parent.parent / "docs" / "layers.md").read_text() == kinds_page()


def test_every_kind_has_a_network_here() -> None:
    seen: set[type] = set()
    for name in NETWORKS:
        seen |= {kind.module for kind, _ in prunable_parameters(problem_of(name).model).values()}
    assert seen == {kind.module for kind in KINDS} - {nn.Embedding}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_index_scores_every_kind(name: str) -> None:
    problem = problem_of(name)
    mask = torch.ones(problem.layout.n_prunable, dtype=torch.bool)
    for index, row in INDICES.items():
        scores = row.formula(Signals(problem, mask))
        assert torch.isfinite(scores).all(), index
        for layer, part in problem.layout.views(scores).items():
            assert bool((part != 0).any()), (index, layer)
        allocate(scores, 9, problem.layout)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_weight_of_a_dense_network_is_alive_and_a_cut_layer_kills_what_hangs_on_it(name: str) -> None:
    problem = problem_of(name)
    net = Connectivity.of(problem)
    whole = torch.ones(problem.layout.n_prunable, dtype=torch.bool)
    assert bool(net.alive(whole).all())
    cut = whole.clone()
    cut[problem.layout.slices()[-1]] = False  # the classifier
    assert net.n_alive(cut) == 0
    cut = whole.clone()
    cut[problem.layout.slices()[0]] = False
    assert net.n_alive(cut) == 0 or name.startswith("MultiheadAttention, sep")


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("method", ["magnitude", "synflow", "grasp", "erk"])
def test_all_alive_works_on_every_kind(name: str, method: str) -> None:
    problem = problem_of(name)
    k = round(0.4 * problem.layout.n_prunable)
    result = prune_problem(problem, k / problem.layout.n_prunable, method, all_alive_weights=True, rounds=Rounds(2))
    assert int(result.mask.sum()) == k == Connectivity.of(problem).n_alive(result.mask)


def by_change(problem: Problem, mask: Tensor) -> Tensor:
    """An independent detector: a weight is alive if changing it changes the output, at random positive weights."""
    generator = torch.Generator().manual_seed(1)
    flat = torch.rand(mask.numel(), generator=generator, dtype=torch.float64) + 0.5
    inputs = torch.rand(4, *problem.input_shape, generator=generator, dtype=torch.float64) + 0.5
    others = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in problem.other_parameters().items()}
    for name in others:
        if "norm" in name and name.endswith("weight"):
            others[name] += 1
    weights = (flat * mask).requires_grad_()
    parameters = {**others, **problem.layout.views(weights)}
    output = torch.func.functional_call(problem.model.double().train(), parameters, (inputs,))
    wiggle = torch.rand(output.shape, generator=generator, dtype=torch.float64)
    (grad,) = torch.autograd.grad((output * wiggle).sum(), weights)
    return (grad.abs() > 1e-13) & mask


@pytest.mark.parametrize("density", [0.6, 0.3])
@pytest.mark.parametrize("name", [name for name in NETWORKS if "Attention" not in name])
def test_booleans_agree_with_what_changes_the_output(name: str, density: float) -> None:
    for seed in range(5):
        problem = problem_of(name)
        mask = flat_mask(problem.layout, density, seed)
        assert torch.equal(Connectivity.of(problem).alive(mask), by_change(problem, mask))


def test_queries_live_with_their_keys_and_values_live_alone() -> None:
    problem = problem_of("MultiheadAttention")
    net = Connectivity.of(problem)

    def alive(without: slice) -> list[bool]:
        mask = torch.ones(problem.layout.n_prunable, dtype=torch.bool)
        problem.layout.views(mask)["attention.in_proj_weight"][without] = False
        q, k, v = problem.layout.views(net.alive(mask))["attention.in_proj_weight"].chunk(3)
        return [bool(part.any()) for part in (q, k, v)]

    assert alive(slice(0, 0)) == [True, True, True]
    assert alive(slice(0, 8)) == [False, False, True]  # no queries: keys are compared with nothing
    assert alive(slice(8, 16)) == [False, False, True]
    assert alive(slice(16, 24)) == [False, False, False]  # nothing to mix


def test_positions_and_tokens_that_are_no_input_keep_nothing_alive() -> None:
    problem = problem_of("MultiheadAttention")
    mask = torch.ones(problem.layout.n_prunable, dtype=torch.bool)
    problem.layout.views(mask)["embed.weight"].fill_(False)
    assert Connectivity.of(problem).n_alive(mask) == 0


def test_embeddings_are_pruned_where_they_are_named() -> None:
    model = text_model()
    assert prunable_layout(model).names == ("hidden.weight", "head.weight")
    layout = prunable_layout(model, include=("tokens.*", "hidden.*", "head.*"))
    assert layout.names == ("tokens.weight", "hidden.weight", "head.weight")
    tokens = torch.randint(11, (12, 5), generator=torch.Generator().manual_seed(0))
    problem = Problem(model, layout, (5,), lambda n: (tokens, torch.arange(12) % 3))
    net = Connectivity.of(problem)
    mask = torch.ones(layout.n_prunable, dtype=torch.bool)
    assert bool(net.alive(mask).all())
    layout.views(mask)["tokens.weight"][:, 2] = False  # the third feature is fed by no token; positions do not count
    assert not layout.views(net.alive(mask))["hidden.weight"][:, 2].any()
    for method in ("snip", "grasp", "synflow", "erk"):
        result = prune_problem(problem, 0.3, method, rounds=Rounds(2), all_alive_weights=True)
        assert int(result.mask.sum()) == round(0.3 * layout.n_prunable) == net.n_alive(result.mask)


def test_tied_weights_have_one_mask_under_their_first_name() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 4, bias=False), nn.Linear(4, 2))
    model[2].weight = model[0].weight
    layout = prunable_layout(model)
    assert layout.names == ("0.weight", "3.weight")
    assert prunable_layout(model, exclude=("2.weight",)).names == ("3.weight",)  # by any of its names
    batch = torch.rand(8, 4), torch.arange(8) % 2
    problem = Problem.of(model, (4,), lambda n: batch)
    # Both places add up in one gradient, as in training.
    loss = F.cross_entropy(model(batch[0]), batch[1])
    expected = torch.autograd.grad(loss, [model[0].weight, model[3].weight])
    signals = Signals(problem, torch.ones(layout.n_prunable, dtype=torch.bool))
    torch.testing.assert_close(signals.grad, torch.cat([g.flatten() for g in expected]))
    assert int(prune_problem(problem, 0.5, "synflow", rounds=Rounds(3)).mask.sum()) == 12


def test_a_weight_tied_to_an_embedding_is_left_out_as_the_embedding_is() -> None:
    model = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 4), nn.Linear(4, 6, bias=False))
    model[2].weight = model[0].weight
    assert prunable_layout(model).names == ("1.weight",)
    assert prunable_layout(model, include=("2.weight", "1.weight")).names == ("0.weight", "1.weight")


def test_parameters_that_share_memory_without_being_one_are_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = nn.Parameter(model[0].weight.data)
    with pytest.raises(ModelError, match="'1.weight' and '0.weight' share memory"):
        prunable_layout(model)
    assert prunable_layout(model, exclude=("0.weight",)).names == ("1.weight",)


def test_dead_units_are_counted_by_output_unit_of_every_kind() -> None:
    transposed = nn.ConvTranspose2d(4, 6, 2, groups=2)  # weight [4, 3, 2, 2]
    kind, module = prunable_parameters(nn.Sequential(transposed))["0.weight"]
    grouped = by_unit(torch.arange(48).reshape(4, 3, 2, 2), kind, module)
    assert grouped.shape == (6, 8)
    assert grouped[4].tolist() == [28, 29, 30, 31, 40, 41, 42, 43]  # group 1: inputs 2 and 3, its output 1
    net = Connectivity(chain([[1.0], [1.0]], [[1.0, 1.0]]), prunable_layout(chain([[1.0], [1.0]], [[1.0, 1.0]])), (1,))
    facts = report(net, torch.tensor([True, False, True, True]))
    assert facts.n_dead_units == 1 and facts.collapsed_layers == ()
    assert report(net, torch.tensor([True, True, False, False])).n_dead_units == 3


# --- arithmetic that networks contain ---


@pytest.mark.parametrize(
    ("forward", "n_alive"),
    [
        (lambda self, x: self.out(self.a(x) - self.b(x)), 18),
        (lambda self, x: self.out(1.0 - self.a(x) - self.b(x)), 18),
        (lambda self, x: self.out(self.a(x).sub_(self.b(x))), 18),
        (lambda self, x: self.out(torch.cat([self.a(x)[:, :1], self.b(x)[:, 1:]], 1)), 12),  # one unit of a, two of b
        (lambda self, x: self.out(torch.stack([self.a(x), self.b(x)]).sum(0)), 18),
        (lambda self, x: self.out(F.glu(torch.cat([self.a(x), self.b(x)], 1))), 18),
        (lambda self, x: self.out(self.a(x) * torch.sigmoid(self.b(x)).view(-1, 3)), 18),
        (lambda self, x: self.out(torch.softmax(self.b(x), -1) * self.a(x)), 18),
        (lambda self, x: self.out(self.a(x).clamp(0, 6) + F.hardsigmoid(self.b(x))), 18),
    ],
)
def test_two_branches_live_however_they_are_joined(forward: Callable[..., Tensor], n_alive: int) -> None:
    model = Called(forward, a=nn.Linear(2, 3), b=nn.Linear(2, 3), out=nn.Linear(3, 2))
    net = Connectivity(model, prunable_layout(model), (2,))
    assert net.n_alive(torch.ones(18, dtype=torch.bool)) == n_alive


def test_a_sigmoid_as_activation_keeps_no_unfed_unit_alive() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Sigmoid(), nn.Linear(2, 1))
    mask = torch.tensor([False, False, True, True, True, True])
    alive = Connectivity(model, prunable_layout(model), (2,)).alive(mask)
    assert alive.tolist() == [False, False, True, True, False, True]


def test_an_activation_written_over_by_later_code_leaves_its_input_alone() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        h = self.a(x)
        r = F.relu(h)
        r += self.b(x)
        return self.out(torch.cat([h, r], 1))

    model = Called(forward, a=nn.Linear(1, 1), b=nn.Linear(1, 1), out=nn.Linear(2, 1))
    mask = torch.tensor([False, True, True, True])  # a is cut: h is not reached, r is
    assert Connectivity(model, prunable_layout(model), (1,)).alive(mask).tolist() == [False, True, False, True]


def test_scaling_parameters_and_constants_cut_nothing() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.out = nn.Linear(2, 3), nn.Linear(3, 2)
            self.scale = nn.Parameter(torch.full((3,), 1e-6))
            self.register_buffer("mean", torch.tensor([0.3, 0.4]))

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.scale * self.a((x - self.mean) / 0.2)) - 1.0

    problem = Problem.of(Scaled(), (2,), None)
    assert bool(Connectivity.of(problem).alive(torch.ones(12, dtype=torch.bool)).all())
    assert bool((INDICES["synflow"].formula(Signals(problem, torch.ones(12, dtype=torch.bool))) > 0).all())


class Branches(nn.Module):
    """One wide layer beside three narrow ones."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(4, 6)
        self.narrow = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 2), nn.Linear(2, 6))
        self.out = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.wide(x) + self.narrow(x))


def test_the_shortest_path_is_found_around_a_wide_layer_and_through_any_depth() -> None:
    model = Branches()
    assert Connectivity(model, prunable_layout(model), (4,)).smallest_alive() == 2
    for depth in (60, 200):
        deep = nn.Sequential(*[nn.Linear(5, 5) for _ in range(depth)])
        assert Connectivity(deep, prunable_layout(deep), (5,)).smallest_alive() == depth
    many = Called(lambda self, x: torch.cat([self.one(x), self.c(self.b(x))], 1), one=nn.Linear(4, 1), b=nn.Linear(4, 8),
                  c=nn.Linear(8, 1100))  # fmt: skip
    assert Connectivity(many, prunable_layout(many), (4,)).smallest_alive() == 1


BETWEEN: dict[str, Callable[[Tensor], Tensor]] = {
    "clip": lambda h: h.clip(-1, 1), "clamp_": lambda h: h.clamp_(0, 1), "sin": torch.sin, "exp": lambda h: h.exp(),
    "minus": lambda h: -h, "times -1": lambda h: h * -1, "over -2": lambda h: h / -2, "square": lambda h: h * h,
    "own layer norm": lambda h: (h - h.mean(-1, keepdim=True)) / (h.var(-1, keepdim=True) + 1e-5).sqrt(),
    "own RMS norm": lambda h: h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6), "std": lambda h: h / h.std(),
    "SwiGLU": lambda h: F.silu(h) * h, "own softmax": lambda h: h.exp() / h.exp().sum(-1, keepdim=True),
    "casts": lambda h: h.double().half().to(torch.float32).type(torch.float32),
    "crelu": lambda h: torch.cat([h, -h], 1)[:, :12],
    "constant layer": lambda h: F.linear(h, -torch.eye(12)), "constant factor": lambda h: h * -torch.ones(12),
    "einsum": lambda h: torch.einsum("bi,oi->bo", h, torch.ones(12, 12)),
    "buffer": lambda h: torch.zeros(len(h), 12).copy_(h),
    "in place": lambda h: h.mul_(-2).div_(3).mul_(h.detach().sigmoid()), "norm": lambda h: h / h.norm(dim=-1, keepdim=True),
    "highway": lambda h: torch.sigmoid(h) * h + (1 - torch.sigmoid(h)) * h,
    "where": lambda h: torch.where(h > 0, h, 0.1 * h),
}  # fmt: skip


@pytest.mark.parametrize("name", BETWEEN)
def test_all_alive_keeps_its_promise_through_any_arithmetic(name: str) -> None:
    torch.manual_seed(0)
    model = Called(lambda self, x: self.b(BETWEEN[name](self.a(x))), a=nn.Linear(16, 12), b=nn.Linear(12, 4))
    batch = torch.randn(24, 16), torch.arange(24) % 4
    problem = Problem.of(model, (16,), lambda n: batch)
    assert Connectivity.of(problem).smallest_alive() == 2
    for method in ("magnitude", "synflow"):
        result = prune_problem(problem, 0.1, method, all_alive_weights=True, rounds=Rounds(3))
        assert int(result.mask.sum()) == 24 == Connectivity.of(problem).n_alive(result.mask)


def test_a_module_under_two_names_is_scored_and_left_as_it_was() -> None:
    twice = nn.Linear(6, 6)
    model = nn.Sequential(nn.Linear(4, 6), twice, nn.BatchNorm1d(6), twice, nn.Linear(6, 3))
    parameters = dict(model.named_parameters())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    batch = torch.rand(12, 4), torch.arange(12) % 3
    problem = Problem.of(model, (4,), lambda n: batch)
    for method in PRUNERS:
        if method not in ("uniform_plus", "smart_ratio", "smart_ratio_vgg", *OF_UNITS):
            prune_problem(problem, 0.5, method, rounds=Rounds(2))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())


def test_constants_keep_their_values_and_gates_survive_indexing() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.gate, self.out = nn.Conv2d(2, 3, 1), nn.Linear(3, 3), nn.Linear(3, 2)
            self.log_gain, self.alpha = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            x = x * torch.sigmoid(self.gate(x.mean((2, 3))))[:, :, None, None]
            return self.out((x * self.log_gain.exp() * torch.sigmoid(self.alpha)).mean((2, 3)))

    problem = Problem.of(Mixed(), (2, 4, 4), None)
    whole = torch.ones(problem.layout.n_prunable, dtype=torch.bool)
    assert bool((INDICES["synflow"].formula(Signals(problem, whole)) > 0).all())
    problem.layout.views(whole)["gate.weight"].fill_(False)
    assert Connectivity.of(problem).n_alive(whole) == 6 + 6


def test_a_weight_computed_from_others_cuts_nothing() -> None:
    normed = nn.utils.parametrizations.spectral_norm(nn.Linear(5, 3))
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), normed)
    net = Connectivity(model, prunable_layout(model), (4,))
    assert net.n_alive(torch.ones(20, dtype=torch.bool)) == 20


# --- arithmetic with one right answer, against what changes the output ---


class Reweighted(nn.Linear):
    """A linear layer that computes its weight from its parameter."""

    def __init__(self, n_in: int, n_out: int, weight_of: Callable[[Tensor], Tensor]) -> None:
        super().__init__(n_in, n_out)
        self.weight_of = weight_of

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight_of(self.weight), self.bias)


def reweighted(weight_of: Callable[[Tensor], Tensor]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(
        Reweighted(3, 4, weight_of), Reweighted(4, 4, weight_of), Reweighted(4, 2, weight_of)
    )  # fmt: skip


def joined(join: Callable[..., Tensor], **layers: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """Two layers, what ``join(self, x, a(x), b(x))`` makes of them, and a classifier."""
    return lambda: Called(
        lambda self, x: self.out(join(self, x, self.a(x), self.b(x))), a=nn.Linear(3, 4), b=nn.Linear(3, 4),
        **{name: make() for name, make in layers.items()}, out=nn.Linear(4, 2),
    )  # fmt: skip


def recurrent(kind: type[nn.RNNBase], n_out: int, **options: Any) -> Callable[[], nn.Module]:
    return lambda: Called(
        lambda self, x: self.out(self.memory(torch.stack([self.a(x), self.b(x)], 1))[0][:, 0]),
        a=nn.Linear(3, 4), b=nn.Linear(3, 4), memory=kind(4, 3, batch_first=True, **options), out=nn.Linear(n_out, 2),
    )  # fmt: skip


HALF = torch.tensor([True, False, True, False])
EXACT: dict[str, Callable[[], nn.Module]] = {
    "scaled weight": reweighted(lambda w: w * (1 / 8)),
    "weight times a tensor of one number": reweighted(lambda w: w * torch.tensor(0.5)),
    "standardised weight": reweighted(lambda w: (w - w.mean(1, keepdim=True)) / (w.std(1, keepdim=True) + 1e-5) * 0.1),
    "negative weight": reweighted(lambda w: -w / 3),
    "plain product": joined(lambda self, x, a, b: a * b),
    "1 + scale": joined(lambda self, x, a, b: a * (1 + b)),
    "scale + 1": joined(lambda self, x, a, b: (b + 1.0) * a),
    "1 + scale in place": joined(lambda self, x, a, b: b.add_(1).mul_(a)),
    "1 + two scales": joined(lambda self, x, a, b: (1 + a) * (1 + b)),
    "highway": joined(lambda self, x, a, b: (1 - b) * x[:, :1] + b * a),
    "closed highway": joined(lambda self, x, a, b: torch.rsub(b, 1) * a),
    "two sigmoids": joined(lambda self, x, a, b: torch.sigmoid(a) * torch.sigmoid(b)),
    "twice a sigmoid": joined(lambda self, x, a, b: a * (2 * torch.sigmoid(b)) / 3),
    "1 - sigmoid": joined(lambda self, x, a, b: a * (1 - torch.sigmoid(b))),
    "exponential": joined(lambda self, x, a, b: a * b.exp()),
    "softplus": joined(lambda self, x, a, b: a * F.softplus(b)),
    "logarithm": joined(lambda self, x, a, b: a * torch.log(1 + b)),
    "2 ** x": joined(lambda self, x, a, b: a * 2.0**b),
    "pow(2, x)": joined(lambda self, x, a, b: a * torch.pow(2.0, b)),
    "x ** 2": joined(lambda self, x, a, b: a + b**2),
    "addmm": joined(lambda self, x, a, b: torch.addmm(self.a.bias, x, self.a.weight.t()) + b),
    "baddbmm": joined(lambda self, x, a, b: torch.baddbmm(self.a.bias, x[None], self.a.weight.t()[None])[0] * b),
    "addmv": joined(lambda self, x, a, b: torch.stack([torch.addmv(self.a.bias, self.a.weight, row) for row in x]) * b),
    "addcmul": joined(lambda self, x, a, b: torch.addcmul(self.a.bias, a, b)),
    "addcdiv": joined(lambda self, x, a, b: torch.addcdiv(a, b, x.sum(1, keepdim=True))),
    "lerp": joined(lambda self, x, a, b: torch.lerp(a, b, 0.3)),
    "where": joined(lambda self, x, a, b: torch.where(HALF, a, b)),
    "masked_fill": joined(lambda self, x, a, b: a.masked_fill(HALF, 1.0)),
    "times a condition": joined(lambda self, x, a, b: (a + b) * (a + b > 0)),
    "1 / x": joined(lambda self, x, a, b: (a + b) * (1 / x.sum(1, keepdim=True))),
    "bilinear": joined(lambda self, x, a, b: self.pair(a, b), pair=lambda: nn.Bilinear(4, 4, 4)),
    "by name": joined(lambda self, x, a, b: torch.mul(input=torch.add(a, other=b), other=torch.cat(tensors=[a], dim=1))),
    "linear by name": joined(lambda self, x, a, b: F.linear(weight=self.a.weight, input=x, bias=self.a.bias) * b),
    "LSTM": recurrent(nn.LSTM, 3),
    "LSTM, both directions": recurrent(nn.LSTM, 6, bidirectional=True),
    "LSTM, projected": recurrent(nn.LSTM, 2, proj_size=2),
    "GRU, two layers": recurrent(nn.GRU, 3, num_layers=2),
    "RNN": recurrent(nn.RNN, 3),
    "LSTMCell": joined(lambda self, x, a, b: self.cell(a, (b, b))[0], cell=lambda: nn.LSTMCell(4, 4)),
    "GRUCell": joined(lambda self, x, a, b: self.cell(a, b), cell=lambda: nn.GRUCell(4, 4)),
    "RNNCell": joined(lambda self, x, a, b: self.cell(a, b), cell=lambda: nn.RNNCell(4, 4)),
}  # fmt: skip


def by_changes_that_show(model: nn.Module, problem: Problem, mask: Tensor) -> Tensor:
    """An independent detector: a weight is alive if changing it changes how outputs differ from input to input.

    Plain float64, positive weights, no biases; none of the rules.
    """
    generator = torch.Generator().manual_seed(1)
    weights = {}
    for name, p in model.named_parameters():
        drawn = torch.rand(p.shape, generator=generator, dtype=torch.float64) + 0.5
        weights[name] = drawn / max(1, p[0].numel()) if p.dim() > 1 else torch.zeros_like(drawn)
    flat = torch.cat([weights[name].flatten() for name in problem.layout.names]) * mask
    inputs = torch.rand(8, *problem.input_shape, generator=generator, dtype=torch.float64) + 0.5

    def differences(flat: Tensor) -> Tensor:
        with torch.no_grad():
            output = torch.func.functional_call(
                model.double(), {**weights, **problem.layout.views(flat)}, (inputs.clone(),)
            )
        return output - output[0]

    before, alive = differences(flat), torch.zeros_like(mask)
    for position in mask.nonzero().flatten().tolist():
        changed = flat.clone()
        changed[position] *= 1.3
        alive[position] = (differences(changed) - before).abs().max() > 1e-14
    model.float()
    return alive


@pytest.mark.parametrize("name", EXACT)
def test_exact_arithmetic_agrees_with_what_changes_the_output(name: str) -> None:
    for seed in range(6):
        torch.manual_seed(seed)
        model = EXACT[name]()
        problem = Problem.of(model, (3,), None)
        mask = flat_mask(problem.layout, 0.6 if seed % 2 else 0.35, seed)
        if seed in (2, 3) and "b.weight" in problem.layout.names:
            problem.layout.views(mask)["b.weight" if seed == 2 else "a.weight"].fill_(False)
        assert torch.equal(Connectivity.of(problem).alive(mask), by_changes_that_show(model, problem, mask)), seed


@pytest.mark.parametrize(
    ("join", "b_lives"),
    [
        (lambda self, x, a, b: a / (1 + b), False),
        (lambda self, x, a, b: a * torch.rsqrt(b), False),
        (lambda self, x, a, b: a * b.pow(-0.5), False),
        (lambda self, x, a, b: a * (b > 0), False),
        (lambda self, x, a, b: torch.maximum(a, b), True),
        (lambda self, x, a, b: torch.where(a > 0, a, b), True),
        (lambda self, x, a, b: a * (torch.sigmoid(b) * HALF) + b, True),
    ],
)
def test_conventions_of_the_page(join: Callable[..., Tensor], b_lives: bool) -> None:
    model = joined(join)()
    layout = prunable_layout(model)
    alive = Connectivity(model, layout, (3,)).alive(torch.ones(layout.n_prunable, dtype=torch.bool))
    views = layout.views(alive)
    assert bool(views["a.weight"].any()) and bool(views["b.weight"].all()) == b_lives == bool(views["b.weight"].any())


#: A call whose arguments all have names -> the same call by position.
CALLS: list[tuple[Callable[..., Any], Callable[..., Any]]] = [
    (lambda a, b, w: F.scaled_dot_product_attention(query=a, value=b, key=b),
     lambda a, b, w: F.scaled_dot_product_attention(a, b, b)),
    (lambda a, b, w: F.linear(bias=None, weight=w, input=a), lambda a, b, w: F.linear(a, w)),
    (lambda a, b, w: torch.add(a, other=b, alpha=2), lambda a, b, w: torch.add(a, b, alpha=2)),
    (lambda a, b, w: torch.mul(other=b, input=a), lambda a, b, w: torch.mul(a, b)),
    (lambda a, b, w: a.mul(other=b).add(other=a), lambda a, b, w: a.mul(b).add(a)),
    (lambda a, b, w: torch.cat(tensors=[a, b], dim=2)[..., :4], lambda a, b, w: torch.cat([a, b], 2)[..., :4]),
    (lambda a, b, w: F.softmax(input=a, dim=1) * b, lambda a, b, w: F.softmax(a, 1) * b),
    (lambda a, b, w: F.conv1d(input=a, weight=w[:, :, None], padding=0), lambda a, b, w: F.conv1d(a, w[:, :, None])),
    (lambda a, b, w: F.glu(input=torch.cat((a, b), 1), dim=1), lambda a, b, w: F.glu(torch.cat((a, b), 1), 1)),
    (lambda a, b, w: F.batch_norm(input=a, running_mean=None, running_var=None, training=True) * b,
     lambda a, b, w: F.batch_norm(a, None, None, training=True) * b),
    (lambda a, b, w: F.layer_norm(input=a, normalized_shape=(4,), bias=w[0]) + b, lambda a, b, w: F.layer_norm(a, (4,)) + b),
    (lambda a, b, w: F.max_pool1d(input=a, kernel_size=3, stride=1, padding=1), lambda a, b, w: F.max_pool1d(a, 3, 1, 1)),
    (lambda a, b, w: torch.matmul(input=a, other=b), lambda a, b, w: a @ b),
    (lambda a, b, w: torch.baddbmm(input=a, batch1=a, batch2=b), lambda a, b, w: torch.baddbmm(a, a, b)),
    (lambda a, b, w: torch.where(condition=a > 0, input=a, other=b), lambda a, b, w: torch.where(a > 0, a, b)),
    (lambda a, b, w: torch.pow(input=a, exponent=2) + torch.div(input=a, other=b), lambda a, b, w: a**2 + a / b),
    (lambda a, b, w: torch.flatten(input=F.relu(input=a), start_dim=1).view(-1, 4, 4), lambda a, b, w: F.relu(a)),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(CALLS)))
def test_arguments_by_name_are_the_same_call(number: int) -> None:
    def scores(call: Callable[..., Any]) -> tuple[Tensor, Tensor]:
        torch.manual_seed(0)
        model = Called(lambda self, x: self.out(call(self.a(x), self.b(x), self.c.weight).flatten(1)), a=nn.Linear(3, 4),
                       b=nn.Linear(3, 4), c=nn.Linear(4, 4), out=nn.Linear(16, 2))  # fmt: skip
        problem = Problem.of(model, (4, 3), None)
        mask = flat_mask(problem.layout, 0.5, 0)
        return Connectivity.of(problem).alive(mask), INDICES["synflow"].formula(Signals(problem, mask))

    by_name, by_position = (scores(call) for call in CALLS[number])
    assert bool(by_position[0].any())
    assert torch.equal(by_name[0], by_position[0]) and torch.equal(by_name[1], by_position[1])


def test_an_embedding_called_by_name() -> None:
    model = Called(lambda self, x: self.out(F.embedding(input=x.long(), weight=self.tokens.weight).mean(1)),
                   tokens=nn.Embedding(5, 4), out=nn.Linear(4, 2))  # fmt: skip
    net = Connectivity(model, prunable_layout(model), (3,))
    assert net.n_alive(torch.ones(8, dtype=torch.bool)) == 8


#: Maxima over places of a map [batch, 1, 8, 8], each of which can win.
MAXIMA: dict[str, Callable[[Tensor], Tensor]] = {
    "dilated": lambda x: F.max_pool2d(x, 2, dilation=2, stride=1),
    "dilated, padded, rounded up": lambda x: F.max_pool2d(x, 3, stride=2, padding=1, dilation=2, ceil_mode=True),
    "unequal sides": lambda x: F.max_pool2d(x, (2, 3), stride=(1, 2), padding=(1, 0), dilation=(3, 1)),
    "one axis": lambda x: F.max_pool1d(x.flatten(2), 3, dilation=4),
    "three axes": lambda x: F.max_pool3d(x.view(-1, 1, 4, 4, 4), 2, dilation=2, stride=1),
    "with indices": lambda x: F.max_pool2d(x, 3, return_indices=True)[0],
    "adaptive, with indices": lambda x: F.adaptive_max_pool2d(x, 3, return_indices=True)[0],
    "unpooled": lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2),
    "x.max(dim)": lambda x: x.max(-1).values, "x.amax": lambda x: x.amax((2, 3), keepdim=True), "x.max()": lambda x: x.max(),
}  # fmt: skip


def places_that_matter(pool: Callable[[Tensor], Tensor]) -> Tensor:
    """The places whose value changes the output when it is the largest of all."""
    base = torch.linspace(0.1, 1.0, 64, dtype=torch.float64).view(1, 1, 8, 8)
    matter = torch.zeros(64, dtype=torch.bool)
    for place in range(64):
        changed = base.clone()
        changed.view(-1)[place] = 2.0
        matter[place] = not torch.equal(pool(changed), pool(base))
    return matter


@pytest.mark.parametrize("name", MAXIMA)
def test_every_place_that_can_be_the_largest_is_followed(name: str) -> None:
    outputs: list[Tensor] = []

    def forward(self: Any, x: Tensor) -> Tensor:
        outputs.append(MAXIMA[name](self.places(x).view(-1, 1, 8, 8)))
        return outputs[-1].flatten(1) if outputs[-1].dim() else outputs[-1]

    model = Called(forward, places=nn.Linear(1, 64))
    alive = Connectivity(model, prunable_layout(model), (1,)).alive(torch.ones(64, dtype=torch.bool))
    assert torch.equal(alive, places_that_matter(MAXIMA[name]))
    assert outputs[-1].shape == MAXIMA[name](torch.rand(1, 1, 8, 8)).shape


def test_an_index_of_the_largest_place_is_returned_as_it_is() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        values, indices = self.pool(self.conv(x))
        assert indices.dtype == torch.long
        return values.flatten(1)

    model = Called(forward, conv=nn.Conv2d(1, 2, 1), pool=nn.MaxPool2d(2, return_indices=True))
    assert Connectivity(model, prunable_layout(model), (1, 4, 4)).n_alive(torch.ones(2, dtype=torch.bool)) == 2


def test_packed_sequences_are_refused_with_a_reason() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(self.embed(x), torch.tensor([4]), batch_first=True)
        return self.head(self.memory(packed)[1][0])

    model = Called(forward, embed=nn.Linear(3, 4), memory=nn.GRU(4, 5, batch_first=True), head=nn.Linear(5, 2))
    with pytest.raises(ModelError, match="Packed sequences cannot be followed"):
        Connectivity(model, prunable_layout(model), (4, 3)).n_alive(torch.ones(22, dtype=torch.bool))


def test_long_sequences_stay_within_numbers() -> None:
    model = Called(lambda self, x: self.head(self.memory(self.embed(x))[0][:, -1]), embed=nn.Linear(3, 4),
                   memory=nn.LSTM(4, 300, batch_first=True), head=nn.Linear(300, 2))  # fmt: skip
    problem = Problem.of(model, (200, 3), None)
    whole = torch.ones(problem.layout.n_prunable, dtype=torch.bool)
    assert bool(Connectivity.of(problem).alive(whole).all())
    assert bool((INDICES["synflow"].formula(Signals(problem, whole)) > 0).all())


def test_a_flow_leaves_the_backends_and_the_tensors_as_they_were() -> None:
    seen: list[bool] = []

    def forward(self: Any, x: Tensor) -> Tensor:
        seen.append(torch.backends.cudnn.deterministic)
        return self.out(x * self.shift.to(x.dtype))

    model = Called(forward, out=nn.Linear(3, 2))
    model.shift = torch.ones(3)  # no buffer: the user's own tensor goes through the rules
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    Connectivity(model, prunable_layout(model), (3,)).n_alive(torch.ones(6, dtype=torch.bool))
    assert seen == [True] and vars(model.shift) == {}
    assert before == (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark)


@pytest.mark.parametrize("method", ["grasp", "gcs", "ntk_sap"])
def test_half_precision_is_scored_in_float32(method: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 30), nn.ReLU(), nn.Linear(30, 4)).half()
    inputs, labels = torch.rand(20, 20).half(), torch.arange(20) % 4
    half = Problem.of(model, (20,), lambda n: (inputs, labels))
    mask = prune_problem(half, 0.1, method, rounds=Rounds(1)).mask
    assert model[0].weight.dtype == torch.float16
    full = Problem.of(model.float(), (20,), lambda n: (inputs.float(), labels))
    assert torch.equal(mask, prune_problem(full, 0.1, method, rounds=Rounds(1)).mask)


def test_a_network_whose_prunable_weights_lead_nowhere_is_refused() -> None:
    model = Called(lambda self, x: x[:, :2] * 2.0, unused=nn.Linear(3, 2))
    with pytest.raises(ModelError, match="No prunable weight"):
        prune_problem(Problem.of(model, (3,), None), 0.5, "magnitude")


def test_recurrent_layers_stay_dense_and_are_passed_through() -> None:
    model = Called(
        lambda self, x: self.head(self.memory(self.embed(x))[0][:, -1]),
        embed=nn.Linear(3, 4), memory=nn.LSTM(4, 5, batch_first=True), head=nn.Linear(5, 2),
    )  # fmt: skip
    layout = prunable_layout(model)
    assert layout.names == ("embed.weight", "head.weight")
    net = Connectivity(model, layout, (6, 3))
    assert bool(net.alive(torch.ones(layout.n_prunable, dtype=torch.bool)).all())


def test_every_method_runs_on_a_network_without_norms_and_with_in_place_activations() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.MaxPool2d(2), nn.Conv2d(4, 6, 2), nn.ReLU(True),
        nn.Flatten(), nn.Linear(24, 3),
    )  # fmt: skip
    batch = torch.rand(12, 2, 8, 8), torch.arange(12) % 3
    problem = Problem.of(model, (2, 8, 8), lambda n: batch)
    for method in PRUNERS:
        result = prune_problem(problem, 0.5, method, rounds=Rounds(2))
        assert int(result.mask.sum()) == round(0.5 * problem.layout.n_prunable), method


if __name__ == "__main__":
    print(kinds_page(), end="")
