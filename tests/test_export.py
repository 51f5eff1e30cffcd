"""Exports: folders that a compact network is made from again, and the command that writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
import typer
from safetensors.torch import load_file, save_file
from toys import ResidualNet, flat_mask

import panning
from panning.cli import export as command
from panning.cli.mask import verify
from panning.export.folder import load_compact, save_compact
from panning.foundation.errors import ConfigError, MaskError, ModelError, OutputError, PanningError, UnknownNameError
from panning.masks.file import save_masks
from panning.masks.layout import prunable_layout
from panning.masks.masks import Masks
from panning.models import build_model

SHAPE = (2, 8, 8)


def pruned(seed: int = 0) -> tuple[ResidualNet, Masks]:
    """A network with biases and norms of its own and a mask that leaves some of its units without an input."""
    torch.manual_seed(seed)
    model = ResidualNet()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.normal_()
    layout = prunable_layout(model)
    return model, Masks(layout, flat_mask(layout, 0.05, seed), {"input_shape": list(SHAPE)})


def test_a_compact_network_comes_back_from_its_folder(tmp_path: Path) -> None:
    model, masks = pruned()
    result = panning.compact(model, masks)
    with torch.no_grad():
        for parameter in result.model.parameters():
            parameter.add_(0.1)  # as if trained: what is zero and stays zero may now be something else
    panning.save_compact(result, masks, tmp_path)
    other, _ = pruned(1)
    again = panning.load_compact(other, tmp_path)
    x = torch.randn(3, *SHAPE)
    assert torch.equal(again.model.eval()(x), result.model.eval()(x))
    assert again.masks == result.masks
    torch.testing.assert_close(again.expand().eval()(x), result.model(x))


def test_weights_are_a_plain_state_dict(tmp_path: Path) -> None:
    model, masks = pruned()
    result = panning.compact(model, masks)
    save_compact(result, masks, tmp_path)
    stored = load_file(tmp_path / "weights.safetensors")
    assert set(stored) == set(result.model.state_dict())
    assert sum(t.numel() for t in stored.values()) < sum(t.numel() for t in model.state_dict().values())


def test_folded_networks_are_not_written_as_folders(tmp_path: Path) -> None:
    model, masks = pruned()
    with pytest.raises(ModelError, match="as ONNX"):
        save_compact(panning.compact(model, masks, fold=True), masks, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_masks_must_be_those_it_was_made_by(tmp_path: Path) -> None:
    model, masks = pruned()
    result = panning.compact(model, masks)
    others = Masks(masks.layout, masks.flat | flat_mask(masks.layout, 0.05, 9), masks.manifest)
    fewer = Masks(masks.layout, masks.flat & flat_mask(masks.layout, 0.5, 9), masks.manifest)
    part = Masks.from_tensors({name: mask for name, mask in masks.items() if name != "stem.weight"}, masks.manifest)
    assert result.masks is not None
    for wrong, message in ((result.masks, "another network"), (others, "other masks"), (fewer, "other masks"),
                           (part, "other masks")):  # fmt: skip
        with pytest.raises(MaskError, match=message):
            save_compact(result, wrong, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("shape", ["[2, 100000, 100000]", "[2, 8.0, 8]", "[]", "{}", "[2, -8, 8]"])
def test_an_input_shape_that_fills_the_memory_is_refused(tmp_path: Path, shape: str) -> None:
    model, masks = pruned()
    save_compact(panning.compact(model, masks), masks, tmp_path)
    save_file(load_file(tmp_path / "vectors.safetensors"), tmp_path / "vectors.safetensors", {"input_shape": shape})
    with pytest.raises(MaskError, match="holds no compact form .*: its input shape"):
        load_compact(model, tmp_path)


@pytest.mark.parametrize("name", ["mask.safetensors", "vectors.safetensors", "weights.safetensors"])
@pytest.mark.parametrize("harm", ["gone", "cut", "other"])
def test_a_broken_folder_is_refused(tmp_path: Path, name: str, harm: str) -> None:
    model, masks = pruned()
    save_compact(panning.compact(model, masks), masks, tmp_path)
    path = tmp_path / name
    if harm == "gone":
        path.unlink()
    elif harm == "cut":
        path.write_bytes(path.read_bytes()[:-3])
    else:
        save_file({"stem.weight": torch.zeros(3)}, path, {"input_shape": "[2, 8, 8]"})
    with pytest.raises(PanningError):
        load_compact(model, tmp_path)


def test_a_folder_of_another_network_is_refused(tmp_path: Path) -> None:
    model, masks = pruned()
    save_compact(panning.compact(model, masks), masks, tmp_path)
    with pytest.raises(MaskError):
        load_compact(ResidualNet(width=6), tmp_path)


def run(*arguments: str) -> None:
    app = typer.Typer()
    app.add_typer(command.app)
    app.command("other")(lambda: None)  # with one command alone, typer takes its name for an argument
    app(args=["export", *arguments], standalone_mode=False)


@pytest.fixture
def mask_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A mask of the MLP that keeps four units of the first layer."""
    monkeypatch.chdir(tmp_path)
    layout = prunable_layout(build_model("mlp", input_shape=(1, 8, 8), n_classes=10, seed=3))
    masks = {name: torch.ones(shape, dtype=torch.bool) for name, shape in zip(layout.names, layout.shapes, strict=True)}
    masks[layout.names[0]][4:] = False
    facts: dict[str, Any] = {"input_shape": [1, 8, 8], "n_classes": 10, "seed": 3}
    save_masks(Masks.from_tensors(masks, facts), "mask.safetensors")
    return Path("mask.safetensors")


def test_a_mask_is_exported_compact_with_a_report(mask_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(str(mask_file), "--model", "mlp", "--report", "--batch-size", "4", "--out", "small", "--json")
    facts = json.loads(capsys.readouterr().out)
    dense, small = facts["dense"], facts["compact"]
    assert dense["multiply_adds"] - small["multiply_adds"] == 252 * (64 + 128)
    assert dense["masked_multiply_adds"] == dense["multiply_adds"] - 252 * 64
    assert dense["weight_bytes"] == 4 * dense["n_parameters"] and small["weight_bytes"] == 4 * small["n_parameters"]
    assert all(form[key] > 0 for form in (dense, small) for key in ("step_ms", "inference_ms"))
    assert json.loads(Path("small/report.json").read_text()) == {k: v for k, v in facts.items() if k != "folder"}
    small_model = load_compact(build_model("mlp", input_shape=(1, 8, 8), n_classes=10, seed=3), "small").model
    assert small_model.hidden.linear1.out_features == 4


def test_given_weights_are_exported(mask_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained = build_model("mlp", input_shape=(1, 8, 8), n_classes=10, seed=8)
    save_file(trained.state_dict(), "trained.safetensors")
    run(str(mask_file), "--model", "mlp", "--weights", "trained.safetensors", "--format", "masked", "--out", "zeros")
    stored = load_file("zeros/weights.safetensors")
    assert torch.equal(stored["hidden.linear1.weight"][:4], trained.hidden.linear1.weight[:4])
    assert not stored["hidden.linear1.weight"][4:].any()
    shown = capsys.readouterr().out
    assert "multiply-adds" in shown and "Timed" not in shown


def test_onnx_runs(mask_file: Path) -> None:
    run(str(mask_file), "--model", "mlp", "--format", "onnx", "--fold", "--out", "o")
    session = onnxruntime.InferenceSession(Path("o/network.onnx").read_bytes(), providers=["CPUExecutionProvider"])
    model = build_model("mlp", input_shape=(1, 8, 8), n_classes=10, seed=3)
    panning.apply_masks(model, panning.load_masks(mask_file))
    x = torch.randn(5, 1, 8, 8)
    (found,) = session.run(None, {"inputs": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["--format", "onyx"], UnknownNameError, "Did you mean 'onnx'"),
        (["--fold"], typer.BadParameter, "goes with --format onnx"),
        (["--weights", "absent.safetensors"], ModelError, "No weights can be read from absent.safetensors"),
        (["--weights", "mask.safetensors"], ModelError, "weights in mask.safetensors do not fit this network"),
        (["--model", "lenet300_100"], MaskError, "another network"),
    ],
)
def test_wrong_arguments_are_refused_and_nothing_is_written(
    mask_file: Path, arguments: list[str], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        run(str(mask_file), "--model", "mlp", *arguments)
    assert sorted(path.name for path in Path().iterdir()) == ["mask.safetensors"]


def test_one_export_does_not_replace_another(mask_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(str(mask_file), "--model", "mlp")
    run(str(mask_file), "--model", "mlp")  # again into its own folder
    masks = panning.load_masks(mask_file)
    fewer = {name: mask.clone() for name, mask in masks.items()}
    fewer["hidden.linear1.weight"][0] = False
    save_masks(Masks.from_tensors(fewer, masks.manifest), "fewer.safetensors")
    run("fewer.safetensors", "--model", "mlp")
    save_file(build_model("mlp", input_shape=(1, 8, 8), n_classes=10, seed=8).state_dict(), "trained.safetensors")
    run(str(mask_file), "--model", "mlp", "--weights", "trained.safetensors")
    folders = sorted(Path("runs").iterdir())
    assert len(folders) == 3 and len({(folder / "weights.safetensors").read_bytes() for folder in folders}) == 3
    with pytest.raises(ConfigError, match="holds another run"):
        run(str(mask_file), "--model", "mlp", "--format", "masked", "--out", str(folders[0]))
    Path("else").mkdir()
    Path("else/run.json").write_text('{"seed": 0}')
    with monkeypatch.context() as patched:
        patched.setattr("panning.compaction.compact", lambda *_, **__: pytest.fail("it compacted"))
        with pytest.raises(ConfigError, match="else holds the run of another command"):
            run(str(mask_file), "--model", "mlp", "--out", "else")
    model = build_model("mlp", input_shape=(1, 8, 8), n_classes=10, seed=3)
    save_compact(panning.compact(model, masks), masks, "own")
    before = Path("own/weights.safetensors").read_bytes()
    with pytest.raises(OutputError, match="own holds mask.safetensors that panning export did not write"):
        run(str(mask_file), "--model", "mlp", "--format", "masked", "--out", "own")
    assert Path("own/weights.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"n_classes": 10**15}, "another network"),
        ({"input_shape": [1, 2**20, 2**20]}, "more than 16777216 values"),
        ({"input_shape": [1, "8", 8]}, "positive integers"),
    ],
)
def test_a_mask_file_that_asks_for_a_network_larger_than_memory(
    mask_file: Path, facts: dict[str, Any], message: str
) -> None:
    save_masks(panning.load_masks(mask_file).with_manifest(**facts), "hostile.safetensors")
    with pytest.raises(MaskError, match=message):
        run("hostile.safetensors", "--model", "mlp")
    with pytest.raises(MaskError, match=message):
        verify(Path("hostile.safetensors"), model="mlp", input_shape=None, classes=None)
