"""Networks: the table's contract, known sizes, initial weights, torchvision's names and the user's own factories."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from panning.foundation.errors import ModelError, UnknownNameError
from panning.masks.layout import prunable_layout
from panning.models import MODELS, build_model, check_model_fits, model_names
from panning.models.libraries import LIBRARIES

COLOUR, GREY, DIGIT = (3, 32, 32), (1, 28, 28), (1, 8, 8)


def build(name: str, shape: tuple[int, ...] | None = None, n_classes: int = 10, seed: int = 0) -> nn.Module:
    return build_model(name, input_shape=shape or MODELS[name].natural_shape, n_classes=n_classes, seed=seed)


def same_weights(left: nn.Module, right: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left.state_dict().values(), right.state_dict().values(), strict=True))


def prunable_calls(model: nn.Module, inputs: Tensor) -> list[str]:
    """Names of the prunable modules in the order a forward pass calls them."""
    calls: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.register_forward_hook(lambda _module, _inputs, _outputs, name=name: calls.append(name))
    with torch.no_grad():
        model.eval()(inputs)
    return calls


def test_the_table_is_not_empty() -> None:
    assert model_names() == list(MODELS)
    assert {"mlp", "lenet300_100", "lenet5", "resnet20", "resnet32", "resnet56", "resnet32x2"} <= set(MODELS)
    assert {"resnet18", "vgg16", "vgg19", "wrn28_2", "conv6"} <= set(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_contract(name: str) -> None:
    before = torch.get_rng_state()
    model = build(name, n_classes=7, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert same_weights(model, build(name, n_classes=7, seed=3))
    assert not same_weights(model, build(name, n_classes=7, seed=4))

    inputs = torch.randn(2, *MODELS[name].natural_shape, generator=torch.Generator().manual_seed(0))
    layers = [name.removesuffix(".weight") for name in prunable_layout(model).names]
    assert prunable_calls(model, inputs) == layers
    outputs = model(inputs)
    assert outputs.shape == (2, 7) and bool(outputs.isfinite().all())
    assert not any(part.isdigit() for layer in layers for part in layer.split("."))  # names are words
    assert not any(module.inplace for module in model.modules() if isinstance(module, nn.ReLU))


@pytest.mark.parametrize("name", MODELS)
def test_own_initialisation(name: str) -> None:
    for module in build(name).modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            fan_in = module.weight[0].numel()
            # 5 standard errors of the sample's deviation, var(s) ~ 1 / (2 n)
            margin = 5 / (2 * module.weight.numel()) ** 0.5
            assert module.weight.std().item() * (fan_in / 2) ** 0.5 == pytest.approx(1, abs=margin)
            assert module.bias is None or not module.bias.any()
        elif isinstance(module, nn.BatchNorm2d):
            assert bool((module.weight == 1).all()) and not module.bias.any()


@pytest.mark.parametrize(
    ("name", "shape", "n_prunable"),
    [
        ("mlp", DIGIT, 64 * 256 + 256 * 128 + 128 * 10),
        ("lenet300_100", GREY, 266_200),
        ("lenet5", GREY, 430_500),
        ("lenet5", (3, 32, 32), 1500 + 25_000 + 50 * 25 * 500 + 5000),
        ("lenet5", (1, 16, 20), 500 + 25_000 + 50 * 1 * 2 * 500 + 5000),
        # stem + stage 1 + (first block, others, shortcut) of stages 2 and 3 + classifier
        ("resnet20", COLOUR, 432 + 13_824 + (4608 + 46_080 + 512) + (18_432 + 184_320 + 2048) + 640),
        ("resnet18", COLOUR, 11_164_352),
        ("conv6", COLOUR, 1_144_512 + 4096 * 256 + 256 * 256 + 2560),
        ("conv6", (1, 8, 17), 1_144_512 - 1152 + 512 * 256 + 256 * 256 + 2560),
        # stem + first blocks with shortcuts, others + classifier
        ("wrn28_2", COLOUR, 432 + (14_336 + 55_296) + (57_344 + 221_184) + (229_376 + 884_736) + 1280),
        ("vgg16", COLOUR, 14_710_464 + 5120),
        ("vgg19", COLOUR, 20_018_880 + 5120),
    ],
)
def test_number_of_prunable_weights(name: str, shape: tuple[int, ...], n_prunable: int) -> None:
    model = build(name, shape)
    assert prunable_layout(model).n_prunable == n_prunable
    if name in ("lenet5", "conv6"):
        check_model_fits(model, shape, 10)


def test_depth_counts_the_weighted_layers() -> None:
    for name, depth in [
        ("resnet20", 20),
        ("resnet32", 32),
        ("resnet56", 56),
        ("vgg16", 14),
        ("vgg19", 17),
        ("wrn28_2", 26),
        ("conv6", 9),
    ]:
        layers = [layer for layer in prunable_layout(build(name)).names if "shortcut" not in layer]
        assert len(layers) == depth
    assert sum(p.numel() for p in build("wrn28_2").parameters()) == 1_467_610  # as in the literature
    narrow, wide = (prunable_layout(build(name)) for name in ("resnet32", "resnet32x2"))
    assert wide.names == narrow.names and wide.shapes[5][:2] == (32, 32)


@pytest.mark.parametrize("name", ["vgg16", "vgg19", "resnet20", "resnet18", "wrn28_2"])
@pytest.mark.parametrize("shape", [GREY, DIGIT, (3, 1, 1)])
def test_convolutional_networks_take_small_and_grey_images(name: str, shape: tuple[int, ...]) -> None:
    check_model_fits(build(name, shape, n_classes=4), shape, 4)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("lenet5", DIGIT, "at least 16x16, given 8x8"),
        ("lenet5", (1, 28, 15), "given 28x15"),
        ("conv6", (3, 7, 32), "at least 8x8, given 7x32"),
        ("resnet20", (64,), r"\(channels, height, width\), given \(64,\)"),
        ("mlp", (1, 0, 8), "positive"),
        ("mobilenet_v2", GREY, r"inputs \(1, 28, 28\): it needs images of 3 channels"),
        ("vit_b_32", (3, 30, 30), "cannot be built for inputs"),
        ("os:system", COLOUR, "local command line alone"),
    ],
)
def test_refused(name: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build(name, shape)


@pytest.mark.parametrize(
    ("name", "near"), [("resnet19", "resnet18"), ("mobilnet_v2", "mobilenet_v2"), ("torchvision:resnet5O", "resnet50")]
)
def test_unknown_names_suggest_the_nearest(name: str, near: str) -> None:
    with pytest.raises(UnknownNameError, match=f"Did you mean '{near}'.*lenet300_100"):
        build(name, COLOUR)


def test_torchvision_by_name() -> None:
    before = torch.get_rng_state()
    model = build("mobilenet_v2", COLOUR, n_classes=5)
    assert torch.equal(torch.get_rng_state(), before)
    assert same_weights(model, build("torchvision:mobilenet_v2", COLOUR, n_classes=5))
    check_model_fits(model, COLOUR, 5)
    # Where a name is ours too, the bare one is ours.
    assert "resnet18" in LIBRARIES["torchvision"].names()
    assert build("torchvision:resnet18", COLOUR).conv1.kernel_size == (7, 7)  # type: ignore[union-attr]
    assert build("resnet18", COLOUR).conv.kernel_size == (3, 3)  # type: ignore[union-attr]


def test_torchvision_models_with_auxiliary_heads_return_logits_without_a_warning() -> None:
    assert build("googlenet", COLOUR).train()(torch.zeros(2, *COLOUR)).shape == (2, 10)


MODULE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, input_shape, n_classes):
        super().__init__()
        self.linear = nn.Linear(input_shape[0] * input_shape[1] * input_shape[2], n_classes)
    def forward(self, inputs):
        return self.linear(inputs.flatten(1))

def keywords(**given): return Net(**given)
def fixed(): return Net((3, 32, 32), 10)
def partly(n_classes=10): return Net((3, 32, 32), n_classes)
def wrong_width(): return Net((3, 32, 32), 11)
def wrong_input(): return Net((3, 4, 4), 10)
def not_a_model(): return "net"
def raises(): raise OSError("no such checkpoint")
made = fixed()
number = 3
"""


@pytest.fixture
def own_nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_nets.py").write_text(MODULE)
    (tmp_path / "own_broken.py").write_text("def f(:\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "own_nets", raising=False)
    return "own_nets"


def imported(path: str, seed: int = 0, n_classes: int = 10) -> nn.Module:
    return build_model(path, input_shape=COLOUR, n_classes=n_classes, seed=seed, allow_import=True)


@pytest.mark.parametrize("factory", ["Net", "keywords", "fixed", "partly"])
def test_own_factory_from_the_current_directory(own_nets: str, factory: str) -> None:
    path_before, rng_before = list(sys.path), torch.get_rng_state()
    model = imported(f"{own_nets}:{factory}")
    assert sys.path == path_before and torch.equal(torch.get_rng_state(), rng_before)
    assert same_weights(model, imported(f"{own_nets}:{factory}"))
    assert not same_weights(model, imported(f"{own_nets}:{factory}", seed=1))


def test_own_factory_is_told_the_data(own_nets: str) -> None:
    assert imported(f"{own_nets}:Net", n_classes=3)(torch.zeros(1, *COLOUR)).shape == (1, 3)
    with pytest.raises(ModelError, match=r"gives \[2, 10\], but must give \[2, 3\]"):
        imported(f"{own_nets}:partly", n_classes=3)  # accepts one keyword of two, so it is called without


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("own_nets:wrong_width", r"gives \[2, 11\], but must give \[2, 10\]"),
        ("own_nets:wrong_input", r"fails on inputs of shape \(3, 32, 32\)"),
        ("own_nets:not_a_model", "returned str"),
        ("own_nets:raises", "OSError: no such checkpoint"),
        ("own_nets:made", "is Net, but must be a function or class"),
        ("own_nets:number", "is int, but must be a function or class"),
        ("own_nets:absent", "has no 'absent'; it has: Net, fixed, keywords"),
        ("own_broken:f", "SyntaxError"),
        ("own_absent:f", "ModuleNotFoundError.*current directory"),
        (":f", "cannot be imported"),
    ],
)
def test_own_factory_errors(own_nets: str, path: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        imported(path)


def test_own_factory_is_not_imported_unless_allowed(own_nets: str) -> None:
    with pytest.raises(ModelError, match="local command line alone"):
        build(f"{own_nets}:fixed", COLOUR)
    assert own_nets not in sys.modules


class Leaky(nn.Module):
    """Would change its buffers and draw random numbers if it were not checked with care."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.dropout = nn.Dropout()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.dropout(self.norm(inputs)) + torch.rand(4)


def test_check_leaves_the_model_and_the_random_state_alone() -> None:
    model = Leaky().train()
    model.dropout.eval()
    state, rng = {key: value.clone() for key, value in model.state_dict().items()}, torch.get_rng_state()
    check_model_fits(model, (4,), 4)
    with pytest.raises(ModelError):
        check_model_fits(model, (5,), 4)
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert (model.training, model.norm.training, model.dropout.training) == (True, True, False)


def test_check_refuses_what_is_not_a_tensor() -> None:
    class Pair(nn.Module):
        def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
            return inputs, inputs

    with pytest.raises(ModelError, match="gives tuple"):
        check_model_fits(Pair(), (4,), 4)
