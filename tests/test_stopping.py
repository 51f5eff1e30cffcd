"""Runs that are told to stop: each ends between two steps and goes on later, to the bytes of a run that nobody disturbed."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import RayActorError

import panning
from panning.compare.grid import GridConfig
from panning.foundation.config import parse_config
from panning.foundation.errors import ConfigError
from panning.foundation.files import sole_writer
from panning.foundation.progress import silent
from panning.foundation.ray_answers import answer
from panning.foundation.stopping import ShouldStop, check_stop, stops_when
from panning.jobs import ray_cluster
from panning.jobs.prune import PruneConfig, check_prune, run_prune
from panning.jobs.ray_executor import RayExecutor
from panning.jobs.spec import TrainSpec
from panning.jobs.train import TrainConfig, check_train, run_train
from panning.jobs.work import Job
from panning.searches.whole import How, whole_grid
from panning.tasks import TaskSpec
from panning.training import Recipe

TASK = {"model": "mlp", "data": "digits", "n_train": 100}
RECIPE = {"epochs": 3, "batch_size": 50}
PPO = {"n_rollouts": 2, "n_envs": 1, "n_steps": 4, "batch_size": 4}
PRUNE = {"task": TASK, "density": 0.1, "method": "synflow", "rounds": 5}
#: What differs between two runs of the same: times, and where one was begun.
OF_ONE_RUN = {"environment", "timing", "wall_s", "prune_s", "train_s"}


class After:
    """Says stop when it is asked for the n-th time."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.asked = 0

    def __call__(self) -> bool:
        self.asked += 1
        return self.asked >= self.n


def prune(out: Path, should_stop: ShouldStop | None) -> None:
    run_prune(check_prune(PruneConfig.model_validate(PRUNE)), out, formats=(), should_stop=should_stop)


def stream(out: Path, should_stop: ShouldStop | None) -> None:
    config = PruneConfig.model_validate({**PRUNE, "rounds": 2, "streaming": True})
    run_prune(check_prune(config), out, formats=(), should_stop=should_stop)


def train(out: Path, should_stop: ShouldStop | None) -> None:
    config = TrainConfig.model_validate({"task": TASK, "recipe": RECIPE})
    run_train(check_train(config), out, formats=(), should_stop=should_stop)


def train_agent(out: Path, should_stop: ShouldStop | None, workers: int = 0) -> None:
    panning.train_agent(
        "mlp/digits", densities=[0.1], n_rounds=2, ppo=PPO, out=out, on_event=silent, should_stop=should_stop,
        workers=workers,
    )  # fmt: skip


def search(out: Path, should_stop: ShouldStop | None) -> None:
    settings: dict[str, Any] = {
        "seeds": (0,), "n_samples": 1, "baselines": ("snip",), "recipe": {"epochs": 2, "batch_size": 50},
        "agent": {"n_rounds": 2, "ppo": PPO}, "name": "it",
    }  # fmt: skip
    task = TaskSpec.model_validate(TASK)
    panning.search(task, densities=[0.1], out=out, on_event=silent, should_stop=should_stop, **settings)


def bench(out: Path, should_stop: ShouldStop | None) -> None:
    values = {
        "name": "it", "tasks": [{"task": TASK, "recipe": RECIPE}], "densities": [0.1], "methods": ["snip"],
        "seeds": [0], "controls": False,
    }  # fmt: skip
    whole_grid(parse_config(GridConfig, values, "bench"), Path(), out, How(should_stop=should_stop))


RUNS: dict[str, Callable[[Path, ShouldStop | None], None]] = {
    "prune": prune, "stream": stream, "train": train, "train-agent": train_agent, "search": search, "bench": bench,
}  # fmt: skip


def left_by(out: Path) -> dict[str, Any]:
    """What a run leaves: the bytes of masks, weights and policies, the records without what tells one run from another."""
    found: dict[str, Any] = {}
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        if path.suffix == ".safetensors":
            found[name] = path.read_bytes()
        elif path.suffix == ".jsonl":
            found[name] = sorted((_same(json.loads(line)) for line in path.read_text().splitlines()), key=str)
    return found


def _same(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _same(item) for key, item in value.items() if key not in OF_ONE_RUN}
    return value


@pytest.mark.parametrize("kind", RUNS)
def test_a_run_stops_again_and_again_and_ends_as_one_that_nobody_stopped(kind: str, tmp_path: Path) -> None:
    RUNS[kind](tmp_path / "whole", None)
    n_stopped, out = 0, tmp_path / "stopped"
    for budget in (1, 1, 4, 16, 64, 256):
        try:
            RUNS[kind](out, After(budget))
            break
        except panning.StoppedError as stopped:
            assert "run the same again to go on" in str(stopped)
            n_stopped += 1
        with sole_writer(out):
            assert not (out / "table.md").exists(), "it stopped before its end, and gave its folder back"
    assert n_stopped >= 2
    assert left_by(out) == left_by(tmp_path / "whole")


def test_a_run_asks_after_each_round_epoch_rollout_and_job(tmp_path: Path) -> None:
    asked = {}
    for kind in ("prune", "stream", "train", "train-agent", "bench"):
        asked[kind] = After(10**9)
        RUNS[kind](tmp_path / kind, asked[kind])
    assert (asked["prune"].asked, asked["train"].asked) == (5, 3)
    n_rounds, n_layers = 2, 3
    assert asked["stream"].asked >= n_rounds * (1 + n_layers)
    assert asked["bench"].asked == (1 + 3 + 1) + (3 + 1)  # SNIP: a round, epochs, the job; dense: epochs, the job
    n_steps, n_rollouts = 4, 2
    assert asked["train-agent"].asked == n_rollouts * (n_steps + 1)  # a step is a round


def test_what_asks_is_known_within_its_block_alone() -> None:
    with stops_when(lambda: True):
        with stops_when(None), pytest.raises(panning.StoppedError):
            check_stop()
        with stops_when(lambda: False):
            check_stop()
        with pytest.raises(panning.StoppedError):
            check_stop()
    check_stop()
    with pytest.raises(ConfigError, match="should_stop is 3; pass a function"), stops_when(3):  # type: ignore[arg-type]
        pass


def test_a_stop_is_no_failure_of_a_trial() -> None:
    """What takes in whatever a trial raises must let a stop pass."""
    assert not issubclass(panning.StoppedError, Exception)


# --- on Ray ---


def test_sigterm_while_ray_starts_is_the_caller_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray puts a handler of its own there, which exits."""
    came, ended = list[int](), list[str]()

    def init(*_: Any, **__: Any) -> None:
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(ray_cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray_cluster.ray, "init", init)
    monkeypatch.setattr(ray_cluster.ray, "shutdown", lambda: ended.append("Ray"))
    before = signal.signal(signal.SIGTERM, lambda number, _: came.append(number))
    try:
        with stops_when(lambda: bool(came)), pytest.raises(panning.StoppedError), ray_cluster.ray_running(1):
            raise AssertionError("Ray does not run")
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert came == [signal.SIGTERM] * 2 and ended == ["Ray"], "the caller's handler is back"


@pytest.mark.ray
def test_a_job_on_ray_is_given_up_within_seconds(local_ray: None) -> None:
    recipe = Recipe(epochs=10**6, batch_size=50)
    job = Job(TrainSpec(task=TaskSpec.model_validate(TASK), seed=0, mask=None, recipe=recipe))
    at_work: list[Any] = []

    def stop() -> bool:
        at_work.extend(executor.workers.actors[place] for place in executor.workers._jobs)
        return bool(at_work)

    with RayExecutor(1) as executor, stops_when(stop), pytest.raises(panning.StoppedError):
        list(executor.run([job]))
    with pytest.raises(RayActorError):  # behind a job that takes hours, no other worker would answer
        ray.get(at_work[0].greet.remote(), timeout=60)


@pytest.mark.ray
def test_a_wait_on_ray_is_given_up_while_it_lasts(local_ray: None) -> None:
    call = ray.remote(lambda: time.sleep(10**6)).remote()
    asks = After(2)
    with stops_when(asks), pytest.raises(panning.StoppedError):
        answer(call, timeout_s=10**6)
    ray.cancel(call, force=True)
    assert asks.asked == 2


@pytest.mark.ray
def test_an_agent_on_ray_stops_and_goes_on(tmp_path: Path, local_ray: None) -> None:
    with pytest.raises(panning.StoppedError):
        train_agent(tmp_path / "stopped", After(9), workers=1)
    train_agent(tmp_path / "stopped", None, workers=1)
    train_agent(tmp_path / "whole", None)
    assert left_by(tmp_path / "stopped") == left_by(tmp_path / "whole")
