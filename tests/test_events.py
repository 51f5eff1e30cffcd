"""Events: what each kind says, in every run, as JSON and in the documents."""

from __future__ import annotations

import functools
import itertools
import json
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import torch
from pydantic import BaseModel, ConfigDict, create_model
from torch import nn

import panning
from panning.agents import AgentConfig
from panning.agents.mixed import mixed
from panning.compare.grid import GridConfig
from panning.episode.actions import ActionSpec
from panning.episode.episode import run_policy
from panning.episode.policies import make_policy
from panning.foundation.errors import PanningError
from panning.foundation.facts import FACTS
from panning.foundation.files import file_digest, sole_writer
from panning.foundation.progress import Event, Kind, LazyFacts
from panning.foundation.records import read_records
from panning.foundation.tracking import figures
from panning.jobs.executor import SerialExecutor
from panning.jobs.prune import PruneConfig, check_prune, run_prune
from panning.jobs.spec import TrainSpec
from panning.jobs.store import JobStore
from panning.jobs.train import TrainConfig, check_train, run_train
from panning.jobs.work import Job
from panning.searches.config import SearchConfig
from panning.searches.whole import How, whole_agent, whole_grid, whole_search
from panning.tasks import TaskSpec, load_task
from panning.training import Recipe

DOCS = Path(__file__).resolve().parent.parent / "docs" / "tracking.md"
TASK = {"model": "mlp", "data": "digits", "n_train": 60}
SHORT = {"epochs": 1, "batch_size": 20, "learning_rate": 0.05}
PPO = {"n_rollouts": 1, "n_envs": 1, "n_steps": 4, "batch_size": 4}
SEARCH = {
    "name": "s", "task": TASK, "densities": [0.2], "seeds": [0], "n_samples": 1, "baselines": ["snip"], "recipe": SHORT,
    "agent": {"n_rounds": 2, "seeds": [100], "ppo": PPO}, "rungs": [{"keep": 1, "recipe": SHORT}],
}  # fmt: skip
GRID = {
    "name": "g", "tasks": [{"task": TASK, "recipe": SHORT}], "densities": [0.3], "seeds": [0, 1], "methods": ["snip"],
    "controls": False,
}  # fmt: skip
AGENT = {"env": {"tasks": [TASK], "densities": [0.2], "n_rounds": 2, "seeds": [0]}, "ppo": PPO}
MOVING = {"dynamic": {"name": "set", "options": {"every": 1}}, "density": 0.2}

Run = Callable[[Path, Callable[[Event], None]], object]
RUNS: dict[str, Run] = {
    "prune": lambda out, hear: run_prune(
        check_prune(PruneConfig(task=TASK, density=0.1, method="iter_snip", rounds=2)), out, listen=hear
    ),
    "train": lambda out, hear: run_train(check_train(TrainConfig(task=TASK, recipe=SHORT, **MOVING)), out, listen=hear),
    "search": lambda out, hear: whole_search(SearchConfig.model_validate(SEARCH), out, How(listen=hear)),
    "train-agent": lambda out, hear: whole_agent(AgentConfig.model_validate(AGENT), out, How(listen=hear)),
    "bench": lambda out, hear: whole_grid(GridConfig.model_validate(GRID), Path(), out, How(listen=hear)),
}
#: The kinds that each run tells.
TOLD = {
    "prune": "round artefact",
    "train": "stage epoch artefact",
    "search": "plan stage rollout job rung row artefact",
    "train-agent": "stage rollout artefact",
    "bench": "plan stage job row artefact",
}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, list[Event]]]:
    """The folder and the events of a run, which runs when it is first asked for."""
    known: dict[str, tuple[Path, list[Event]]] = {}

    def of(name: str) -> tuple[Path, list[Event]]:
        if name not in known:
            out, heard = tmp_path_factory.mktemp(name), []
            RUNS[name](out, heard.append)
            known[name] = out, heard
        return known[name]

    return of


# --- what every event says ---


@functools.cache
def checked(kind: Kind) -> type[BaseModel]:
    """What checks the facts of a kind: types, and no field beside those that are documented."""
    hints = get_type_hints(FACTS[kind])
    if kind in ("job", "rollout"):
        hints["rounds"] = list[checked("round")]  # type: ignore[misc]
    config = ConfigDict(extra="allow" if kind == "rollout" else "forbid", strict=True)
    fields: dict[str, Any] = {name: (hint, None) for name, hint in hints.items()}
    return create_model(kind, __config__=config, **fields)


@pytest.mark.parametrize("name", RUNS)
def test_a_run_tells_what_is_documented(name: str, told: Any) -> None:
    _, events = told(name)
    assert {event.kind for event in events} - {"running"} == set(TOLD[name].split())  # jobs of some seconds, if any
    for event in events:
        line = json.dumps(event.as_json(), allow_nan=False)
        checked(event.kind).model_validate_json(json.dumps(event.as_json()["facts"]))
        assert Event.of_json({"time": 1.0, **json.loads(line)}).as_json() == json.loads(line)


def test_every_kind_is_documented_with_its_fields() -> None:
    assert list(FACTS) == list(get_args(Kind))
    section = DOCS.read_text().split("## What is told")[1].split("\n## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", section, re.MULTILINE))
    assert {kind: re.findall(r"`(\w+)`", text.rpartition(" | ")[2]) for kind, text in rows.items()} == {
        kind: list(fields.__annotations__) for kind, fields in FACTS.items()
    }


@pytest.mark.parametrize(
    "values",
    [None, 3, [], {}, {"stage": "a", "done": 1, "total": 2, "kind": "stag", "facts": {}},
     {"stage": "a", "done": True, "total": 2, "kind": "stage", "facts": {}},
     {"stage": "a", "done": 1, "total": 2, "kind": ["stage"], "facts": {}},
     {"stage": "a", "done": 1, "total": 2, "kind": "stage", "facts": []}],
)  # fmt: skip
def test_what_is_no_event_is_refused(values: Any) -> None:
    with pytest.raises(PanningError, match="This is no event: it needs stage, done, total, kind"):
        Event.of_json(values)


def test_the_json_of_an_event_is_plain() -> None:
    facts = {"a": float("nan"), "b": (1, float("inf")), "c": Path("x"), "d": True, 5: None}
    assert Event("s", 0, 1, "stage", facts).as_json()["facts"] == {
        "a": None,
        "b": [1, None],
        "c": "x",
        "d": True,
        "5": None,
    }


def test_facts_that_cost_are_computed_once_and_only_if_somebody_looks() -> None:
    asked: list[int] = []
    facts = LazyFacts({"a": 1}, {"b": lambda: asked.append(1) or 2})
    assert "b" in facts and "c" not in facts and len(facts) == 2 and list(facts) == ["a", "b"] and asked == []
    assert dict(facts) == {"a": 1, "b": 2} and facts["b"] == 2 and asked == [1]
    with pytest.raises(KeyError):
        facts["c"]


# --- rounds ---


class Cut(nn.Module):
    """Magnitudes 4, 3, 2, 1 into two hidden units, 5 and 0.5 out of them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False)
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([[4.0, 3.0], [2.0, 1.0]]))
            self.second.weight.copy_(torch.tensor([[5.0, 0.5]]))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.second(torch.relu(self.first(inputs)))
        return out


def test_a_round_says_what_is_left_of_each_layer_and_what_is_dead() -> None:
    heard: list[Event] = []
    panning.prune(
        Cut(), density=0.5, method="magnitude", input_shape=(2,), n_rounds=2, schedule="linear", on_round=heard.append
    )
    assert [(event.done, event.total, event.kind) for event in heard] == [(1, 2, "round"), (2, 2, "round")]
    # 0.75 of 6 weights are 5 (halves up): all but 0.5, so that 2 and 1 lead nowhere. Then 5, 4 and 3 are left.
    assert dict(heard[1].facts) == {
        "round": 2, "density": 0.5, "weights": {"magnitude": 1.0}, "effective_density": 0.5, "dead": 0.0,
        "layers": {"first.weight": 0.5, "second.weight": 0.5},
    }  # fmt: skip
    first = dict(heard[0].facts)
    assert first["density"] == 0.75 and first["layers"] == {"first.weight": 1.0, "second.weight": 0.5}
    assert (
        first["dead"] == pytest.approx(2 / 5) and first["effective_density"] == 0.5
    )  # 2 and 1 lead to a masked weight


def test_a_round_of_an_episode_says_what_the_policy_chose() -> None:
    heard: list[Event] = []
    spec, task = ActionSpec(), load_task(TaskSpec.model_validate(TASK), 0)
    policy = make_policy("snip", spec)
    result, actions = run_policy(task.problem, 0.1, policy, spec, 2, listen=heard.append)
    for event, action, entry in zip(heard, actions, result.history, strict=True):
        assert event.facts["action"] == [float(part) for part in action]
        assert {
            name: event.facts[name] for name in ("round", "density", "effective_density", "weights", "spread")
        } == entry
        dead = 1 - entry["effective_density"] / entry["density"]
        assert event.facts["dead"] == pytest.approx(dead) and set(event.facts["layers"]) == set(
            task.problem.layout.names
        )


def test_the_jobs_of_a_search_tell_the_rounds_of_episodes_alone(told: Any) -> None:
    _, events = told("search")
    jobs = [event for event in events if event.kind == "job" and event.stage.startswith(("sampling", "pruning"))]
    episodes = [event for event in jobs if "agent" in event.facts["item"]]
    assert episodes and all(["round" in one for one in event.facts["rounds"]] == [True, True] for event in episodes)
    assert all(event.facts["rounds"][-1]["layers"] for event in episodes)
    assert all("rounds" not in event.facts for event in jobs if "SNIP" in event.facts["item"])
    records = read_records(told("search")[0] / "records.jsonl")
    assert all("rounds" not in record.metrics for record in records)  # told, and no part of the result


def test_a_rollout_says_what_the_agent_mixed_on_average_and_round_by_round(told: Any) -> None:
    _, events = told("train-agent")
    (facts,) = [event.facts for event in events if event.kind == "rollout"]
    assert [one["round"] for one in facts["rounds"]] == [1, 2]
    names = list(ActionSpec().indices)
    assert all(list(one["weights"]) == names and 0 <= one["spread"] <= 1 for one in facts["rounds"])
    for name in names:  # four steps are two episodes of two rounds
        mean = statistics.fmean(one["weights"][name] for one in facts["rounds"])
        assert facts["weights"][name] == pytest.approx(mean) and 0 < mean < 1
    records = read_records(told("train-agent")[0] / "rollouts.jsonl")
    assert all("weights" not in record.metrics for record in records)  # told, and no figure


def test_the_rounds_of_what_was_mixed_are_counted_from_the_start_of_each_episode() -> None:
    spec = ActionSpec(form="pick", indices=("snip", "synflow"))
    picks = np.array([[[0, 0, 0], [1, 0, 0]], [[1, 0, 0], [1, 0, 0]], [[1, 0, 0], [0, 0, 2]]])
    found = mixed(spec, picks, np.array([[1, 1], [0, 0], [1, 0]]))  # 1, 2, 1 and 1, 2, 3
    assert found == {
        "weights": {"snip": pytest.approx(1 / 3), "synflow": pytest.approx(2 / 3)},
        "rounds": [
            {"round": 1, "weights": {"snip": pytest.approx(1 / 3), "synflow": pytest.approx(2 / 3)}, "spread": 0.0},
            {"round": 2, "weights": {"snip": 0.0, "synflow": 1.0}, "spread": 0.0},
            {"round": 3, "weights": {"snip": 1.0, "synflow": 0.0}, "spread": 1.0},
        ],
    }


# --- jobs that run ---


def test_a_job_that_runs_for_some_seconds_tells_how_far_it_is(tmp_path: Path) -> None:
    """A clock of its own lets three seconds pass each time that it is looked at."""
    heard, clock = list[Event](), itertools.count(0, 3)
    job = Job(TrainSpec(task=TaskSpec.model_validate(TASK), seed=5, mask=None, recipe=Recipe(**{**SHORT, "epochs": 5})))
    executor = SerialExecutor(clock=lambda: float(next(clock)))
    store = JobStore(tmp_path)
    with sole_writer(tmp_path):
        store.run([job], executor, heard.append, "s")
    running = [event for event in heard if event.kind == "running"]
    assert [(event.stage, event.done, event.total) for event in running] == [("s", 0, 1)] * 2
    for event, reached, seconds in zip(running, (2, 4), (6.0, 12.0), strict=True):
        checked("running").model_validate_json(json.dumps(event.as_json()["facts"]))
        far = {"unit": "epoch", "reached": reached, "of": 5, "seconds": seconds}
        assert event.facts == {"key": job.key, "seed": 5, "worker": 0, **far}


# --- rungs, rows, artefacts ---


def test_a_rung_tells_who_goes_on(told: Any) -> None:
    out, events = told("search")
    (rung,) = [event for event in events if event.kind == "rung"]
    entries = json.loads((out / "result.json").read_text())["rungs"]
    told_entries = [{"density": 0.2, "rung": 1, **one} for one in rung.facts["candidates"]]
    assert told_entries == entries and [one["kept"] for one in entries].count(True) == 1 and entries[0]["kept"]
    before = events[events.index(rung) - 1]
    assert (rung.stage, rung.done, rung.total) == (before.stage, before.done, before.total)
    assert figures(rung) == {}


def test_a_row_is_told_when_its_last_seed_is_in_and_again_by_a_run_that_goes_on(told: Any) -> None:
    out, events = told("bench")
    cells = [event.facts for event in events if event.kind == "job"]
    rows = [event for event in events if event.kind == "row"]
    assert [row.facts["item"] for row in rows] == ["dense", "SNIP"] and figures(rows[0]) == {}
    for row in rows:
        own = [one for one in cells if one["item"] == row.facts["item"]]
        assert row.facts["n_seeds"] == len(own) == 2 and row.facts["n_failed"] == 0
        assert row.facts["table"] == "mlp on Digits"
        for name in ("accuracy", "test_accuracy", "effective_density", "compute_left"):
            assert row.facts[name] == pytest.approx(statistics.fmean(one[name] for one in own))
        assert row.facts["test_accuracy_std"] == pytest.approx(statistics.stdev(one["test_accuracy"] for one in own))
        assert events[events.index(row) - 1].facts["key"] == own[-1]["key"]
    again: list[Event] = []
    RUNS["bench"](out, again.append)
    assert [(event.kind, dict(event.facts)) for event in again if event.kind in ("stage", "row")] == [
        ("stage", {}), *(("row", dict(row.facts)) for row in rows),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("prune", {"mask.safetensors": "mask", "records.jsonl": "records", "table.md": "table", "table.csv": "numbers",
                   "layers.png": "picture", "layers.csv": "numbers", "config.yaml": "config"}),
        ("train", {"mask.safetensors": "mask", "model.safetensors": "weights", "records.jsonl": "records",
                   "table.md": "table", "table.csv": "numbers", "curve.png": "picture", "curve.csv": "numbers",
                   "config.yaml": "config"}),
        ("train-agent", {"policy.safetensors": "policy", "rollouts.jsonl": "records", "table.md": "table",
                         "table.csv": "numbers", "reward.png": "picture", "reward.csv": "numbers", "config.yaml": "config"}),
        ("bench", {"records.jsonl": "records", "config.yaml": "config"}),
    ],
)  # fmt: skip
def test_a_run_tells_the_files_that_it_leaves(name: str, files: dict[str, str], told: Any) -> None:
    out, events = told(name)
    found = [event for event in events if event.kind == "artefact"]
    assert {event.facts["path"]: event.facts["what"] for event in found} == files
    assert [(event.done, event.total) for event in found] == [(n + 1, len(files)) for n in range(len(files))]
    for event in found:
        path = out / event.facts["path"]
        assert (event.facts["n_bytes"], event.facts["digest"]) == (path.stat().st_size, file_digest(path))


def test_a_search_tells_its_choice_and_its_policy_and_no_mask_of_a_candidate(told: Any) -> None:
    found = {event.facts["path"]: event.facts["what"] for event in told("search")[1] if event.kind == "artefact"}
    assert found["choice-density0.2-seed0.safetensors"] == "mask" and found["agent/policy.safetensors"] == "policy"
    assert found["report.md"] == "table" and not [path for path in found if path.startswith("masks/")]
