"""What is private to torch, Ray and Stable-Baselines3: named in one file, and still there."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from panning.foundation import torch_private as private

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / "panning/foundation/torch_private.py"
FILES = {
    path: ast.parse(path.read_text()) for top in ("panning", "envs", "agents") for path in (ROOT / top).rglob("*.py")
}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name.isidentifier()


def defined(tree: ast.AST) -> Iterator[str]:
    """Functions, classes, variables and what is put on ``self``."""
    for node in ast.walk(tree):
        match node:
            case (
                ast.FunctionDef(name=name)
                | ast.AsyncFunctionDef(name=name)
                | ast.ClassDef(name=name)
                | ast.Name(id=name, ctx=ast.Store())
            ):
                yield name
            case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                yield name


def used(tree: ast.AST) -> Iterator[str]:
    """Private attributes, by a point or by ``getattr``, and imports with a private part."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(attr=name):
                yield from filter(is_private, [name])
            case ast.Call(
                func=ast.Name(id="getattr" | "hasattr" | "setattr"), args=[_, ast.Constant(value=str(name)), *_]
            ):
                yield from filter(is_private, [name])
            case ast.ImportFrom(module=str(module), names=names):
                yield from filter(is_private, [*module.split("."), *(alias.name for alias in names)])
            case ast.Import(names=names):
                yield from filter(is_private, [part for alias in names for part in alias.name.split(".")])


#: The marks that flows put on tensors are the package's own; pydantic's metaclass has a name for the type checker alone.
OURS = {name for tree in FILES.values() for name in defined(tree)} | {
    "_panning_gate", "_panning_weight", "_internal", "_model_construction",
}  # fmt: skip


def test_private_parts_of_libraries_are_used_in_one_file() -> None:
    found = {path.relative_to(ROOT).as_posix(): {*used(tree)} - OURS for path, tree in FILES.items() if path != HOME}
    assert not (strange := {path: names for path, names in found.items() if names}), strange
    assert {*used(FILES[HOME])} > {"_parameters", "_pytree", "_foreach_mul_", "_C"}  # the search finds them


def test_slots() -> None:
    layer = nn.BatchNorm1d(2, affine=False)
    layer.add_module("none", None)
    assert private.slots(layer).parameters == {"weight": None, "bias": None}
    assert list(private.slots(layer).buffers) == ["running_mean", "running_var", "num_batches_tracked"]
    assert private.slots(layer).modules == {"none": None}
    twin = private.slots_apart(layer)
    private.slots(twin).buffers["running_mean"] = torch.ones(2)
    assert layer.running_mean is not None and torch.equal(layer.running_mean, torch.zeros(2))
    assert twin.get_buffer("running_var") is layer.running_var and type(twin) is type(layer)


def test_hooks_of_modules() -> None:
    layer = nn.Linear(2, 2)
    prune.identity(layer, "weight")
    layer.register_forward_pre_hook(lambda module, inputs, named: None, with_kwargs=True)
    first, second = private.forward_pre_hooks(layer)
    assert isinstance(first, prune.BasePruningMethod) and private.pruned_by(first) == "weight"
    private.drop_forward_pre_hooks(layer, lambda hook: hook is second)
    assert private.forward_pre_hooks(layer) == [first] and private.has_hooks(layer)
    layer(torch.ones(1, 2))
    private.drop_forward_pre_hooks(layer, lambda hook: True)
    assert not private.has_hooks(layer)


@pytest.mark.parametrize("register", ["register_forward_hook", "register_full_backward_hook",
                                      "register_forward_pre_hook", "register_full_backward_pre_hook"])  # fmt: skip
def test_every_kind_of_hook_counts(register: str) -> None:
    layer = nn.Linear(2, 2)
    assert not private.has_hooks(layer)
    getattr(layer, register)(print)
    assert private.has_hooks(layer)


def test_hooks_of_gradients() -> None:
    parameter = nn.Parameter(torch.ones(2))
    assert private.gradient_hooks(parameter) == []
    parameter.register_hook(print)
    parameter.register_post_accumulate_grad_hook(repr)
    assert private.gradient_hooks(parameter) == [print, repr]


def test_packed_layers() -> None:
    with warnings.catch_warnings(action="ignore"):
        packed = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(2, 2)), {nn.Linear})
    (held,), (weight, bias) = private.packed_in(packed[0]), private.unpacked(packed[0]._packed_params._packed_params)
    assert held.dequantize().equal(weight) and bias is not None and private.packed_in(nn.Linear(2, 2)) == []


def test_tensors(tmp_path: Path) -> None:
    tensor = torch.zeros(3)
    before = private.n_writes(tensor)
    tensor.add_(1.0)
    assert private.n_writes(tensor) == before + 1
    assert private.viewed(tensor[:2]) is tensor and private.viewed(tensor) is None
    twice = torch.tensor([[0, 0]])  # so that it is not coalesced
    several = torch.sparse_coo_tensor(twice, torch.tensor([1.0, 2.0]), (3,), check_invariants=True)
    private.sparse_parts(several)[1].mul_(2.0)
    assert several.to_dense().tolist() == [6.0, 0.0, 0.0]
    private.copy_each([tensor], [torch.tensor([1.0, 2.0, 3.0])])
    private.multiply_each([tensor], [torch.tensor([0.0, 1.0, 1.0])])
    assert tensor.tolist() == [0.0, 2.0, 3.0]
    assert private.tree_leaves({"a": [tensor], "b": (1,)}) == [tensor, 1]
    assert private.tree_map(str, {"a": [2], "b": (1, None)}) == {"a": ["2"], "b": ("1", "None")}
    torch.save({"weight": tensor}, tmp_path / "file.pt")
    assert b"weight" in private.stored_record(tmp_path / "file.pt", "data.pkl")
