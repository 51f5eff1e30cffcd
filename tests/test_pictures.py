"""Tables on a terminal, and pictures with the numbers beside them."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from test_grid_report import cell

from panning.agents.config import EnvSpec
from panning.agents.pictures import reward_picture
from panning.agents.rollouts import read_rollouts
from panning.cli import output
from panning.compare.accuracy import accuracy_picture
from panning.compare.cells import CHOSEN, NamedCell
from panning.compare.lines import lines
from panning.compare.pictures import cost_picture, layer_picture, rank_picture
from panning.compare.tables import Table, tables
from panning.envs import PanningEnv, rendering
from panning.episode.actions import ActionSpec
from panning.foundation.errors import UnknownNameError
from panning.foundation.pictures import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    OURS,
    PALETTE,
    SKY,
    Picture,
    figure,
    parse_formats,
    save,
)
from panning.foundation.records import RunRecord, canonical_json, content_key
from panning.jobs.pictures import curve_picture, mask_picture
from panning.training import make_dynamic


def test_a_table_that_is_too_wide_stacks_spreads_and_headings(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = ["method", "mean rank", "0.1", "0.05"]
    rows = [
        ["search's choice: GraSP + all-alive", "1.0", "93.20 ± 1.07", "84.1"],
        ["SNIP", "2.0", "9.00 ± 10.07", "failed"],
    ]

    def shown(width: int) -> list[str]:
        screen = Console(width=width, force_terminal=True, color_system=None, file=io.StringIO())
        monkeypatch.setattr(output, "Console", lambda: screen)
        output.print_table(columns, rows)
        return screen.file.getvalue().splitlines()  # type: ignore[attr-defined]

    assert len(shown(100)) == 6  # four of them are rules and headings
    assert shown(47) == [
        "┏━━━━━━━━━━━━━━━━━━━┳━━━━━━┳━━━━━━━━━┳━━━━━━━━┓",
        "┃                   ┃ mean ┃         ┃        ┃",
        "┃ method            ┃ rank ┃     0.1 ┃   0.05 ┃",
        "┡━━━━━━━━━━━━━━━━━━━╇━━━━━━╇━━━━━━━━━╇━━━━━━━━┩",
        "│ search's choice:  │  1.0 │   93.20 │   84.1 │",
        "│ GraSP + all-alive │      │  ± 1.07 │        │",
        "│ SNIP              │  2.0 │    9.00 │ failed │",
        "│                   │      │ ± 10.07 │        │",
        "└───────────────────┴──────┴─────────┴────────┘",
    ]


# --- pictures of grids ---


def table_of(accuracies: dict[str | None, dict[float, list[float]]], **change: Any) -> Table:
    """A table from method -> density -> test accuracies, one a seed; None is the dense network."""
    records = [
        cell(method, accuracy, seed, density, **change)
        for method, of_density in accuracies.items()
        for density, values in of_density.items()
        for seed, accuracy in enumerate(values)
    ]
    (table,) = tables(records)
    return table


def read_csv(picture: Picture) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(picture.csv)))


THREE = {
    None: {1.0: [0.9, 0.9]},
    "snip": {0.1: [0.80, 0.84], 0.05: [0.7, 0.7], 0.02: [0.6, 0.5]},
    "erk": {0.1: [0.78, 0.80], 0.05: [0.6, 0.6], 0.02: [0.1, 0.9]},
}


def test_the_numbers_beside_the_accuracies_are_those_of_the_records() -> None:
    rows = read_csv(accuracy_picture(table_of(THREE)))
    assert list(rows[0]) == [
        "method", "density", "effective_density", "mean", "std", "n", "ci_low", "ci_high", "difference", "difference_ci_low",
        "difference_ci_high", "reference",
    ]  # fmt: skip
    by_place = {(row["method"], row["density"]): row for row in rows}
    # Of two values t is 12.706: 0.82 ± 12.706 * 0.02828 / sqrt(2) = 0.82 ± 0.2541, of which accuracies end at 1.
    snip = by_place["SNIP", "0.1"]
    assert [float(snip[name]) for name in ("mean", "std", "n", "ci_low", "ci_high")] == pytest.approx(
        [0.82, 0.02828427, 2, 0.82 - 0.254124, 1.0], abs=1e-6
    )
    wide = by_place["random (ERK)", "0.02"]
    assert (wide["mean"], wide["ci_low"], wide["ci_high"]) == ("0.5", "0", "1")
    # Differences to SNIP, paired: -0.02 and -0.04.
    erk = by_place["random (ERK)", "0.1"]
    assert erk["reference"] == "SNIP" and float(erk["difference"]) == pytest.approx(-0.03)
    assert float(erk["difference_ci_low"]) == pytest.approx(-0.03 - 12.7062 * 0.01, abs=1e-6)
    assert by_place["dense", "1"]["mean"] == "0.9" and by_place["dense", "1"]["difference"] == ""


def test_errors_stand_on_logarithmic_axes_that_hold_every_seed() -> None:
    whole = accuracy_picture(table_of(THREE)).drawing
    left, right = whole.axes
    assert left.get_yscale() == "log" and left.get_ylim()[0] < 10.0 and 90.0 < left.get_ylim()[1] <= 104.0
    assert left.get_title(loc="left") == "test error" and whole.get_suptitle().startswith("mlp on Digits: test error")
    assert right.get_title(loc="left") == "minus SNIP, paired by seed"
    assert right.get_ylim() == pytest.approx(
        (-6.7, 6.7)
    )  # ERK is 50 points below at one seed and 40 above at the other


@pytest.mark.parametrize("n_seeds", [1, 2, 4, 5])
def test_few_seeds_are_dots_and_five_have_an_interval(n_seeds: int) -> None:
    accuracies = {name: {d: [0.8 + 0.01 * s for s in range(n_seeds)] for d in of} for name, of in THREE.items()}
    accuracies[None] = {1.0: [0.9] * n_seeds}
    whole = accuracy_picture(table_of(accuracies)).drawing
    bars = [one for one in whole.axes[0].collections if len(one.get_segments())]
    assert bool(bars) == (n_seeds == 5)
    assert ("small dots" in whole.get_suptitle()) == (1 < n_seeds < 5)


def test_of_one_density_every_method_has_a_line_of_dots() -> None:
    one = {name: {d: v for d, v in of.items() if d in (1.0, 0.1)} for name, of in THREE.items()}
    picture = accuracy_picture(table_of(one))
    (axes,) = picture.drawing.axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["SNIP", "random (ERK)"]
    assert [line.get_xdata().tolist() for line in axes.lines if line.get_marker() == "o"] == [
        pytest.approx([20.0, 16.0]), pytest.approx([22.0, 20.0])
    ]  # fmt: skip
    assert [row["method"] for row in read_csv(picture)] == ["SNIP", "random (ERK)", "dense"]


def test_a_mask_that_is_dead_as_a_whole_ends_its_curve() -> None:
    (table,) = tables([
        replace(r, metrics={**r.metrics, "effective_density": 0.0}) if r.config["density"] == 0.02 else r
        for row in (*table_of(THREE).rows, table_of(THREE).dense) for r in row.cells
    ])  # fmt: skip
    left = accuracy_picture(table).drawing.axes[0]
    curve = next(line for line in left.lines if line.get_label() == "SNIP")
    assert np.isnan(curve.get_xdata()).tolist() == [False, False, True]
    crosses = [line.get_xdata().tolist() for line in left.lines if line.get_marker() == "x" and len(line.get_xdata())]
    assert crosses == [[50.0], [50.0]]


def test_ours_have_one_colour_and_nobody_else_has_it() -> None:
    agent = {"policy": "agent", "n_rounds": 2, "action": ActionSpec().model_dump(mode="json")}
    records = [cell(None, 0.9, 0), *(cell(name, 0.8, 0) for name in ("synflow", "grasp", "phew", "erk"))]
    records += [cell("", 0.7, 0, by=agent, policy="aaaa"), cell("", 0.8, 0, by=agent, policy="aaaa", all_alive=True)]
    chosen = records[1]
    records.append(NamedCell(chosen.key, "cell", chosen.config, chosen.metrics, chosen.environment, name=CHOSEN))
    (table,) = tables(records)
    drawn = {line.method: line for line in lines(table)}
    assert {name for name, line in drawn.items() if line.colour == OURS} == {
        CHOSEN, "panning (agent)", "panning (agent) + all-alive"
    }  # fmt: skip
    assert (drawn["SynFlow"].colour, drawn["GraSP"].colour, drawn["random (ERK)"].colour) == (BLUE, SKY, BLACK)
    assert drawn["PHEW"].colour in PALETTE and len({line.colour for line in drawn.values()}) == 5
    assert drawn[CHOSEN].label == "search's choice: SynFlow"
    labels = [text.get_text() for text in layer_picture(table).drawing.legends[0].get_texts()]
    assert labels[:2] == ["search's choice: SynFlow", "panning (agent)"] and labels[-1] == "with all-alive"


def test_a_method_keeps_its_colour_whatever_stands_beside_it() -> None:
    def moving(name: str, accuracy: float, **options: Any) -> RunRecord:
        dynamic = {"name": name, "options": make_dynamic(name, options).model_dump(mode="json")}
        return cell(name, accuracy, 0, by={"dynamic": dynamic})

    records = [
        cell(None, 0.9, 0),
        moving("dpf", 0.9, every=1),
        moving("dpf", 0.8),
        moving("gmp", 0.7),
        cell("synflow", 0.6, 0),
    ]
    (table,) = tables(records)
    colours = {line.method: line.colour for line in lines(table)}
    assert colours == {"DPF (every 1)": GREEN, "DPF": BLUE, "GMP": ORANGE, "SynFlow": SKY}


def test_layers_are_means_over_all_seeds_and_none_is_said() -> None:
    def with_layers(record: RunRecord) -> RunRecord:
        layers = [["net.a1.weight", 0.1 * (1 + record.config["seed"])], ["net.b.weight", 0.0]]
        return replace(record, metrics={**record.metrics, "layer_densities": layers})

    (table,) = tables([with_layers(r) for row in (*table_of(THREE).rows, table_of(THREE).dense) for r in row.cells])
    picture = layer_picture(table)
    assert picture is not None
    first, second = read_csv(picture)[:2]
    assert (first["layer"], first["mean"], first["std"], first["n"]) == ("net.a1.weight", "0.15", "0.07071068", "2")
    assert (second["layer"], second["mean"], second["ci_low"]) == ("net.b.weight", "0", "0")
    axes = picture.drawing.axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["a1", "b"]
    ticks = dict(zip((tick.get_text() for tick in axes.get_yticklabels()), axes.get_yticks(), strict=True))
    curve, gone = axes.lines[:2]
    assert curve.get_ydata()[0] == pytest.approx(0.15) and np.isnan(curve.get_ydata()[1])
    assert gone.get_xdata() == [1] and gone.get_ydata() == [ticks["none"]] and ticks["none"] < 0.1


def test_costs_and_ranks_stand_beside_their_pictures() -> None:
    table = table_of(THREE)
    costs = read_csv(cost_picture(table))  # type: ignore[arg-type]
    assert len(costs) == 6 and float(costs[0]["cost_epochs"]) == pytest.approx(table.work(table.rows[0]))
    axes = [axes for axes in cost_picture(table).drawing.axes if axes.axison]  # type: ignore[union-attr]
    assert len(axes) == 3 and len({one.get_ylim() for one in axes}) == len({one.get_xlim() for one in axes}) == 1
    three = {**THREE, "magnitude": {d: [0.2, 0.3] for d in (0.1, 0.05, 0.02)}}
    ranks = read_csv(rank_picture(table_of(three)))  # type: ignore[arg-type]
    # Of six blocks SNIP is first in five, ERK in one; in one ERK is last.
    assert [(row["method"], float(row["mean_rank"])) for row in ranks] == [
        ("SNIP", pytest.approx(7 / 6)), ("random (ERK)", pytest.approx(12 / 6)), ("magnitude", pytest.approx(17 / 6))
    ]  # fmt: skip


# --- files, masks, trainings, agents, episodes ---


def test_a_picture_is_written_in_the_formats_that_are_asked_for_with_its_numbers(tmp_path: Path) -> None:
    picture = mask_picture({"a.weight": 0.5, "b.weight": 0.0}, [5, 0], "mlp on Digits", is_ours=True)
    save(picture, tmp_path / "x.y", parse_formats("PDF, svg,png,pdf"))
    assert {path.name for path in tmp_path.iterdir()} == {"x.y.pdf", "x.y.svg", "x.y.png", "x.y.csv"}
    starts = {"pdf": b"%PDF", "svg": b"<?xml", "png": b"\x89PNG"}
    for form, start in starts.items():
        held = (tmp_path / f"x.y.{form}").read_bytes()
        again = mask_picture({"a.weight": 0.5, "b.weight": 0.0}, [5, 0], "mlp on Digits", is_ours=True).image(form)
        assert held.startswith(start) and held == again
    assert (tmp_path / "x.y.csv").read_text() == "layer,kept,density\na.weight,5,0.5\nb.weight,0,0\n"
    with pytest.raises(UnknownNameError, match="Unknown picture format 'sgv'. Did you mean 'svg'"):
        parse_formats("png,sgv")


def test_a_training_shows_errors_over_epochs_and_densities_where_masks_move() -> None:
    history = [
        {"epoch": e, "train_loss": 1 / e, "accuracy": 0.5 + 0.1 * e, "density": 1 / e, "effective_density": 0.5 / e}
        for e in (1.0, 2.0)
    ]
    picture = curve_picture(history, "lenet5 on MNIST: training with DPF, density 0.5")
    titles = [axes.get_title(loc="left") for axes in picture.drawing.axes]
    assert titles == ["training loss", "validation error, %", "density"]
    assert picture.drawing.axes[1].lines[0].get_ydata() == pytest.approx([40.0, 30.0])
    assert picture.csv == "epoch,train_loss,accuracy,density,effective_density\n1,1,0.6,1,0.5\n2,0.5,0.7,0.5,0.25\n"
    plain = [{name: entry[name] for name in ("epoch", "train_loss", "accuracy")} for entry in history]
    assert len(curve_picture(plain, "x").drawing.axes) == 2


def test_an_agents_training_has_a_title_and_running_means(tmp_path: Path) -> None:
    lines_of = [
        canonical_json(vars(RunRecord(content_key(asked), "rollout", asked, figures, {})))
        for n in (1, 0, 2, 3)
        if (asked := {"agent": "a", "rollout": n})
        and (figures := {"reward": float(n), "episodes": 4.0, "timesteps": 8.0})
    ]
    (tmp_path / "rollouts.jsonl").write_text("\n".join(lines_of) + "\n")
    env = EnvSpec.model_validate({"tasks": [{"model": "mlp", "data": "digits"}], "densities": [0.1]})
    picture = reward_picture(read_rollouts(tmp_path / "rollouts.jsonl"), env)
    assert picture.csv == "rollout,episodes,reward\n1,4,0\n2,4,1\n3,4,2\n4,4,3\n"
    (axes,) = picture.drawing.axes
    assert picture.drawing.get_suptitle() == "mlp on digits: the agent's training (PPO)"
    assert list(axes.lines[1].get_ydata()) == [0.0, 0.5, 1.0, 2.0]  # of a value and the two before it


def test_an_episode_is_shown_by_whole_rounds_under_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []

    def kept(*args: Any, **kwargs: Any) -> Any:
        drawn.append(figure(*args, **kwargs))
        return drawn[-1]

    monkeypatch.setattr(rendering, "figure", kept)
    env = PanningEnv(["mlp/digits"], densities=[0.02], render_mode="rgb_array")
    env.reset(seed=0)
    env.step(env.action_space.sample())
    picture = env.render()
    whole, (axes,) = drawn[0]
    title, second = whole.get_suptitle().splitlines()
    assert title == "mlp on Digits: panning to density 0.02" and second.startswith("round 1: density ")
    assert axes.get_xticks().tolist() == [0, 1] and axes.get_xlabel() == "round"
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["linear1", "linear2", "classifier"]
    assert picture.shape == (380 + 20, 600, 3) and picture.dtype == np.uint8
