"""Search: the same result for any executor, after any interruption, and when a worker is killed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from panning.episode.policies import POLICIES
from panning.foundation.config import load_config, parse_config
from panning.foundation.errors import (
    ConfigError,
    DensityError,
    PanningError,
    PolicyError,
    UnknownNameError,
    WorkerError,
)
from panning.foundation.records import read_records
from panning.jobs.store import JobStore
from panning.jobs.work import prune_job, train_job
from panning.masks.file import load_masks
from panning.search import Job, Outcome, SearchConfig, SearchResult, SerialExecutor, execute, run_search
from panning.search.candidates import baseline, fixed_candidates
from panning.search.report import COLUMNS, findings, markdown, table_cells, write_report
from panning.search.run import Row
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


@contextlib.contextmanager
def silent(description: str, total: int) -> Iterator[Any]:
    yield lambda n=1, note="": None


def config(**change: Any) -> SearchConfig:
    return parse_config(SearchConfig, {**CONFIG, **change}, "test")


def search(out: Path, executor: Any = None, **change: Any) -> SearchResult:
    return run_search(config(**change), out, executor or SerialExecutor(), agent_workers=0, show=silent)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SearchResult]:
    """A search that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole")
    result = search(out)
    write_report(result, out)
    return out, result


def assert_same_products(a: Path, b: Path) -> None:
    masks = sorted(path.name for path in a.glob("panning-*.safetensors"))
    assert len(masks) == 4  # two densities, two seeds
    for name in ["agent/policy.safetensors", *masks]:
        assert (a / name).read_bytes() == (b / name).read_bytes(), name


def test_a_search_leaves_config_records_masks_table_and_pictures(whole: tuple[Path, SearchResult]) -> None:
    out, result = whole
    names = {path.name for path in out.iterdir()}
    assert names >= {"config.yaml", "records.jsonl", "table.md", "table.csv", "result.json", "accuracy.png",
                     "layers.png", "reward.png", "masks", "agent"}  # fmt: skip
    assert load_config(SearchConfig, out / "config.yaml").identity == config().identity
    masks = load_masks(out / "panning-density0.1-seed0.safetensors")
    assert masks.n_kept == round(0.1 * masks.n_prunable) and masks.manifest["seed"] == 0
    rows = json.loads((out / "result.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["panning", "random (ERK)", "SNIP"] * 2 + ["dense"]
    assert all(len(row["test"]) == 2 and 0 < row["test"][0] <= 1 for row in rows)
    assert len(findings(result)) == 2 and all("panning is" in sentence for sentence in findings(result))
    assert len(table_cells(result)) == 7


def test_the_test_part_is_read_by_the_final_trainings_only(whole: tuple[Path, SearchResult]) -> None:
    records = read_records(whole[0] / "records.jsonl")
    final = [r for r in records if r.kind == "train" and r.config["test"]]
    assert {r.config["recipe"]["epochs"] for r in final} == {2.0}
    assert all("test_accuracy" not in r.metrics for r in records if r not in final)
    # Per seed: dense, and for each density the winner and two baselines; equal masks are trained once.
    assert 2 * (1 + 2 * 2) <= len(final) <= 2 * (1 + 2 * 3)


def test_every_baseline_policy_and_the_agent_are_candidates_and_no_mask_twice(
    whole: tuple[Path, SearchResult],
) -> None:
    keys = [candidate.key for candidate in fixed_candidates(config().agent, ["erk", "synflow"])]
    assert len(set(keys)) == len(keys) == 2 * (2 + len(POLICIES) + 1)
    assert baseline("synflow").key in keys  # what the final table shows, so that it is not pruned again
    _, result = whole
    tried = [entry["candidate"] for entry in result.rungs if (entry["rung"], entry["density"]) == (1, 0.1)]
    assert {"random (ERK) + all-alive", "SNIP + all-alive", "agent + all-alive"} <= set(tried)
    assert len(set(tried)) == len(tried) < len(keys) + 2  # a sampled episode in two forms; some give equal masks


def test_what_shares_the_first_place_is_said_to(whole: tuple[Path, SearchResult]) -> None:
    _, result = whole
    ours = next(row for row in result.rows if row.method == "panning")
    better = replace(ours, method="SNIP", test=[a + 0.01 for a in ours.test if a is not None])
    one = config(densities=[ours.density])

    def sentence(*others: Row) -> str:
        return findings(replace(result, config=one, rows=[ours, *others]))[0]

    assert "first, with others: +0.00 points against SNIP" in sentence(replace(ours, method="SNIP"))
    assert "number 2 of 2: -1.00 points against SNIP" in sentence(better)
    assert "is first: " in sentence(replace(better, test=[None, 1.0]))  # one that failed comes after


def test_the_winner_is_the_best_on_validation_in_the_last_rung(whole: tuple[Path, SearchResult]) -> None:
    _, result = whole
    for density, winner in result.winners.items():
        last = [entry for entry in result.rungs if entry["density"] == density and entry["rung"] == 2]
        assert len(last) == 2 and max(entry["accuracy"] for entry in last) == last[0]["accuracy"]
        assert last[0]["candidate"] == winner.name
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
        assert cheap.winners[density].name == min(last, key=lambda e: e["compute_left"])["candidate"]
    assert [w.name for w in cheap.winners.values()] != [w.name for w in whole[1].winners.values()]
    column = COLUMNS.index("multiply-adds %")
    cells = {(row[0], row[1]): float(row[column]) for row in table_cells(cheap)}
    assert cells["1", "dense"] == 100.0 and max(cells.values()) == 100.0 > min(cells.values()) > 0.0


class Interrupting:
    """Runs jobs one by one and raises KeyboardInterrupt after ``n``."""

    n_workers = 1

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
    assert markdown(result) == markdown(whole[1])
    search(out, Interrupting(0))  # nothing is left to do


@pytest.mark.ray
@pytest.mark.parametrize("n_workers", [1, 2])
def test_ray_gives_the_same_masks_and_table(
    n_workers: int, whole: tuple[Path, SearchResult], tmp_path: Path, local_ray: None
) -> None:
    from panning.jobs.ray_executor import RayExecutor

    with RayExecutor(n_workers) as executor:
        result = search(tmp_path, executor)
    assert_same_products(whole[0], tmp_path)
    assert markdown(result) == markdown(whole[1])


@pytest.mark.ray
def test_a_killed_worker_loses_nothing(
    whole: tuple[Path, SearchResult], tmp_path: Path, local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from panning.jobs.ray_executor import RayExecutor

    with RayExecutor(2) as executor:
        left: list[int] = []
        n_trained = 0
        put = JobStore.put

        def kill_then_put(self: JobStore, job: Job, outcome: Outcome) -> None:
            nonlocal n_trained
            if job.kind == "train":
                n_trained += 1
                if n_trained == 1:
                    left.extend(executor.pids())
                if n_trained in (1, 5):  # in the middle: both workers are at a job or about to be
                    os.kill(left.pop(), signal.SIGKILL)
            put(self, job, outcome)

        monkeypatch.setattr(JobStore, "put", kill_then_put)
        result = search(tmp_path, executor)
    assert n_trained > 5 and not left
    assert_same_products(whole[0], tmp_path)
    assert markdown(result) == markdown(whole[1])


@pytest.mark.ray
def test_a_job_that_kills_every_worker_is_given_up_with_a_message(
    local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from panning.jobs.ray_executor import RayExecutor

    with RayExecutor(1, job_timeout_s=1e-3) as executor, pytest.raises(WorkerError, match="3 times"):
        list(executor.run([train_job(TASK, DataSource(), 0, None, Recipe(epochs=50, batch_size=10))]))


@pytest.mark.ray
def test_an_error_in_a_worker_arrives_as_itself(local_ray: None) -> None:
    from panning.jobs.ray_executor import RayExecutor

    with RayExecutor(1) as executor, pytest.raises(UnknownNameError, match="Did you mean 'snip'"):
        list(executor.run([prune_job(TASK, DataSource(), 0, 0.1, {"method": "snp"}, False)]))


def test_jobs_are_known_by_what_they_ask_and_not_by_where_the_data_lie() -> None:
    def job(seed: int = 0, root: str | None = None, mask: bytes | None = None) -> Job:
        return train_job(TASK, DataSource(root=root), seed, mask, Recipe())

    assert job().key == job(root="elsewhere").key
    assert len({job().key, job(seed=1).key, job(mask=b"a").key, job(mask=b"b").key}) == 4


def test_work_that_fails_is_recorded_as_a_result() -> None:
    diverges = train_job(TASK, DataSource(), 0, None, Recipe(epochs=1, batch_size=50, learning_rate=1e9))
    outcome = execute(diverges)
    assert outcome.error is not None and "training loss" in outcome.error and outcome.metrics == {}
    impossible = execute(prune_job(TASK, DataSource(), 0, 2 / 50432, {"method": "snip"}, False))
    assert impossible.error is not None and "a path needs 3" in impossible.error


def test_a_search_whose_baseline_diverges_says_so_in_its_table(tmp_path: Path) -> None:
    result = search(tmp_path, recipe={**SHORT, "learning_rate": 1e9}, densities=[0.1], baselines=["erk"])
    text = markdown(result)
    assert "failed" in text and "Failed:" in text and "training loss" in text


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
    assert result.agent_epochs == 0 and not (tmp_path / "s" / "agent").exists()
    assert [row.method for row in result.rows] == ["panning", "dense"]


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
    from panning.foundation.config import Config
    from panning.training.presets import DynamicPresets, Preset

    kinds: dict[str, type[Config]] = {
        "agent": AgentConfig,
        "bench": GridConfig,
        "recipes": Preset,
        "dynamics": DynamicPresets,
    }
    load_config(kinds.get(path.parent.name, SearchConfig), path)
    text = path.read_text()
    assert text.startswith("# ") and (
        path.parent.name == "recipes" or f"configs/{path.parent.name}/{path.name}" in text
    )
