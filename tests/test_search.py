"""Search: the same result for any executor, after any interruption, and when a worker is killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from panning.compare.cells import CHOSEN, NamedCell, check_cell, row_name, without_timing
from panning.compare.tables import Table, tables
from panning.episode.policies import POLICIES
from panning.foundation.config import load_config, parse_config
from panning.foundation.errors import (
    ConfigError,
    DataError,
    DensityError,
    PanningError,
    PolicyError,
)
from panning.foundation.progress import silent
from panning.foundation.records import RunRecord, read_records
from panning.jobs.executor import SerialExecutor
from panning.jobs.outcome import Outcome
from panning.jobs.spec import PruneSpec, TrainSpec, digest
from panning.jobs.store import JobStore
from panning.jobs.ways import Method, Way
from panning.jobs.work import Job, execute
from panning.masks.file import load_masks
from panning.searches.candidates import agent_itself, fixed_candidates
from panning.searches.config import SearchConfig
from panning.searches.report import choices, cost_epochs, write_report
from panning.searches.run import SearchResult, check_search, run_search
from panning.tasks import DataSource, TaskSpec
from panning.training import Recipe

TASK = TaskSpec(model="mlp", data="digits", n_train=200)
SHORT = {"epochs": 1, "batch_size": 50, "learning_rate": 0.05}
CONFIG: dict[str, Any] = {
    "name": "tiny",
    "task": TASK.model_dump(mode="json"),
    "densities": [0.1, 0.05],
    "seeds": [0, 1],
    "agent": {"seeds": [9], "n_rounds": 2, "ppo": {"n_rollouts": 1, "n_envs": 2, "n_steps": 2, "batch_size": 4}},
    "n_samples": 1,
    "rungs": [{"keep": 2, "recipe": SHORT}, {"keep": 1, "n_seeds": 2, "recipe": SHORT}],
    "recipe": {**SHORT, "epochs": 2},
    "baselines": ["erk", "snip"],
}


def config(**change: Any) -> SearchConfig:
    return parse_config(SearchConfig, {**CONFIG, **change}, "test")


def search(out: Path, executor: Any = None, **change: Any) -> SearchResult:
    ready = check_search(config(**change))
    return run_search(ready, out, executor or SerialExecutor(), agent_workers=0, listen=silent)


def train_job(seed: int = 0, root: str | None = None, mask: bytes | None = None, **recipe: Any) -> Job[Any]:
    hashed = None if mask is None else digest(mask)
    return Job(TrainSpec(task=TASK, seed=seed, mask=hashed, recipe=Recipe(**recipe)), DataSource(root=root), mask)


def said(result: SearchResult) -> dict[str, Any]:
    """What must be the same wherever and however often a search is run: all but times."""
    cells = [(cell.key, row_name_of(cell), without_timing(cell)) for cell in result.cells]
    return {"winners": result.winners, "rungs": result.rungs, "cells": cells, "cost": cost_epochs(result)}


def row_name_of(cell: RunRecord) -> str:
    return cell.name if isinstance(cell, NamedCell) else row_name(cell.config)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SearchResult]:
    """A search that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole")
    result = search(out)
    write_report(result, out)
    return out, result


def assert_same_products(a: Path, b: Path) -> None:
    masks = sorted(path.name for path in a.glob("choice-*.safetensors"))
    assert len(masks) == 4  # two densities, two seeds
    for name in ["agent/policy.safetensors", *masks]:
        assert (a / name).read_bytes() == (b / name).read_bytes(), name


def test_a_search_leaves_config_records_masks_table_and_pictures(whole: tuple[Path, SearchResult]) -> None:
    out, result = whole
    names = {path.name for path in out.iterdir()}
    assert names >= {"config.yaml", "records.jsonl", "table.md", "report.md", "rows.csv", "table.csv", "result.json",
                     "masks", "agent"}  # fmt: skip
    assert names >= {f"{name}.{form}" for name in ("accuracy", "layers", "cost", "reward") for form in ("png", "csv")}
    assert load_config(SearchConfig, out / "config.yaml") == config()
    masks = load_masks(out / "choice-density0.1-seed0.safetensors")
    assert masks.n_kept == round(0.1 * masks.n_prunable) and masks.manifest["seed"] == 0
    rows = json.loads((out / "result.json").read_text())["rows"]
    for density, way in result.winners.items():
        there = [row["method"] for row in rows if row["density"] == density]
        assert sorted(there) == ["SNIP", "panning (agent)", "random (ERK)", f"search's choice: {way.label}"]
    assert rows[-1]["method"] == "dense" and len(rows) == 9
    assert all(len(row["test_accuracy"]) == 2 and 0 < row["test_accuracy"]["0"] <= 1 for row in rows)
    (table,) = tables(result.cells)
    text = (out / "table.md").read_text()
    for sentence, (density, way) in zip(choices(result, table), result.winners.items(), strict=True):
        assert (
            sentence.startswith(f"At density {density:g} the search chose {way.label}: ") and f"- {sentence}\n" in text
        )
    shown = tables(read_records(out / "records.jsonl"))  # the records alone make the benchmark's tables
    assert {row.method for row in shown[0].rows} >= {"SNIP", "random (ERK)"}


def test_the_cost_of_a_winner_is_that_of_its_search(whole: tuple[Path, SearchResult]) -> None:
    out, result = whole
    (table,) = tables(result.cells)
    short = [r for r in read_records(out / "records.jsonl") if r.kind == "train"]
    assert result.search_images == sum(record.metrics["images_seen"] for record in short)
    costs = {row.density: table.cost(row)[0] for row in table.rows if row.method == CHOSEN}
    assert sum(costs.values()) * 200 == pytest.approx(2 * result.agent_images + result.search_images)
    assert {table.cost(row)[0] for row in table.rows if row.method != CHOSEN} == {0.0}  # this agent trained no network


def test_a_choice_is_compared_with_the_best_baseline_of_validation_and_with_the_agent() -> None:
    """The test part says the opposite of validation, and neither names nor orders by it."""
    from test_grid_report import cell

    agent = agent_itself(config().agent).by.model_dump(mode="json")
    levels = {
        "dense": (None, 0.9, 0.9),
        "erk": ("erk", 0.5, 0.8),
        "snip": ("snip", 0.6, 0.4),
        "agent": (agent, 0.55, 0.7),
    }

    def judged(name: str, seed: int, **change: Any) -> RunRecord:
        by, validation, test = levels[name]
        change = {"by": by, **change} if isinstance(by, dict) else change
        record = cell(name if name != "dense" else None, test + 0.01 * seed, seed, policy=None, **change)
        return replace(record, metrics={**record.metrics, "accuracy": validation})

    def table_of(choice: str, gain: float, n_seeds: int = 3) -> Table:
        cells = [judged(name, seed) for name in levels for seed in range(n_seeds)]
        for seed in range(n_seeds):
            chosen = judged(choice, seed)
            metrics = {
                **chosen.metrics,
                "test_accuracy": chosen.metrics["test_accuracy"] + gain * (1 + seed),
                "mask": "m",
            }
            metrics = metrics if gain else chosen.metrics
            cells.append(NamedCell(chosen.key, chosen.kind, chosen.config, metrics, chosen.environment, name=CHOSEN))
        (table,) = tables(cells)
        return table

    result = SearchResult(config(), {0.05: Way(by=Method(method="snip"))}, [], [], 0, 0, 200)
    table = table_of("snip", 0.1)
    assert [row.label for row in table.rows] == ["search's choice: SNIP", "SNIP", "panning (agent)", "random (ERK)"]
    # Minus SNIP: 10, 20, 30 points, t = 20 / (10 / sqrt(3)) = 3.4641, p 0.0742; half-width 4.3027 * 10 / sqrt(3) = 24.84.
    # Minus the agent: -20, -10, 0, t = -1.7321, p 0.2254. Holm's: 2 * 0.0742 = 0.148, then 0.2254.
    assert choices(result, table) == [
        "At density 0.05 the search chose SNIP: 61.00 ± 11.00 % on test, 3 seeds. Minus the best baseline on validation, "
        "SNIP: +20.00 [-4.84, +44.84], p 0.15, no significant difference. Minus the agent itself, panning (agent): -10.00 "
        "[-34.84, +14.84], p 0.23, no significant difference."
    ]
    # A choice that is a baseline is compared with the next one, and one seed is not tested.
    assert "baseline on validation, random (ERK): -40.00, one seed" in choices(result, table_of("snip", 0.0, 1))[0]


def test_the_test_part_is_read_by_the_final_cells_only(whole: tuple[Path, SearchResult]) -> None:
    records = read_records(whole[0] / "records.jsonl")
    final = [check_cell(record) for record in records if record.kind == "cell"]
    assert {r.config["recipe"]["epochs"] for r in final} == {2.0} and all(r.config["test"] for r in final)
    assert all("test_accuracy" not in r.metrics for r in records if r.kind != "cell")
    # Per seed: dense, and for each density the winner, the agent and two baselines, of which the winner may be one
    assert 2 * (1 + 2 * 3) <= len(final) <= 2 * (1 + 2 * 4)


def test_every_baseline_policy_and_the_agent_are_candidates_and_no_mask_twice(
    whole: tuple[Path, SearchResult],
) -> None:
    ways = fixed_candidates(config().agent, config(baselines=["erk", "synflow"]).baselines)
    assert len(set(ways)) == len(ways) == 2 * (2 + len(POLICIES) + 1)
    _, result = whole
    tried = [entry["candidate"] for entry in result.rungs if (entry["rung"], entry["density"]) == (1, 0.1)]
    assert {"random (ERK) + all-alive", "SNIP + all-alive", "panning (agent) + all-alive"} <= set(tried)
    assert len(set(tried)) == len(tried) < len(ways) + 2  # a sampled episode in two forms; some give equal masks


def test_the_winner_is_the_best_on_validation_in_the_last_rung(whole: tuple[Path, SearchResult]) -> None:
    _, result = whole
    for density, winner in result.winners.items():
        last = [entry for entry in result.rungs if entry["density"] == density and entry["rung"] == 2]
        assert len(last) == 2 and max(entry["accuracy"] for entry in last) == last[0]["accuracy"]
        assert last[0]["candidate"] == winner.label
        first = [entry for entry in result.rungs if entry["density"] == density and entry["rung"] == 1]
        kept = [entry["accuracy"] for entry in first if entry["kept"]]
        assert len(kept) == 2 and min(kept) >= max(e["accuracy"] for e in first if not e["kept"])


def test_a_dear_candidate_loses_by_the_weight_of_its_cost(whole: tuple[Path, SearchResult], tmp_path: Path) -> None:
    shutil.copytree(whole[0], tmp_path / "x")
    (tmp_path / "x" / "run.json").unlink()  # the same jobs, judged otherwise
    (tmp_path / "x" / "config.yaml").unlink()
    cheap = search(tmp_path / "x", cost_weight=1000.0)
    for density in CONFIG["densities"]:
        first, last = ([e for e in cheap.rungs if (e["density"], e["rung"]) == (density, number)] for number in (1, 2))
        assert min(e["compute_left"] for e in first) == first[0]["compute_left"] < first[-1]["compute_left"]
        assert cheap.winners[density].label == min(last, key=lambda e: e["compute_left"])["candidate"]
    assert cheap.winners != whole[1].winners
    (table,) = tables(cheap.cells)
    assert set(table.dense.of_masks("compute_left")) == {1.0}
    lefts = [left for row in table.rows for left in row.of_masks("compute_left")]
    assert 0.0 < min(lefts) < max(lefts) <= 1.0


class Interrupting:
    """Runs jobs one by one and raises KeyboardInterrupt after ``n``."""

    def __init__(self, n: int) -> None:
        self.left = n

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Outcome]]:
        for job in jobs:
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
            yield job, execute(job)


def test_an_interrupted_search_goes_on_where_it_was(whole: tuple[Path, SearchResult], tmp_path: Path) -> None:
    out = tmp_path / "cut"
    n_records = len(read_records(whole[0] / "records.jsonl"))
    for n_jobs in (1, 20, 40):
        with pytest.raises(KeyboardInterrupt):
            search(out, Interrupting(n_jobs))
    with open(out / "records.jsonl", "a") as file:
        file.write('{"key": "torn')  # killed while it wrote
    result = search(out)
    assert len(read_records(out / "records.jsonl")) == n_records
    assert_same_products(whole[0], out)
    assert said(result) == said(whole[1])
    search(out, Interrupting(0))  # nothing is left to do


def test_a_search_that_has_ended_starts_no_ray_and_no_environment(
    whole: tuple[Path, SearchResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from panning.jobs.ray_executor import RayExecutor

    def start() -> None:
        raise AssertionError("nothing is left to do")

    shutil.copytree(whole[0], tmp_path / "again")
    with RayExecutor(2, start_ray=start) as executor:
        ready = check_search(config())
        result = run_search(ready, tmp_path / "again", executor, agent_workers=2, start_ray=start, listen=silent)
    assert said(result) == said(whole[1])


@pytest.mark.ray
def test_ray_gives_the_same_masks_and_table(whole: tuple[Path, SearchResult], tmp_path: Path, local_ray: None) -> None:
    """With one worker; the test below and those of calls from Python have two."""
    from panning.jobs.ray_executor import RayExecutor

    with RayExecutor(1) as executor:
        result = search(tmp_path, executor)
    assert_same_products(whole[0], tmp_path)
    assert said(result) == said(whole[1])


def pids(executor: Any) -> list[int]:
    """The processes of an executor's workers."""
    import ray

    return ray.get([worker.__ray_call__.remote(lambda _: os.getpid()) for worker in executor.workers.actors.values()])


@pytest.mark.ray
def test_a_killed_worker_loses_nothing(
    whole: tuple[Path, SearchResult], tmp_path: Path, local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from panning.jobs.ray_executor import RayExecutor

    with RayExecutor(2) as executor:
        left: list[int] = []
        n_trained = 0
        put = JobStore.put

        def kill_then_put(self: JobStore, job: Job, outcome: Outcome, *record: Any) -> None:
            nonlocal n_trained
            if job.spec.kind == "train":
                n_trained += 1
                if n_trained == 1:
                    left.extend(pids(executor))
                if n_trained in (1, 5):  # in the middle: both workers are at a job or about to be
                    os.kill(left.pop(), signal.SIGKILL)
            put(self, job, outcome, *record)

        monkeypatch.setattr(JobStore, "put", kill_then_put)
        result = search(tmp_path, executor)
    assert n_trained > 5 and not left
    assert_same_products(whole[0], tmp_path)
    assert said(result) == said(whole[1])


class Ending(Job[Any]):
    """A job that ends the process that reads it, as a crash would; any other runs beside it."""

    def with_own(self, held: Any) -> Job[Any]:
        os._exit(3)


class Raising(Job[Any]):
    """A job that raises what cannot be pickled."""

    def with_own(self, held: Any) -> Job[Any]:
        raise RuntimeError("no outcome", lambda: None)


@pytest.mark.ray
def test_a_job_that_ends_its_worker_or_hangs_fails_and_the_others_go_on(local_ray: None) -> None:
    from panning.jobs.ray_executor import RayExecutor

    good, raising, ending = train_job(batch_size=50, epochs=1), train_job(seed=1), train_job(seed=2)
    jobs = [Ending(ending.spec), Raising(raising.spec), good]
    with RayExecutor(1, 600.0) as executor:
        executor.dispatcher.patience.max_tries = 2  # a worker needs seconds to start
        found = {job.key: outcome for job, outcome in executor.run(jobs)}
        executor.dispatcher.patience.job_timeout_s = 1e-3
        ((_, hung),) = executor.run([train_job(epochs=50, batch_size=10)])
    assert found[good.key].error is None and found[good.key].accuracy == execute(good).accuracy
    assert found[ending.key].failure == "worker" and "its process ended" in found[ending.key].error
    assert found[raising.key].failure == "raised" and "no outcome" in found[raising.key].error
    assert hung.failure == "time" and "it took too long after" in hung.error


@pytest.mark.ray
def test_an_error_in_a_worker_arrives_as_itself(local_ray: None) -> None:
    from panning.jobs.ray_executor import RayExecutor

    absent = TrainSpec(task=TaskSpec(model="mlp", data="npz:absent.npz"), seed=0, mask=None, recipe=Recipe())
    with RayExecutor(1) as executor, pytest.raises(DataError, match="absent.npz"):
        list(executor.run([Job(absent)]))


def test_jobs_are_known_by_what_they_ask_and_not_by_where_the_data_lie() -> None:
    assert train_job().key == train_job(root="elsewhere").key
    assert len({job.key for job in (train_job(), train_job(seed=1), train_job(mask=b"a"), train_job(mask=b"b"))}) == 4


def test_work_that_fails_is_recorded_as_a_result() -> None:
    outcome = execute(train_job(epochs=1, batch_size=50, learning_rate=1e9))
    assert (
        outcome.error is not None and "training loss" in outcome.error and outcome.metrics == {"error": outcome.error}
    )
    impossible = execute(Job(PruneSpec(task=TASK, seed=0, density=2 / 50432, by=Method(method="snip"))))
    assert impossible.error is not None and "a path needs 3" in impossible.error


def test_a_search_whose_dense_network_diverges_says_so(tmp_path: Path) -> None:
    result = search(tmp_path, recipe={**SHORT, "learning_rate": 1e9}, densities=[0.1], baselines=["erk"])
    assert all("training loss" in cell.metrics["error"] for cell in result.cells)
    with pytest.raises(PanningError, match="the dense network failed .*the recipe does not fit it"):
        write_report(result, tmp_path)


def test_a_folder_holds_one_search_only(whole: tuple[Path, SearchResult]) -> None:
    with pytest.raises(ConfigError, match=r"differs in: n_samples"):
        search(whole[0], n_samples=2)


def test_impossible_densities_are_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(DensityError, match="a path needs 3"):
        search(tmp_path / "s", densities=[0.1, 2 / 50432])
    assert not (tmp_path / "s").exists()


def test_a_trained_policy_can_be_searched_with(tmp_path: Path) -> None:
    part = {**CONFIG["agent"], "n_rounds": 4, "policy": str(policy_file(tmp_path))}
    result = search(tmp_path / "s", densities=[0.1], agent=part, baselines=[])
    assert result.agent_images == 0 and not (tmp_path / "s" / "agent").exists()
    assert [row_name_of(cell) for cell in result.cells] == ["dense"] * 2 + ["panning (agent)"] * 2 + [CHOSEN] * 2


def test_a_policy_made_for_other_actions_is_refused(tmp_path: Path) -> None:
    for other in ({"n_rounds": 3}, {"n_rounds": 4, "action": {"indices": ["synflow", "grasp", "snip", "magnitude"]}}):
        with pytest.raises(PolicyError, match="made for other actions"):
            search(tmp_path / "s", agent={**CONFIG["agent"], **other, "policy": str(policy_file(tmp_path))})
    assert not (tmp_path / "s").exists()


def policy_file(folder: Path) -> Path:
    from test_episode import small_policy

    from panning.episode.policy_net import save_policy

    save_policy(small_policy(), folder / "policy")
    return folder / "policy"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"densitis": [0.1]}, "Did you mean 'densities'"),
        ({"densities": [0.0]}, "densities.0"),
        ({"baselines": ["snpi"]}, "Did you mean 'snip'"),
        ({"task": {"model": "lenet", "data": "digits"}}, "Unknown model 'lenet'. Did you mean 'lenet5'"),
        ({"task": {"model": "mlp", "data": "digit"}}, "Did you mean 'digits'"),
        ({"seeds": [0, 9]}, "used both to train the agent"),
        ({"rungs": [{"keep": 2, "recipe": SHORT}]}, "must keep 1"),
        ({"rungs": [{"keep": 1, "n_seeds": 3, "recipe": SHORT}]}, "wants 3 seeds"),
        ({"agent": {"ppo": {"n_steps": 3, "n_envs": 1, "batch_size": 2}}}, "must divide a rollout"),
        ({"agent": {"action": {"indices": ["synflw"]}}}, "Did you mean 'synflow'"),
        ({"recipe": {"learning_rate": -1}}, "learning_rate"),
    ],
)
def test_wrong_configs_are_refused_with_the_nearest_right_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(PanningError) as caught:
        config(**change)
    assert message in str(caught.value)


def test_baselines_may_have_quotas_and_places_and_recipes_a_start(tmp_path: Path) -> None:
    gain = {**SHORT, "start": "gain"}
    rungs = [{"keep": 1, "recipe": gain}]
    baselines = ["erk", {"quotas": "erk", "place": "snip"}, {"method": "snip", "shape": "4x1"}]
    change = {"densities": [0.1], "seeds": [0], "rungs": rungs, "recipe": gain, "baselines": ["erk", baselines[1]]}
    assert config(baselines=baselines).identity(None)["baselines"] == baselines
    assert config().identity(None)["baselines"] == ["erk", "snip"]  # as searches that exist have it
    forms = fixed_candidates(config().agent, config(baselines=baselines).baselines)
    assert [way.label for way in forms][:5] == [
        "random (ERK) + all-alive", "random (ERK)", "quotas of ERK; places by snip + all-alive",
        "quotas of ERK; places by snip", "SNIP (4x1)",
    ]  # fmt: skip
    result = search(tmp_path, **change)
    assert "quotas of ERK; places by snip" in {row_name_of(cell) for cell in result.cells}
    write_report(result, tmp_path)
    assert "quotas of ERK; places by snip, gain start" in (tmp_path / "report.md").read_text()
    with pytest.raises(PanningError, match="leave dynamic and members out"):
        config(baselines=[{"dynamic": "rigl"}])


def test_all_errors_of_a_config_come_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        config(densitis=[0.1], baselines=["snpi"], n_samples=-1)
    assert "3 error(s)" in str(caught.value)


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parent.parent / "configs").glob("*/*.yaml")), ids=lambda path: path.stem
)
def test_every_shipped_config_is_well_formed_and_says_how_it_is_run(path: Path) -> None:
    from panning.agents import AgentConfig
    from panning.compare.grid import GridConfig
    from panning.episode.shelf import Card
    from panning.foundation.config import Config
    from panning.jobs.prune import PruneConfig
    from panning.jobs.train import TrainConfig
    from panning.training.presets import DynamicPresets, Preset

    kinds: dict[str, type[Config]] = {
        "agent": AgentConfig,
        "bench": GridConfig,
        "recipes": Preset,
        "dynamics": DynamicPresets,
        "prune": PruneConfig,
        "train": TrainConfig,
        "search": SearchConfig,
        "demo": SearchConfig,
        "policies": Card,
    }
    load_config(kinds[path.parent.name], path)
    if path.parent.name == "policies":  # which training writes
        return
    text = path.read_text()
    assert text.startswith("# ") and (path.parent.name == "recipes" or f"{path.parent.name}/{path.stem}" in text)
