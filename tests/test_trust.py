"""Nothing is trusted in a folder or a config: links, names, numbers and archives that somebody else may have made."""

from __future__ import annotations

import io
import json
import math
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from panning.agents.config import PPOSpec
from panning.cli import main, output
from panning.data import load_data
from panning.data.folder import decode_image
from panning.foundation.config import load_config, overridden, parse_config
from panning.foundation.errors import ConfigError, DataError, OutputError, PanningError
from panning.foundation.files import check_no_links, sole_writer, strict_json, write_atomic
from panning.foundation.progress import Event, Stage, plan_event
from panning.foundation.tables import markdown_table
from panning.foundation.text import in_markdown, one_line, printable
from panning.masks.convert import read_any
from panning.searches.config import SearchConfig
from panning.training.recipe import Recipe

# --- links ---


@pytest.mark.parametrize(
    "place", ["records.jsonl", "masks", "agent/rollouts.jsonl", "agent/logs/old", ".lock", "run.json"]
)
def test_a_folder_with_a_link_is_refused_before_anything_is_written(tmp_path: Path, place: str) -> None:
    (secret := tmp_path / "secret").write_bytes(b"token")
    out = tmp_path / "out"
    (out / place).parent.mkdir(parents=True, exist_ok=True)
    (out / place).symlink_to(secret)
    with pytest.raises(OutputError, match=f"{place} is a link"), sole_writer(out):
        pass
    assert secret.read_bytes() == b"token"


def test_a_link_that_leads_nowhere_or_to_itself_is_refused_too(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputError, match="a is a link"):
        check_no_links(tmp_path)
    (tmp_path / "a").unlink()
    (tmp_path / "loop").symlink_to(tmp_path)
    with pytest.raises(OutputError, match="loop is a link"):
        check_no_links(tmp_path)


def test_a_folder_may_be_reached_by_a_link(tmp_path: Path) -> None:
    (tmp_path / "large").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "large")
    with sole_writer(tmp_path / "out"):
        assert (tmp_path / "large" / ".lock").exists()


# --- names ---


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("random (ERK) + all-alive", "random (ERK) + all-alive"),
        ("**+1.20 [+0.10, +2.30]**, p < 0.001", "**+1.20 [+0.10, +2.30]**, p < 0.001"),
        ("a|b", "a\\|b"),
        ("x\n\n| evil | 99.9 |\n# more", "x \\| evil \\| 99.9 \\| # more"),
        ("<script>alert(1)</script>", "&lt;script>alert(1)&lt;/script>"),
        ("<!-- x", "&lt;!-- x"),
        ("![x](http://evil/x.png)", "\\![x\\](http://evil/x.png)"),
        ("[x](http://evil)", "[x\\](http://evil)"),
        ("\x1b[2J\x07", "\\x1b[2J\\x07"),
        ("a\u202eb\u200bc\u2028d", "a\\u202eb\\u200bc d"),
        ("\ud800", "\\ud800"),
        ("größe 図", "größe 図"),
    ],
)
def test_markdown_shows_a_name_and_nothing_else(name: str, shown: str) -> None:
    assert in_markdown(name) == shown
    assert markdown_table(["method"], [[name]])[2] == f"| {shown} |"
    shown.encode()


def test_a_terminal_gets_lines_without_control_characters() -> None:
    assert printable("one\ntwo\x1b]0;title\x07\r") == "one\ntwo\\x1b]0;title\\x07\\r"
    assert one_line("one\n two") == "one two"


def test_what_is_said_and_tables_hold_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    output.say("a\x1b[2Jb")
    output.note("c\x9bd")
    output.print_table(["name"], [["e\x07\nf"]])
    with output.listener() as listen:
        listen(Event("stage \x1b", 0, 20))
        listen(Event("stage \x1b", 10, 20, "job", {"item": "\x1b]0;x\x07"}))
    said = capsys.readouterr()
    assert said.out == "a\\x1b[2Jb\nname\ne\\x07 f\n"
    assert "c\\x9bd\n" in said.err and "stage \\x1b: 50% (10 of 20) \\x1b]0;x\\x07" in said.err
    assert "\x1b" not in said.err


def test_letters_that_the_terminal_lacks_are_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    with output.of_one_command():
        output.say("91.0 ± 0.3 図")
        output.print_table(["±"], [["1 ± 2"]])
        sys.stdout.flush()
    assert written.getvalue() == b"91.0 \\xb1 0.3 \\u56f3\n    \\xb1\n1 \\xb1 2\n"


# --- numbers ---


@pytest.mark.parametrize("text", ["1e999", "-1e999", "[NaN]", "Infinity", '{"a": 1, "a": 2}', "[" * 100_000])
def test_json_from_outside_has_finite_numbers_and_each_key_once(text: str) -> None:
    with pytest.raises(ValueError):
        strict_json(text)


def test_json_from_outside_keeps_numbers_that_floats_hold() -> None:
    assert strict_json("[1e308, -0.0, 5e-324, 12345678901234567890]") == [1e308, -0.0, 5e-324, 12345678901234567890]


SEARCH: dict[str, Any] = {
    "name": "t", "task": {"model": "mlp", "data": "digits"}, "densities": [0.1], "recipe": {"epochs": 1},
    "rungs": [{"keep": 1, "recipe": {"epochs": 1}}],
}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        ["recipe.epochs=1e308"], ["recipe.learning_rate=1e300"], ["recipe.batch_size=1000000000000"],
        ["n_samples=1000000000"],
        ["agent.n_rounds=1000000000"], ["agent.ppo.n_envs=10000000"], ["agent.ppo.n_steps=1000000000"],
        ["agent.ppo.net_arch=[1000000000]"], ["agent.ppo.net_arch=[9,9,9,9,9,9,9,9,9,9,9,9,9,9,9,9,9]"],
        ["agent.ppo.n_envs=1000", "agent.ppo.n_steps=1000000", "agent.ppo.batch_size=1000"], ["job_timeout_s=1e300"],
        ["agent.ppo.n_epochs=1000000"], ["agent.ppo.n_rollouts=10000000"],
    ],
)  # fmt: skip
def test_what_would_never_end_is_refused_at_once(change: list[str]) -> None:
    with pytest.raises(ConfigError, match="less than or equal|at most|more than"):
        parse_config(SearchConfig, overridden(SEARCH, change), "it")


def test_what_is_long_but_ends_is_taken() -> None:
    assert Recipe(epochs=5000).epochs == 5000
    assert PPOSpec(n_envs=1000, n_steps=1000, batch_size=1000).n_envs == 1000


def test_half_a_letter_in_a_name_loses_no_file(tmp_path: Path) -> None:
    """A config with one is refused; a name of an older run or another program is written all the same."""
    (tmp_path / "c.yaml").write_text(json.dumps({**SEARCH, "name": "\ud800"}))
    with pytest.raises(ConfigError, match="holds half a letter"):
        load_config(SearchConfig, tmp_path / "c.yaml")
    write_atomic(tmp_path / "table.md", f"# {in_markdown(chr(0xD800))}, {chr(0xD800)}\n")
    assert (tmp_path / "table.md").read_text() == "# \\ud800, \\ud800\n"


@pytest.mark.parametrize(
    "value", ["[" * 5000, "2001-99-99", "!!python/object:os.system", "&a [*a]", "1" * 5000, "{a: 1, a: 2}"]
)
def test_numbers_of_a_method_are_read_by_the_loader_of_configs(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(
            [
                "train",
                "--model",
                "mlp",
                "--data",
                "digits",
                "--dynamic",
                "set",
                "--density",
                "0.1",
                "--set",
                f"every={value}",
            ]
        )
    assert ended.value.code == 2
    assert "takes NAME=VALUE" in " ".join((said := capsys.readouterr().err).split()) and len(said) < 2000


def test_a_run_says_what_it_costs_before_it_begins(capsys: pytest.CaptureFixture[str]) -> None:
    with output.listener() as listen:
        listen(plan_event("run", [Stage("one", 12, 3.0, 2.5), Stage("two", 1000, 5.0)]))
    assert (
        capsys.readouterr().err == "At most 1,012 steps in 2 stages, trainings of 2.5 passes over the training part\n"
    )


# --- archives and images ---


def zeros_npz(path: Path, shapes: dict[str, tuple[int, ...]], n_more: int = 0) -> Path:
    """An archive of zeros, compressed, with ``n_more`` bytes that do not compress."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, shape in shapes.items():
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array_header_1_0(member, {"descr": "|u1", "fortran_order": False, "shape": shape})
                for _ in range(math.prod(shape) >> 20):
                    member.write(bytes(1 << 20))
                member.write(bytes(math.prod(shape) % (1 << 20)))
    return path


def test_an_archive_may_unpack_to_what_its_size_pays_for(tmp_path: Path) -> None:
    shapes = {
        "train_images": (200, 640, 640),
        "train_labels": (200,),
        "test_images": (1, 640, 640),
        "test_labels": (1,),
    }
    bomb = zeros_npz(tmp_path / "bomb.npz", shapes)
    assert bomb.stat().st_size < 2**17
    with pytest.raises(
        DataError, match=r"unpacks to 823\d+ bytes; at most 67108864 are allowed for a file of its size"
    ):
        load_data(f"npz:{bomb}")


def test_an_archive_of_masks_may_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("panning.masks.archives.MIN_ALLOWED_BYTES", 2**20)
    bomb = zeros_npz(tmp_path / "masks.npz", {"a.weight": (2**11, 2**11)})
    with pytest.raises(
        PanningError, match=r"unpacks to 41944\d\d bytes\n  expected: at most 25\d{5} of a file of its size"
    ):
        read_any(bomb)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_an_image_may_decode_to_what_its_size_pays_for(tmp_path: Path, suffix: str) -> None:
    compression = {"compression": "tiff_lzw"} if suffix == ".tif" else {}
    Image.new("1", (60_000, 400)).save(path := tmp_path / f"a{suffix}", **compression)
    assert path.stat().st_size < 80_000
    with pytest.raises(DataError, match="it has 24000000 pixels, at most 8388608 are allowed"):
        decode_image(path, (8, 8))
    Image.new("RGB", (2000, 1000)).save(path, **compression)
    assert decode_image(path, (8, 8)).shape == (3, 8, 8)
