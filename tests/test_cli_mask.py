"""The command line: exit codes, messages without a traceback, and the group ``panning mask``."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.main import get_command

from panning import cli
from panning.cli import output
from panning.foundation.errors import JobError
from panning.foundation.progress import Event
from panning.masks.file import fingerprint, save_masks
from panning.masks.layout import prunable_layout
from panning.masks.masks import Masks


@pytest.fixture
def masks(tiny_mlp: nn.Module) -> Masks:
    """Keeps the weights of hidden units 0 and 1, and of unit 2 the incoming ones alone: 12 + 4 kept, 12 alive."""
    kept = {"0.weight": torch.ones(3, 4), "2.weight": torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0]])}
    masks = Masks.from_tensors(kept, {"method": "snip", "input_shape": [4], "n_classes": 2})
    assert masks.layout == prunable_layout(tiny_mlp)
    return masks


@pytest.fixture
def file(tmp_path: Path, masks: Masks) -> Path:
    save_masks(masks, tmp_path / "mask.safetensors")
    return tmp_path / "mask.safetensors"


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch, tiny_mlp: nn.Module) -> None:
    """``--model tiny`` is the tiny MLP, whatever models there are."""

    def build_model(name: str, *, input_shape: object, n_classes: int, seed: int, allow_import: bool) -> nn.Module:
        assert (name, input_shape, n_classes, allow_import) == ("tiny", (4,), 2, True)
        return tiny_mlp

    monkeypatch.setattr("panning.masks.network.build_model", build_model)


class Result:
    def __init__(self, code: object, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> Result:
    with pytest.raises(SystemExit) as caught:
        cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return Result(caught.value.code or 0, captured.out, captured.err)


def test_show_lists_layers_totals_and_where_the_mask_is_from(capsys: pytest.CaptureFixture[str], file: Path) -> None:
    result = run(capsys, "mask", "show", file)
    assert result.code == 0 and result.err == ""
    assert result.out.splitlines() == [
        "layer     shape  kept  of  density",
        "0.weight  3x4      12  12        1",
        "2.weight  2x3       4   6   0.6667",
        "16 of 18 weights kept, density 0.888889",
        "input_shape: [4]",
        "method: 'snip'",
        "n_classes: 2",
    ]


def test_show_as_json_is_json_alone(capsys: pytest.CaptureFixture[str], file: Path, masks: Masks) -> None:
    shown = json.loads(run(capsys, "mask", "show", file, "--json").out)
    assert shown["n_kept"] == 16 and shown["density"] == 16 / 18
    assert shown["fingerprint"] == fingerprint(masks.layout) and shown["manifest"] == masks.manifest
    last = {"name": "2.weight", "shape": [2, 3], "n_weights": 6, "n_kept": 4, "density": 4 / 6}
    assert shown["layers"][1] == last


def test_show_prints_nothing_that_moves_a_cursor(capsys: pytest.CaptureFixture[str], file: Path, masks: Masks) -> None:
    save_masks(masks.with_manifest(**{"note\x1b[2J": "[red]\x1b]0;owned\x07", "effective_density": 0.5}), file)
    out = run(capsys, "mask", "show", file).out
    assert "[red]" in out and "effective density 0.5" in out
    assert out.replace("\n", "").isprintable()


def test_diff_counts_layer_by_layer(capsys: pytest.CaptureFixture[str], file: Path, masks: Masks) -> None:
    flat = masks.flat.clone()
    flat[[0, 14]] = torch.tensor([False, True])
    other = file.with_name("other")
    save_masks(Masks(masks.layout, flat), other)
    shown = json.loads(run(capsys, "mask", "diff", file, other, "--json").out)
    assert not shown["equal"] and shown["overlap"] == 15 / 17
    assert [shown[key] for key in ("n_kept_a", "n_kept_b", "n_both", "n_only_a", "n_only_b")] == [16, 16, 15, 1, 1]
    first = {"name": "0.weight", "n_kept_a": 12, "n_kept_b": 11, "n_both": 11, "n_only_a": 1, "n_only_b": 0}
    assert shown["layers"][0] == first
    lines = run(capsys, "mask", "diff", file, other).out.splitlines()
    assert lines[3].split() == ["all", "layers", "16", "16", "15", "1", "1"] and lines[4] == "overlap 0.8824"
    assert "the masks are equal" in run(capsys, "mask", "diff", file, file).out


def test_diff_of_different_networks_says_what_differs(capsys: pytest.CaptureFixture[str], file: Path) -> None:
    other = file.with_name("other")
    save_masks(Masks.from_tensors({"0.weight": torch.ones(3, 4), "3.weight": torch.ones(2)}), other)
    result = run(capsys, "mask", "diff", file, other)
    assert result.code == 2 and result.out == ""
    assert result.err.startswith("error: The two masks belong to different networks.")
    assert "only in the first: 2.weight (2, 3)" in result.err and "only in the second: 3.weight (2,)" in result.err


def test_verify_prints_the_fingerprint(capsys: pytest.CaptureFixture[str], file: Path, masks: Masks) -> None:
    result = run(capsys, "mask", "verify", file)
    assert result.code == 0 and result.out == f"ok: 16 of 18 weights kept, fingerprint {fingerprint(masks.layout)}\n"


@pytest.mark.usefixtures("model")
def test_verify_with_a_model_recomputes_the_effective_density(
    capsys: pytest.CaptureFixture[str], file: Path, masks: Masks
) -> None:
    save_masks(masks.with_manifest(effective_density=12 / 18), file)
    result = run(capsys, "mask", "verify", file, "--model", "tiny")
    assert result.code == 0 and "fits model 'tiny'; density 0.888889, effective density 0.666667, " in result.out
    assert " paths, 2 of 2 outputs reached" in result.out
    save_masks(masks.with_manifest(effective_density=13 / 18), file)
    result = run(capsys, "mask", "verify", file, "--model", "tiny", "--input-shape", "4", "--classes", "2")
    assert result.code == 2
    assert "says that its effective density is 0.722222, but in 'tiny' the mask has 0.666667" in result.err


@pytest.mark.usefixtures("model")
def test_verify_refuses_another_model(capsys: pytest.CaptureFixture[str], file: Path) -> None:
    facts = {"input_shape": [4], "n_classes": 2}
    save_masks(Masks.from_tensors({"0.weight": torch.ones(3, 5)}, facts), file)
    result = run(capsys, "mask", "verify", file, "--model", "tiny")
    assert (
        result.code == 2
        and "0.weight: (3, 5) in the mask, (3, 4) in the model" in result.err
        and "ok" not in result.out
    )


@pytest.mark.parametrize(
    "options",
    [
        ("--classes", "3"),
        ("--model", "tiny", "--input-shape", "4;4"),
        ("--model", "tiny", "--input-shape", "0,4"),
        ("--model", "tiny", "--classes", "0"),
        ("--modle", "tiny"),
    ],
)
def test_wrong_options_exit_with_2(capsys: pytest.CaptureFixture[str], file: Path, options: tuple[str, ...]) -> None:
    result = run(capsys, "mask", "verify", file, *options)
    assert result.code == 2 and result.out == "" and "Usage: panning mask verify" in result.err


def test_verify_asks_for_what_the_mask_does_not_say(
    capsys: pytest.CaptureFixture[str], file: Path, masks: Masks
) -> None:
    save_masks(Masks(masks.layout, masks.flat), file)
    result = run(capsys, "mask", "verify", file, "--model", "tiny")
    said = " ".join(result.err.replace("\u2502", " ").split())  # the frame wraps where the path ends
    assert result.code == 2 and "--input-shape C,H,W" in said


@pytest.mark.parametrize("command", ["show", "verify"])
def test_a_broken_file_is_one_message(capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str) -> None:
    (tmp_path / "broken").write_bytes(b"\x80\x04broken")
    result = run(capsys, "mask", command, tmp_path / "broken")
    assert result.code == 2 and result.out == ""
    assert result.err.startswith(f"error: {tmp_path}/broken is not a usable mask file.")


def test_exit_codes_of_failed_and_interrupted_jobs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, file: Path
) -> None:
    def stop_with(error: BaseException) -> Result:
        def load_masks(_: Path) -> Masks:
            raise error

        monkeypatch.setattr("panning.masks.file.load_masks", load_masks)
        return run(capsys, "mask", "show", file)

    failed = stop_with(JobError("the loss is NaN"))
    assert (failed.code, failed.err) == (1, "error: the loss is NaN\n")
    interrupted = stop_with(KeyboardInterrupt())
    assert (interrupted.code, interrupted.err) == (130, "Interrupted; run the same command again to go on.\n")


def test_sigterm_ends_a_command_as_ctrl_c_does_and_says_where_it_stands(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, file: Path
) -> None:
    def told_to_end(_: Path) -> Masks:
        with output.listener() as listen:
            listen(Event("rung 1: short trainings", 5, 24, "job"))
            signal.raise_signal(signal.SIGTERM)
        raise AssertionError("the signal came before")

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("panning.masks.file.load_masks", told_to_end)
    ended = run(capsys, "mask", "show", file)
    last = ended.err.splitlines()[-1]
    assert ended.code == 143
    assert last == "Interrupted at 'rung 1: short trainings', 5 of 24; run the same command again to go on."
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_nobody_expected_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    monkeypatch.setattr("panning.masks.file.load_masks", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["mask", "show", str(file)])


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    result = run(capsys, "--help")
    assert result.code == 0
    names = list(get_command(cli.app).commands)  # type: ignore[attr-defined]
    assert "mask" in names and all(name in result.out for name in names)
    assert "Usage: panning" in run(capsys).out  # no argument at all prints the same


def test_progress_off_a_terminal_is_a_line_per_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    with output.listener() as listen:
        for done in range(41):
            listen(Event("rounds", done, 40, "round", {"density": 0.1, "other": None}))
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert captured.out == "" and len(lines) == 10
    assert lines[0] == "rounds: 10% (4 of 40) density 0.1" and lines[-1] == "rounds: 100% (40 of 40) density 0.1"


def test_json_never_holds_what_is_no_json(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="JSON"):
        output.print_json({"loss": float("nan")})
