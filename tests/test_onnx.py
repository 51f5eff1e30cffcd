"""ONNX files are checked by running them before they take their place."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from toys import ResidualNet, flat_mask

from panning.compaction import compact
from panning.export import onnx as onnx_form
from panning.export.onnx import save_onnx
from panning.foundation.errors import MissingExtraError, ModelError
from panning.masks.layout import prunable_layout
from panning.masks.masks import Masks


def test_a_compact_network_runs_in_onnxruntime_at_any_batch_size(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = ResidualNet()
    layout = prunable_layout(model)
    small = compact(model, Masks(layout, flat_mask(layout, 0.2, 0)), (2, 8, 8)).model
    path = tmp_path / "net.onnx"
    assert save_onnx(small, path, (2, 8, 8)) < 1e-5
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    for n in (1, 7):
        x = torch.randn(n, 2, 8, 8)
        (found,) = session.run(None, {"inputs": x.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), small.eval()(x), rtol=1e-4, atol=1e-5)


def test_other_outputs_are_refused_and_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exported = onnx_form._exported

    def of_another(model: nn.Module, inputs: Tensor) -> bytes:
        model.bias.data += 1.0
        data = exported(model, inputs)
        model.bias.data -= 1.0
        return data

    monkeypatch.setattr(onnx_form, "_exported", of_another)
    with pytest.raises(ModelError, match="differs from torch"):
        save_onnx(nn.Linear(4, 2), tmp_path / "net.onnx", (4,))
    assert not list(tmp_path.iterdir())


class Unexportable(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x


def test_what_cannot_be_exported_or_run_here_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="cannot export"):
        save_onnx(Unexportable(), tmp_path / "net.onnx", (4,))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"panning\[onnx\]"):
        save_onnx(nn.Linear(4, 2), tmp_path / "net.onnx", (4,))
    assert not list(tmp_path.iterdir())


class Pair(nn.Linear):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), x


def broken(weight: float) -> nn.Module:
    layer = nn.Linear(4, 2)
    layer.weight.data[0, 0] = weight
    return layer


def pruned() -> nn.Module:
    layer = nn.Linear(4, 2)
    prune.l1_unstructured(layer, "weight", 3)
    layer(torch.ones(1, 4))
    return layer


@pytest.mark.parametrize(
    ("make", "shape", "message"),
    [
        (lambda: broken(torch.nan), (4,), "Linear gives NaN or infinity"),
        (lambda: broken(torch.inf), (4,), "Linear gives NaN or infinity"),
        (lambda: Pair(4, 2), (4,), "Pair gives a tuple"),
        (lambda: nn.Linear(4, 2), (5,), r"does not run on a batch of shape \(3, 5\)"),
        (lambda: nn.Linear(4, 2), None, "input_shape is None, but must be positive integers"),
        (pruned, (4,), "panning.export.bake"),
    ],
)
def test_what_cannot_be_compared_is_not_written(
    tmp_path: Path, make: Callable[[], nn.Module], shape: Any, message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        save_onnx(make(), tmp_path / "net.onnx", shape)
    assert not list(tmp_path.iterdir())


def test_nan_from_onnxruntime_alone_is_another_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exported = onnx_form._exported
    monkeypatch.setattr(onnx_form, "_exported", lambda model, inputs: exported(broken(torch.nan), inputs))
    with pytest.raises(ModelError, match="differs from torch by nan"):
        save_onnx(nn.Linear(4, 2), tmp_path / "net.onnx", (4,))
    monkeypatch.setattr(onnx_form, "_exported", lambda model, inputs: b"no network")
    with pytest.raises(ModelError, match="onnxruntime cannot run this network"):
        save_onnx(nn.Linear(4, 2), tmp_path / "net.onnx", (4,))
    assert not list(tmp_path.iterdir())
