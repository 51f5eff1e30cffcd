"""Networks as files without their code: the same outputs, masks and learning; nothing of a file is run or believed."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from console import run
from safetensors import safe_open
from torch import Tensor, nn

import panning
from panning.foundation.errors import ModelError
from panning.foundation.seeding import isolated_torch_rng
from panning.foundation.tensorfile import packed
from panning.models import MODELS, build_model
from panning.models.graph_network import KEY, GraphNetwork

CHEAP = ("mlp", "lenet300_100", "lenet5", "resnet20", "wrn28_2", "conv6")


def there_and_back(model: nn.Module, inputs: Any, path: Path) -> GraphNetwork:
    panning.save_network(model, path, inputs)
    return panning.load_network(path)


def batch_for(shape: tuple[int, ...], n: int = 4) -> tuple[Tensor, Tensor]:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(0)), torch.arange(n)


@pytest.mark.parametrize("name", CHEAP)
def test_every_model_comes_back_with_its_outputs_names_and_masks(name: str, tmp_path: Path) -> None:
    shape = MODELS[name].natural_shape
    model = build_model(name, input_shape=shape, n_classes=10, seed=1)
    x, y = batch_for(shape)
    again = there_and_back(model, x, tmp_path / "n.safetensors")
    assert list(again.state_dict()) == list(model.state_dict()) and again.input_shape == shape
    for one in (model, again):
        one.eval()
    assert torch.equal(again(x), model(x))
    masks = [panning.prune(one, (x, y), density=0.2, method="snip", all_alive=True) for one in (model, again)]
    assert list(masks[0]) == list(masks[1]) and torch.equal(masks[0].flat, masks[1].flat)


def test_a_compact_network_learns_the_same_without_the_code_of_the_original(tmp_path: Path) -> None:
    model = build_model("resnet20", input_shape=(3, 16, 16), n_classes=10, seed=0)
    x, y = batch_for((3, 16, 16), 8)
    small = panning.compact(model, panning.prune(model, density=0.02, input_shape=(3, 16, 16)))
    assert small.masks is not None
    again = there_and_back(small.model, x, tmp_path / "n.safetensors")
    kinds = {type(part).__name__ for part in again.modules()}
    assert {"Gather", "PartialSum"} & kinds and not {"ResNet", "GraphModule"} & kinds
    losses = []
    for network in (small.model, again):
        optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
        panning.enforce_masks(network, small.masks, optimizer)
        for _ in range(3):
            optimizer.zero_grad()
            loss = F.cross_entropy(network.train()(x), y)
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[0] == losses[1]
    assert all(
        torch.equal(a, b) for a, b in zip(small.model.state_dict().values(), again.state_dict().values(), strict=True)
    )


class Several(nn.Module):
    """Two inputs, loose, shared and frozen parameters, buffers of both kinds, a functional dropout, a nest of outputs."""

    table: Tensor
    passing: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([[1.5]]))
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 6)
        self.second.weight = nn.Parameter(torch.randn(6, 8))
        self.shared = nn.Linear(8, 6)
        self.shared.weight = self.second.weight
        self.unused = nn.Linear(2, 2)
        self.first.bias.requires_grad_(False)
        self.register_buffer("table", torch.randn(8))
        self.register_buffer("passing", torch.randn(8), persistent=False)

    def forward(self, x: Tensor, other: Tensor) -> dict[str, Any]:
        hidden = (
            F.dropout(F.relu(self.first(x), inplace=True), 0.5, self.training) * self.scale + self.table + self.passing
        )
        parts = hidden.view(hidden.size(0), -1)[:, :8].chunk(2, dim=1)
        hidden = torch.cat([parts[0], parts[1]], dim=-1)
        return {"a": self.second(hidden) + other, "b": (self.shared(hidden).mean(dim=-1, keepdim=True), None)}


def test_inputs_ties_buffers_and_modes_come_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, inputs = Several(), (torch.randn(3, 6), torch.randn(3, 6))
    again = there_and_back(model, inputs, tmp_path / "n.safetensors")
    assert again.second.weight is again.shared.weight  # type: ignore[union-attr]
    assert list(again.state_dict()) == list(model.state_dict()) and "passing" not in again.state_dict()
    assert [n for n, p in again.named_parameters() if not p.requires_grad] == ["first.bias"]
    for mode in (True, False):
        results = []
        for network in (model.train(mode), again.train(mode)):
            with isolated_torch_rng(5):
                results.append(network(*inputs))
        assert torch.equal(results[0]["a"], results[1]["a"]) and results[1]["b"][1] is None
        assert torch.equal(results[0]["b"][0], results[1]["b"][0])
    assert torch.equal(again(other=inputs[1], x=inputs[0])["a"], model(*inputs)["a"])
    with pytest.raises(ModelError, match="takes 2 inputs, by place or name: x, other"):
        again(inputs[0])


class Scaled(nn.Module):
    """Loose tensors in a module of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def test_loose_parameters_keep_their_places_among_those_of_layers(tmp_path: Path) -> None:
    model = nn.Sequential(Scaled(), nn.Linear(4, 4), nn.Sequential(Scaled(), nn.Linear(4, 2)))
    again = there_and_back(model, torch.ones(2, 4), tmp_path / "n.safetensors")
    names = [name for name, _ in again.named_parameters()]
    assert names == [name for name, _ in model.named_parameters()] and names[0] == "0.scale"


def test_a_sequence_that_a_recurrent_layer_would_never_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "n.safetensors"
    panning.save_network(nn.Sequential(nn.LSTM(3, 4)), path, torch.ones(5, 2, 3))
    again = panning.load_network(path)
    with safe_open(path, "pt") as file:
        graph = json.loads(file.metadata()[KEY])
    graph["inputs"][0]["shape"] = [2**30, 0, 3]
    path.write_bytes(packed(again.state_dict(), {KEY: json.dumps(graph)}))
    with pytest.raises(ModelError, match="makes 1073741824 tensors, more than 65536"):
        panning.load_network(path)


class Hooked(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(4, 4))
        self[0].register_forward_hook(lambda module, args, output: output)


class Sorted(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sort(x)[0]


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("model", "inputs", "said"),
    [
        (Hooked(), torch.ones(2, 4), "'0' is not looked into: it has hooks"),
        (Sorted(), torch.ones(2, 4), "forward calls .*sort, which is not in the table"),
        (Branches(), torch.ones(2, 4), "torch.fx cannot trace the forward of Branches"),
        (nn.Sequential(nn.Linear(4, 2)), [1, 2], "example_inputs must be a tensor or a tuple of tensors, given list"),
    ],
)
def test_what_no_file_can_hold_is_refused_with_its_reason(
    model: nn.Module, inputs: Any, said: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=said):
        panning.save_network(model, tmp_path / "n.safetensors", inputs)
    assert not list(tmp_path.iterdir())


# --- files from elsewhere ---


def changed_file(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The file of a small network with another graph."""
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    panning.save_network(model, path, torch.ones(2, 1, 4, 4))
    with safe_open(path, "pt") as file:
        graph = json.loads(file.metadata()[KEY])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(graph)
    path.write_bytes(packed(tensors, {KEY: json.dumps(graph)}))
    return path


def step(op: str, target: str, *args: Any) -> Callable[[dict[str, Any]], None]:
    """Put a step at the end, whose result is the output."""

    def change(graph: dict[str, Any]) -> None:
        graph["nodes"].append({"op": op, "target": target, "args": list(args)})
        graph["output"] = {"node": len(graph["nodes"])}

    return change


def layer(name: str, kind: str, **fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda graph: graph["layers"].update({name: {"kind": kind, "fields": fields}})


def steps(*changes: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
    return lambda graph: [change(graph) for change in changes] and None


def doubled(name: str, *args: Callable[[Any], Any]) -> Callable[[dict[str, Any]], None]:
    """40 steps, each of which gives the result before it twice in a list."""
    return steps(*(step("function", name, *(arg({"node": 4 + n}) for arg in args)) for n in range(40)))


def on_the_processor(graph: dict[str, Any]) -> None:
    graph["nodes"].append({"op": "function", "target": "torch.zeros", "args": [2], "kwargs": {"device": "cpu"}})


def held(graph: dict[str, Any]) -> None:
    steps(*[step("function", "torch.zeros", [2**30])] * 17)(graph)
    graph["output"] = [{"node": 5 + n} for n in range(17)]


LAST = {"node": 4}
NOTHING = step("function", "torch.zeros", [2**33, 0])
SQUARE = step("function", "torch.zeros", [3000, 3000])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (step("function", "os.system", "true"), "step 5 .*'os.system'.*not in the table"),
        (step("method", "__class__", LAST), "this method is not in the table"),
        (step("function", "getattr", LAST, "__class__"), "the attribute '__class__'"),
        (step("layer", "_modules", LAST), "there is no such layer"),
        (step("function", "torch.relu", {"node": 9}), "node 9 does not come before"),
        (step("function", "torch.zeros", [10**6, 10**6]), "makes 1000000000000 numbers"),
        (step("method", "repeat", LAST, 2**30, 2**30), "does not run|numbers, more than"),
        (step("function", "operator.mul", [1, 2], 10**9), "does not run on its inputs: ValueError: mul of list and int"),
        (step("function", "operator.pow", 10, 10**9), "a power of 1000000000"),
        (step("function", "operator.add", 10**13, 1), "is no size or index"),
        (step("function", "torch.relu", {"path": "x"}), "no argument of a network"),
        (layer("4", "Linear", in_features=4, out_features=2), "do not belong together: 4.bias, 4.weight"),
        (layer("4", "Module"), "'Module', which is not in the table"),
        (layer("4", "LSTM", input_size=1, hidden_size=1, num_layers=10**9), "layers in one, not 1 to 100"),
        (layer("3", "Linear", in_features=2**38, out_features=3), "'3.weight' is .3, 16., but its layer says"),
        (layer("forward", "ReLU"), "a layer cannot be called 'forward'"),
        (layer("../up", "ReLU"), "layers"),
        (lambda graph: graph.update(version=2), "version"),
        (lambda graph: graph.update(code="import os"), "code"),
        (lambda graph: graph.update(output={"node": 99}), "its output: node 99"),
        (lambda graph: graph["nodes"][0].update(args=[[[[[[[[[[1]]]]]]]]]]), "nested too deeply"),
        (lambda graph: graph["inputs"][0].update(shape=[2**39, 2**39, 4, 4]), "overflowed|does not run"),
        (lambda graph: graph["tied"].update({"0.bias": "9.bias"}), "cannot share|belong together"),
        (lambda graph: (graph["loose"].update(b={"role": "buffer"}), graph["tied"].update(b="3.bias")), "cannot share"),
        (step("tensor", "forward.__globals__"), "there is no such parameter or buffer"),
        (step("tensor", "3"), "there is no such parameter or buffer"),
        (layer("9", "Linear", in_features=2, out_features=2, device="cpu"), "the field 'device'"),
        (layer("9", "MultiheadAttention", embed_dim=2, num_heads=1, device="cpu"), "the field 'device'"),
        (layer("9", "Embedding", num_embeddings=1, embedding_dim=1, _weight=[1]), "the field '_weight'"),
        (layer("9", "ByMode", function="operator.mul", positions=[0], keywords=[]), "mul follows the mode"),
        (on_the_processor, "the device 'cpu' has a name"),
        (doubled("operator.getitem", lambda node: [[node, node]], lambda node: 0), "gives more than 4096 values"),
        (doubled("operator.add", lambda node: [node], lambda node: [node]), "gives more than 4096 values"),
        (steps(NOTHING, step("method", "unbind", {"node": 5})), "makes 8589934592 tensors"),
        (steps(NOTHING, step("method", "split", {"node": 5}, 1)), "makes 8589934592 tensors"),
        (step("function", "torch.tensor_split", LAST, 2**33), "8589934592 pieces of a tensor"),
        (steps(SQUARE, step("function", "torch.einsum", "ij,kl,ik,jl->", *[{"node": 5}] * 4)), "81000000000000 numbers"),
        (held, "hold .* bytes at once"),
    ],
)  # fmt: skip
def test_files_that_ask_for_what_they_must_not_are_refused(
    change: Callable[[dict[str, Any]], None], said: str, tmp_path: Path
) -> None:
    path = changed_file(tmp_path / "n.safetensors", change)
    with pytest.raises(ModelError, match=said) as error:
        panning.load_network(path)
    assert str(error.value).startswith(f"{path} is no network file that can be read: ")


def test_a_graph_that_is_changed_anywhere_is_read_or_refused(tmp_path: Path) -> None:
    draw, n_refused = random.Random(0), 0
    values = [None, -1, 0, 3, 2**39, 1e300, "x", "0", [], {}, {"node": 1}, {"tuple": []}, {"slice": [1, 2]}, True]

    def change(graph: dict[str, Any]) -> None:
        place: Any = graph
        while isinstance(place, dict | list) and len(place):
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            key = draw.choice(keys)
            if draw.random() < 0.3 or not isinstance(place[key], dict | list) or not len(place[key]):
                place[key] = draw.choice(values)
                return
            place = place[key]

    for _ in range(60):
        path = changed_file(tmp_path / "n.safetensors", change)
        try:
            panning.load_network(path)
        except ModelError:
            n_refused += 1
    assert 30 <= n_refused < 60


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", packed({"x": torch.ones(1)}), packed({}, {KEY: "[1"})])
def test_files_of_another_kind_are_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "n.safetensors").write_bytes(data)
    with pytest.raises(ModelError, match="is no network file that can be read"):
        panning.load_network(tmp_path / "n.safetensors")


# --- the command line ---


def test_a_file_stands_for_a_model_and_a_mask_exports_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = build_model("mlp", input_shape=(1, 8, 8), n_classes=10, seed=0)
    panning.save_network(model, "mlp.safetensors", torch.ones(2, 1, 8, 8))

    named = ("--model", "network:mlp.safetensors")
    assert run("prune", *named, "--data", "digits", "--density", "0.05", "--method", "synflow", "--out", "m") == 0
    assert run("export", "m/mask.safetensors", *named, "--format", "network", "--out", "small") == 0
    small = panning.load_network("small/network.safetensors")
    masks = panning.load_masks("m/mask.safetensors")
    expected = panning.compact(model, masks).model
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(small.eval()(x), expected.eval()(x))
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters()) / 2
