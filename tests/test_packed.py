"""Quantised layers whose weights are packed for a kernel: paths are those of the plain layer with the same weights, exactly,
and the gradients of a loss those of the straight-through estimator."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import panning
from panning import PanningWarning
from panning.alive.connectivity import Connectivity
from panning.foundation.errors import ModelError
from panning.masks.layout import prunable_layout
from panning.scoring.problem import Problem
from panning.scoring.signals import Signals

with warnings.catch_warnings(action="ignore"):  # torch is about to move them
    from torch.ao import quantization
    from torch.ao.nn.intrinsic.quantized import dynamic as fused
    from torch.ao.nn.quantized import FloatFunctional, dynamic
    from torch.ao.quantization import quantize_dynamic

X = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(16) % 3


class Recurrent(nn.Module):
    """A recurrent layer's last step, [batch, 6], on a sequence of three."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        last: Tensor = self.layer(torch.stack([x, x.flip(1), x], 1))[0][:, -1]
        return last


class Cell(Recurrent):
    """A step of a cell, whose state comes from the input too."""

    def forward(self, x: Tensor) -> Tensor:
        of_lstm = isinstance(self.layer, nn.LSTMCell | dynamic.LSTMCell)
        state = self.layer(x, (x.flip(1), x) if of_lstm else x.flip(1))
        return state[0] if isinstance(state, tuple) else state


class Convolution(Recurrent):
    """A convolution over an image of two rows, three columns and one channel, or along its pixels."""

    def forward(self, x: Tensor) -> Tensor:
        along = isinstance(self.layer, nn.Conv1d | dynamic.Conv1d)
        pixels: Tensor = self.layer(x.unflatten(1, (1, 6) if along else (1, 2, 3)))
        return pixels.flatten(1)


class LinearReLU(nn.Sequential):
    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear, nn.ReLU())


def plain_layer(name: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        layer: nn.Module = {
            "Linear": lambda: nn.Linear(6, 6),
            "Linear, half": lambda: nn.Linear(6, 6, bias=False),
            "LinearReLU": lambda: nn.Linear(6, 6),
            "Conv1d": lambda: nn.Conv1d(1, 1, 3, padding=1),
            "Conv2d": lambda: nn.Conv2d(1, 1, (1, 3), padding=(0, 1)),
            "LSTM": lambda: nn.LSTM(6, 3, 2, batch_first=True, bidirectional=True),
            "LSTM, half": lambda: nn.LSTM(6, 6, batch_first=True),
            "GRU": lambda: nn.GRU(6, 6, batch_first=True),
            "LSTMCell": lambda: nn.LSTMCell(6, 6),
            "GRUCell": lambda: nn.GRUCell(6, 6),
            "RNNCell": lambda: nn.RNNCell(6, 6),
        }[name]()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter[parameter.abs() < 0.1 * parameter.abs().max()] = 0.0  # stays 0 when quantised: cuts a path
        if isinstance(layer, nn.Linear):
            layer.weight[:, :2] = 0.0
            layer.weight[0] = 0.0
    return layer


def pair(name: str) -> tuple[nn.Module, nn.Module]:
    """A packed layer [batch, 6] -> [batch, 6], and the plain one with the weights that the packed one holds."""
    plain = plain_layer(name)
    with warnings.catch_warnings(action="ignore"):
        if isinstance(plain, nn.Conv1d | nn.Conv2d):
            kind = getattr(dynamic, type(plain).__name__)
            packed = kind(1, 1, plain.kernel_size, padding=plain.padding)
            scale = float(plain.weight.abs().max()) / 127
            weight = torch.quantize_per_tensor(plain.weight.detach(), scale, 0, torch.qint8)
            packed.set_weight_bias(weight, plain.bias)
            held = {"weight": packed.weight()}
        else:
            dtype = torch.float16 if name.endswith("half") else torch.qint8
            packed = quantize_dynamic(nn.Sequential(copy.deepcopy(plain)), {type(plain)}, dtype=dtype)[0]
            held = {"weight": packed.weight()} if isinstance(plain, nn.Linear) else packed.get_weight()
        if name == "LinearReLU":
            relu = fused.LinearReLU(6, 6)
            relu.set_weight_bias(packed.weight(), packed.bias())
            packed = relu
    with torch.no_grad():
        for key, weight in held.items():
            plain.get_parameter(key).copy_(weight.dequantize())
    wraps = {"Linea": nn.Sequential, "Conv1": Convolution, "Conv2": Convolution, "LSTM": Recurrent, "LSTM,": Recurrent,
             "GRU": Recurrent}  # fmt: skip
    wrap: Callable[[nn.Module], nn.Module] = wraps.get(name[:5], Cell)
    return wrap(packed), LinearReLU(plain) if isinstance(plain, nn.Linear) and name == "LinearReLU" else wrap(plain)


class StraightThrough(nn.Module):
    """The values of one layer and the gradients of another."""

    def __init__(self, values: nn.Module, gradients: nn.Module) -> None:
        super().__init__()
        self.values, self.gradients = values, gradients

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.gradients(x)
        return self.values(x.detach()).detach() + (y - y.detach())


def network(odd: nn.Module, at: int) -> nn.Sequential:
    """Four parts, of which that number is not plain; the packed layer's own parameters do not learn."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        parts: list[nn.Module] = [nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)]
    parts[at] = odd
    return nn.Sequential(parts[0], nn.ReLU(), parts[1], nn.ReLU(), parts[2], nn.ReLU(), parts[3])


def problem_of(net: nn.Sequential, at: int) -> Problem:
    layout = prunable_layout(net, include=tuple(f"{2 * i}.weight" for i in range(4) if i != at))
    return Problem(net, layout, (6,), lambda number: (X, Y))


def alive_by_masks(net: nn.Module, names: tuple[str, ...], mask: Tensor) -> Tensor:
    """What is alive of the parameters ``names`` of a plain network, in which weights that are 0 are masked."""
    layout, given = prunable_layout(net), iter(mask.split([net.get_parameter(name).numel() for name in names]))
    masks = {n: next(given) if n in names else net.get_parameter(n).detach() != 0 for n in layout.names}
    alive = layout.views(Connectivity(net, layout, (6,)).alive(layout.flatten(masks)))
    return torch.cat([alive[name].flatten() for name in names])


NAMES = (
    "Linear",
    "Linear, half",
    "LinearReLU",
    "Conv1d",
    "Conv2d",
    "LSTM",
    "LSTM, half",
    "GRU",
    "LSTMCell",
    "GRUCell",
    "RNNCell",
)


@pytest.mark.parametrize("at", [0, 2, 3], ids=["in front", "in the middle", "at the end"])
@pytest.mark.parametrize("name", NAMES)
def test_paths_through_a_packed_layer_are_those_of_its_weights(name: str, at: int) -> None:
    problem, plain = (problem_of(network(odd, at), at) for odd in pair(name))
    assert problem.layout == plain.layout and problem.layout.n_prunable == 108
    generator = torch.Generator().manual_seed(3)
    for density in (0.3, 0.5, 1.0):
        mask = torch.rand(108, generator=generator) < density
        alive = Connectivity.of(problem).alive(mask)
        assert alive.equal(alive_by_masks(plain.model, problem.layout.names, mask)) and bool(alive.any())
    every = torch.ones(108, dtype=torch.bool)
    torch.testing.assert_close(Signals(problem, every).path_grad, Signals(plain, every).path_grad)


@pytest.mark.parametrize("at", [0, 2, 3], ids=["in front", "in the middle", "at the end"])
@pytest.mark.parametrize("name", NAMES)
def test_a_loss_has_the_values_of_the_kernel_and_the_gradients_of_its_weights(name: str, at: int) -> None:
    packed, plain = pair(name)
    signals = Signals(problem := problem_of(network(packed, at), at), torch.ones(108, dtype=torch.bool))
    own = network(StraightThrough(packed, plain), at)
    loss = F.cross_entropy(own(X), Y)
    grads = torch.autograd.grad(loss, [own.get_parameter(n) for n in problem.layout.names])
    assert signals.loss == F.cross_entropy(network(packed, at)(X), Y).item()
    torch.testing.assert_close(signals.grad, torch.cat([g.flatten() for g in grads]), rtol=1e-5, atol=1e-7)

    near = Signals(
        problem_of(network(plain, at), at), torch.ones(108, dtype=torch.bool)
    )  # but for the kernel's rounding
    assert torch.corrcoef(torch.stack([signals.grad, near.grad]))[0, 1] > 0.98
    torch.testing.assert_close(signals.hessian_grad.isfinite(), torch.ones(108, dtype=torch.bool))


def test_a_kernel_that_rounds_nothing_gives_the_scores_of_the_plain_layer() -> None:
    """Whole numbers from 0 to 127 are what seven bits hold."""
    linear = nn.Linear(6, 6, bias=False)
    linear.weight.data = torch.arange(36.0).view(6, 6) % 13 - 6
    linear.weight.data[0, 0] = 127.0
    with warnings.catch_warnings(action="ignore"):
        packed = quantize_dynamic(nn.Sequential(copy.deepcopy(linear)), {nn.Linear})[0]
    linear.weight.data = packed.weight().dequantize()
    first = torch.eye(6)
    found = []
    for odd in (packed, linear):
        net = nn.Sequential(nn.Linear(6, 6, bias=False), nn.ReLU(), odd, nn.Tanh(), nn.Linear(6, 3, bias=False))
        net[0].weight.data, net[4].weight.data = first.clone(), torch.arange(18.0).view(3, 6) / 1000
        x = torch.arange(60.0).view(10, 6).fmod(17).floor()
        x[0, :2] = torch.tensor([0.0, 127.0])
        layout = prunable_layout(net, exclude=("2.*",) if odd is linear else ())
        problem = Problem(net, layout, (6,), lambda number, x=x: (x / 64, Y[:10]))
        signals = Signals(problem, torch.ones(layout.n_prunable, dtype=torch.bool))
        found.append((signals.weight * signals.grad).abs())
    assert found[0][:36].any()
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-7)


def test_what_is_packed_is_left_dense_and_the_way_out_is_said() -> None:
    packed, _ = pair("LSTM")
    net = network(packed, 2)
    with pytest.warns(PanningWarning, match=r"80\.0% of all weights.*432 weights.*'4\.layer' \(its weight is packed.*"
                                            r"To prune them, prune the network before you quantise it\."):  # fmt: skip
        masks = panning.prune(net, (X, Y), density=0.2, method="snip")
    assert masks.manifest["left_dense"] == {"4.layer": "its weight is packed and no parameter"}
    small = panning.compact(net, masks).model
    panning.apply_masks(net, masks)
    torch.testing.assert_close(small(X), net(X))


class Static(nn.Module):
    """Between ``quant`` and ``dequant`` activations are quantised: two layers, their sum and their concatenation."""

    def __init__(self, in_front: bool) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.first = nn.Identity() if in_front else nn.Linear(6, 6)
            self.a, self.b, self.last = nn.Linear(6, 6), nn.Conv1d(1, 1, 3, padding=1), nn.Linear(12, 3)
        with torch.no_grad():
            self.a.weight[::2, :4] = 0.0
        self.relu, self.join = nn.ReLU(), FloatFunctional()
        self.quant, self.dequant = quantization.QuantStub(), quantization.DeQuantStub()

    def forward(self, x: Tensor) -> Tensor:
        x = self.quant(self.first(x))
        a, b = self.relu(self.a(x)), self.b(x.unsqueeze(1)).squeeze(1)
        return self.last(self.dequant(self.join.cat([self.join.add_relu(a, b), b], 1)))


def static(in_front: bool) -> tuple[nn.Module, nn.Module]:
    """Quantised, and plain with the quantised weights."""
    net = Static(in_front).eval()
    net.qconfig = quantization.get_default_qconfig("fbgemm")  # type: ignore[assignment]
    net.first.qconfig = net.last.qconfig = None  # type: ignore[assignment]
    with warnings.catch_warnings(action="ignore"):
        net = quantization.prepare(quantization.fuse_modules(net, [["a", "relu"]]))
        net(X)
        quantised = quantization.convert(net)
        plain = Static(in_front)
        for name in ("a", "b"):
            plain.get_submodule(name).weight.data = quantised.get_submodule(name).weight().dequantize()
    return quantised, plain


@pytest.mark.parametrize("in_front", [True, False])
def test_quantised_activations_have_paths_and_no_loss(in_front: bool) -> None:
    networks = static(in_front)
    include = ("last.weight",) if in_front else ("first.weight", "last.weight")
    problems = [Problem(net, prunable_layout(net, include), (6,), lambda number: (X, Y)) for net in networks]
    n = problems[0].layout.n_prunable
    mask = torch.rand(n, generator=torch.Generator().manual_seed(1)) < 0.1
    alive = Connectivity.of(problems[0]).alive(mask)
    assert alive.equal(alive_by_masks(networks[1], include, mask)) and (in_front or 0 < alive.sum() < mask.sum())
    found, plain = (Signals(problem, torch.ones(n, dtype=torch.bool)) for problem in problems)
    torch.testing.assert_close(found.path_grad, plain.path_grad)
    if not in_front:
        with pytest.raises(ModelError, match=r"'quant' .*no gradient of a loss passes quantised activations"):
            found.grad  # noqa: B018
        return
    out = networks[0](X)
    weight = networks[0].last.weight
    (grad,) = torch.autograd.grad(F.cross_entropy(out, Y), weight)
    torch.testing.assert_close(found.grad, grad.flatten())


def test_a_quantised_operator_without_a_plain_form_is_refused_by_name() -> None:
    with warnings.catch_warnings(action="ignore"):
        packed = dynamic.ConvTranspose1d(1, 1, 3, padding=1)

    class Up(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = packed

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.up(x.unsqueeze(1))
            return y.squeeze(1)

    with (
        warnings.catch_warnings(action="ignore"),
        pytest.raises(ModelError, match=r"'2\.up'.*conv_transpose1d_dynamic"),
    ):
        panning.prune(
            nn.Sequential(nn.Linear(6, 6), nn.ReLU(), Up(), nn.Linear(6, 3)), (X, Y), density=0.5, method="snip"
        )
