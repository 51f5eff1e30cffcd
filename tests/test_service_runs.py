"""What a runner does with its order, and the file of events that it leaves."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from typing import Any

import pytest

from panning.foundation.errors import JobError, WorkerError
from panning.foundation.progress import Event
from panning.jobs.prune import PruneConfig, check_prune, run_prune
from panning.service import runner
from panning.service.events import EventLog, EventReader, read_events
from panning.service.folder import Caps, JobFolder, Order, Outcome
from panning.service.runner import Stop, run_job
from panning.service.scheduler import Scheduler, Setup
from panning.service.store import Store

TASK = {"model": "mlp", "data": "digits", "n_train": 60}
PRUNE = {"kind": "prune", "task": TASK, "density": 0.1, "method": "snip"}
PPO = {"n_rollouts": 1, "n_envs": 1, "n_steps": 4, "batch_size": 4}
RECIPE = {"epochs": 2, "batch_size": 20}
SEARCH = {
    "kind": "search", "name": "it", "task": TASK, "densities": [0.1], "seeds": [0], "n_samples": 0, "baselines": ["snip"],
    "recipe": RECIPE, "rungs": [{"keep": 1, "recipe": {**RECIPE, "epochs": 1}}], "agent": {"n_rounds": 1, "ppo": PPO},
}  # fmt: skip
CONFIGS = {
    "prune": PRUNE,
    "train": {"kind": "train", "task": TASK, "recipe": RECIPE},
    "train-agent": {"kind": "train-agent", "env": {"tasks": [TASK], "densities": [0.1], "n_rounds": 2}, "ppo": PPO},
    "search": SEARCH,
    "bench": {
        "kind": "bench", "name": "it", "tasks": [{"task": TASK, "recipe": RECIPE}], "densities": [0.1], "methods": ["snip"],
        "seeds": [0], "controls": False,
    },
}  # fmt: skip
LEFT = {
    "prune": "mask.safetensors", "train": "model.safetensors", "train-agent": "policy.safetensors",
    "search": "result.json", "bench": "records.jsonl",
}  # fmt: skip


def ordered(path: Path, config: dict[str, Any], **more: Any) -> tuple[JobFolder, Outcome]:
    folder = JobFolder(path)
    folder.give(Order(config, 1, **more))
    return folder, run_job(folder, Stop(folder))


# --- runs ---


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_config_of_each_kind_runs_and_tells_of_it(kind: str, tmp_path: Path) -> None:
    folder, outcome = ordered(tmp_path / "1", CONFIGS[kind])
    assert outcome == Outcome("succeeded") and (folder.run / LEFT[kind]).is_file()
    told = [event for _, event in read_events(folder.events)]
    artefacts = {event["facts"]["path"] for event in told if event["kind"] == "artefact"}
    assert LEFT[kind] in artefacts and all(event["time"] > 1.7e9 for event in told)


def test_every_kind_that_may_be_sent_has_a_way_to_run() -> None:
    from panning.foundation.remote import RUNS

    assert set(runner.RUN) == set(RUNS) == set(CONFIGS)


def test_a_job_leaves_the_bytes_that_the_same_call_leaves(tmp_path: Path) -> None:
    folder, _ = ordered(tmp_path / "1", PRUNE)
    run_prune(check_prune(PruneConfig.model_validate(PRUNE)), tmp_path / "call")
    for name in ("mask.safetensors", "config.yaml", "run.json"):
        assert (folder.run / name).read_bytes() == (tmp_path / "call" / name).read_bytes()


def test_a_stop_ends_a_job_between_two_steps_and_the_next_attempt_ends_it(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path / "1")
    folder.give(Order(CONFIGS["train"], 1))
    folder.ask_to_stop("cancel")
    outcome = run_job(folder, Stop(folder))
    assert (outcome.state, outcome.reason) == ("stopped", "cancel") and (folder.run / "checkpoint.safetensors").exists()
    folder.give(Order(CONFIGS["train"], 2))
    assert run_job(folder, Stop(folder)).state == "succeeded"
    whole, _ = ordered(tmp_path / "2", CONFIGS["train"])
    for name in ("model.safetensors", "run.json"):
        assert (folder.run / name).read_bytes() == (whole.run / name).read_bytes()


def test_a_signal_asks_for_the_end(tmp_path: Path) -> None:
    stop = Stop(JobFolder(tmp_path))
    assert not stop()
    stop.hear(15, None)
    assert stop() and stop.reason == "shutdown"


@pytest.mark.parametrize(
    ("change", "caps", "code", "said"),
    [
        ({"policy": "/etc/passwd"}, Caps(), "config", "policy: names a policy file on this machine"),
        ({"task": {**TASK, "data": "npz:/etc/passwd"}}, Caps(), "config", "the name of a data set of this machine"),
        ({"method": "snpi"}, Caps(), "config", "Did you mean 'snip'"),
        ({}, Caps(n_parameters=1000), "quota", "has 50,826 parameters, and 1,000 are allowed"),
        ({"kind": "make"}, Caps(), "config", "kind: must be one of"),
    ],
)
def test_what_may_not_run_fails_with_its_code(
    change: dict[str, Any], caps: Caps, code: str, said: str, tmp_path: Path
) -> None:
    folder, outcome = ordered(tmp_path / "1", {**PRUNE, **change}, caps=caps)
    assert (outcome.state, outcome.code) == ("failed", code) and said in outcome.message
    assert not folder.run.exists()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MemoryError(), "memory"),
        (JobError("all failed"), "error"),
        (WorkerError("gone"), "error"),
        (KeyError(1), "error"),
    ],
)
def test_what_a_run_raises_fails_it_with_a_code(
    error: Exception, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raises(*_: Any) -> None:
        raise error

    monkeypatch.setitem(runner.RUN, "prune", raises)
    _, outcome = ordered(tmp_path / "1", PRUNE)
    assert (outcome.state, outcome.code) == ("failed", code) and "\n" not in outcome.message


def test_the_cap_on_memory_is_set_before_anything_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(resource, "setrlimit", lambda *given: asked.append(given))
    monkeypatch.setattr(runner, "check_remote", lambda *_: asked.append("checked"))
    ordered(tmp_path / "1", {**PRUNE, "method": "snpi"}, caps=Caps(memory_bytes=10**10))
    assert asked == [(resource.RLIMIT_DATA, (10**10, 10**10)), "checked"]


@pytest.mark.slow
def test_a_job_that_takes_too_much_memory_fails_and_one_that_fits_succeeds(tmp_path: Path) -> None:
    store = Store.at(tmp_path / "service.sqlite")
    token = store.tokens.add("Ada", "submit")[0].id
    wanted = []
    for millions, config in ((4000, PRUNE), (1100, {**PRUNE, "task": {"model": "vgg19", "data": "digits"}})):
        scheduler = Scheduler(store, Setup(tmp_path / "jobs", caps=Caps(memory_bytes=millions * 10**6)))
        number = store.submit(token, config).job.id
        while store.job(number).state in ("queued", "running"):
            scheduler.tick()
            for child in scheduler._children:
                child.wait(250)
        wanted.append((store.job(number).state, store.job(number).code))
        scheduler.close()
    assert wanted == [("succeeded", None), ("failed", "memory")]
    alone, _ = ordered(tmp_path / "alone", PRUNE)
    mask = (tmp_path / "jobs" / "1" / "run" / "mask.safetensors").read_bytes()
    assert mask == (alone.run / "mask.safetensors").read_bytes()
    assert "torch" in sys.modules, "the runner's, not the scheduler's"


# --- events ---


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def tick(done: int) -> Event:
    return Event("pruning", done, 1000, "round", {"round": done})


def test_ticks_are_ten_a_second_and_nothing_else_is_lost(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "events.jsonl"
    with EventLog(path, clock) as log:
        for step in range(1000):
            clock.now = step / 100  # ten seconds in all
            log.hear(tick(step))
            if step % 250 == 7:
                log.hear(Event("pruning", step, 1000, "row", {"item": str(step)}))
        log.hear(Event("pruning", 1000, 1000, "artefact", {"path": "mask"}))
    events = [event for _, event in read_events(path)]
    assert [event["done"] for event in events if event["kind"] == "row"] == [7, 257, 507, 757]
    assert events[-1]["kind"] == "artefact" and events[-2]["done"] == 999, "the last tick stands for those before it"
    assert 90 <= len(events) <= 110
    order = [event["done"] for event in events]
    assert order == sorted(order)


def test_a_tick_that_was_held_is_written_though_nothing_follows(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with EventLog(path) as log:
        log.hear(tick(1))
        log.hear(tick(2))
        while len(list(read_events(path))) < 2:
            pass  # the log's own thread writes it


def test_a_reader_goes_on_behind_the_last_id_whatever_was_killed(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    assert list(EventReader(path).lines()) == [], "it is not there yet"
    with EventLog(path) as log:
        log.hear(Event("a", 0, 1))
        log.hear(Event("b", 0, 1))
    with open(path, "ab") as torn:
        torn.write(b'{"stage": "half a li')  # its writer was killed
    reader = EventReader(path)
    assert [number for number, _ in reader.lines()] == [1, 2]
    with EventLog(path) as log:
        log.hear(Event("c", 0, 1))
        log.hear(Event("d", 0, 1))
    assert [json.loads(line)["stage"] for _, line in reader.lines()] == ["c", "d"] and reader.last == 4
    assert [(number, event["stage"]) for number, event in read_events(path, after=3)] == [(4, "d")]
    assert list(reader.lines()) == []


def test_an_event_that_is_too_long_loses_its_largest_facts(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with EventLog(path) as log:
        log.hear(Event("it", 1, 1, "job", {"rounds": ["x" * 1000] * 1000, "accuracy": 0.5, "loss": float("nan")}))
    ((_, event),) = read_events(path)
    assert event["facts"] == {"accuracy": 0.5, "loss": None}


def test_a_full_disk_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "events.jsonl"
    with EventLog(path) as log:
        log.hear(Event("a", 0, 1))
        with monkeypatch.context() as full:
            real = runner.os.write
            full.setattr("os.write", lambda file, data: real(file, data[:10]))
            with pytest.raises(OSError, match="No space"):
                log.hear(Event("b", 0, 1))
        log.hear(Event("c", 0, 1))
    assert [event["stage"] for _, event in read_events(path)] == ["a", "c"]
