"""Compaction: the small network computes, learns and expands to what the masked one is."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint
from toys import ResidualNet, chain

from panning.compaction import CompactResult, compact, narrow
from panning.foundation.errors import MaskError, ModelError
from panning.masks.layout import prunable_layout
from panning.masks.masks import Masks, apply_masks
from panning.models.parts import PartialSum

SIDE = 6
INPUT = (3, SIDE, SIDE)
ACTIVATIONS = [nn.ReLU, nn.ReLU, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.GELU, nn.Tanh, nn.Sigmoid, nn.Hardswish]


class Draw:
    """Random choices from one seed."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def number(self, low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=self.generator))

    def one_of(self, *options: object) -> object:
        return options[self.number(0, len(options) - 1)]

    def chance(self, probability: float) -> bool:
        return bool(torch.rand((), generator=self.generator) < probability)


class Branch(nn.Sequential):
    """Convolutions with or without norms, groups and biases."""

    def __init__(self, draw: Draw, n_in: int, n_out: int, n_layers: int, activate_last: bool) -> None:
        layers: list[nn.Module] = []
        for number in range(n_layers):
            wide = n_out if number == n_layers - 1 else 2 * draw.number(1, 4)
            groups = (
                2
                if n_in % 2 == wide % 2 == 0 and draw.chance(0.3)
                else n_in
                if wide % n_in == 0 and draw.chance(0.3)
                else 1
            )
            kernel, padding = draw.one_of((1, 0), (3, 1), (3, "same"))  # type: ignore[misc]
            layers.append(nn.Conv2d(n_in, wide, kernel, padding=padding, groups=groups, bias=draw.chance(0.5)))
            if draw.chance(0.5):
                layers.append(nn.BatchNorm2d(wide, affine=draw.chance(0.8), track_running_stats=draw.chance(0.8)))
            if number < n_layers - 1 or activate_last:
                layers.append(draw.one_of(*ACTIVATIONS)(**{}))  # type: ignore[operator]
            n_in = wide
        super().__init__(*layers)


class RandomNet(nn.Module):
    """A few stages, each a chain, a residual block, a gate or a concatenation; then a head."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        draw = Draw(seed)
        width = 2 * draw.number(2, 4)
        self.stem = Branch(draw, INPUT[0], width, 1, True)
        self.kinds: list[str] = []
        self.stages = nn.ModuleList()
        for _ in range(draw.number(1, 3)):
            kind = str(draw.one_of("chain", "residual", "projected", "cat", "gate", "pad", "preact", "pool"))
            self.kinds.append(kind)
            if kind == "chain":
                wide = 2 * draw.number(2, 5)
                self.stages.append(Branch(draw, width, wide, 2, True))
                width = wide
            elif kind in ("residual", "cat", "preact"):
                self.stages.append(Branch(draw, width, width, 2, kind == "cat"))
                width = 2 * width if kind == "cat" else width
            elif kind == "projected":
                wide = 2 * draw.number(2, 5)
                self.stages.append(nn.ModuleList([Branch(draw, width, wide, n, False) for n in (2, 1)]))
                width = wide
            elif kind == "gate":
                self.stages.append(
                    nn.Sequential(nn.Conv2d(width, 2, 1), nn.ReLU(), nn.Conv2d(2, width, 1), nn.Sigmoid())
                )
            elif kind == "pad":
                width += 3
                self.stages.append(nn.Identity())
            else:
                self.stages.append(nn.MaxPool2d(2, 1) if draw.chance(0.5) else nn.AvgPool2d(3, 1, padding=1))
        self.inplace = draw.chance(0.3)
        self.head = str(draw.one_of("flatten", "view", "mean", "pool"))
        with torch.no_grad():
            self.eval()
            n = self.features(torch.zeros(2, *INPUT)).shape[1]
        self.linear1, self.act = nn.Linear(n, 6, bias=draw.chance(0.5)), draw.one_of(*ACTIVATIONS)(**{})  # type: ignore[operator]
        self.linear2 = nn.Linear(6, 3)
        self.train()
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d) and module.affine:
                module.weight.data.uniform_(0.5, 1.5, generator=draw.generator)
                if draw.chance(0.5):
                    module.bias.data.normal_(generator=draw.generator)
                if module.running_mean is not None and draw.chance(0.3):
                    module.running_mean.normal_(generator=draw.generator)
            elif isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None and draw.chance(0.4):
                module.bias.data.zero_()

    def features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for kind, stage in zip(self.kinds, self.stages, strict=True):
            if kind == "residual":
                x = F.relu(x + stage(x), inplace=self.inplace)
            elif kind == "preact":
                x = x + stage(F.relu(x))
            elif kind == "projected":
                a, b = stage
                out = a(x)
                out += b(x)
                x = torch.relu(out)
            elif kind == "cat":
                x = torch.cat([x, stage(x)], 1)
            elif kind == "gate":
                x = x * stage(x.mean((2, 3), keepdim=True))
            elif kind == "pad":
                x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 2))
                x = F.interpolate(x, size=(SIDE, SIDE))
            else:
                x = stage(x)
        if self.head == "flatten":
            return torch.flatten(x, 1)
        if self.head == "view":
            return x.view(x.size(0), -1)
        return x.mean((2, 3)) if self.head == "mean" else F.adaptive_avg_pool2d(x, 1).reshape(x.shape[0], -1)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear2(self.act(self.linear1(self.features(x))))


def block(generator: torch.Generator, shape: tuple[int, ...], rows: float, columns: float, density: float) -> Tensor:
    """Some outputs and some inputs of a layer without a weight, the others with weights at random."""
    sides = [
        torch.rand(n, generator=generator).lt(p).view([-1 if axis == i else 1 for i in range(len(shape))])
        for axis, (n, p) in enumerate(zip(shape[:2], (rows, columns), strict=True))
    ]
    return sides[0] & sides[1] & (torch.rand(shape, generator=generator) < density)


def drawn(seed: int) -> tuple[nn.Module, Masks]:
    """A random network in float64 and a mask, mostly one that empties units; in one of four, up to 98 % at random."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = RandomNet(seed).double()
    draw = Draw(seed + 1)
    spread = draw.chance(0.25)
    layout = prunable_layout(model)
    parts = []
    for shape in layout.shapes:
        rows, columns = (1.0, 1.0) if spread or draw.chance(0.3) else (0.6, 0.8)
        density = 10 ** -(draw.number(3, 17) / 10) if spread else draw.number(3, 10) / 10
        parts.append(block(draw.generator, shape, rows, columns, density).flatten())
    return model, Masks(layout, torch.cat(parts), {"input_shape": list(INPUT)})


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(5, *INPUT, generator=generator, dtype=torch.float64), torch.arange(5) % 3


def masked(model: nn.Module, masks: Masks) -> nn.Module:
    model = copy.deepcopy(model)
    apply_masks(model, masks)
    return model


def masked_gradients(model: nn.Module, masks: Masks | None, x: Tensor, y: Tensor) -> tuple[float, dict[str, Tensor]]:
    model.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    grads = {}
    for name, p in model.named_parameters():
        if p.grad is None:
            p.grad = torch.zeros_like(p)
        if masks is not None and name in masks:
            p.grad.mul_(masks[name])
        grads[name] = p.grad
    return float(loss.detach()), grads


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def covered(result: CompactResult, original: nn.Module) -> dict[str, Tensor]:
    """For each parameter of the original, which entries the small network holds; none of them twice."""
    seen = {name: torch.zeros(p.shape, dtype=torch.int) for name, p in original.named_parameters()}
    small = dict(result.model.named_parameters())
    for name, (origin, entries) in result.mapping.items():
        if name in small:
            flat = torch.arange(seen[origin].numel()).view(seen[origin].shape)
            for axis, index in enumerate(entries):
                flat = flat if index is None else flat.index_select(axis, index)
            seen[origin].view(-1)[flat.flatten()] += 1
    assert all(int(n.max()) <= 1 for n in seen.values() if n.numel())
    return {name: n.bool() for name, n in seen.items()}


def computes_and_learns_what_the_masked_one_does(seed: int) -> None:
    model, masks = drawn(seed)
    result = compact(model, masks)
    reference, small = masked(model, masks), result.model
    x, y = batch()
    close(small.eval()(x), reference.eval()(x))
    assert all(
        torch.equal(a, b)
        for a, b in zip(result.expand().state_dict().values(), reference.state_dict().values(), strict=True)
    )

    reference.train(), small.train()
    kept = covered(result, reference)
    optimizers = [torch.optim.SGD(m.parameters(), 0.05, momentum=0.9, weight_decay=1e-3) for m in (reference, small)]
    for step in range(3):
        loss, grads = masked_gradients(reference, masks, x, y)
        small_loss, small_grads = masked_gradients(small, result.masks, x, y)
        assert small_loss == pytest.approx(loss, rel=1e-9, abs=1e-9)
        if step == 0:
            for name, grad in small_grads.items():
                close(grad, result.narrow(name, grads[result.mapping[name][0]]))
            for name, grad in grads.items():
                assert not grad[~kept[name]].abs().gt(1e-12).any(), f"{name} learns where the small network has nothing"
        for optimizer in optimizers:
            optimizer.step()
    close(small.eval()(x), reference.eval()(x))
    close(result.expand().eval()(x), reference.eval()(x))


def computes_the_same_with_folded_constants(seed: int) -> None:
    model, masks = drawn(seed)
    folded = compact(model, masks, fold=True)
    x, _ = batch()
    reference = masked(model, masks).eval()
    close(folded.model.eval()(x), reference(x))
    close(folded.expand().eval()(x), reference(x))


def over_networks(check: Callable[[int], None], n: int) -> None:
    """``check`` for random networks and masks, the same each time."""
    run = given(st.integers(0, 10**6))(check)
    settings(max_examples=n, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))(run)()


CHECKS = {check.__name__: check for check in (
    computes_and_learns_what_the_masked_one_does, computes_the_same_with_folded_constants,
)}  # fmt: skip


@pytest.mark.parametrize("check", CHECKS)
def test_the_small_network(check: str) -> None:
    over_networks(CHECKS[check], 120)


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS)
def test_the_small_network_over_many_networks(check: str) -> None:
    over_networks(CHECKS[check], 1000)


def sizes(result: CompactResult) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in result.model.named_parameters()}


def all_but(model: nn.Module, **removed: list[tuple[int, ...]]) -> Masks:
    """Everything is kept but some places of some parameters."""
    layout = prunable_layout(model)
    masks = {name: torch.ones(shape, dtype=torch.bool) for name, shape in zip(layout.names, layout.shapes, strict=True)}
    for name, places in removed.items():
        for place in places:
            masks[name.replace("__", ".")][place] = False
    return Masks.from_tensors(masks)


def test_a_chain_loses_what_no_path_uses() -> None:
    # Unit 1 of the first layer has no input, unit 2 no output; input 0 is used by unit 1's weights alone.
    model = chain([[0.0, 1.0], [2.0, 3.0], [0.0, 4.0]], [[1.0, 2.0, 3.0]], activation=nn.ReLU)
    masks = all_but(model, **{"0__weight": [(0, 0), (1, 0), (1, 1), (2, 0)], "2__weight": [(0, 2)]})
    result = compact(model, masks, (2,))
    assert sizes(result) == {"0.weight": (1, 1), "2.weight": (1, 1)}
    assert result.mapping["0.weight"][0] == "0.weight"
    assert [index.tolist() for index in result.mapping["0.weight"][1]] == [[0], [1]]
    assert result.model(torch.tensor([[5.0, 7.0]])).tolist() == [[7.0]]


def test_a_unit_that_a_positive_bias_keeps_on_stays_and_is_folded_on_request() -> None:
    model = chain([[1.0], [1.0]], [[1.0, 2.0]], activation=nn.ReLU, bias=True)
    model[0].bias.data = torch.tensor([0.0, 3.0])
    masks = all_but(model, **{"0__weight": [(1, 0)]})
    assert sizes(compact(model, masks, (1,)))["0.weight"] == (2, 1)
    folded = compact(model, masks, (1,), fold=True)
    assert sizes(folded)["0.weight"] == (1, 1)
    assert folded.model.state_dict()["2.bias"].tolist() == [6.0]
    model[0].bias.data = torch.tensor([0.0, -3.0])  # the ReLU is off, and no gradient turns it on
    assert sizes(compact(model, masks, (1,)))["0.weight"] == (1, 1)


@pytest.mark.parametrize(
    ("activation", "n_units"), [(nn.ReLU, 1), (nn.ReLU6, 1), (nn.GELU, 2), (nn.SiLU, 2), (nn.Sigmoid, 2)]
)
def test_an_activation_with_a_slope_at_zero_keeps_the_unit_for_training(
    activation: type[nn.Module], n_units: int
) -> None:
    model = chain([[1.0], [1.0]], [[1.0, 2.0]], activation=activation, bias=True)
    masks = all_but(model, **{"0__weight": [(1, 0)]})
    assert sizes(compact(model, masks, (1,)))["0.weight"] == (n_units, 1)
    assert sizes(compact(model, masks, (1,), fold=True))["0.weight"] == (1, 1)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 1, bias=False)
        self.conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.linear = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(x + self.norm(self.conv(torch.relu(x))))
        return self.linear(x.mean((2, 3)))


def test_a_residual_branch_computes_its_own_units_and_shifts_the_rest() -> None:
    model = Residual()
    masks = all_but(model, conv__weight=[(1,), (2,), (3,), (0, 2), (0, 3)])
    result = compact(model, masks, (1, 5, 5))
    shapes = sizes(result)
    assert shapes["stem.weight"] == (4, 1, 1, 1)
    assert shapes["conv.weight"] == (1, 2, 3, 3)  # reads two of the stream's four units and adds to one
    assert shapes["norm.weight"] == (1,)
    (shift,) = [name for name in shapes if "shift" in name]
    assert (shapes[shift], result.mapping[shift][0]) == ((3,), "norm.bias")  # the rest of the norm's bias still learns


class Branching(nn.Module):
    """A forward that torch.fx cannot trace around two parts that it can."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
        self.second = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.second(x) if x.sum() > -1e9 else x


class Around(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.part, self.after = nn.Linear(4, 4), Branching(), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(torch.relu(self.part(torch.relu(self.before(x)))))


@pytest.mark.parametrize("make", [Branching, Around])
def test_what_cannot_be_traced_stays_and_its_parts_are_made_smaller(make: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = make().double()
    prefix = "part." if make is Around else ""
    name = f"{prefix}first.0.weight"
    masks = all_but(model, **{name.replace(".", "__"): [(0,), (1,), (2,)]})
    with torch.no_grad():
        model.get_parameter(f"{prefix}first.0.bias")[:3] = -1.0
    result = compact(model, masks, (4,))
    x = torch.randn(6, 4, dtype=torch.float64)
    close(result.model(x), masked(model, masks)(x))
    assert sizes(result)[name] == (5, 4)
    assert any("stays as it is" in note and "TraceError" in note for note in result.notes)
    assert list(result.model.state_dict()) == list(model.state_dict())


class Modes(nn.Module):
    """Dropout by function, and a head that is there in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.dropout(F.relu(self.a(x)), 0.5, training=self.training))


def test_a_flag_for_training_is_looked_up_when_the_network_runs() -> None:
    model = Modes()
    result = compact(model, all_but(model, a__weight=[(0,)]), (4,))
    x = torch.randn(64, 4)
    for small in (result.model, copy.deepcopy(result.model), pickle.loads(pickle.dumps(result.model))):
        small.eval()
        assert torch.equal(small(x), small(x))
        small.train()
        assert not torch.equal(small(x), small(x))


def test_the_original_keeps_everything() -> None:
    model = ResidualNet(inplace=True)
    model.norm.eval()
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    masks = Masks(
        prunable_layout(model), torch.rand(prunable_layout(model).n_prunable) < 0.1, {"input_shape": [2, 8, 8]}
    )
    state = torch.get_rng_state()
    result = compact(model, masks)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    assert not model.norm.training and model.training and model.relu.training
    assert not result.model.norm.training and result.model.training and result.model.relu.training
    assert not result.expand().norm.training


def test_modules_that_are_used_twice_share_weights_or_have_hooks_stay_whole() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.twice, self.tied, self.hooked, self.last = (nn.Linear(4, 4) for _ in range(4))
            self.last.weight = self.tied.weight
            self.hooked.register_forward_hook(lambda module, args, output: output + 1.0)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.twice(torch.relu(self.twice(x))))
            return self.last(torch.relu(self.hooked(torch.relu(self.tied(x)))))

    torch.manual_seed(0)
    model = Shared().double()
    masks = all_but(model, twice__weight=[(0,)], tied__weight=[(1,)], hooked__weight=[(2,)])
    result = compact(model, masks, (4,))
    x = torch.randn(3, 4, dtype=torch.float64)
    close(result.model(x), masked(model, masks)(x))
    assert set(sizes(result).values()) <= {(4, 4), (4,)}
    assert result.model.last.weight is result.model.tied.weight
    assert result.notes == ("hooked stays as it is: it has hooks",)
    close(result.expand()(x), masked(model, masks)(x))


def test_a_network_without_a_path_is_its_last_bias() -> None:
    model = ResidualNet().double()
    layout = prunable_layout(model)
    result = compact(model, Masks(layout, torch.zeros(layout.n_prunable, dtype=torch.bool)), (2, 8, 8))
    x = torch.randn(3, 2, 8, 8, dtype=torch.float64)
    close(result.model.eval()(x), model.classifier.bias.expand(3, -1))
    assert sum(p.numel() for p in result.model.parameters()) < 60


def test_half_a_network_in_float32_agrees_to_rounding() -> None:
    model, masks = drawn(11)
    result = compact(model.float(), masks)
    x, _ = batch()
    torch.testing.assert_close(
        result.model.eval()(x.float()), masked(model, masks).eval()(x.float()), rtol=1e-4, atol=1e-5
    )


class Idiom(nn.Module):
    """Convolutions for a forward that ``run`` gives; ``own`` is whatever else it needs."""

    def __init__(self, run: Callable[[Any, Tensor], Any], own: object = None) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (nn.Conv2d(n, 8, 3, padding=1) for n in (3, 8, 8))
        self.head = nn.Linear(8, 3)
        if isinstance(own, Tensor):
            self.register_buffer("own", own)
        else:
            self.own = own
        self.run = run

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)

    def end(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(x).mean((2, 3)))


def two(net: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    x = torch.relu(net.conv1(x))
    return net.conv2(x), net.conv3(x)


def relu_by_position(net: Any, x: Tensor) -> Tensor:
    x = net.conv1(x)
    return net.end(net.conv2(F.relu(x, True)) + net.conv3(x))


def relu_on_another_name(net: Any, x: Tensor) -> Tensor:
    x = net.conv1(x)
    y = net.own(x)
    return net.end(net.conv2(F.relu_(x)) + net.conv3(y))


def relu_after_view(net: Any, x: Tensor) -> Tensor:
    x = net.conv1(x)
    y = x.flatten(2)
    F.relu(x, inplace=True)
    return net.end(net.conv2(x)) + y.mean()


def sum_on_another_name(net: Any, x: Tensor) -> Tensor:
    x = torch.relu(net.conv1(x))
    y = z = net.conv2(x)
    y += x
    return net.end(net.conv3(z) + y)


def copying(net: Any, x: Tensor) -> Tensor:
    x = net.conv1(x)
    x.copy_(net.conv2(torch.relu(x)))
    return net.end(net.conv3(x))


def counting(net: Any, x: Tensor) -> Tensor:
    net.own += 1
    return net.end(net.conv2(torch.relu(net.conv1(x)))) * net.own


def averaging(net: Any, x: Tensor) -> Tensor:
    net.own.mul_(0.9).add_(x.mean())
    return net.end(net.conv2(torch.relu(net.conv1(x)))) * net.own


def without_gradients(net: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        x = net.conv1(x)
    return net.end(net.conv2(torch.relu(x)))


IDIOMS: dict[str, tuple[Callable[[Any, Tensor], Any], Callable[[], object]]] = {
    "sub": (lambda net, x: net.end(torch.sub(*two(net, x)) - net.conv1(x)), lambda: None),
    "div": (lambda net, x: net.end(two(net, x)[0] / (1 + two(net, x)[1] ** 2)), lambda: None),
    "chunk": (lambda net, x: net.end(torch.cat(net.conv2(torch.relu(net.conv1(x))).chunk(2, 1), 1)), lambda: None),
    "constant": (lambda net, x: net.end(net.conv2(net.conv1(x).relu() + torch.ones(8, 1, 1))), lambda: None),
    "containers": (lambda net, x: {"a": [*two(net, x)], "b": net.end(net.conv1(x))}, lambda: None),
    "norm used twice": (
        lambda net, x: net.end(net.conv3(torch.relu(net.own(net.conv2(torch.relu(net.own(net.conv1(x)))))))),
        lambda: nn.BatchNorm2d(8, affine=False),
    ),
    "relu by position": (relu_by_position, lambda: None),
    "relu on another name": (relu_on_another_name, nn.Identity),
    "relu after view": (relu_after_view, lambda: None),
    "sum on another name": (sum_on_another_name, lambda: None),
    "copying": (copying, lambda: None),
    "without gradients": (without_gradients, lambda: None),
    "counting": (counting, lambda: torch.zeros(())),
    "averaging": (averaging, lambda: torch.zeros(())),
    "parametrized": (
        lambda net, x: net.end(net.own(torch.relu(net.conv1(x)))),
        lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 1)),
    ),
}


def half_empty(model: nn.Module, seed: int = 0) -> Masks:
    """A mask that leaves about half of the outputs and a third of the inputs of every layer without a weight."""
    layout, generator = prunable_layout(model), torch.Generator().manual_seed(seed)
    return Masks.from_tensors(
        {name: block(generator, shape, 0.6, 0.7, 0.8) for name, shape in zip(layout.names, layout.shapes, strict=True)}
    )


def same_for_some_steps(model: nn.Module, masks: Masks, shape: tuple[int, ...], n_steps: int = 3) -> CompactResult:
    """Compacts, and compares outputs, losses and what the original architecture then computes."""
    result = compact(model, masks, shape)
    reference, small = masked(model, masks), result.model
    for key, tensor in result.expand().state_dict().items():
        assert torch.equal(tensor, reference.state_dict()[key]), key
    x = torch.randn(4, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    optimizers = [torch.optim.SGD(m.parameters(), 0.05, momentum=0.9) for m in (reference.train(), small.train())]
    for _ in range(n_steps):
        losses = []
        for net, kept, optimizer in zip((reference, small), (masks, result.masks), optimizers, strict=True):
            optimizer.zero_grad()
            losses.append(sum((out**2).mean() + out.sum() for out in tree_leaves(net(x.clone()))))
            losses[-1].backward()
            for name, p in net.named_parameters():
                if kept is not None and name in kept and p.grad is not None:
                    p.grad.mul_(kept[name])
            optimizer.step()
        close(*losses)
    reference.eval(), small.eval()
    expanded = result.expand().eval()
    for a, b, c in zip(*(tree_leaves(net(x.clone())) for net in (reference, small, expanded)), strict=True):
        close(a, b), close(a, c)
    return result


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("idiom", IDIOMS)
def test_whatever_a_forward_does_the_small_network_does_the_same(idiom: str, seed: int) -> None:
    torch.manual_seed(seed)
    run, own = IDIOMS[idiom]
    model = Idiom(run, own()).double()
    same_for_some_steps(model, half_empty(model, seed), (3, 6, 6))


@torch.no_grad()
def test_functions_that_could_write_but_do_not_are_followed() -> None:
    model = Idiom(lambda net, x: net.head(F.normalize(torch.relu(net.conv2(torch.relu(net.conv1(x)))).mean((2, 3)))))
    result = compact(model, half_empty(model), (3, 6, 6))
    assert result.notes == () and sizes(result)["conv1.weight"][0] < 8


def test_a_tensor_that_is_drawn_in_the_forward_is_no_constant() -> None:
    model = Idiom(lambda net, x: net.end(net.conv2(torch.relu(net.conv1(x)))) + torch.randn(3))
    result = compact(model, half_empty(model), (3, 6, 6))
    x = torch.randn(2, 3, 6, 6)
    assert "other tensors at every call" in result.notes[0]
    assert not torch.equal(result.model(x), result.model(x))


class Optional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor, other: Tensor | None = None, scale: float = 2.0) -> Tensor:
        x = torch.relu(self.a(x))
        return (self.b(x) if other is None else self.c(x)) * scale


def test_an_optional_argument_is_taken_for_absent() -> None:
    torch.manual_seed(0)
    model = Optional().double()
    result = same_for_some_steps(model, half_empty(model), (4,))
    assert result.notes == () and not hasattr(result.model, "c")


def test_hooks_of_the_network_itself_run() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    model.register_forward_hook(lambda module, args, output: output * 3)
    same_for_some_steps(model, half_empty(model), (4,))


class Lists(nn.Module):
    """A forward that cannot be traced, over modules in a plain list; one has no parameter, one keeps its own list."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4)) for _ in range(2))
        self.middle, self.last = nn.Sequential(nn.ReLU(), nn.Tanh()), nn.LSTM(4, 3, batch_first=True)
        self.order = [self.first, self.middle, self.second]

    def forward(self, x: Tensor) -> Tensor:
        for part in self.order:
            x = part(x)
        return x if x.sum() > 1e9 else self.last(x)[0]


def test_what_stays_trains_its_own_weights() -> None:
    torch.manual_seed(0)
    model = Lists().double()
    result = same_for_some_steps(model, half_empty(model), (5, 4))
    assert sizes(result)["first.0.weight"][0] < 8


class Reading(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        y = self.part(x)
        return y if x.sum() > 1e9 else y + F.linear(x, self.part.get_parameter("0.weight")).sum(1, keepdim=True)


def test_parts_whose_weights_are_read_from_outside_stay() -> None:
    torch.manual_seed(0)
    model = Reading().double()
    with torch.no_grad():
        model.part[0].bias.fill_(-1.0)
    result = same_for_some_steps(
        model, all_but(model, part__0__weight=[(0,)], part__2__weight=[(0, 1), (1, 1), (2, 1)]), (4,)
    )
    assert result.notes[1] == "part.0 stays as it is: something else reads its weights"


def test_a_name_that_tracing_would_take_is_left_to_its_module() -> None:
    torch.manual_seed(0)
    model = Idiom(lambda net, x: net.end(net.by_mode3(F.dropout(torch.relu(net.conv1(x)), 0.0, net.training))))
    model.by_mode3 = nn.Conv2d(8, 8, 1)
    model.double()
    same_for_some_steps(model, half_empty(model), (3, 6, 6))


def test_a_flag_has_the_mode_of_its_module() -> None:
    model = nn.Sequential(Modes(), nn.ReLU(), nn.Linear(2, 2))
    model[0].eval()
    nn.init.constant_(model[0].b.bias, 1.0)
    small = compact(model, all_but(model, **{"0__a__weight": [(0,)]}), (4,)).model
    x = torch.randn(64, 4)
    assert torch.equal(small(x), small(x))
    assert not torch.equal(small.train()(x), small(x))


def test_a_frozen_shift_stays_frozen() -> None:
    model = Residual()
    model.norm.bias.requires_grad_(False)
    result = compact(model, all_but(model, conv__weight=[(1,), (2,), (3,)]), (1, 5, 5))
    (shift,) = [p for name, p in result.model.named_parameters() if "shift" in name]
    assert not shift.requires_grad


@pytest.mark.parametrize("shape", [(3,), (2, 2, 2, 2), 2, (0,), ("a",)])
def test_a_shape_that_does_not_fit_is_refused(shape: Any) -> None:
    model = nn.Sequential(nn.Conv2d(2, 2, 1))
    with pytest.raises(ModelError, match="shape"):
        compact(model, all_but(model), shape)


def test_what_cannot_be_copied_with_its_weights_is_refused() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    forward = model[0].forward
    model[0].forward = lambda x: forward(x) + 1
    with pytest.raises(ModelError, match="forward of '0'"):
        compact(model, all_but(model), (2,))
    with pytest.raises(ModelError, match="meta"):
        compact(nn.Linear(2, 2, device="meta"), all_but(nn.Linear(2, 2)), (2,))


def test_wrong_input_is_refused() -> None:
    model = chain([[1.0, 2.0]], [[1.0]])
    with pytest.raises(MaskError, match="input_shape"):
        compact(model, all_but(model))
    with pytest.raises(MaskError, match="another network"):
        compact(chain([[1.0]]), all_but(model), (2,))


def test_another_answer_is_never_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever may go wrong between the masked network and the compact one, the outputs are compared at the end."""
    model = chain([[1.0], [2.0]], [[1.0, 2.0]], activation=nn.ReLU)
    take = narrow.take

    def one_more(tensor: Tensor, entries: narrow.Entries) -> Tensor:
        return take(tensor, entries) + 1.0

    monkeypatch.setattr(narrow, "take", one_more)
    masks = all_but(model, **{"2__weight": [(0, 1)]})
    result = compact(model, masks, (1,))
    assert sizes(result) == {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert [note.split(":")[0] for note in result.notes] == [
        "the forward stays as it is",
        "0 stays as it is",
        "no layer gathers its inputs by itself",
    ]
    x = torch.randn(3, 1, dtype=next(model.parameters()).dtype)
    assert torch.equal(result.model(x), masked(model, masks)(x))


def test_a_network_that_draws_numbers_in_evaluation_is_refused() -> None:
    model = Idiom(lambda net, x: net.end(F.dropout(net.conv1(x), 0.5)))
    with pytest.raises(ModelError, match="would compute something else"):
        compact(model, half_empty(model), (3, 6, 6))


def test_a_relu_that_is_off_may_be_switched_on_by_what_else_reads_its_constant() -> None:
    class PreActivation(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.branch, self.head = nn.Linear(2, 3), nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.head(x + self.branch(torch.relu(x)))  # the sum moves the bias that keeps the ReLU off

    torch.manual_seed(0)
    model = PreActivation()
    with torch.no_grad():
        model.stem.bias.fill_(-0.01)
    result = compact(model, all_but(model, stem__weight=[(1,)]), (2,))
    assert sizes(result)["branch.weight"] == (3, 3)


class Blocks(nn.Module):
    """Transformer-like: norms that no rule narrows, behind layers that may lose everything."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(4, 6), nn.LayerNorm(6)
        self.branch, self.head = nn.Linear(6, 6, bias=False), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.head(x + self.branch(torch.relu(self.norm(x))))


def test_modules_that_are_gone_altogether_have_no_entry() -> None:
    torch.manual_seed(0)
    model = Blocks().double()
    result = same_for_some_steps(model, all_but(model, branch__weight=[()]), (4,))
    assert not any(name.startswith(("norm", "branch")) for name in result.mapping)


class Frozen(nn.Module):
    """The usual way to keep norms in evaluation while the rest trains."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)

    def train(self, mode: bool = True) -> Frozen:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.eval()
        return self


class FrozenByName(Frozen):
    def train(self, mode: bool = True) -> Frozen:
        nn.Module.train(self, mode)
        self.layers[1].eval()  # what was made smaller has no numbers
        return self


@pytest.mark.parametrize("make", [Frozen, FrozenByName])
@pytest.mark.parametrize("around", [False, True])
def test_a_train_of_its_own_is_kept(make: type[nn.Module], around: bool) -> None:
    torch.manual_seed(0)
    model = (nn.Sequential(make(), nn.ReLU()) if around else make()).double()
    result = same_for_some_steps(model, half_empty(model), (4,))
    assert "train() of its own" in result.notes[0]
    norms = [module for module in result.model.train().modules() if isinstance(module, nn.BatchNorm1d)]
    assert [norm.training for norm in norms] == [False]


class Context(nn.Module):
    """Something around a part of the forward that a graph does not say."""

    def __init__(self, context: str) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU())
        self.second = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
        self.context = context

    def forward(self, x: Tensor) -> Any:
        x = self.first(x)
        if self.context == "checkpoint":
            return checkpoint(self.second, x, use_reentrant=False)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.context == "on"):
            return self.second(x.float())


@pytest.mark.parametrize(("context", "why"), [("checkpoint", "saved tensors"), ("on", "autocast"), ("off", "autocast")])
def test_what_is_around_a_part_stays_around_it(context: str, why: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Context(context), nn.Tanh())
    masks = half_empty(model)
    result = compact(model, masks, (4,))
    note = result.notes[0]
    assert "the forward of '0' of Sequential" in note and why in note, "the part around, not the layers within"
    reference, x = masked(model, masks), torch.randn(8, 4)
    for net in (reference.train(), result.model.train()):
        with torch.autocast("cpu", torch.bfloat16):
            out = net(x)
        out.float().sum().backward()
    buffers = reference.state_dict()
    for name, buffer in result.model.state_dict().items():  # a checkpoint runs its norms twice
        torch.testing.assert_close(buffer, result.narrow(name, buffers[result.mapping[name][0]]), rtol=1e-3, atol=1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        assert reference(x).dtype == result.model(x).dtype == (torch.float32 if context == "off" else torch.bfloat16)


def test_a_network_on_tokens_is_given_indices() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.first, self.last = nn.Embedding(5, 4), nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.relu(self.first(self.embedding(x)))).mean(1)

    torch.manual_seed(0)
    model = Tokens().double()
    masks = half_empty(model)
    result = compact(model, masks, (7,))
    assert sizes(result)["first.weight"][0] < 8
    tokens = torch.randint(0, 5, (3, 7))
    close(result.model(tokens), masked(model, masks)(tokens))


REDUCED = {
    "mean": lambda h: h.mean(1),
    "mean of several axes": lambda h: h.unsqueeze(1).mean((1, -2)),
    "mean that keeps its axis": lambda h: h.mean(-2, keepdim=True).squeeze(1),
    "first": lambda h: h[:, 0],
    "every second": lambda h: h[:, ::2].mean(dim=1),
    "sum": lambda h: h.sum(1),
    "sum that keeps its axis": lambda h: torch.sum(h, dim=1, keepdim=True)[:, 0],
    "greatest": lambda h: h.amax(1),
    "by an ellipsis": lambda h: h[..., 0, :],
    "behind a new axis": lambda h: h[:, None].mean((1, 2)),
    "transposed": lambda h: h.transpose(1, 2).mean(-1),
    "last of a running sum": lambda h: h.cumsum(1).select(1, -1),
    "norm": lambda h: (h + 1).norm(dim=1),
}


class Reduced(nn.Module):
    def __init__(self, way: str, bias: bool) -> None:
        super().__init__()
        self.way = way
        self.first, self.second, self.head = nn.Linear(4, 8, bias), nn.Linear(8, 8, bias), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(REDUCED[self.way](torch.relu(self.second(torch.relu(self.first(x))))))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("way", REDUCED)
def test_units_behind_an_axis_that_goes_are_taken_out(way: str, bias: bool) -> None:
    torch.manual_seed(0)
    model = Reduced(way, bias).double()
    same_for_some_steps(model, half_empty(model), (6, 4))
    masks = all_but(model, head__weight=[(slice(None), slice(5, None))])  # type: ignore[list-item]
    assert sizes(same_for_some_steps(model, masks, (6, 4)))["second.weight"] == (5, 8)


def test_a_sum_over_tokens_reads_fewer_units_than_another_layer_does() -> None:
    """Its operand's units lie on another axis than its own: those that it does not read are left out on the operand's."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.pooled, self.each = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.relu(self.first(x))
            return self.pooled(h.sum(1)) + self.each(h).sum(1)

    torch.manual_seed(0)
    model = Twice().double()
    unread = {"pooled__weight": [(slice(None), slice(2, None))], "each__weight": [(slice(None), slice(4))]}
    result = same_for_some_steps(model, all_but(model, **unread), (6, 4))  # type: ignore[arg-type]
    assert result.notes == ()
    assert {name: size for name, size in sizes(result).items() if name.endswith("weight")} == {
        "first.weight": (6, 4), "pooled.weight": (3, 2), "each.weight": (3, 4),
    }  # fmt: skip


@pytest.mark.parametrize(
    "way", [lambda h: h.softmax(-1), lambda h: h.flip(-1), lambda h: h.reshape(-1, 6, 8), lambda h: h.std(-1)]
)
def test_a_call_that_mixes_units_or_names_their_number_leaves_them_whole(way: Callable[[Tensor], Tensor]) -> None:
    class Mixing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(4, 8), nn.Linear(6 if way(torch.ones(1, 6, 8)).dim() < 3 else 8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(way(torch.relu(self.first(x))))

    torch.manual_seed(0)
    model = Mixing().double()
    result = same_for_some_steps(model, half_empty(model), (6, 4))
    assert sizes(result)["first.weight"] == (8, 4)


def test_parts_of_a_sum_are_added_in_the_wider_type() -> None:
    x, y = torch.full((1, 2), 0.1), torch.full((1, 1), 100.0, dtype=torch.bfloat16)
    for parts, indices in (
        ((y, x), (torch.tensor([1]), None)),
        ((y, x[:, :1]), (torch.tensor([1]), torch.tensor([0]))),
    ):
        assert PartialSum(1, 2, indices)(*parts)[0, 0] == x[0, 0]
    assert PartialSum(1, 2, (None, torch.tensor([1])))(y.expand(1, 2), x[:, :1])[0, 1] == 100.1


def test_neither_inference_mode_nor_a_default_device_matters() -> None:
    model = ResidualNet()
    layout = prunable_layout(model)
    masks = Masks(layout, torch.rand(layout.n_prunable) < 0.1, {"input_shape": [2, 8, 8]})
    expected = sizes(compact(model, masks))
    with torch.inference_mode():
        result = compact(model, masks)
    assert sizes(result) == expected and not any(p.is_inference() for p in result.model.parameters())
    with torch.device("meta"):
        assert sizes(compact(model, masks)) == expected


def test_hooks_of_parameters_are_told_of() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    model[2].weight.register_hook(lambda grad: 2 * grad)
    assert (
        compact(model, all_but(model), (4,)).notes[0].startswith("Hooks of parameters are not copied, as that of 2.w")
    )


def test_a_slice_of_layers_is_followed() -> None:
    class Slices(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())
            self.head = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.layers[3:](self.layers[:3](x)))

    torch.manual_seed(0)
    model = Slices().double()
    result = same_for_some_steps(model, half_empty(model), (4,))
    assert result.notes == () and sizes(result)["layers.3.weight"][0] < 8


def test_a_compact_network_is_compacted_again() -> None:
    for seed in (0, 3, 5, 8):
        model, masks = drawn(seed)
        once = compact(model, masks)
        if once.masks is not None:
            layout = once.masks.layout
            fewer = once.masks.flat & (torch.rand(layout.n_prunable, generator=torch.Generator().manual_seed(0)) < 0.3)
            same_for_some_steps(once.model, Masks(layout, fewer), INPUT)
