"""Convolutions of a loss: torch's values and derivatives of every order, in another layout; and the version of masks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import masks_of_versions
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from panning.flow import convolutions
from panning.flow.convolutions import How, convolution
from panning.foundation.errors import PanningError
from panning.foundation.making import NEWEST, made_by, making
from panning.foundation.records import RecordStore
from panning.pruners import prune_problem
from panning.pruners.described import described
from panning.scoring.problem import Problem
from panning.scoring.signals import Signals

HOWS: list[tuple[How, int, int]] = [
    (How((1, 1), (0, 0), (1, 1), 1, True), 1, 2),  # one channel: a map says nothing of its layout
    (How((2, 1), (1, 2), (1, 1), 1, False), 3, 4),
    (How((1, 1), (2, 2), (2, 2), 2, True), 4, 4),
]


def operands(channels: int, units: int, groups: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = (2, channels, 6, 5), (units, channels // groups, 3, 2)
    x, weight = (torch.randn(shape, generator=generator, dtype=dtype, requires_grad=True) for shape in shapes)
    return x, weight


@pytest.mark.parametrize(("how", "channels", "units"), HOWS)
def test_derivatives_up_to_the_third_are_those_of_differences(how: How, channels: int, units: int) -> None:
    x, weight = operands(channels, units, how.groups, torch.float64)

    def sums(x: Tensor, weight: Tensor) -> Tensor:
        return convolutions._Convolution.apply(x, weight, None, how)

    def gradient(x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(sums(x, weight).pow(3).sum(), (x, weight), create_graph=True)

    assert gradcheck(sums, (x, weight)) and gradgradcheck(sums, (x, weight)) and gradgradcheck(gradient, (x, weight))
    assert gradgradcheck(lambda weight: sums(x.detach(), weight), (weight,))  # as of the first layer
    assert gradgradcheck(lambda x: sums(x, weight.detach()), (x,))


@pytest.mark.parametrize(("how", "channels", "units"), HOWS)
@pytest.mark.parametrize("bias", [None, "constant", "learned"])
def test_a_convolution_is_torchs(how: How, channels: int, units: int, bias: str | None) -> None:
    x, weight = operands(channels, units, how.groups, torch.float32)
    b = None if bias is None else torch.arange(float(units), requires_grad=bias == "learned")
    at = (x, weight) if b is None or not b.requires_grad else (x, weight, b)
    results = [F.conv2d(x, weight, b, *how[:4]), convolution(F.conv2d, x, weight, b, *how[:4], last=how.last)]
    grads = [torch.autograd.grad(result.square().sum(), at, create_graph=True) for result in results]
    seconds = [torch.autograd.grad(sum(g.square().sum() for g in some), at) for some in grads]
    for expected, found in [results, *zip(*grads, strict=True), *zip(*seconds, strict=True)]:
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    last = results[1].is_contiguous(memory_format=torch.channels_last) and not results[1].is_contiguous()
    assert last == (how.last and bias != "learned")


@pytest.mark.parametrize(
    "changed",
    [{"padding": "valid"}, {"stride": 2, "padding": (1, 0)}, {"dilation": 2}],
    ids=["words", "mixed", "numbers"],
)
def test_arguments_are_read_as_torch_reads_them(changed: dict[str, Any]) -> None:
    x, weight = operands(3, 4, 1, torch.float32)
    torch.testing.assert_close(convolution(F.conv2d, x, weight, **changed), F.conv2d(x, weight, **changed))


class Viewing(nn.Module):
    """Views a map as rows, as much code does, which only torch's own layout allows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, bias=False)
        self.fc = nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.conv(x)).view(len(x), -1))


class Normalised(Viewing):
    """Batch norm, by a module or by a function alone."""

    def __init__(self, module: bool) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3) if module else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = F.batch_norm(x, None, None, training=True) if self.norm is None else self.norm(x)
        return self.fc(F.relu(x).flatten(1))


def viewing(n: int = 4, network: Callable[[], nn.Module] = Viewing) -> Problem:
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    batch = torch.randn(n, 2, 4, 4, generator=generator), torch.arange(n) % 2
    return Problem.of(network(), (2, 4, 4), lambda number: batch)


def both(problem: Problem, *names: str) -> Callable[[int], list[Tensor]]:
    dense = torch.ones_like(problem.weight, dtype=torch.bool)

    def at(version: int) -> list[Tensor]:
        with made_by(version):
            signals = Signals(problem, dense)
            signals.request(*names)
            return [signals[name] for name in names]

    return at


def test_a_network_that_views_maps_as_rows_is_scored_by_both_versions() -> None:
    at = both(viewing(), "grad", "hessian_grad")
    for before, now in zip(at(1), at(2), strict=True):
        torch.testing.assert_close(now, before, rtol=1e-4, atol=1e-6)


def test_gradients_below_a_norm_are_those_of_version_1() -> None:
    """Torch's batch norm would add up maps that are channels last in float32, one entry after the other."""
    at = both(viewing(network=lambda: Normalised(module=True)), "grad")
    assert torch.equal(at(1)[0], at(2)[0])


def test_a_norm_sees_torchs_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    normalise, seen = torch.batch_norm, []
    monkeypatch.setattr(torch, "batch_norm", lambda x, *args: [seen.append(x.is_contiguous()), normalise(x, *args)][1])
    both(viewing(network=lambda: Normalised(module=False)), "grad")(2)
    assert seen == [True]


def test_version_1_computes_as_torch_does(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = viewing()
    inputs, labels = problem.batch(0)
    loss = F.cross_entropy(problem.model(inputs), labels)
    expected = torch.autograd.grad(loss, [problem.model.conv.weight, problem.model.fc.weight])
    (grad,) = both(problem, "grad")(1)
    assert torch.equal(grad, torch.cat([part.reshape(-1) for part in expected]))
    called: list[int] = []
    sums = convolutions._sums
    monkeypatch.setattr(convolutions, "_sums", lambda *args: [called.append(1), sums(*args)][1])
    both(problem, "grad")(1)
    assert not called
    both(viewing(n=1), "grad")(2)  # torch has its own way for a single sample
    assert not called
    both(problem, "grad")(2)
    assert called


def test_a_manifest_says_the_version_and_an_unknown_one_is_refused() -> None:
    problem = viewing()
    result = prune_problem(problem, 0.5, "magnitude")
    assert making() == NEWEST
    assert described(problem, result, method="magnitude", all_alive=False).masks.manifest["making"] == making()
    with made_by(1):
        assert "making" not in described(problem, result, method="magnitude", all_alive=False).masks.manifest
    refused = pytest.raises(PanningError, match=r"version 99 .*versions 1, 2: take the panning of the record's commit")
    with refused, made_by(99):
        pass


def test_the_script_counts_what_differs_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--models", "lenet5", "--methods", "snip", "--densities", "0.02", "--samples", "4"]
    for times in (2, 1):  # a row when it is measured, and in the table
        masks_of_versions.main([*arguments, "--records", str(tmp_path / "records.jsonl")])
        assert capsys.readouterr().out.count("lenet5") == times
    (record,) = RecordStore(tmp_path / "records.jsonl")
    assert record.metrics["kept"] == 8610 and record.metrics["from_first"] < 10
