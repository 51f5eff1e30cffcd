"""How far a run is and what it will cost: phases, time left, plans that hold, dry runs that write nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from test_search import CONFIG, SHORT

from panning import cli
from panning.cli import output
from panning.cli.live import Live
from panning.compare.grid import GridConfig
from panning.compare.plan import grid_stages
from panning.compare.run import run_grid
from panning.foundation.config import parse_config
from panning.foundation.course import Course, duration, lines
from panning.foundation.progress import Event, Stage, plan_event
from panning.foundation.tracking import figures
from panning.jobs.executor import SerialExecutor
from panning.jobs.ways import Method, Way
from panning.measure import dry_run as module
from panning.measure.dry_run import DryRun, dry_run
from panning.measure.estimate import LOOK, Measured, Price, Work, cell_work, pruning_work, training_work
from panning.searches.config import SearchConfig
from panning.searches.plan import search_stages
from panning.searches.run import check_search, run_search
from panning.tasks import TaskSpec, load_task
from panning.training import Recipe

TASK = {"model": "mlp", "data": "digits", "n_train": 200}
GRID = {
    "name": "small", "densities": [0.1], "seeds": [0, 1],
    "tasks": [{"task": TASK, "recipe": {"epochs": 1, "batch_size": 50}, "learning_rates": [0.1, 0.05]}],
    "methods": [
        "erk", "snip", {"method": "snip", "control": "shuffle_alive"}, {"method": "snip", "control": "reinitialise"},
    ],
    "short": [{"epochs": 1, "batch_size": 50, "n_images": 100}],
}  # fmt: skip


class Clock:
    """A clock that stands still until it is told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


# --- the course of a run ---


def test_the_time_left_follows_the_pace_of_the_stage_and_the_cost_of_those_to_come() -> None:
    clock = Clock()
    course = Course(clock)
    course.hear(plan_event("run", [Stage("a", 4, 8.0), Stage("b", 10, 40.0)]))
    assert course.seconds_left is None and course.is_planned
    course.hear(Event("a", 0, 4))
    assert course.phase == (1, 2) and course.seconds_left is None
    clock.now += 10
    course.hear(Event("a", 1, 4, "job"))
    assert course.seconds_left == 3 * 10 + 40 * 10 / 2  # 10 s bought a cost of 2
    clock.now += 4
    assert course.seconds_left == 30 - 4 + 200  # it moves between events
    clock.now += 1000
    assert course.seconds_left == 200, "a late step takes nothing off the stages to come"
    clock.now -= 1000 - 6
    course.hear(Event("a", 2, 4, "job"))
    assert course.seconds_left == 2 * 10 + 200
    course.hear(Event("b", 0, 5))  # fewer than planned: candidates were equal
    assert course.phase == (2, 2) and course.seconds_left == 5 * 4 * 10 / 2
    clock.now += 3
    course.hear(Event("b", 1, 5, "job"))
    assert course.seconds_left == 4 * 3


def test_steps_of_an_earlier_run_say_nothing_of_the_pace() -> None:
    clock = Clock()
    course = Course(clock)
    course.hear(Event("training", 6, 10))
    clock.now += 5
    course.hear(Event("training", 7, 10, "epoch"))
    assert course.seconds_left == 3 * 5 and course.phase == (1, 1) and not course.is_planned


def test_what_workers_need_to_start_is_no_part_of_the_time_left() -> None:
    clock = Clock()
    course = Course(clock)
    course.hear(plan_event("run", [Stage("a", 4, 8.0), Stage("b", 10, 40.0)]))
    clock.now += 50
    course.hear(Event("a", 0, 4))
    clock.now += 10
    course.hear(Event("a", 1, 4, "job"))
    assert course.seconds_left == 3 * 10 + 40 * 10 / 2
    course.hear(Event("a", 4, 4, "job"))
    clock.now += 70
    course.hear(Event("b", 0, 10))
    assert course.seconds_left == 10 * 4 * 10 / 8, "four steps of a, of cost 2 each, took 10 s"


def test_a_stage_without_a_beginning_begins_with_the_event_before_it() -> None:
    clock = Clock()
    course = Course(clock)
    clock.now += 7
    course.hear(Event("pruning", 1, 3, "round"))
    assert course.seconds_left == 14


def test_what_came_before_the_plan_is_no_part_of_it() -> None:
    clock = Clock()
    course = Course(clock)
    course.hear(Event("starting Ray (2 workers)", 0, 1))
    clock.now += 50
    course.hear(Event("starting Ray (2 workers)", 1, 1))
    course.hear(plan_event("run", [Stage("a", 4, 8.0), Stage("b", 10, 40.0)]))
    course.hear(Event("a", 0, 4))
    assert course.phase == (1, 2) and course.seconds_left is None
    clock.now += 10
    course.hear(Event("a", 1, 4, "job"))
    assert course.seconds_left == 3 * 10 + 40 * 10 / 2


@pytest.mark.parametrize(("seconds", "text"), [(59.4, "59 s"), (3570, "1 h 0 min"), (3600, "1 h 0 min"), (90, "2 min")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_lines_of_a_planned_run_have_phase_and_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(output, "Course", lambda: Course(clock))
    heard: list[Event] = []
    events = [
        Event("a", 0, 2),
        Event("a", 1, 2, "job"),
        Event("a", 2, 2, "job"),
        Event("b", 0, 2),
        Event("b", 2, 2, "job"),
    ]
    with output.listener(heard.append) as listen:
        listen(plan_event("run", [Stage("a", 2, 2.0), Stage("b", 2, 6.0)]))
        for event in events:
            clock.now += 30 * event.done
            listen(event)
    assert heard[1:] == events and heard[0].kind == "plan"
    assert capsys.readouterr().err.splitlines() == [
        "At most 4 steps in 2 stages",
        "1/2 a begins", "1/2 a: 50% (1 of 2) about 4 min left", "1/2 a: 100% (2 of 2) about 4 min left",
        "2/2 b begins about 4 min left", "2/2 b: 100% (2 of 2) about 0 s left",
    ]  # fmt: skip


def test_the_bar_of_a_terminal_shows_phase_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    console = Console(force_terminal=True, width=120, file=open("/dev/null", "w"), record=True)  # noqa: SIM115
    monkeypatch.setattr(output, "Course", lambda: Course(clock))
    monkeypatch.setattr(output, "Console", lambda **_: console)
    with output.listener() as listen:
        listen(plan_event("run", [Stage("a", 2, 2.0), Stage("b", 2, 6.0)]))
        listen(Event("a", 0, 2))
        clock.now += 60
        listen(Event("a", 1, 2, "job"))
    console.file.close()
    assert "1/2 a" in (shown := console.export_text()) and "7 min left" in shown


def running(key: str, seconds: float, **more: Any) -> Event:
    far = {"unit": "epoch", "reached": 3, "of": 12, "seconds": seconds}
    return Event("a", 1, 2, "running", {"key": key, "worker": 0, "seed": 1, **far, **more})


def test_a_job_that_runs_is_no_step_and_says_nothing_of_the_pace(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    course = Course(clock)
    for event in (plan_event("run", [Stage("a", 4, 8.0)]), Event("a", 0, 4)):
        course.hear(event)
    clock.now += 60
    course.hear(Event("a", 1, 4, "job"))
    clock.now += 30
    course.hear(running("x", 30.0))
    assert course.seconds_left == 150.0
    tell = lines(print)
    tell(running("x", 30.0))
    assert capsys.readouterr().out == "" and figures(running("x", 30.0)) == {}


def test_a_terminal_shows_the_jobs_that_run_and_the_best_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    console = Console(force_terminal=True, width=120, file=open("/dev/null", "w"), record=True)  # noqa: SIM115
    monkeypatch.setattr(output, "Live", lambda: Live(clock))
    monkeypatch.setattr(output, "Console", lambda **_: console)
    judged = [{"candidate": "GraSP [bold]\x1b[2J", "accuracy": 0.5}, {"candidate": "SNIP", "accuracy": 0.4}]
    with output.listener() as listen:
        listen(Event("a", 0, 2))
        listen(running("x", 90.0, item="ERK [red]", density=0.1, rung=2))
        listen(Event("a", 0, 2, "rung", {"rung": 1, "density": 0.1, "candidates": judged}))
    console.file.close()
    shown = console.export_text()
    assert "worker 0  ERK [red], density 0.1, rung 2, seed 1  epoch 3 of 12  2 min" in shown
    assert r"best so far at density 0.1: GraSP [bold]\x1b[2J, validation 50.00% in rung 1" in shown


def test_what_is_shown_of_jobs_ends_with_them() -> None:
    """With its outcome, its stage, or once nothing was heard of it for a minute."""
    clock = Clock()
    live = Live(clock)
    for number in range(12):
        live.hear(running(f"{number}", float(number)))
    assert [row[3] for row in live.jobs()] == [f"{seconds} s" for seconds in range(11, 3, -1)]
    live.hear(Event("a", 2, 12, "job", {"key": "11"}))
    clock.now += 50
    live.hear(running("2", 52.0))
    assert [row[3] for row in live.jobs()][:2] == ["1 min", "59 s"]
    clock.now += 11
    assert live.jobs() == [("worker 0", "a training, seed 1", "epoch 3 of 12", "1 min")]
    live.hear(Event("b", 0, 1))
    assert live.jobs() == []
    for rung, accuracy in ((1, 0.9), (2, 0.5), (2, 0.4)):
        live.hear(Event("b", 0, 1, "rung", {"rung": rung, "density": 0.1, "candidates": [
            {"candidate": f"{accuracy}", "accuracy": accuracy}]}))  # fmt: skip
    assert live.best() == ["best so far at density 0.1: 0.5, validation 50.00% in rung 2"]


# --- plans ---


def follows(plan: Event, events: list[Event]) -> None:
    """Every stage is one of the plan, in its order, and has at most as many steps as the plan says."""
    stages = {stage["name"]: stage for stage in plan.facts["stages"]}
    begun = list(dict.fromkeys(event.stage for event in events))
    assert [name for name in stages if name in begun] == begun
    for event in events:
        assert event.total <= stages[event.stage]["steps"], event.stage
        assert event.kind in ("stage", "running", "rung", "row", stages[event.stage]["kind"])


@pytest.mark.slow
def test_a_search_keeps_to_its_plan(tmp_path: Path) -> None:
    events: list[Event] = []
    ready = check_search(parse_config(SearchConfig, CONFIG, "test"))
    run_search(ready, tmp_path, SerialExecutor(), agent_workers=0, listen=events.append)
    plan, *rest = events
    assert plan.kind == "plan" and plan.stage == "tiny"
    follows(plan, rest)
    assert {event.stage for event in rest} == {stage["name"] for stage in plan.facts["stages"]}


def test_the_stages_of_a_search_can_be_counted_by_hand() -> None:
    stages = {stage.name: stage for stage in search_stages(parse_config(SearchConfig, CONFIG, "test"))}
    n_policies = (
        (stages["pruning with every candidate"].steps // 2 - 2 * 1) // 2 - 2 - 1
    )  # less baselines and the agent
    n = 2 * (2 + n_policies + 1) + 2 * 1  # candidates a density
    assert {name: one.steps for name, one in stages.items()} == {
        "training the agent": 1, "sampling the agent": 2, "pruning with every candidate": 2 * n,
        "rung 1: pruning": 2 * n, "rung 1: short trainings": 2 * n, "rung 2: pruning": 2 * 2 * 2,
        "rung 2: short trainings": 2 * 2 * 2, "pruning with the winners": 4,
        "training every method in full": 2 * (1 + 2 * (1 + 1 + 2)),
    }  # fmt: skip
    assert stages["rung 1: pruning"].cost == 0, "the masks of the first seed are there already"
    n_train = len(load_task(TaskSpec.model_validate(CONFIG["task"]), 0).data.train)
    assert stages["rung 2: short trainings"].epochs == 8 * (n_train // 50 * 50) / n_train
    assert stages["training every method in full"].epochs == 18 * 2 * (n_train // 50 * 50) / n_train


def test_a_grid_keeps_to_its_plan(tmp_path: Path) -> None:
    events: list[Event] = []
    grid = parse_config(GridConfig, GRID, "test")
    stages = grid_stages(grid, tmp_path)
    assert [(one.name, one.steps, one.epochs) for one in stages] == [
        ("learning rates", 20, 20.0), ("cells", 10, 10.0), ("short trainings", 10, 5.0),
    ]  # fmt: skip
    run_grid(grid, tmp_path, tmp_path / "out", SerialExecutor(), events.append)
    follows(events[0], events[1:])
    for event in events[1:]:
        assert event.total == {one.name: one.steps for one in stages}[event.stage]
    halves = [grid_stages(grid, tmp_path, (number, 2)) for number in range(2)]
    assert [sum(steps) for steps in zip(*([one.steps for one in half] for half in halves), strict=True)] == [20, 10, 10]


def test_the_work_of_a_job() -> None:
    task = load_task(TaskSpec.model_validate(TASK), 0)
    recipe, n_validation = Recipe(epochs=2, batch_size=50), len(task.data.validation)
    assert training_work(task, recipe, looks=3) == Work(400.0 + LOOK * 3 * n_validation, 0.0, 2.0)
    assert training_work(task, recipe.model_copy(update={"n_images": 100})).epochs == 1.0
    dense, snip = cell_work(task, Way(), 1.0, recipe), cell_work(task, Way(by=Method(method="snip")), 0.1, recipe)
    assert dense == training_work(task, recipe, 4) and snip.images == dense.images
    assert snip.passes == pruning_work(Way(by=Method(method="snip"))).passes == pytest.approx(1.0, abs=0.3)
    twice = Way(by=Method.model_validate({"method": "snip", "members": 2}))
    assert cell_work(task, twice, 0.1, recipe) == snip * 2
    imp = Way.model_validate({"by": {"dynamic": "imp"}})
    assert cell_work(task, imp, 0.1, recipe).epochs > dense.epochs
    assert Price(2.0, 10.0).of(Work(3.0, 0.5, 9.0)) == 11.0


# --- dry runs ---

MEASURED = Measured(image=0.5, scoring=3.0, batch=50, samples=100, threads=1, n=7)


def test_a_dry_run_adds_up() -> None:
    stages = [Stage("a", 5, 100.0, 1.25, width=2, kind="rollout"), Stage("b", 3, 60.0, 0.5)]
    run = DryRun(stages, 2, {"mlp": MEASURED})
    assert run.rows() == [
        ["a", "5 rollouts", "1.2", "0.8"], ["b", "3 jobs", "0.5", "0.7"], ["all", "3 jobs", "1.8", "1.5"],
    ]  # fmt: skip
    assert run.total_seconds == 50 + 40 and DryRun(stages, 8, {}).total_seconds == 50 + 20
    first, second = run.sentences()
    assert first.startswith("About 2 min in 2 workers, if nothing else runs here: an estimate")
    assert second == (
        "Measured just now for mlp, on one thread, the median of 7: 2.5e+04 ms for a training step of 50 images, 3e+03 ms "
        "for a scoring pass of 100."
    )
    assert run.as_json()["stages"][0] == {
        "name": "a", "steps": 5, "kind": "rollout", "dense_epochs": 1.25, "seconds": 50.0,
    }  # fmt: skip


def test_a_network_is_measured_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[int] = []
    monkeypatch.setattr(module, "measured", lambda task, recipe, threads: asked.append(threads) or MEASURED)
    grid = parse_config(GridConfig, GRID, "test")
    run = dry_run(lambda pricing: grid_stages(grid, tmp_path, pricing=pricing), 0)
    assert asked == [1] and list(run.basis) == ["mlp on Digits, float32, batches of 50"] and run.n_workers == 1
    task = load_task(grid.tasks[0].task, 0)
    ways = [Way(), *(contender.way(tmp_path)[0] for contender in grid.methods)]
    full = [cell_work(task, way, 0.1, grid.tasks[0].recipe) * 2 for way in ways]
    assert run.stages[1].cost == pytest.approx(sum(0.5 * work.images + 3.0 * work.passes for work in full))


@pytest.mark.parametrize(
    "command",
    [
        ["search", "s.yaml"], ["bench", "b.yaml"], ["train-agent", "a.yaml"],
        ["train", "--model", "mlp", "--data", "digits", "--epochs", "2"],
    ],
    ids=lambda command: command[0],
)  # fmt: skip
def test_a_dry_run_starts_and_writes_nothing(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("panning.measure.estimate.BUDGET_S", 0.0)
    agent = {"env": {"tasks": [TASK], "densities": [0.1], "reward": {"training": 1.0, "recipe": SHORT}}}
    for name, values in {"s": CONFIG, "b": GRID, "a": agent}.items():
        Path(f"{name}.yaml").write_text(yaml.safe_dump(values))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as ended:
        cli.main([*command, "--dry-run"])
    assert not ended.value.code
    shown = capsys.readouterr().out
    assert "dense epochs" in shown and "minutes" in shown and "Nothing was started or written." in shown
    assert sorted(tmp_path.rglob("*")) == before
    if command[0] == "search":
        with pytest.raises(SystemExit):
            cli.main([*command, "--dry-run", "--json", "--workers", "3"])
        assert json.loads(capsys.readouterr().out)["n_workers"] == 3
