"""Masks inside a model: torch's pruning form and a parametrization compute what the masked model computes."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from panning.export import as_parametrization, as_prune, bake, from_prune
from panning.foundation.errors import MaskError
from panning.masks.layout import prunable_layout
from panning.masks.masks import Masks, apply_masks

Form = Callable[[nn.Module, Masks], None]


class Attention(nn.Module):
    """Self-attention, with separate projections if the keys have another size."""

    def __init__(self, n_keys: int) -> None:
        super().__init__()
        self.n_keys = n_keys
        self.attention = nn.MultiheadAttention(6, 2, kdim=n_keys, vdim=n_keys, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        keys = x[..., : self.n_keys]
        return self.attention(x, keys, keys)[0]


class Tied(nn.Module):
    """The embedding is the classifier's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.classifier = nn.Linear(4, 5)
        self.classifier.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.embedding(x))


#: Of each kind a model and an input.
CASES: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "linear": lambda: (nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), torch.randn(5, 4)),
    "conv1d": lambda: (nn.Conv1d(2, 4, 3, groups=2), torch.randn(2, 2, 6)),
    "conv2d": lambda: (nn.Conv2d(2, 4, 3), torch.randn(2, 2, 6, 6)),
    "conv3d": lambda: (nn.Conv3d(2, 4, 2), torch.randn(2, 2, 3, 3, 3)),
    "transposed1d": lambda: (nn.ConvTranspose1d(2, 4, 3), torch.randn(2, 2, 6)),
    "transposed2d": lambda: (nn.ConvTranspose2d(4, 2, 3, groups=2), torch.randn(2, 4, 6, 6)),
    "transposed3d": lambda: (nn.ConvTranspose3d(2, 4, 2), torch.randn(2, 2, 3, 3, 3)),
    "attention": lambda: (Attention(6), torch.randn(2, 3, 6)),
    "attention, separate": lambda: (Attention(4), torch.randn(2, 3, 6)),
    "encoder": lambda: (nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True), torch.randn(2, 3, 6)),
    "embedding": lambda: (nn.Embedding(5, 3), torch.tensor([[0, 4, 2]])),
    "tied": lambda: (Tied(), torch.tensor([[0, 4, 2]])),
}
CASE = pytest.mark.parametrize("case", CASES)
FORM = pytest.mark.parametrize("form", [as_prune, as_parametrization])


def made(case: str) -> tuple[nn.Module, Tensor, Masks]:
    """A model, an input, and a mask that keeps two weights of three."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, inputs = CASES[case]()
    layout = prunable_layout(model, include=("*",))
    return model, inputs, Masks(layout, torch.arange(layout.n_prunable) % 3 != 1, {})


@CASE
@FORM
def test_a_form_computes_and_learns_as_the_masked_model(case: str, form: Form) -> None:
    """Two steps of SGD: a weight that was computed once and kept would show in the second."""
    model, inputs, masks = made(case)
    plain = copy.deepcopy(model)
    optimizers = [torch.optim.SGD(net.parameters(), 0.1) for net in (model, plain)]
    form(model, masks)
    for _ in range(2):
        apply_masks(plain, masks)
        for net, optimizer in zip((model, plain), optimizers, strict=True):
            optimizer.zero_grad()
            net(inputs).square().sum().backward()
            optimizer.step()
    apply_masks(plain, masks)
    for net in (model.eval(), plain.eval()):
        net.requires_grad_(False)  # attention in eval mode without gradients takes another path
    torch.testing.assert_close(model(inputs), plain(inputs))


@CASE
@FORM
def test_bake_gives_back_the_keys_with_zeros_at_masked_places(case: str, form: Form) -> None:
    model, inputs, masks = made(case)
    expected = copy.deepcopy(model)
    apply_masks(expected, masks)
    parameters = {id(parameter) for parameter in model.parameters()}
    form(model, masks)
    assert set(model.state_dict()) != set(expected.state_dict())
    bake(model)
    assert {id(parameter) for parameter in model.parameters()} == parameters
    state, wanted = model.state_dict(), expected.state_dict()
    assert set(state) == set(wanted)
    assert all(torch.equal(state[name], wanted[name]) for name in wanted)
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert [type(module) for module in model.modules()] == [type(module) for module in expected.modules()]
    torch.testing.assert_close(model(inputs), expected(inputs))


@CASE
def test_from_prune_reads_what_as_prune_made(case: str) -> None:
    model, inputs, masks = made(case)
    as_prune(model, masks)
    model(inputs)
    assert from_prune(model) == masks


def test_from_prune_reads_what_torch_pruned_twice() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    prune.random_unstructured(model[1], "bias", 1)
    prune.l1_unstructured(model[0], "weight", 4)
    prune.l1_unstructured(model[0], "weight", 4)
    masks = from_prune(model)
    assert {name: int(mask.sum()) for name, mask in masks.items()} == {"0.weight": 4, "1.bias": 1}


@FORM
def test_nan_and_signs_do_not_survive_bake(form: Form) -> None:
    layer = nn.Linear(3, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[float("nan"), -1.0, 2.0]]))
    form(layer, Masks.from_tensors({"weight": torch.tensor([[0, 0, 1]])}))
    bake(layer)
    assert layer.weight.tolist() == [[0.0, 0.0, 2.0]] and not layer.weight.signbit().any()


def test_the_masked_gradient_is_zero_even_of_nan() -> None:
    layer = nn.Linear(2, 1)
    as_parametrization(layer, Masks.from_tensors({"weight": torch.tensor([[0, 1]])}))
    layer(torch.tensor([[float("nan"), 1.0]])).backward()
    assert layer.parametrizations.weight.original.grad.tolist() == [[0.0, 1.0]]


def test_the_parametrization_is_in_no_state_dict_and_survives_a_deepcopy() -> None:
    model, inputs, masks = made("attention")
    as_parametrization(model, masks)
    assert not any(name.endswith("mask") for name in model.state_dict())
    output = model(inputs)
    assert torch.equal(copy.deepcopy(model)(inputs), output)
    assert model.half().attention.in_proj_weight.dtype == torch.float16


def test_the_parametrization_is_compiled_in_one_graph() -> None:
    model, inputs, masks = made("linear")
    as_parametrization(model, masks)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    outputs = [net(inputs) for net in (compiled, model)]
    torch.testing.assert_close(*outputs)
    gradients = [torch.autograd.grad(output.sum(), list(model.parameters())) for output in outputs]
    torch.testing.assert_close(*gradients)


@FORM
def test_a_mask_of_another_network_changes_nothing(form: Form) -> None:
    model, _, _ = made("linear")
    names = list(model.state_dict())
    with pytest.raises(MaskError, match="0.weight: .2, 2. in the mask, .3, 4. in the model"):
        form(model, Masks.from_tensors({"2.weight": torch.ones(2, 3), "0.weight": torch.ones(2, 2)}))
    assert list(model.state_dict()) == names


@FORM
def test_a_form_on_a_form_is_refused(form: Form) -> None:
    model, _, masks = made("linear")
    form(model, masks)
    with pytest.raises(MaskError, match="absent in the model"):
        form(model, masks)


def test_what_is_not_pruned_is_refused() -> None:
    with pytest.raises(MaskError, match="no parameter in the form"):
        from_prune(nn.Linear(2, 2))
    with pytest.raises(MaskError, match="no mask to bake"):
        bake(nn.Linear(2, 2))


def test_one_tensor_with_two_masks_is_refused() -> None:
    model, _, _ = made("tied")
    prune.custom_from_mask(model.embedding, "weight", torch.ones(5, 4))
    prune.custom_from_mask(model.classifier, "weight", torch.zeros(5, 4))
    with pytest.raises(MaskError, match="'embedding.weight' and 'classifier.weight' are one tensor with two masks"):
        from_prune(model)


def test_a_parametrization_of_somebody_else_stays() -> None:
    layer = nn.Linear(2, 2)
    as_parametrization(layer, Masks.from_tensors({"weight": torch.eye(2)}))
    parametrize.register_parametrization(layer, "weight", nn.Identity())
    with pytest.raises(MaskError, match="another parametrization"):
        bake(layer)
    assert parametrize.is_parametrized(layer, "weight")
