"""ONNX files are checked by running them before they take their place."""

from __future__ import annotations

import sys
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from toys import ResidualNet, flat_mask

from panning.errors import ModelError, OutputError
from panning.export import compact, onnx_form
from panning.export.onnx_form import save_onnx
from panning.layout import prunable_layout
from panning.masks import Masks


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
    with pytest.raises(OutputError, match=r"panning\[onnx\]"):
        save_onnx(nn.Linear(4, 2), tmp_path / "net.onnx", (4,))
    assert not list(tmp_path.iterdir())
