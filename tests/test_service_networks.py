"""Jobs on networks and data that were sent: the same masks as the local commands leave on the same files, and what the check
process sees in files of each kind."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_service_runs import CONFIGS, TASK
from torch import nn

import panning
from panning.cli import main
from panning.foundation.errors import ConfigError
from panning.models import MODELS, build_model
from panning.service.checker import Checker
from panning.service.checks import FILE_BYTES
from panning.service.folder import JobFolder, Order, Outcome
from panning.service.runner import Stop, run_job

SHA256 = {"model": "a" * 64, "data": "b" * 64}
NAMED = {field: f"upload:{sha256}" for field, sha256 in SHA256.items()}


def write_npz(path: Path, side: int = 8, channels: int = 1, n: int = 60) -> Path:
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for part in ("train", "test"):
        arrays[f"{part}_images"] = rng.integers(0, 256, (n, side, side, channels)[: 4 if channels > 1 else 3], np.uint8)
        arrays[f"{part}_labels"] = np.arange(n) % 3
    np.savez(path, **arrays)
    return path


class Mine(nn.Module):
    """No network of the package."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 20), nn.Linear(20, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x.flatten(1)).relu())  # type: ignore[no-any-return]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """A network and data, by their hashes."""
    torch.manual_seed(0)
    panning.save_network(Mine(), tmp_path / "sent.safetensors", torch.ones(2, 1, 8, 8))
    data = write_npz(tmp_path / "scans.npz")
    return {SHA256["model"]: str(tmp_path / "sent.safetensors"), SHA256["data"]: str(data)}


def ran(path: Path, config: dict[str, Any], **more: Any) -> JobFolder:
    folder = JobFolder(path)
    folder.give(Order(config, 1, **more))
    assert run_job(folder, Stop(folder)) == Outcome("succeeded")
    return folder


def config(**more: Any) -> dict[str, Any]:
    return {"kind": "prune", "density": 0.1, "method": "snip", "seed": 1, **more}


def test_a_mask_for_files_that_were_sent_is_that_of_the_local_command(files: dict[str, str], tmp_path: Path) -> None:
    task = {**NAMED, "label": "scans"}
    folder = ran(tmp_path / "1", config(task=task), files=files)
    network, data = (files[SHA256[field]] for field in ("model", "data"))
    local = ["prune", "--model", f"network:{network}", "--data", f"npz:{data}", "--density", "0.1", "--method", "snip"]
    with pytest.raises(SystemExit, match="0"):
        main([*local, "--seed", "1", "--out", str(tmp_path / "local")])
    mask = (folder.run / "mask.safetensors").read_bytes()
    assert mask == (tmp_path / "local" / "mask.safetensors").read_bytes()
    manifest = panning.load_masks(folder.run / "mask.safetensors").manifest
    assert manifest["model"].startswith("own:Mine-") and manifest["data"] == "scans"


def test_a_training_takes_the_mask_and_the_weights_that_were_sent(files: dict[str, str], tmp_path: Path) -> None:
    pruned = ran(tmp_path / "1", config(task=NAMED), files=files)
    mask = str(pruned.run / "mask.safetensors")
    manifest = panning.load_masks(mask).manifest
    assert manifest["data"] == "upload bbbbbbbb", "without a label of its own"
    train = {"kind": "train", "task": NAMED, "recipe": {"epochs": 1, "batch_size": 20}, "mask": "upload:" + "c" * 64}
    trained = ran(tmp_path / "2", train, files={**files, "c" * 64: mask})
    assert (trained.run / "model.safetensors").is_file()


@pytest.mark.parametrize("kind", ["prune", "train", "bench", "train-agent"])
def test_what_a_job_leaves_names_no_place_of_the_service(
    kind: str, files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PANNING_DATA", "before")
    given = {**CONFIGS[kind]}
    files["c" * 64] = str(tmp_path / "mask")
    if kind == "train":
        pruned = ran(tmp_path / "pruned", config(task=NAMED), files=files)
        (tmp_path / "mask").write_bytes((pruned.run / "mask.safetensors").read_bytes())
        given["mask"] = "upload:" + "c" * 64
    task = json.dumps(CONFIGS[kind]).replace(json.dumps(TASK), json.dumps(NAMED))
    folder = ran(tmp_path / "1", {**given, **json.loads(task)}, files=files, data_root=str(tmp_path))
    left = {path: path.read_bytes() for path in folder.run.rglob("*") if path.is_file()}
    assert [path for path, content in left.items() if str(tmp_path).encode() in content] == []
    named = (folder.run / "config.yaml").read_text()
    assert NAMED["data"] in named and (kind != "train" or f"mask: upload:{'c' * 64}" in named)


def test_a_data_set_that_the_operator_named_is_one_by_its_name(files: dict[str, str], tmp_path: Path) -> None:
    named = {"scans": f"npz:{files[SHA256['data']]}"}
    task = {"model": "mlp", "data": "scans"}
    folder = ran(tmp_path / "1", config(task=task), data_sets=named)
    assert panning.load_masks(folder.run / "mask.safetensors").manifest["data"] == "scans"


def test_a_file_that_is_gone_ends_the_job_with_a_sentence(files: dict[str, str], tmp_path: Path) -> None:
    Path(files[SHA256["model"]]).unlink()
    folder = JobFolder(tmp_path / "1")
    folder.give(Order(config(task=NAMED), 1, files=files))
    outcome = run_job(folder, Stop(folder))
    assert (outcome.state, outcome.code) == ("failed", "config") and "send it again" in outcome.message


def test_the_check_process_looks_at_configs_that_name_files(files: dict[str, str]) -> None:
    checker = Checker(None)
    asked = {"what": "cost", "config": config(task=NAMED), "files": files}
    assert checker.answer(asked)["found"]["n_parameters"] == 64 * 20 + 20 + 60 + 3
    assert checker.answer({**asked, "what": "config"}) == {"found": None}
    wrong = checker.answer({**asked, "config": config(task={**NAMED, "data": "digits"})})["refused"]
    assert "must give [2, 10]: one logit a class" in wrong
    assert "is not there any more" in checker.answer({**asked, "files": {}})["refused"]


def looked(path: Path, kind: str) -> dict[str, Any]:
    return Checker(None).answer(
        {"what": "file", "config": {"kind": kind, "path": str(path)}, "memory_bytes": FILE_BYTES}
    )


def test_files_of_each_kind_are_looked_at(files: dict[str, str], tmp_path: Path) -> None:
    network, data = (Path(files[SHA256[field]]) for field in ("model", "data"))
    masks = panning.Masks.from_tensors({"a": torch.tensor([1, 0, 1, 1])})
    panning.save_masks(masks, tmp_path / "masks")
    assert looked(network, "network")["found"] == {"label": "Mine", "input_shape": [1, 8, 8], "n_parameters": 1363}
    assert looked(network, "weights")["found"] == {"n_tensors": 4, "n_values": 1363}
    assert looked(data, "data")["found"] == {"n_images": {"train": 60, "test": 60}, "image_shape": [8, 8]}
    assert looked(tmp_path / "masks", "masks")["found"] == {
        "n_layers": 1, "n_kept": 3, "n_prunable": 4, "density": 0.75
    }  # fmt: skip
    for path, kind in (
        (data, "network"),
        (data, "policy"),
        (tmp_path / "masks", "network"),
        (network, "data"),
        (network, "masks"),
    ):
        said = looked(path, kind)["refused"]
        assert str(tmp_path) not in said and "The file" in said, said


def test_what_may_run_code_is_refused_with_the_way_out(tmp_path: Path) -> None:
    torch.save(Mine().state_dict(), tmp_path / "state.pth")
    torch.save(Mine().state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "net.onnx").write_bytes(b"\x08\x0a\x12\x07pytorch")
    for name, said in (("state.pth", "an archive"), ("old.pth", "a pickle"), ("net.onnx", "ONNX")):
        for kind in ("network", "weights", "masks", "policy"):
            refused = looked(tmp_path / name, kind)["refused"]
            assert said in refused and "panning.save_network" in refused, (name, kind)


def test_a_bomb_is_refused_by_its_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from panning.foundation import npy

    monkeypatch.setattr(npy, "read_array", None)  # no data are read
    path = tmp_path / "bomb.npz"
    arrays: dict[str, Any] = {}
    for part in ("train", "test"):
        arrays |= {f"{part}_images": np.zeros((150, 512, 512), np.uint8), f"{part}_labels": np.zeros(150, int)}
    np.savez_compressed(path, **arrays)
    assert 500 * path.stat().st_size < 2 * 150 * 2**18
    assert "unpacks to" in looked(path, "data")["refused"]
    objects = {name: np.array([{}], dtype=object) for name in arrays}
    np.savez(path, allow_pickle=True, **objects)
    assert "pickled Python objects" in looked(path, "data")["refused"]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("train_images.npy", json.dumps({}))
    assert "not a NumPy array" in looked(path, "data")["refused"]


def test_memory_is_bounded_and_the_process_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from panning.service import files as files_module

    monkeypatch.setitem(files_module.KINDS, "data", lambda path: bytearray(1 << 31))  # type: ignore[arg-type]
    assert "more memory than is allowed" in looked(write_npz(tmp_path / "a.npz"), "data")["refused"]
    assert len(bytearray(1 << 29)) == 1 << 29, "the limit is that of one file"


# --- networks ---


def sent_and_local(name: str, folder: Path, density: float = 0.1) -> None:
    """A network of the table, sent as a file and pruned by a job; it gives the outputs and the mask of the one that was
    built here."""
    shape = MODELS[name].natural_shape
    data = write_npz(folder / "scans.npz", shape[1], shape[0], 30)
    network = build_model(name, input_shape=shape, n_classes=3, seed=1)
    panning.save_network(network, folder / "sent.safetensors", torch.ones(2, *shape))
    again, inputs = panning.load_network(folder / "sent.safetensors"), torch.randn(2, *shape)
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(inputs), network.eval()(inputs), rtol=0, atol=1e-6)
    files = {SHA256["model"]: str(folder / "sent.safetensors"), SHA256["data"]: str(data)}
    short = {"scoring_per_class": 2}
    sent = ran(folder / "sent", config(task={**NAMED, **short}, density=density), files=files)
    task = {"model": name, "data": f"npz:{data}", **short}
    from panning.jobs.prune import PruneConfig, check_prune, run_prune

    run_prune(check_prune(PruneConfig(task=task, density=density, method="snip", seed=1)), folder / "local")
    ours, theirs = (panning.load_masks(one / "mask.safetensors") for one in (folder / "local", sent.run))
    assert ours == theirs and list(ours) == list(theirs)


@pytest.mark.parametrize("name", ["mlp", "lenet5"])
def test_a_network_of_the_table_is_pruned_from_its_file_as_from_its_name(name: str, tmp_path: Path) -> None:
    sent_and_local(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(MODELS) - {"mlp", "lenet5"}))
def test_every_network_of_the_table_is(name: str, tmp_path: Path) -> None:
    sent_and_local(name, tmp_path)


def test_a_network_that_does_not_fit_the_data_is_refused(files: dict[str, str], tmp_path: Path) -> None:
    from panning.service.inputs import Inputs

    panning.save_network(nn.Sequential(nn.Flatten(), nn.Linear(9, 3)), tmp_path / "other", torch.ones(2, 1, 3, 3))
    folder = JobFolder(tmp_path / "1")
    folder.give(Order(config(task=NAMED), 1, files={**files, SHA256["model"]: str(tmp_path / "other")}))
    outcome = run_job(folder, Stop(folder))
    assert (outcome.state, outcome.code) == ("failed", "config")
    with pytest.raises(ConfigError, match="is not there any more"):
        Inputs().placed(config(task=NAMED))
