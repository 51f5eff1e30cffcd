"""What makes commands pleasant: help, versions, contradictions, cores, the start of Ray, files that are there already."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from console import run
from torch import nn
from typer.main import get_command

import panning
from panning import cli
from panning.cli import options, output
from panning.foundation import machine
from panning.foundation.errors import WorkerError
from panning.foundation.machine import cpu_quota, usable_cores
from panning.jobs import ray_cluster
from panning.jobs.workers import Workers
from panning.masks.masks import Masks

PRUNE = ["prune", "--model", "mlp", "--data", "digits", "--density", "0.05", "--out", "p"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command runs in an empty folder, without a data root."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PANNING_DATA", raising=False)


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """How each command and group is called."""
    yield path
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, (*path, name))


# --- names, versions, help ---


def test_tab_shows_the_public_names_before_and_after_their_use() -> None:
    names = dir(panning)
    assert {"prune", "compact", "__version__"} <= set(names) and set(panning.__all__) < set(names)
    assert panning.prune is not None and dir(panning) == names


def test_the_version_is_that_of_the_installed_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert panning.__version__ == machine.environment_info()["versions"]["panning"]
    assert run("--version") == 0
    assert capsys.readouterr().out == f"{panning.__version__}\n"


def test_every_help_answers_to_h_and_shows_flags_without_a_value(capsys: pytest.CaptureFixture[str]) -> None:
    for path in commands(get_command(cli.app)):
        assert run(*path, "-h") == 0, path
        short = capsys.readouterr().out
        assert run(*path, "--help") == 0
        assert capsys.readouterr().out == short
        assert "Usage: panning" in short and "bool>" not in short and "BOOLEAN" not in short, path


def test_a_shell_can_complete_commands_and_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert {"--install-completion", "--show-completion"} <= {
        option for parameter in get_command(cli.app).params for option in parameter.opts
    }


def test_quiet_shows_results_and_no_progress(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*PRUNE) == 0
    loud = capsys.readouterr()
    assert "pruning: 100%" in loud.err
    for number, flag in enumerate(("--quiet", "-q")):
        assert run(flag, *PRUNE[:-1], f"q{number}") == 0
        quiet = capsys.readouterr()
        assert quiet.err == "" and quiet.out.replace(f"q{number}/", "p/") == loud.out
    assert run(*PRUNE[:-1], "again") == 0 and capsys.readouterr().err == loud.err
    assert run("-q", *PRUNE, "--seed", "1") == 2 and "holds another run" in capsys.readouterr().err


# --- options that contradict each other ---


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (["--method", "snip"], "a policy goes its own way: method cannot go with it"),
        (["--method", "synflow"], "method cannot go with it"),
        (["--rounds", "3", "--released"], "rounds and released cannot go with it"),
    ],
)
def test_what_says_how_a_method_goes_does_not_go_with_a_policy(
    given: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*PRUNE, "--policy", "p", *given) == 2
    assert named in capsys.readouterr().err


def test_a_cluster_does_not_go_with_no_workers(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("search", "demo/digits", "--workers", "0", "--ray-address", "10.0.0.1:1") == 2
    assert "A Ray address joins a cluster, and 0 workers run without Ray" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [("--density", "abc", "must be a number (given: 'abc')"), ("--rounds", "0", "must be at least 1 (given: '0')")],
)
def test_options_are_refused_in_our_words(
    option: str, value: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*PRUNE, option, value) == 2
    lines = capsys.readouterr().err.splitlines()
    shown = " ".join(line.strip("│ ") for line in lines)
    # Before 0.29 typer leaves the reading of values to click, whose words these are then.
    ours = tuple(int(part) for part in version("typer").split(".")[:2]) >= (0, 29)
    assert f"Invalid value for '{option}': {said if ours else ''}" in shown


def test_a_mask_for_a_folder_of_another_run_is_not_made_first(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(*PRUNE) == 0
    monkeypatch.setattr("panning.jobs.work.make_mask", lambda *_, **__: pytest.fail("it pruned"))
    assert run(*PRUNE, "--seed", "1") == 2
    assert "holds another run (it differs in: seed: 0 there, 1 here)" in capsys.readouterr().err


def test_convert_replaces_a_file_only_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    for name, bits in (("a", [1, 0]), ("b", [0, 1])):
        panning.save_masks(Masks.from_tensors({"0.weight": torch.tensor([bits])}), f"{name}.safetensors")
    assert run("mask", "convert", "a.safetensors", "out.pth") == 0
    before = Path("out.pth").read_bytes()
    assert run("mask", "convert", "b.safetensors", "out.pth") == 2
    assert "out.pth is there already: give another name, or --overwrite" in capsys.readouterr().err
    assert Path("out.pth").read_bytes() == before
    assert run("mask", "convert", "b.safetensors", "out.pth", "--overwrite") == 0
    assert Path("out.pth").read_bytes() != before


# --- cores ---


@pytest.mark.parametrize(
    ("groups", "files", "quota"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/a/b\n", {"a/cpu.max": "200000 100000", "a/b/cpu.max": "max 100000"}, 2.0),  # the group above bounds it
        ("0::/a/b\n", {"cpu.max": "400000 100000", "a/b/cpu.max": "300000 100000"}, 3.0),
        ("0::/\n", {"cpu.max": "max 100000"}, None),
        ("0::/\n", {"cpu.max": "none of this"}, None),
        ("0::/\n", {}, None),
        (
            "3:memory:/m\n4:cpu,cpuacct:/docker/x\n",
            {"cpu,cpuacct/docker/x/cpu.cfs_quota_us": "250000", "cpu,cpuacct/docker/x/cpu.cfs_period_us": "100000"},
            2.5,
        ),
        ("4:cpu,cpuacct:/docker/x\n", {"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, 0.5),
        ("4:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("3:cpuset:/\n", {"cpuset/cpu.cfs_quota_us": "1", "cpuset/cpu.cfs_period_us": "1"}, None),
        ("nonsense", {"cpu.max": "100000 100000"}, None),
    ],
)
def test_the_quota_of_a_container(groups: str, files: dict[str, str], quota: float | None, tmp_path: Path) -> None:
    (tmp_path / "cgroup").write_text(groups)
    for name, text in files.items():
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).write_text(text)
    assert cpu_quota(tmp_path / "cgroup", tmp_path / "root") == quota
    assert cpu_quota(tmp_path / "absent", tmp_path / "root") is None


@pytest.mark.parametrize(("affinity", "quota", "n"), [(3, None, 3), (8, 2.5, 3), (2, 16.0, 2), (4, 0.2, 1)])
def test_workers_are_as_many_as_the_cores_that_may_be_used(
    affinity: int, quota: float | None, n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(affinity)), raising=False)
    monkeypatch.setattr(machine, "cpu_quota", lambda *_: quota)
    assert usable_cores() == options.workers_of(None, None).n == n
    assert options.workers_of(0, None).n == 0


# --- Ray ---


def test_the_start_of_ray_is_announced_and_its_failure_one_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def times_out(*_: Any, **__: Any) -> None:
        assert capsys.readouterr().err == "Starting Ray (2 workers) ...\n"
        raise Exception("The current node timed out during startup.\nmore of it")

    monkeypatch.setattr(ray_cluster.ray, "init", times_out)
    monkeypatch.setattr(ray_cluster.ray, "is_initialized", lambda: False)
    ended: list[str] = []
    monkeypatch.setattr(ray_cluster.ray, "shutdown", lambda: ended.append("Ray"))  # or that of other tests would end
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(WorkerError) as caught, output.listener() as listen, Workers(2).ray("cpu", listen) as start:
        assert capsys.readouterr().err == ""  # it starts when it is needed
        start()
    assert ended == ["Ray"]
    assert str(caught.value) == (
        "Ray did not start on this machine (The current node timed out during startup.): try 0 workers, which gives the "
        "same results without Ray, or fewer workers."
    )
    assert WorkerError.exit_code == 1


# --- JSON for programs ---


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    """What a command prints as JSON."""
    code = run(*arguments, "--json")
    return code, json.loads(capsys.readouterr().out)


def test_commands_that_look_at_files_tell_programs_what_they_tell_people(
    capsys: pytest.CaptureFixture[str], tiny_mlp: nn.Module
) -> None:
    masks = panning.prune(tiny_mlp, density=0.5, input_shape=(4,))
    panning.save_masks(masks, "mask.safetensors")
    code, facts = printed(capsys, "mask", "verify", "mask.safetensors")
    assert (code, facts["n_kept"], facts["n_prunable"], facts["effective_density"]) == (0, 9, 18, None)
    code, facts = printed(capsys, "mask", "convert", "mask.safetensors", "mask.pth")
    assert code == 0 and facts == {
        "file": "mask.pth", "format": "pth", "n_layers": 2, "n_kept": 9, "n_prunable": 18, "density": 0.5,
    }  # fmt: skip
    Path("bad.yaml").write_text("densitis: [1]")
    code, rows = printed(capsys, "validate", "demo/digits", "bad.yaml")
    assert code == 2 and rows[0] == {"file": "demo/digits", "kind": "search", "error": None}
    assert rows[1]["kind"] is None and "unknown key" in rows[1]["error"]


def test_fidelity_and_merge_tell_programs_what_they_tell_people(capsys: pytest.CaptureFixture[str]) -> None:
    records = str(Path(__file__).parent.parent / "docs" / "results" / "fidelity-lenet5.jsonl")
    code, rows = printed(capsys, "bench", "fidelity", records)
    assert code == 0 and {row["judge"] for row in rows} and all(-1 <= row["by_mask"]["value"] <= 1 for row in rows)
    code, facts = printed(capsys, "bench", "merge", records, "--out", "m")
    assert code == 0 and facts == {"records": "m/records.jsonl", "n_added": len(Path(records).read_text().splitlines())}


def test_every_command_that_prints_a_result_prints_it_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    text = {
        ("configs", "show"),
        ("configs", "copy"),
        ("configs", "schema"),
        ("runs", "prune"),
        ("serve",),
    }  # files, JSON, a question, a log
    for path in commands(get_command(cli.app)):
        command = get_command(cli.app)
        for name in path:
            command = command.commands[name]  # type: ignore[attr-defined]
        if not hasattr(command, "commands") and path not in text:
            assert "--json" in {option for parameter in command.params for option in parameter.opts}, path
