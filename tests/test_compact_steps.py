"""What makes steps of compact networks faster and changes no bit: ReLU behind max-pooling, units taken by products."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from panning.compaction import compact
from panning.masks.masks import Masks
from panning.models.parts import Gather, PartialSum, by_product

Forward = Callable[[nn.Module, Tensor], Tensor]


class Net(nn.Module):
    """A convolution, what ``between`` says, and a linear layer."""

    def __init__(self, between: Forward, n_linear: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.relu, self.pool = nn.Conv2d(2, 3, 3), nn.ReLU(), nn.MaxPool2d(2)
        self.padded = nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True)
        self.with_indices, self.between = nn.MaxPool2d(2, return_indices=True), between
        self.linear = nn.Linear(n_linear, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.between(self, self.conv(x)).flatten(1))


MOVED: dict[str, tuple[Forward, int]] = {
    "modules": (lambda net, x: net.pool(net.relu(x)), 27),
    "functions": (lambda net, x: F.max_pool2d(F.relu(x), 2), 27),
    "method": (lambda net, x: F.max_pool2d(x.relu(), kernel_size=2), 27),
    "padding": (lambda net, x: net.padded(torch.relu(x)), 48),
    "adaptive": (lambda net, x: F.adaptive_max_pool2d(net.relu(x), 2), 12),
}
STAY: dict[str, tuple[Forward, int]] = {
    "read twice": (lambda net, x: (lambda y: net.pool(y).flatten(1) + y.mean())(net.relu(x)), 27),
    "indices": (lambda net, x: net.with_indices(net.relu(x))[0], 27),
    "indices of a function": (lambda net, x: F.max_pool2d(net.relu(x), 2, return_indices=True)[0], 27),
    "mean": (lambda net, x: F.avg_pool2d(net.relu(x), 2), 27),
    "another activation": (lambda net, x: net.pool(torch.tanh(x)), 27),
}


def compacted(between: Forward, n_linear: int) -> tuple[nn.Module, nn.Module, list[str]]:
    """The network under a mask of ones, its compact form, and the operations of that form in order."""
    net = Net(between, n_linear)
    masks = Masks.from_tensors({"conv.weight": torch.ones(3, 2, 3, 3), "linear.weight": torch.ones(2, n_linear)})
    small = compact(net, masks, (2, 8, 8)).model
    return net, small, [str(node.name) for node in small.graph.nodes]


@pytest.mark.parametrize("name", MOVED)
def test_a_relu_that_only_a_max_pool_reads_comes_behind_it_bit_for_bit(name: str) -> None:
    net, small, order = compacted(*MOVED[name])
    (relu,) = (place for place, node in enumerate(order) if "relu" in node)
    (pool,) = (place for place, node in enumerate(order) if "pool" in node or "padded" in node)
    assert pool < relu
    x = torch.randn(5, 2, 8, 8, generator=torch.Generator().manual_seed(1)).round(
        decimals=1
    )  # with entries that are equal
    outputs, gradients = [], []
    for network in (net, small):
        outputs.append(network(x))
        gradients.append(torch.autograd.grad(outputs[-1].square().sum(), list(network.parameters())))
    assert torch.equal(*outputs) and all(map(torch.equal, *gradients))


@pytest.mark.parametrize("name", STAY)
def test_whatever_else_reads_it_or_comes_before_stays_where_it_is(name: str) -> None:
    _, _, order = compacted(*STAY[name])
    (activation,) = (place for place, node in enumerate(order) if "relu" in node or "tanh" in node)
    assert all(activation < place for place, node in enumerate(order) if "pool" in node or "with_indices" in node)


def test_a_relu_with_hooks_keeps_its_place() -> None:
    seen = []
    net = Net(*MOVED["modules"])
    net.relu.register_forward_hook(lambda module, given, out: seen.append(tuple(out.shape)))
    masks = Masks.from_tensors({"conv.weight": torch.ones(3, 2, 3, 3), "linear.weight": torch.ones(2, 27)})
    small = compact(net, masks, (2, 8, 8)).model
    seen.clear()
    small(torch.randn(1, 2, 8, 8))
    assert seen == [(1, 3, 6, 6)]


@pytest.mark.parametrize("whole", [True, False])
def test_units_are_taken_and_put_by_products_with_the_same_bits(whole: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(3, 5, 4, 4, generator=generator).bfloat16()
    part = torch.randn(3, 2, 4, 4, generator=generator).bfloat16()
    gather = Gather(1, torch.tensor([4, 0, 3]))
    first = None if whole else torch.tensor([0, 1, 2, 3, 5])
    shift = (nn.Parameter(torch.tensor([0.5])), torch.tensor([2]))
    added = PartialSum(1, 5 if whole else 6, [first, torch.tensor([3, 1])], [shift])
    results = []
    for form in (torch.contiguous_format, torch.channels_last):
        x, y = (tensor.clone(memory_format=form).requires_grad_() for tensor in (wide, part))
        assert by_product(x, 1) == (form is torch.channels_last) and not by_product(x.float(), 1)
        outputs = [gather(x), added(x, y)]
        assert all(out.is_contiguous(memory_format=form) for out in outputs)
        weights = [torch.arange(out.numel()).view(out.shape).bfloat16() for out in outputs]
        results.append([*outputs, *torch.autograd.grad(outputs, (x, y, added.shift0), weights)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
