"""Sparse layers compute what dense ones do, and stand only where they were measured to be faster."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from panning.foundation.errors import ModelError
from panning.measure import sparse
from panning.measure.sparse import LayerTiming, SparseLinear, sparse_where_faster


def network() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 6, bias=False), nn.Linear(6, 3)).double()
    for module in model:
        if isinstance(module, nn.Linear):
            module.weight.data *= torch.rand(module.weight.shape) < 0.3
    return model


@pytest.mark.parametrize("shape", [(5, 12), (1, 12), (2, 4, 12)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_sparse_layer_computes_what_the_dense_one_does(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(1)
    dense = nn.Linear(12, 7, bias=bias).double()
    dense.weight.data *= torch.rand(7, 12) < 0.2
    dense.weight.data[3] = 0.0
    x = torch.randn(shape, dtype=torch.float64)
    layer = SparseLinear(dense)
    torch.testing.assert_close(layer(x), dense(x))
    again = SparseLinear(nn.Linear(12, 7, bias=bias).double())
    again.values, again.col_indices = layer.values.new_zeros(len(layer.values)), layer.col_indices.clone()
    again.load_state_dict(layer.state_dict())
    torch.testing.assert_close(again(x), dense(x))


def test_only_faster_layers_change(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = network(), torch.randn(5, 12, dtype=torch.float64)

    def measured(runs: dict[str, partial[torch.Tensor]], at_least: int) -> tuple[dict[str, float], int]:
        gains = runs["sparse"].func.in_features == 8  # the middle one gains, the others gain too little
        return {"dense": 1.0, "sparse": 0.5 if gains else 0.95}, at_least

    monkeypatch.setattr(sparse, "median_seconds", measured)
    small, timings = sparse_where_faster(model, x)
    assert [type(module) for module in small] == [nn.Linear, nn.ReLU, SparseLinear, nn.Linear]
    assert [(t.name, t.faster) for t in timings] == [("0", False), ("2", True), ("3", False)]
    assert timings[1].density == int(model[2].weight.count_nonzero()) / 48
    torch.testing.assert_close(small(x), model(x))
    assert [type(module) for module in model] == [nn.Linear, nn.ReLU, nn.Linear, nn.Linear]


def test_layers_are_really_timed() -> None:
    _, timings = sparse_where_faster(network(), torch.randn(5, 12, dtype=torch.float64))
    assert [t.name for t in timings] == ["0", "2", "3"] and all(t.dense_ms > 0 and t.sparse_ms > 0 for t in timings)


def test_a_margin_is_asked_for() -> None:
    assert not LayerTiming("a", 0.1, 1.0, 0.95).faster and LayerTiming("a", 0.1, 1.0, 0.5).faster


def test_wrong_inputs_are_refused() -> None:
    with pytest.raises(ModelError, match=r"inputs of shape \(5, 11\)"):
        sparse_where_faster(network(), torch.randn(5, 11, dtype=torch.float64))
