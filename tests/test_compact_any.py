"""Networks that torch.fx cannot trace: they keep their class and forward, and their layers get smaller exactly."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_compact import (
    all_but,
    close,
    computes_and_learns_what_the_masked_one_does,
    computes_the_same_with_folded_constants,
    masked,
    over_networks,
    sizes,
)
from torch import Tensor, nn

from panning.compaction import CompactResult, compact, compaction
from panning.compaction.inputs import outputs_in
from panning.export.folder import load_compact, save_compact
from panning.foundation.errors import MaskError, ModelError
from panning.masks.masks import Masks


@dataclass
class Output:
    logits: Tensor
    hidden: tuple[Tensor, ...] = ()


class Attention(nn.Module):
    """As timm writes it: one layer for queries, keys and values, and heads by an attribute."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, width // num_heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        qkv = self.qkv(x).reshape(n, length, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(n, length, -1))


class Transformer(nn.Module):
    def __init__(self, width: int = 8, heads: int = 4, hidden: int = 16) -> None:
        super().__init__()
        self.embed = nn.Linear(3, width)
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.dropout, self.head = nn.Dropout(0.1), nn.Linear(width, 2)

    def forward(self, values: Tensor, mask: Tensor | None = None) -> Output:
        x = self.embed(values)
        if x.shape[1] > 1000:  # a branch on a shape
            raise ValueError("too long")
        x = x + self.attention(self.norm1(x))
        hidden = self.dropout(F.gelu(self.up(self.norm2(x))))
        x = x + self.down(hidden)
        return Output(self.head(x if mask is None else x * mask.unsqueeze(-1)), (x,))


def tokens() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        "values": torch.randn(4, 5, 3, generator=generator, dtype=torch.float64),
        "mask": torch.rand(4, 5, generator=generator, dtype=torch.float64),
    }


def call(model: nn.Module, examples: Any) -> list[Tensor]:
    return outputs_in(model(**examples) if isinstance(examples, dict) else model(*examples))


def trains_the_same(model: nn.Module, masks: Masks, examples: Any, n_steps: int = 3) -> CompactResult:
    """Steps of SGD with momentum and weight decay: losses, outputs, and the expanded network."""
    result = compact(model, masks, example_inputs=examples)
    reference, small = masked(model, masks), result.model
    for net in (reference, small):
        for module in net.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0  # draws other numbers in a smaller network
    optimizers = [torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=0.01) for net in (reference, small)]
    for _ in range(n_steps):
        losses = []
        for net, kept, optimizer in zip((reference, small), (masks, result.masks), optimizers, strict=True):
            optimizer.zero_grad()
            losses.append(sum((out**2).mean() + out.sum() / 50 for out in call(net.train(), examples)))
            losses[-1].backward()
            for name, p in net.named_parameters():
                if kept is not None and name in kept and p.grad is not None:
                    p.grad.mul_(kept[name])
            optimizer.step()
        close(*losses)
    for a, b, c in zip(*(call(net.eval(), examples) for net in (reference, small, result.expand())), strict=True):
        close(a, b), close(a, c)
    return result


def test_hidden_units_of_a_block_go_and_what_normalises_keeps_its_stream() -> None:
    torch.manual_seed(0)
    model = Transformer().double()
    masks = all_but(model, down__weight=[(slice(None), slice(0, 6))])  # six hidden units have no output
    result = trains_the_same(model, masks, tokens())
    shapes = sizes(result)
    assert type(result.model) is Transformer
    assert (shapes["up.weight"], shapes["up.bias"], shapes["down.weight"]) == ((10, 8), (10,), (8, 10))
    assert shapes["embed.weight"] == (8, 3) and shapes["attention.qkv.weight"] == (24, 8)
    assert (result.model.up.out_features, result.model.down.in_features) == (10, 10)
    assert result.density == masks.density and result.masks is not None
    assert result.masks.manifest["original_density"] == masks.density and result.masks.density > masks.density
    assert any(note.startswith("layer_norm reads all units") and "norm1 and 1 more" in note for note in result.notes)


def test_hidden_units_of_torchs_own_transformer_go_though_torch_fx_does_not_look_into_it() -> None:
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(3, 8, dtype=torch.float64), nn.TransformerEncoder(block, 2))
    masks = all_but(model, **{"1__layers__0__linear2__weight": [(slice(None), 2), (slice(None), 5)]})
    small = trains_the_same(model, masks, (torch.randn(4, 5, 3, dtype=torch.float64),))
    assert small.model[1].layers[0].linear1.out_features == 14
    assert any("torch.fx does not look into it" in note for note in small.notes)


def test_what_only_holds_layers_is_looked_into() -> None:
    """torch.fx never meets an ``nn.ModuleList``: its layers are called one by one."""

    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(3, 8), nn.Linear(8, 2)])

        def forward(self, x: Tensor) -> Tensor:
            return self.layers[1](torch.relu(self.layers[0](x)))

    torch.manual_seed(0)
    model = Listed().double()
    masks = all_but(model, layers__1__weight=[(slice(None), slice(5, None))])
    small = trains_the_same(model, masks, (torch.randn(4, 3, dtype=torch.float64),))
    assert small.notes == () and sizes(small)["layers.0.weight"] == (5, 3)


def test_a_head_goes_that_nothing_reads_and_the_module_counts_the_rest() -> None:
    torch.manual_seed(0)
    model = Transformer().double()
    masks = all_but(
        model, attention__proj__weight=[(slice(None), slice(2, 4)), (slice(None), 7)]
    )  # head 1; half of head 3
    result = trains_the_same(model, masks, tokens())
    shapes = sizes(result)
    assert (shapes["attention.qkv.weight"], shapes["attention.proj.weight"]) == ((18, 8), (8, 6))
    assert result.model.attention.num_heads == 3 and model.attention.num_heads == 4
    rows = result.mapping["attention.qkv.weight"][1][0].tolist()
    assert rows == [row for part in (0, 8, 16) for row in range(part, part + 8) if row - part not in (2, 3)]


def test_a_head_stays_where_its_number_is_written_into_the_forward() -> None:
    class Written(Attention):
        def forward(self, x: Tensor) -> Tensor:
            n, length, _ = x.shape
            q, k, v = self.qkv(x).reshape(n, length, 3, 4, 2).permute(2, 0, 3, 1, 4).unbind(0)
            return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, length, 8))

    torch.manual_seed(0)
    model = Transformer()
    model.attention = Written(8, 4)
    model.double()
    masks = all_but(
        model, attention__proj__weight=[(slice(None), slice(2, 4))], down__weight=[(slice(None), slice(0, 6))]
    )
    result = trains_the_same(model, masks, tokens())
    assert sizes(result)["attention.qkv.weight"] == (24, 8) and sizes(result)["up.weight"] == (10, 8)
    assert result.model.attention.num_heads == 4
    (note,) = [note for note in result.notes if "attention.qkv stays as it is" in note]
    assert "its forward fails on smaller tensors (RuntimeError: shape" in note


def test_a_layer_gathers_what_it_reads_and_scatters_what_it_computes() -> None:
    torch.manual_seed(0)
    model = Transformer().double()
    masks = all_but(
        model,
        up__weight=[(slice(None), slice(0, 5))],  # reads three of the eight normalised units
        down__weight=[(slice(1, 5),)],  # adds to four of the stream's eight units
        attention__qkv__weight=[(slice(None), 0)],  # seven eighths of the weight would be left: no gain
    )
    result = trains_the_same(model, masks, tokens())
    shapes = sizes(result)
    assert (shapes["up.weight"], shapes["up.bias"]) == ((16, 3), (16,))
    assert (shapes["down.weight"], shapes["down.bias"], shapes["down.shift"]) == ((4, 16), (4,), (4,))
    assert shapes["attention.qkv.weight"] == (24, 8) and type(result.model.attention.qkv) is nn.Linear
    assert result.mapping["down.shift"][0] == "down.bias"
    assert [i.tolist() for i in result.mapping["down.shift"][1]] == [[1, 2, 3, 4]]
    assert isinstance(result.model.up, nn.Linear) and "reads=3, writes=all" in repr(result.model.up)
    again = pickle.loads(pickle.dumps(result.model))
    for a, b in zip(call(result.model, tokens()), call(again, tokens()), strict=True):
        assert torch.equal(a, b)
    assert sizes(compact(result.model, result.masks, example_inputs=tokens())) == shapes


@pytest.mark.parametrize(
    "check", [computes_and_learns_what_the_masked_one_does, computes_the_same_with_folded_constants]
)
def test_random_networks_are_made_smaller_in_place(
    check: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that torch.fx traces, as if it did not: residual blocks, gates, concatenations, groups, padded channels."""

    def refuse(*_: Any) -> None:
        raise ModelError("not traced")

    monkeypatch.setattr(compaction, "_rebuilt", refuse)
    over_networks(check, 30)


class Frozen(nn.Module):
    """A segmentation network: a ``train()`` of its own, skips that are concatenated, upsampling to another map's size."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.norm1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.down2, self.norm2 = nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8)
        self.up, self.head = nn.Conv2d(16, 8, 3, padding=1), nn.Conv2d(8, 2, 1)
        self.relu = nn.ReLU(inplace=True)

    def train(self, mode: bool = True) -> Frozen:
        super().train(mode)
        self.norm1.eval()
        return self

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        if x.shape[-1] % 2:
            raise ValueError("an even side is needed")
        skip = self.relu(self.norm1(self.down1(x)))
        deep = F.interpolate(F.relu(self.norm2(self.down2(skip))), size=skip.shape[-2:])
        return {"out": self.head(F.relu(self.up(torch.cat([skip, deep], dim=1))))}


def test_channels_go_on_both_sides_of_a_concatenation() -> None:
    torch.manual_seed(0)
    model = Frozen().double()
    masks = all_but(
        model,
        down1__weight=[(0,), (1,)],  # two channels have no input
        up__weight=[(slice(None), slice(13, 16)), (5,)],  # three of the deep channels no output, one of up's no input
        head__weight=[(slice(None), 5)],
    )
    result = trains_the_same(model, masks, (torch.randn(2, 3, 6, 6, dtype=torch.float64),))
    shapes = sizes(result)
    assert shapes["down1.weight"] == (6, 3, 3, 3) and shapes["norm1.weight"] == (6,)
    assert shapes["down2.weight"] == (5, 6, 3, 3) and shapes["up.weight"] == (7, 11, 3, 3)
    assert shapes["head.weight"] == (2, 7, 1, 1)
    assert not result.model.train().norm1.training and result.model.norm2.training
    assert result.model.norm1.num_features == 6 and result.input_shape == (3, 6, 6)


class Block(nn.Module):
    """Any forward between two layers, that torch.fx does not trace."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.run = run
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)
        self.scale = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x) if len(x) < 1000 and x.shape[0] else x


class Outside(torch.autograd.Function):
    """x + x.flip(1), computed where torch does not see it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.from_numpy(x.numpy() + x.numpy()[:, ::-1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad + grad.flip(1)


def written(net: Any, x: Tensor) -> Tensor:
    hidden = 1.0 * F.relu(net.first(x))
    hidden[:, 7] = hidden[:, 0] + 1.0
    return net.last(hidden)


def through_a_view(net: Any, x: Tensor) -> Tensor:
    hidden = 1.0 * F.relu(net.first(x))
    hidden.view(-1).add_(1.0)
    return net.last(hidden)


def spread(net: Any, x: Tensor) -> Tensor:
    hidden = F.relu(net.first(x))
    return net.last(hidden) + net.scale * hidden.sum() / hidden.shape[1]  # the scale is zero: gradients tell


#: forward -> the units that the tensor between has, of eight; two have no input, two others no output.
FORWARDS: dict[str, tuple[Callable[[Any, Tensor], Tensor], int]] = {
    "plain": (lambda net, x: net.last(F.relu(net.first(x))), 4),
    "functional": (lambda net, x: net.last(F.relu(F.linear(x, net.first.weight, net.first.bias))), 4),
    "read elsewhere": (lambda net, x: net.last(F.relu(net.first(x))) + net.first.weight.sum(), 8),
    "dtype alone": (lambda net, x: net.last(F.relu(net.first(x.to(net.first.weight.dtype)))), 4),
    "written into": (written, 8),
    "through a view": (through_a_view, 8),
    "autograd function": (lambda net, x: net.last(Outside.apply(F.relu(net.first(x)))), 8),
    "softmax": (lambda net, x: net.last(F.softmax(net.first(x), 1)), 8),
    "unknown, unit by unit": (lambda net, x: net.last(torch.erf(F.relu(net.first(x)))), 6),
    "shape in a zero branch": (spread, 8),
    "number by size": (lambda net, x: net.last(F.relu(net.first(x)) * (8 / F.relu(net.first.bias).numel())), 8),
    "written size": (lambda net, x: net.last(F.relu(net.first(x)).view(-1, 8)), 8),
    "halves": (lambda net, x: net.last(torch.cat(F.relu(net.first(x)).chunk(2, 1), 1)), 4),
    "permuted": (lambda net, x: net.last(F.relu(net.first(x)).t().contiguous().t()), 4),
}  # fmt: skip


@pytest.mark.parametrize("name", FORWARDS)
def test_what_a_forward_does_with_units_decides_on_them(name: str) -> None:
    torch.manual_seed(0)
    run, n_left = FORWARDS[name]
    model = Block(run).double()
    with torch.no_grad():
        model.first.bias[:] = -0.1
    masks = all_but(model, first__weight=[(0,), (1,)], last__weight=[(slice(None), 4), (slice(None), 5)])
    result = trains_the_same(model, masks, (torch.randn(6, 4, dtype=torch.float64),))
    first: Any = result.model.first
    assert getattr(first, "n_units", first.out_features) == n_left
    reads_weight = "first stays as it is: something else reads its weights" in result.notes
    assert sizes(result)["first.weight"] == (
        8 if reads_weight else {8: 6, 6: 4, 4: 4}[n_left],
        4,
    )  # none without an input
    assert n_left < 8 or any("stays as it is" in note or "reads all units" in note for note in result.notes[1:])


def test_what_training_draws_from_numpy_is_the_same_for_both() -> None:
    torch.manual_seed(0)
    model = Block(lambda net, x: net.last(F.relu(net.first(x))) * (np.random.rand() if net.training else 1.0))
    masks = all_but(model, last__weight=[(slice(None), 4), (slice(None), 5)])
    state = np.random.get_state()[1].tolist()
    assert sizes(compact(model, masks, (4,)))["first.weight"] == (6, 4)
    assert np.random.get_state()[1].tolist() == state


def test_a_network_on_keywords_is_written_and_made_again(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Transformer()
    examples = {key: value.float() for key, value in tokens().items()}
    masks = all_but(
        model, attention__proj__weight=[(slice(None), slice(2, 4))], down__weight=[(slice(None), slice(0, 6))]
    )
    result = compact(model, masks, example_inputs=examples)
    with torch.no_grad():
        for p in result.model.parameters():
            p.add_(0.1)
    save_compact(result, masks, tmp_path)
    again = load_compact(Transformer(), tmp_path, example_inputs=examples)
    assert again.model.attention.num_heads == 3
    for a, b in zip(call(result.model.eval(), examples), call(again.model.eval(), examples), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(MaskError, match="pass example_inputs="):
        load_compact(Transformer(), tmp_path)


def test_wrong_example_inputs_are_refused() -> None:
    model = Transformer()
    masks = all_but(model)
    with pytest.raises(ModelError, match="example_inputs has no tensor"):
        compact(model, masks, example_inputs={"values": 3})
    with pytest.raises(ModelError, match="does not run on these example_inputs"):
        compact(model, masks, example_inputs={"value": torch.randn(2, 5, 3)})
    with pytest.raises(MaskError, match="or example_inputs"):
        compact(model, masks)
