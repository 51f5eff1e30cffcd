"""The check process, which has torch so that the server needs none."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

import panning
from panning.foundation.errors import ConfigError
from panning.service.checker import Checker
from panning.service.checks import Checks
from panning.service.inputs import named_data
from panning.service.words import BusyError, UploadError

PRUNE = {"kind": "prune", "task": {"model": "mlp", "data": "digits"}, "density": 0.1, "method": "snip"}


def test_a_checker_finds_what_is_wrong_and_what_a_run_costs(tmp_path: Path) -> None:
    checker = Checker(tmp_path)
    assert checker.answer({"what": "config", "config": PRUNE}) == {"found": None}
    refused = checker.answer({"what": "config", "config": {**PRUNE, "method": "snpi", "densty": 1}})["refused"]
    assert "Did you mean 'snip'" in refused or "Did you mean 'density'" in refused
    assert checker.answer({"what": "cost", "config": PRUNE})["found"]["n_parameters"] == 50_826
    huge = {**PRUNE, "task": {"model": "torchvision:vit_h_14", "data": "digits"}}
    assert "parameters" in checker.answer({"what": "cost", "config": huge})["refused"]


def test_a_checker_tells_methods_and_data_sets(tmp_path: Path) -> None:
    checker = Checker(tmp_path)
    methods = checker.answer({"what": "methods"})["found"]
    assert {("before", "snip"), ("during", "rigl")} <= {(row["when"], row["name"]) for row in methods}
    there = checker.answer({"what": "data"})["found"]
    assert there["digits"] and not there["mnist"]


def test_a_process_that_begins_while_the_service_ends_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    checks, begun = Checks(None), list[Any]()
    popen = subprocess.Popen

    def late(*args: Any, **keys: Any) -> Any:
        checks.close()  # it finds no process yet
        begun.append(popen(*args, **keys))
        return begun[-1]

    monkeypatch.setattr(subprocess, "Popen", late)
    with pytest.raises(BusyError):
        checks.start()
    (process,) = begun
    assert process.poll() is not None and process.stdin.closed and process.stdout.closed


def test_the_pipes_of_a_process_that_died_are_closed() -> None:
    checks = Checks(None)
    checks.start()
    first: Any = checks._process
    first.kill()
    first.wait()
    checks.start()
    second: Any = checks._process
    assert first.stdin.closed and first.stdout.closed and second.poll() is None
    checks.close()
    assert second.poll() is not None and second.stdin.closed


def test_a_checker_compares_masks_layer_by_layer(tmp_path: Path) -> None:
    first = {"a": torch.tensor([[1, 1, 0], [0, 0, 1]]), "b": torch.zeros(4), "c": torch.ones(2), "d": torch.ones(9)}
    second = {"a": torch.tensor([[1, 0, 0], [0, 1, 1]]), "b": torch.zeros(4), "c": torch.ones(3), "e": torch.ones(2)}
    manifests = {"first": {"effective_density": 0.25}, "second": {"effective_density": "all"}}
    for name, tensors in (("first", first), ("second", second)):
        panning.save_masks(panning.Masks.from_tensors(tensors, manifests[name]), tmp_path / name)
    asked = {"what": "compare", "config": {name: str(tmp_path / name) for name in ("first", "second")}}
    found = Checker(None).answer(asked)["found"]
    assert (found["first"]["effective_density"], found["second"]["effective_density"]) == (0.25, None)
    assert found["first"]["n_kept"] == 14 and found["jaccard"] is None, "they are of two networks"
    rows = [(row["name"], row["shape"], row["n_both"], row["jaccard"]) for row in found["layers"]]
    assert rows == [
        ("a", [2, 3], 2, 0.5), ("b", [4], 0, None), ("c", [2], None, None), ("c", [3], None, None), ("d", [9], None, None),
        ("e", [2], None, None),
    ]  # fmt: skip
    assert found["layers"][0]["first"] == {"n_kept": 3, "density": 0.5} and found["layers"][-1]["first"] is None
    same = {**asked, "config": {"first": str(tmp_path / "first"), "second": str(tmp_path / "first")}}
    assert Checker(None).answer(same)["found"]["jaccard"] == 1
    (tmp_path / "second").write_bytes(b"no masks")
    refused = Checker(None).answer(asked)["refused"]
    assert refused.startswith("The second mask is not a usable mask file") and str(tmp_path) not in refused


def test_a_checker_tells_policies_and_named_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from panning.episode.shelf import policies

    found = Checker(None).answer({"what": "policies"})["found"]
    assert [one["name"] for one in found] == list(policies()) and str(tmp_path) not in str(found)
    (tmp_path / "a.npz").touch()
    named = {"mine": f"npz:{tmp_path / 'a.npz'}", "gone": f"npz:{tmp_path / 'b.npz'}"}
    there = Checker(None, named).answer({"what": "data"})["found"]
    assert there["mine"] and not there["gone"] and there["digits"]
    with pytest.raises(ConfigError, match="no file"):
        named_data(["b=npz:b.npz"])
    for wrong in ("npz:a", "a", "a=b:c", "../a=npz:b", "=npz:b"):
        with pytest.raises(ConfigError, match="must be NAME=npz:FILE"):
            named_data([wrong])
    config = {**PRUNE, "policy": "none"}
    assert "Unknown policy 'none'" in Checker(None).answer({"what": "config", "config": config})["refused"]


@pytest.mark.parametrize(
    ("error", "said"), [(MemoryError(), {"refused"}), (RuntimeError("can't allocate memory: it"), {"refused"}),
                        (KeyError("x"), {"failed"})]
)  # fmt: skip
def test_what_a_check_raises_is_an_answer(error: Exception, said: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(_: Any) -> None:
        raise error

    checker = Checker(None)
    monkeypatch.setitem(checker.whats, "cost", raises)
    assert set(checker.answer({"what": "cost", "config": {}})) == said


@pytest.mark.slow
def test_the_process_answers_and_one_without_memory_is_replaced(tmp_path: Path) -> None:
    checks = Checks(str(tmp_path))
    checks.config(PRUNE, 1)
    with pytest.raises(ConfigError, match="Did you mean 'snip'"):
        checks.config({**PRUNE, "method": "snpi"}, 1)
    assert checks.cost(PRUNE, 1)["n_parameters"] == 50_826
    deep = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(200)))
    panning.save_network(deep, tmp_path / "network", torch.ones(1, 4))
    assert checks.file(tmp_path / "network", "network", 1)["n_parameters"] == 200 * 20
    with pytest.raises(UploadError, match="The file is not a usable mask file"):
        checks.file(tmp_path / "network", "masks", 1)
    checks.seconds = 0.001
    with pytest.raises(UploadError, match="takes over"):
        checks.file(tmp_path / "network", "network", 1)
    with pytest.raises(ConfigError, match="takes over"):
        checks.cost({**PRUNE, "task": {"model": "vgg19", "data": "digits"}}, 1)
    checks.seconds = 10
    assert len(checks.methods()) > 50
    checks.close()


def test_a_text_of_the_page_is_read_as_configs_are() -> None:
    from panning.service.checker import Checker

    def read(text: str, *changes: str) -> Any:
        return Checker(None).answer({"what": "text", "text": text, "changes": list(changes)})

    assert read("density: 0.5")["found"] == {"config": {"density": 0.5}, "text": "density: 0.5"}
    changed = read("{task: {model: mlp}} # mine", "task.model=lenet5", "seed=3")["found"]
    assert changed["config"] == {"task": {"model": "lenet5"}, "seed": 3}
    assert changed["text"] == "task:\n  model: lenet5\nseed: 3\n"
    bomb = "a: " + "x" * 70_000
    for wrong in ("- 1", "a: [", "a: !!python/object/apply:os.system [ls]", "a: 1\na: 2", bomb):
        assert "refused" in read(wrong), wrong[:40]
    assert "refused" in read("a: 1", "nowhere") and "refused" in read("a: 1", "a.b=2")


def test_packaged_configs_of_the_page_are_those_that_may_be_sent() -> None:
    from panning.foundation.config import parse_yaml
    from panning.foundation.remote import check_remote
    from panning.service.checker import Checker

    found = Checker(None).whats["packaged"]({})
    names = [one["name"] for one in found]
    assert (
        "prune/digits-mlp" in names
        and "demo/digits" in names
        and not any(name.startswith("recipes/") for name in names)
    )
    for one in found:
        check_remote(parse_yaml(one["text"].encode(), one["name"]))
