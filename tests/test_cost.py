"""Multiply-adds against formulas worked out by hand, whichever kernel this machine and this torch take."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from panning.compaction import kernels
from panning.compaction.cost import NOTHING, Cost, cost, multiply_adds
from panning.masks.masks import Masks

#: Four heads of five positions with eight features attend to themselves: scores, then a mean of values.
ATTENTION = 2 * 4 * 5 * 5 * 8


class Calls(nn.Module):
    """A function of the input and of a weight."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], *shape: int) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.ones(shape))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.weight)


def insisting(x: Tensor, weight: Tensor) -> Tensor:
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]):
        return F.scaled_dot_product_attention(x, x, x)


def attending(**options: object) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, _: F.scaled_dot_product_attention(x, x, x, **options)  # type: ignore[arg-type]


def few_keys(x: Tensor, weight: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(x, x[:, :2], x[:, :2], enable_gqa=True)


FUNCTIONS = {
    "attention": (attending(), (1,), (4, 5, 8), ATTENTION),
    "causal attention": (attending(is_causal=True), (1,), (4, 5, 8), ATTENTION),
    "masked attention": (attending(attn_mask=torch.zeros(5, 5)), (1,), (4, 5, 8), ATTENTION),
    "features that a kernel pads": (attending(), (1,), (4, 5, 3), 2 * 4 * 5 * 5 * 3),
    "grouped queries": (few_keys, (1,), (4, 5, 8), ATTENTION),
    "an insisted kernel": (insisting, (1,), (4, 5, 8), ATTENTION),
    "matrix, vector": (lambda x, w: w @ x[0], (3, 8), (8,), 3 * 8),
    "sum, matrix, vector": (lambda x, w: torch.addmv(torch.ones(3), w, x[0]), (3, 8), (8,), 3 * 8),
    "vector, vector": (lambda x, w: x[0] @ w, (8,), (8,), 8),
    "sum of products": (lambda x, w: torch.addbmm(torch.ones(3, 5), x[0], w), (2, 4, 5), (2, 3, 4), 2 * 3 * 4 * 5),
    "einsum": (lambda x, w: torch.einsum("bi,oij,bj->bo", x, w, x), (5, 3, 3), (3,), 5 * 3 * (3 + 1)),
    "bilinear": (lambda x, w: F.bilinear(x, x, w), (5, 3, 3), (3,), 5 * 3 * (3 + 1)),
    "Fourier transform": (lambda x, w: torch.fft.rfft(x * w), (8,), (8,), 0),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_multiply_adds_of_functions(name: str) -> None:
    function, weight, inputs, due = FUNCTIONS[name]
    assert multiply_adds(Calls(function, *weight), inputs, NOTHING).total == due


def weights_of(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.dim() > 1)


LAYERS = {
    "linear": (nn.Linear(8, 3), (5, 8), 5 * 8 * 3),
    "grouped": (nn.Conv2d(4, 6, 3, padding="same", groups=2), (4, 7, 7), 7 * 7 * 6 * 2 * 9),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (4, 7, 7), 7 * 7 * 4 * 3 * 9),
    "one dimension": (nn.Conv1d(4, 6, 3), (4, 7), 5 * 6 * 4 * 3),
    "three dimensions": (nn.Conv3d(4, 6, 3), (4, 7, 7, 7), 5**3 * 6 * 4 * 27),
    "encoder": (
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
        (5, 8),
        5 * 8 * (4 * 8 + 2 * 16) + 2 * 5 * 5 * 8,
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_multiply_adds_of_layers(name: str) -> None:
    layer, inputs, due = LAYERS[name]
    assert multiply_adds(layer, inputs, NOTHING).total == due


@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"num_layers": 2}, {"bias": False}], ids=str)
@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_a_recurrent_weight_is_used_once_a_step(kind: type[nn.RNNBase], options: dict[str, int]) -> None:
    layer = kind(8, 6, batch_first=True, **options)
    assert multiply_adds(layer, (5, 8), NOTHING).total == 5 * weights_of(layer)


def test_kernels_of_other_machines() -> None:
    """Shapes as they are passed there: five steps of eight features, six units, with biases."""
    of = {operation.__name__: formula for operation, formula in kernels.rows().items()}
    weights = [(24, 8), (24, 6), (24,), (24,)]
    due = 2 * 5 * 24 * (8 + 6)
    assert of["_cudnn_rnn"]((5, 1, 8), weights, 4, None, out_shape=()) == due
    assert of["miopen_rnn"]((5, 1, 8), weights, 4, out_shape=()) == due
    assert of["_lstm_mps"]((1, 5, 8), [(1, 1, 6), (1, 1, 6)], weights, out_shape=()) == due
    heads = (1, 4, 5, 8)
    assert of["_scaled_dot_product_attention_math_for_mps"](heads, heads, heads, None, out_shape=()) == 2 * ATTENTION


def test_this_torch_knows_every_kernel_of_the_table() -> None:
    """_grouped_mm is younger than the oldest torch. Another name that goes was renamed: find its row."""
    assert set(kernels.FORMULAS) - {operation.__name__ for operation in kernels.rows()} <= {"_grouped_mm"}


def test_the_cost_of_a_network_that_is_one_layer_and_of_attention() -> None:
    masks = Masks.from_tensors({"weight": torch.tensor([[1, 0, 0, 1], [1, 0, 0, 0]])})
    assert cost(nn.Linear(4, 2), (4,), masks) == Cost(10, 8, 3)
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    projections, others = 5 * 4 * 8 * 8, 5 * 2 * 8 * 16
    attention = 2 * 5 * 5 * 8
    nothing = Masks.from_tensors({name: torch.zeros_like(p) for name, p in encoder.named_parameters() if p.dim() > 1})
    found = cost(encoder, (5, 8), nothing)
    assert found.multiply_adds == projections + others + attention
    assert found.masked_multiply_adds == projections + attention
    assert torch.backends.mha.get_fastpath_enabled() and torch.backends.cuda.flash_sdp_enabled()
