"""Benchmark grids: one protocol for every cell, no cell twice or lost, and any row can be run again."""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from panning.cli import main
from panning.compare.cells import check_cell, row_name, without_timing
from panning.compare.grid import Contender, GridConfig
from panning.compare.report import markdown, marks
from panning.compare.reproduce import differences, find_record, run_again
from panning.compare.run import check_grid, merge_records, run_grid
from panning.compare.tables import tables
from panning.episode.actions import ActionSpec
from panning.episode.observations import STANDARD
from panning.episode.policy_net import PolicyNet, save_policy
from panning.foundation.config import parse_config
from panning.foundation.errors import ConfigError, DensityError, OutputError, PanningError
from panning.foundation.files import sole_writer
from panning.foundation.making import making
from panning.foundation.progress import silent
from panning.foundation.records import RunRecord, read_records
from panning.jobs.executor import SerialExecutor
from panning.jobs.outcome import Outcome
from panning.jobs.spec import CellSpec
from panning.jobs.trained import Ensemble, train_one
from panning.jobs.ways import CONTROLLED
from panning.jobs.work import Job, execute
from panning.pruners.controls import CONTROLS
from panning.tasks import DataSource, TaskSpec, load_task
from panning.training import DYNAMICS, Recipe, make_dynamic
from panning.training.presets import dynamic_presets, load_dynamic_preset, load_recipe, recipes

SHORT = {"epochs": 2, "batch_size": 50, "learning_rate": 0.05}
CONFIG: dict[str, Any] = {
    "name": "tiny",
    "tasks": [{"task": {"model": "mlp", "data": "digits", "n_train": 200}, "recipe": SHORT}],
    "densities": [0.1, 0.05],
    "seeds": [0, 1],
    "methods": [
        "erk",
        "snip",
        {"method": "snip", "control": "shuffle_alive"},
        {"method": "snip", "control": "reinitialise"},
    ],
}
HERE = Path()


def config(**change: Any) -> GridConfig:
    return parse_config(GridConfig, {**CONFIG, **change}, "test")


def bench(out: Path, executor: Any = None, **change: Any) -> dict[str, RunRecord]:
    records = run_grid(config(**change), HERE, out, executor or SerialExecutor(), silent)
    return {record.key: record for record in records}


def same(first: dict[str, RunRecord], second: dict[str, RunRecord]) -> bool:
    return {k: without_timing(r) for k, r in first.items()} == {k: without_timing(r) for k, r in second.items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, RunRecord]]:
    """A grid that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole")
    return out, bench(out)


class Interrupting:
    """Runs ``n`` jobs and raises KeyboardInterrupt."""

    def __init__(self, n: int) -> None:
        self.n = n

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Outcome]]:
        for number, job in enumerate(jobs):
            if number == self.n:
                raise KeyboardInterrupt
            yield job, execute(job)


@pytest.mark.parametrize("rate", [0.05, 1.0])  # the second is far too high: the first epoch is the best
def test_networks_that_end_best_are_those_of_the_best_epoch(rate: float) -> None:
    task = load_task(TaskSpec(model="mlp", data="digits", n_train=200), seed=0)
    recipe = Recipe(epochs=2, batch_size=50, learning_rate=rate, schedule="constant")
    together = Ensemble(task, recipe, [train_one(task, recipe, 0, None)])
    (last,), (best,) = together.last, together.best
    same = all(torch.equal(a, b) for a, b in zip(last.parameters(), best.parameters(), strict=True))
    assert same == together.ends_best == (rate < 1)


def test_every_cell_has_a_record_that_says_all_of_it(whole: tuple[Path, dict[str, RunRecord]]) -> None:
    _, records = whole
    names = sorted({row_name(record.config) for record in records.values()})
    assert names == [
        "SNIP", "SNIP (of other weights)", "SNIP (shuffled, as many alive)", "dense", "random (ERK)"
    ]  # fmt: skip
    assert len(records) == 2 + 2 * 2 * 4 and check_grid(config(), HERE) == (18, 18)
    for record in records.values():
        facts = record.metrics
        assert record.kind == "cell" and facts["error"] is None and "commit" in record.environment
        assert [entry["epoch"] for entry in facts["history"]] == [1.0, 2.0] and facts["images_seen"] == 400
        assert facts["best_accuracy"] == max(e["accuracy"] for e in facts["history"]) >= facts["accuracy"]
        same_weights = facts["best_epoch"] == 2.0
        assert not same_weights or facts["test_accuracy"] == facts["test_accuracy_of_best"]
        assert set(facts["timing"]) == {"prune_s", "train_s"}
    assert any(record.metrics["best_epoch"] == 1.0 for record in records.values())  # or the best is not looked at
    assert len({record.metrics["data"] for record in records.values()}) == 1


def test_a_grid_without_controls_says_so_in_its_report(
    whole: tuple[Path, dict[str, RunRecord]], tmp_path: Path
) -> None:
    change: dict[str, Any] = {"methods": ["erk", "snip"], "densities": [0.1], "seeds": [0]}
    with pytest.raises(ConfigError, match="say controls: false"):
        config(**change)
    records = bench(tmp_path, **change, controls=False)
    (table,) = tables(records.values())
    (sentence,) = marks(table)
    assert sentence.startswith(
        "Not controlled: there are no shuffled masks of a method, no masks of a method for other weights."
    )
    assert sentence in markdown(list(records.values()))
    (controlled,) = tables(whole[1].values())
    assert marks(controlled) == [] and "Not controlled" not in markdown(list(whole[1].values()))


def test_one_seed_means_the_same_weights_and_batches_for_all(whole: tuple[Path, dict[str, RunRecord]]) -> None:
    """A mask that keeps all is the dense network: the same history in every figure."""
    _, records = whole
    dense = next(r for r in records.values() if r.config["by"] is None and r.config["seed"] == 1)
    everything = Job(CellSpec.model_validate({**dense.config, "by": {"method": "erk"}}))
    facts = execute(everything).metrics
    assert facts["density"] == 1.0 and facts["history"] == dense.metrics["history"]


def test_a_grid_goes_on_where_it_was_and_can_be_extended(
    whole: tuple[Path, dict[str, RunRecord]], tmp_path: Path
) -> None:
    out = tmp_path / "cut"
    for n_jobs in (3, 5):
        with pytest.raises(KeyboardInterrupt):
            bench(out, Interrupting(n_jobs))
    with open(out / "records.jsonl", "a") as file:
        file.write('{"key": "torn')  # killed while it wrote
    assert len(bench(out)) == 18 and same(bench(out, Interrupting(0)), whole[1])  # nothing is left to do
    more = bench(out, Interrupting(8), densities=[0.1, 0.05, 0.2], name="tiny")
    assert len(more) == 18 + 2 * 4 and set(whole[1]) < set(more)
    with pytest.raises(ConfigError, match="another run"):
        bench(out, name="other")


def test_a_stopped_grid_is_whole_for_the_seeds_it_has(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        bench(tmp_path, Interrupting(9))
    assert [record.config["seed"] for record in read_records(tmp_path / "records.jsonl")] == [0] * 9


def test_parts_of_a_grid_are_merged_without_repeating_a_cell(
    whole: tuple[Path, dict[str, RunRecord]], tmp_path: Path
) -> None:
    parts = [tmp_path / str(number) for number in range(3)]
    for number, part in enumerate(parts):
        run_grid(config(), HERE, part, SerialExecutor(), silent, (number, 3))
    files = [part / "records.jsonl" for part in parts]
    assert sum(len(read_records(file)) for file in files) == 18
    out = tmp_path / "all"
    assert merge_records([files[0], *files], out) == 18 and merge_records(files, out) == 0
    assert same({r.key: r for r in read_records(out / "records.jsonl")}, whole[1])

    wrong = read_records(files[0])[0]
    lines = [json.dumps(vars(replace(wrong, metrics={**wrong.metrics, "accuracy": 0.123}))), ""]
    (tmp_path / "wrong.jsonl").write_text("\n".join(lines))
    with pytest.raises(PanningError, match=f"another result for the cell {wrong.key}"):
        merge_records([tmp_path / "wrong.jsonl"], out)


def test_learning_rates_are_chosen_on_the_validation_part_alone(tmp_path: Path) -> None:
    tasks = [{**CONFIG["tasks"][0], "learning_rates": [1e-5, 0.05]}]
    records = bench(tmp_path, tasks=tasks, densities=[0.1])
    tried = [r for r in records.values() if not r.config["test"]]
    final = [r for r in records.values() if r.config["test"]]
    assert len(tried) == 2 * len(final) == 2 * 2 * 5
    assert all("test_accuracy" not in r.metrics for r in tried)
    assert {r.config["recipe"]["learning_rate"] for r in final} == {0.05}


def test_short_recipes_train_the_same_masks_without_the_test_part(
    whole: tuple[Path, dict[str, RunRecord]], tmp_path: Path
) -> None:
    records = bench(tmp_path, short=[{**SHORT, "epochs": 1}])
    short = [r for r in records.values() if r.config["recipe"]["epochs"] == 1]
    assert len(short) == 18 and all("test_accuracy" not in r.metrics and not r.config["test"] for r in short)
    assert {r.metrics["mask"] for r in short} == {r.metrics["mask"] for r in whole[1].values()}


def test_what_fails_is_a_record_too(tmp_path: Path) -> None:
    tasks = [{**CONFIG["tasks"][0], "recipe": {**SHORT, "learning_rate": 1e9}}]
    records = bench(tmp_path, tasks=tasks, densities=[0.1], seeds=[0])
    errors = [record.metrics["error"] for record in records.values()]
    assert all("training loss is" in error for error in errors)
    assert all(record.metrics["effective_density"] > 0 for record in records.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"methods": ["erk"]},
            "without controls is not believed; .*with control: shuffle_alive; .*with control: reinitialise",
        ),
        ({"methods": CONFIG["methods"][1:]}, "add to methods: erk"),
        # controls of quotas, of what is not in the grid, and a random mask that moves, are none
        (
            {
                "methods": [
                    "erk",
                    "snip",
                    {"method": "erk", "control": "shuffle_alive"},
                    {"method": "erk", "control": "reinitialise"},
                ]
            },
            "control: shuffle_alive; .*control: reinitialise",
        ),
        ({"methods": ["erk", "synflow", *CONFIG["methods"][2:]]}, "control: shuffle_alive; .*control: reinitialise"),
        ({"methods": [{"method": "erk", "dynamic": "rigl"}, *CONFIG["methods"][1:]]}, "add to methods: erk"),
        ({"tasks": CONFIG["tasks"] * 2}, "tasks is named twice"),
        ({"short": [{**SHORT, "learning_rate": 0.1}]}, "list the rate under learning_rates"),
        ({"short": [{**SHORT, "epochs": 1}] * 2}, "short is named twice"),
        ({"tasks": [{**CONFIG["tasks"][0], "learning_rates": [0.1, 0.1]}]}, "learning_rates is named twice"),
        (
            {
                "tasks": [
                    *CONFIG["tasks"],
                    {**CONFIG["tasks"][0], "recipe": {**SHORT, "learning_rate": 0.2}, "learning_rates": [1, 2]},
                ]
            },
            "one of them tries several",
        ),
        ({"name": "../elsewhere"}, "name"),
        ({"methods": [*CONFIG["methods"], "snyflow"]}, "Did you mean 'synflow'"),
        ({"methods": [*CONFIG["methods"], "erk"]}, "methods is named twice"),
        ({"methods": [*CONFIG["methods"], {"method": "erk", "policy": "x"}]}, "not several"),
        ({"methods": [*CONFIG["methods"], {"policy": "x", "control": "shuffle"}]}, "go with a method"),
        ({"methods": [*CONFIG["methods"], {"policy": "x", "place": "lot"}]}, "Name a method"),
        ({"methods": [*CONFIG["methods"], {"method": "snip", "quotas": "erk", "place": "lot"}]}, "nothing to say"),
        ({"methods": [*CONFIG["methods"], {"method": "snip", "quotas": "erkk"}]}, "Did you mean 'erk'"),
        ({"methods": [*CONFIG["methods"], {"all_alive": True}]}, "a method, a policy file or a dynamic method"),
        ({"methods": [*CONFIG["methods"], {"dynamic": "rigle"}]}, "Did you mean 'rigl'"),
        (
            {"methods": [*CONFIG["methods"], {"method": "snip", "dynamic": "gmp"}]},
            "'gmp' only prunes.*leave method 'snip'",
        ),
        (
            {"methods": [*CONFIG["methods"], {"dynamic": {"name": "rigl", "options": {"evry": 3}}}]},
            "Did you mean 'every'",
        ),
        ({"methods": [*CONFIG["methods"], {"dynamic": {"name": "rigl", "option": {}}}]}, "option"),
        ({"methods": [*CONFIG["methods"], {"dynamic": "dpf"}, {"dynamic": {"name": "dpf"}}]}, "methods is named twice"),
        ({"methods": [*CONFIG["methods"], {"method": "magnitude", "released": True}]}, "no released form"),
        ({"methods": [*CONFIG["methods"], {"method": "snip", "control": "shufle"}]}, "Did you mean 'shuffle"),
        ({"methods": [*CONFIG["methods"], {"method": "erk", "control": "invert"}]}, "has none; these have scores"),
        ({"seeds": [0, 0]}, "seeds is named twice"),
        (
            {"tasks": [{**CONFIG["tasks"][0], "recipe": "lenet5-fashion_mnist/shrt"}]},
            "Did you mean 'lenet5-fashion_mnist",
        ),
    ],
)
def test_wrong_grids_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**change)


def test_a_folder_has_one_writer(tmp_path: Path, whole: tuple[Path, dict[str, RunRecord]]) -> None:
    """Or each of two would run the cells that the other is at."""
    with sole_writer(tmp_path), pytest.raises(OutputError, match="Another process writes"):
        bench(tmp_path)
    with sole_writer(tmp_path), pytest.raises(OutputError, match="Another process writes"):
        merge_records([whole[0]], tmp_path)
    assert merge_records([whole[0]], tmp_path) == len(whole[1])


def test_a_grid_does_not_go_on_from_what_is_no_cell(tmp_path: Path) -> None:
    other = RunRecord("a", "rollout", {}, {}, {})
    (tmp_path / "records.jsonl").write_text(json.dumps(vars(other)) + "\n")
    with pytest.raises(PanningError, match="no cell of a benchmark"):
        bench(tmp_path)


def test_a_grid_does_not_go_on_from_two_results_of_one_cell(
    tmp_path: Path, whole: tuple[Path, dict[str, RunRecord]]
) -> None:
    record = next(iter(whole[1].values()))
    other = replace(record, metrics={**record.metrics, "test_accuracy": 0.5})
    (tmp_path / "records.jsonl").write_text("".join(json.dumps(vars(r)) + "\n" for r in (record, other)))
    with pytest.raises(PanningError, match="another result for the cell"):
        bench(tmp_path)


def test_a_density_without_a_path_is_refused_before_anything_runs() -> None:
    with pytest.raises(DensityError, match="smallest density"):
        check_grid(config(densities=[0.00001]), HERE)


def test_quotas_and_places_are_rows_and_what_cannot_be_had_is_refused_before_anything_runs(tmp_path: Path) -> None:
    methods = [{"quotas": "erk + snip", "place": "balanced:lot"}, {"method": "snip", "quotas": "erk"}]
    grid = GridConfig.model_validate(CONFIG | {"methods": methods, "controls": False, "seeds": [0], "densities": [0.1]})
    check_grid(grid, tmp_path)
    records = run_grid(grid, tmp_path, tmp_path / "out", SerialExecutor(), silent)
    assert {row_name(record.config) for record in records} == {
        "dense", "quotas of ERK + SNIP; balanced places by lot", "SNIP (quotas of ERK)",
    }  # fmt: skip
    assert [record.config["by"] for record in map(check_cell, records)][1:] == methods
    assert records[1].metrics["n_kept"] == records[2].metrics["n_kept"]
    assert records[1].metrics["layer_densities"] != records[2].metrics["layer_densities"]
    bounded = [{"method": "snip", "min_density": {"*": 0.5}}]
    with pytest.raises(DensityError, match="leave densities from 0.5"):
        check_grid(grid.model_copy(update={"methods": tuple(map(Contender.model_validate, bounded))}), tmp_path)


def test_every_control_has_a_name_in_tables() -> None:
    assert set(CONTROLLED) == set(CONTROLS)


@pytest.mark.parametrize("name", recipes())
def test_every_preset_is_a_recipe(name: str) -> None:
    assert load_recipe(name).epochs > 0


@pytest.mark.parametrize("name", dynamic_presets())
def test_every_preset_of_a_dynamic_method_has_its_numbers(name: str) -> None:
    method, setting, form = name.split("/")
    assert form in ("paper", "short") and f"{setting}/{form}" in {*recipes()}
    assert make_dynamic(method, load_dynamic_preset(name).options, name) is not None


def test_every_dynamic_method_has_a_preset() -> None:
    assert {name.split("/")[0] for name in dynamic_presets()} == set(DYNAMICS)


def test_masks_that_move_are_rows_like_others(tmp_path: Path) -> None:
    moving: list[Any] = [
        {"dynamic": {"name": "rigl", "options": {"every": 2}}},
        {"dynamic": {"name": "dpf", "options": {"every": 2}}, "all_alive": True},
        {"method": "snip", "dynamic": {"name": "granet_st", "options": {"every": 2}}},
        {"dynamic": {"name": "imp", "options": {"kept_each": 0.3}}},
        {"dynamic": {"name": "edst", "options": {"exploration": 0.0, "n_members": 2}}},
        {"method": "erk", "members": 2},
    ]
    change: dict[str, Any] = {"methods": [*CONFIG["methods"], *moving], "densities": [0.1], "seeds": [0]}
    records = bench(tmp_path / "out", **change)
    rows = {row_name(record.config): record for record in records.values()}
    assert set(rows) >= {
        "RigL (every 2)",
        "DPF (every 2) + all-alive",
        "GraNet-ST (every 2) from SNIP",
        "IMP (rate rewinding) (kept_each 0.3)",
        "EDST ensemble (exploration 0.0, n_members 2)",
        "random (ERK), 2 together",
    }
    assert all(record.metrics["error"] is None for record in records.values())
    found = {name: record.metrics for name, record in rows.items()}
    assert {round(metrics["density"], 3) for name, metrics in found.items() if "every" in name or "kept" in name} == {
        0.1
    }
    alive = found["DPF (every 2) + all-alive"]
    assert alive["effective_density"] == alive["density"]
    assert [entry["density"] > 0.1 for entry in alive["history"]] == [True, False]
    # what a training costs in multiply-adds: the sparse ones less than the dense, IMP three times its masks' densities
    assert found["dense"]["train_epochs"] == pytest.approx(2.0) and found["random (ERK)"]["train_epochs"] < 0.5
    assert found["RigL (every 2)"]["train_epochs"] < found["DPF (every 2) + all-alive"]["train_epochs"] < 2.0
    assert len(found["IMP (rate rewinding) (kept_each 0.3)"]["history"]) == 6
    assert found["random (ERK), 2 together"]["images_seen"] == 2 * found["random (ERK)"]["images_seen"]
    assert [
        found[name].get("n_members")
        for name in ("random (ERK), 2 together", "EDST ensemble (exploration 0.0, n_members 2)")
    ] == [2, 2]
    for name in (
        "DPF (every 2) + all-alive",
        "EDST ensemble (exploration 0.0, n_members 2)",
        "random (ERK), 2 together",
    ):
        assert differences(rows[name], run_again(rows[name], DataSource())) == [], name


def test_an_agents_mask_may_be_where_masks_begin_to_move(tmp_path: Path) -> None:
    policy_file(tmp_path / "agent.safetensors", 0)
    methods = [
        *CONFIG["methods"],
        {"policy": "agent.safetensors", "dynamic": {"name": "rigl", "options": {"every": 2}}},
    ]
    records = run_grid(
        config(methods=methods, densities=[0.1], seeds=[0]), tmp_path, tmp_path / "out", SerialExecutor(), silent
    )
    (record,) = (r for r in records if row_name(r.config) == "RigL (every 2) from panning (agent)")
    assert record.metrics["error"] is None and check_cell(record)


def policy_file(path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    spec = ActionSpec()
    weight = rng.standard_normal((len(spec.dimensions), len(STANDARD))).astype(np.float32)
    bias = np.zeros(len(spec.dimensions), np.float32)
    save_policy(PolicyNet(spec, 2, (weight,), (bias,), bias, {"made": "by hand"}), path)


def test_an_agent_is_a_row_known_by_its_file(tmp_path: Path) -> None:
    methods = [*CONFIG["methods"], {"policy": "agent.safetensors"}]
    policy_file(tmp_path / "agent.safetensors", 0)
    change: dict[str, Any] = {"methods": methods, "densities": [0.1], "seeds": [0]}

    def rows() -> list[RunRecord]:
        records = run_grid(config(**change), tmp_path, tmp_path / "out", SerialExecutor(), silent)
        return [record for record in records if row_name(record.config) == "panning (agent)"]

    assert len(rows()) == len(rows()) == 1
    record = rows()[0]
    with pytest.raises(PanningError, match="needs the policy file that it was made with"):
        run_again(record, DataSource())
    assert differences(record, run_again(record, DataSource(), tmp_path / "agent.safetensors")) == []
    policy_file(tmp_path / "agent.safetensors", 1)  # another agent is another row
    assert len(rows()) == 2


def test_a_row_can_be_run_again_from_its_record(
    whole: tuple[Path, dict[str, RunRecord]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out, records = whole
    file = str(out / "records.jsonl")
    record = next(r for r in records.values() if r.config["by"] == {"method": "snip", "control": "shuffle_alive"})
    main_code = exit_code("reproduce", file, "--key", record.key, "--json")
    assert main_code == 0 and json.loads(capsys.readouterr().out)["same"] is True

    assert record.environment["making"] == making()
    old = replace(record, environment={name: part for name, part in record.environment.items() if name != "making"})
    (tmp_path / "old.jsonl").write_text(json.dumps(vars(old)) + "\n")
    assert exit_code("reproduce", str(tmp_path / "old.jsonl")) == 0
    assert "Its mask is made by version 1 (" in capsys.readouterr().err

    wrong = replace(record, metrics={**record.metrics, "test_accuracy": 0.5})
    (tmp_path / "wrong.jsonl").write_text(json.dumps(vars(wrong)) + "\n")
    assert exit_code("reproduce", str(tmp_path / "wrong.jsonl")) == 1
    assert "differs: test_accuracy: 0.5 -> " in capsys.readouterr().err
    assert [name for name, _, _ in differences(wrong, run_again(wrong, DataSource()))] == ["test_accuracy"]

    with pytest.raises(PanningError, match="18 cells are here; name one with --key"):
        find_record(list(records.values()), None)
    assert exit_code("reproduce", file, "--key", record.key, "--policy", file) == 2


def exit_code(*arguments: str) -> int:
    try:
        main(list(arguments))
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_the_command_runs_a_config_and_merges(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "tiny.yaml"
    small = {**CONFIG, "densities": [0.1], "seeds": [0]}
    file.write_text(yaml.safe_dump(small))
    for number in (1, 2):
        out = str(tmp_path / str(number))
        assert exit_code("bench", str(file), "--workers", "0", "--share", f"{number}/2", "--out", out) == 0
    parts = [str(tmp_path / "1"), str(tmp_path / "2" / "records.jsonl")]  # folders will do
    assert exit_code("bench", "merge", *parts, "--out", str(tmp_path / "all")) == 0
    assert "5 records added" in capsys.readouterr().out
    assert exit_code("bench", str(file), "--share", "3/2") == 2


@pytest.mark.slow
def test_a_grid_killed_ten_times_ends_as_if_nothing_had_been(
    whole: tuple[Path, dict[str, RunRecord]], tmp_path: Path
) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(CONFIG))
    code = "from panning.cli import main; main()"
    command = [sys.executable, "-c", code, "bench", str(file), "--workers", "0", "--out", str(tmp_path / "out")]
    random_moments = random.Random(0)
    for _ in range(10):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(random_moments.uniform(3.0, 6.0))
        process.kill()
        process.wait()
    subprocess.run(command, check=True, capture_output=True)
    assert same({r.key: r for r in read_records(tmp_path / "out" / "records.jsonl")}, whole[1])
