"""A search in free order, with networks: what it leaves, and that it goes on from any point to the same bytes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from test_search import CONFIG, SHORT, Interrupting, config, said, search

from panning.foundation.config import load_config
from panning.foundation.errors import ConfigError, JobError, PanningError, PanningWarning
from panning.foundation.progress import Event
from panning.foundation.records import read_records
from panning.jobs.executor import SerialExecutor
from panning.jobs.runs import RunFolder, delete_masks, needless_masks, retry_failures
from panning.jobs.spec import digest
from panning.jobs.work import Job, execute
from panning.masks.file import load_masks
from panning.searches import free_order
from panning.searches.config import SearchConfig
from panning.searches.journal import Journal
from panning.searches.plan import search_stages
from panning.searches.report import write_report
from panning.searches.run import SearchResult, check_search, run_search

FREE: dict[str, Any] = {
    "order": "free",
    "densities": [0.1],
    "agent": {**CONFIG["agent"], "action": {"indices": ["snip"]}},
    "baselines": ["erk"],
    "rungs": [{"keep": 0.3, "recipe": SHORT}, {"keep": 1, "n_seeds": 2, "recipe": SHORT}],
    "recipe": SHORT,
}


def lines_of(out: Path) -> list[tuple[str, dict[str, Any]]]:
    """The journal without times."""
    return list(Journal(out, 0.0))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SearchResult, list[Event]]:
    """A search that nothing disturbed, and what it told."""
    out, events = tmp_path_factory.mktemp("free"), list[Event]()
    result = run_search(check_search(config(**FREE)), out, SerialExecutor(), agent_workers=0, listen=events.append)
    write_report(result, out, formats=())
    return out, result, events


def same(a: Path, b: Path) -> None:
    masks = sorted(path.name for path in a.glob("choice-*.safetensors"))
    assert len(masks) == 2
    assert all((a / name).read_bytes() == (b / name).read_bytes() for name in masks)
    assert lines_of(a) == lines_of(b)
    assert {r.key: r.kind for r in read_records(a / "records.jsonl")} == {
        r.key: r.kind for r in read_records(b / "records.jsonl")
    }


def test_it_leaves_what_a_search_leaves_and_its_journal(whole: tuple[Path, SearchResult, list[Event]]) -> None:
    out, result, _ = whole
    assert load_config(SearchConfig, out / "config.yaml") == config(**FREE)
    tried = [said["way"]["by"] for kind, said in lines_of(out) if kind == "ask"]
    assert {"method": "erk"} in tried and any(by.get("sample") == 0 for by in tried)
    (sentence,) = result.ended
    assert sentence == f"At density 0.1, candidates tried: {len(tried)}; the samplers had no more."
    assert json.loads((out / "result.json").read_text())["ended"] == [sentence]
    assert f"- {sentence}\n" in (out / "table.md").read_text()
    last = [entry for entry in result.rungs if entry["rung"] == 2]
    assert last[0]["candidate"] == result.winners[0.1].label and [entry["kept"] for entry in last][0]
    assert any("agent's episode" in entry["candidate"] for entry in result.rungs)
    first = [entry for entry in result.rungs if entry["rung"] == 1]
    assert len({entry["candidate"] for entry in first}) == len(first) < len(tried)  # no mask twice
    assert {entry["candidate"] for entry in last} == {entry["candidate"] for entry in first if entry["kept"]}
    masks = load_masks(out / "choice-density0.1-seed1.safetensors")
    assert masks.n_kept == round(0.1 * masks.n_prunable)


def test_what_it_tells_keeps_to_its_plan(whole: tuple[Path, SearchResult, list[Event]]) -> None:
    from test_progress import follows

    _, result, (plan, *events) = whole
    follows(plan, events)
    trying = [event for event in events if event.stage == "trying candidates"]
    assert trying[0].done == 0 and trying[-1].done == trying[-1].total
    rungs = [event.facts for event in trying if event.kind == "rung"]
    assert len(rungs) == len(result.rungs) and all(len(facts["candidates"]) == 1 for facts in rungs)
    trained = sum(r.metrics["images_seen"] for r in read_records(whole[0] / "records.jsonl") if r.kind == "train")
    assert result.search_images == trained


def test_interrupted_anywhere_it_goes_on_to_the_same_bytes(
    whole: tuple[Path, SearchResult, list[Event]], tmp_path: Path
) -> None:
    out = tmp_path / "cut"
    for n_jobs in (1, 2, 6, 9, 11):
        with pytest.raises(KeyboardInterrupt):
            search(out, Interrupting(n_jobs), **FREE)
        with open(out / "journal.jsonl", "a") as file:
            file.write('{"config":{"key":"torn')  # killed while it wrote
    result = search(out, **FREE)
    same(whole[0], out)
    assert said(result) == said(whole[1]) and result.ended == whole[1].ended
    search(out, Interrupting(0), **FREE)  # nothing is left to do
    same(whole[0], out)


def test_a_journal_that_is_shorter_than_the_records_costs_nothing(
    whole: tuple[Path, SearchResult, list[Event]], tmp_path: Path
) -> None:
    """As after a loss of power: outcomes are on the disk, and the order is decided again."""
    shutil.copytree(whole[0], tmp_path / "x")
    lines = (tmp_path / "x" / "journal.jsonl").read_text().splitlines(keepends=True)
    for n_left in (0, len(lines) // 2):
        (tmp_path / "x" / "journal.jsonl").write_text("".join(lines[:n_left]))
        search(tmp_path / "x", Interrupting(0), **FREE)
        same(whole[0], tmp_path / "x")


def test_the_best_masks_so_far_are_on_disk_on_the_way(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path, Interrupting(6), **FREE)
    trained = [r for r in read_records(tmp_path / "records.jsonl") if r.kind == "train"]
    best = max(trained, key=lambda r: (r.metrics["accuracy"], -r.metrics["loss"]))
    assert 1 < len(trained) < 6
    assert digest((tmp_path / "choice-density0.1-seed0.safetensors").read_bytes()) == best.config["mask"]
    assert not (tmp_path / "choice-density0.1-seed1.safetensors").exists()


def test_a_training_that_runs_as_the_time_is_over_is_withdrawn_and_comes_again_with_more_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time is over after the first of two epochs of the second candidate in rung 2."""
    rungs = [{"keep": 0.5, "recipe": SHORT}, {"keep": 1, "recipe": {**SHORT, "epochs": 2}}]
    change = {**FREE, "samplers": ["random"], "max_trials": 5, "seeds": [0], "rungs": rungs}
    running = list[Event]()

    def listen(event: Event) -> None:
        if event.kind == "running" and event.facts.get("rung") == 2:
            running.append(event)

    def call(out: Path) -> SearchResult:
        executor = SerialExecutor(heard_after_s=0.0)
        return run_search(check_search(config(**change)), out, executor, agent_workers=0, listen=listen)

    undisturbed = call(tmp_path / "whole")
    assert len(running) >= 2
    running.clear()
    monkeypatch.setattr(free_order.FreeOrder, "_is_late", lambda self: len(running) >= 2)
    early = call(tmp_path / "x")
    assert [event.facts["reached"] for event in running] == [1, 1] and len({e.facts["key"] for e in running}) == 2
    assert early.ended[0].endswith("the time was over (budget); 1 trial was withdrawn.")
    kept = {record.key for record in read_records(tmp_path / "x" / "records.jsonl")}
    assert running[0].facts["key"] in kept and running[1].facts["key"] not in kept
    monkeypatch.undo()
    result = call(tmp_path / "x")
    assert said(result) == said(undisturbed) and result.ended == undisturbed.ended
    assert [line for line in lines_of(tmp_path / "x") if line[0] not in ("open", "close")] == [
        line for line in lines_of(tmp_path / "whole") if line[0] != "close"
    ]


class Shuffled:
    """Four jobs at a time, which end in another order than they began."""

    def run(self, jobs: Iterable[Job[Any] | None]) -> Iterator[tuple[Job[Any], Any]]:
        asked, held, ended = iter(jobs), list[Job[Any]](), False
        while True:
            while not ended and len(held) < 4:
                job = next(asked, "end")
                ended = job == "end"
                if not isinstance(job, Job):
                    break
                held.append(job)
            if not held:
                return
            job = held.pop(len(held) * 7 % 5 % len(held))
            yield job, execute(job)


def test_several_workers_give_each_job_the_same_outcome_and_their_order_is_kept(
    whole: tuple[Path, SearchResult, list[Event]], tmp_path: Path
) -> None:
    result = search(tmp_path / "many", Shuffled(), **FREE)
    assert lines_of(tmp_path / "many") != lines_of(whole[0])
    alone = {r.key: r.metrics for r in read_records(whole[0] / "records.jsonl")}
    there = {r.key: r.metrics for r in read_records(tmp_path / "many" / "records.jsonl")}
    shared = alone.keys() & there.keys()
    assert len(shared) > 20
    for key in shared:
        assert {k: v for k, v in alone[key].items() if k not in ("wall_s", "timing")} == {
            k: v for k, v in there[key].items() if k not in ("wall_s", "timing")
        }
    again = search(tmp_path / "many", Interrupting(0), **FREE)
    assert said(again) == said(result)


def test_candidates_masks_that_were_deleted_are_made_again(
    whole: tuple[Path, SearchResult, list[Event]], tmp_path: Path
) -> None:
    shutil.copytree(whole[0], tmp_path / "x")
    run = RunFolder.at(tmp_path / "x")
    delete_masks(run, needless_masks(run))
    assert said(search(tmp_path / "x", **FREE)) == said(whole[1])
    same(whole[0], tmp_path / "x")


def test_failed_trials_that_run_again_are_heard_of_anew(
    whole: tuple[Path, SearchResult, list[Event]], tmp_path: Path
) -> None:
    class Failing(SerialExecutor):
        n = 0

        def run(self, jobs: Iterable[Job[Any] | None]) -> Iterator[tuple[Job[Any], Any]]:
            for job, outcome in super().run(jobs):
                self.n += 1
                fails = self.n in (3, 6, 9, 12)
                yield job, job.spec.outcome(error="x", failure="raised") if fails else outcome

    first = run_search(check_search(config(**FREE)), tmp_path, Failing(), agent_workers=0, listen=lambda event: None,
                       max_failed=1.0)  # fmt: skip
    assert retry_failures(RunFolder.at(tmp_path)) == 4
    second = search(tmp_path, **FREE)
    assert len([e for e in second.rungs if e["rung"] == 1]) > len([e for e in first.rungs if e["rung"] == 1])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"kind": "ask", "config": {"density": 0.1, "sampler": "fixed", "way": {"by": 3}}}, "line 1: not a record"),
        ({"kind": "run", "config": {}}, "the kind 'run' is none of ask"),
        ({"kind": "told", "config": {"key": 3}}, "a line 'told' has the fields key"),
        ({"kind": "close", "config": {"density": 0.1, "why": "x"}}, "why must be one of samplers"),
        ({"kind": "open", "config": {"density": 0.1}, "metrics": {"spent_s": "x"}}, "spent_s must be a number"),
    ],
)
def test_a_journal_that_is_none_is_refused_with_file_line_and_field(tmp_path: Path, line: Any, said: str) -> None:
    whole = {"key": "1", "metrics": {"spent_s": 1.0}, "environment": {}, **line}
    (tmp_path / "journal.jsonl").write_text(json.dumps(whole) + "\n")
    with pytest.raises(PanningError, match="journal.jsonl, line 1: not a record") as caught:
        Journal(tmp_path, 0.0)
    assert said in str(caught.value)


def test_a_journal_from_elsewhere_leads_nowhere(whole: tuple[Path, SearchResult, list[Event]], tmp_path: Path) -> None:
    """Lines that are well-formed and say what cannot be."""
    shutil.copytree(whole[0], tmp_path / "x")
    wrong = [
        ("promote", {"density": 0.1, "number": 10**30, "rung": 2}), ("promote", {"density": 0.1, "number": 0, "rung": -1}),
        ("promote", {"density": 0.7, "number": 0, "rung": 2}), ("told", {"key": "../x"}), ("open", {"density": 0.1}),
    ]  # fmt: skip
    lines = [json.dumps({"key": f"{n}x", "kind": kind, "config": said, "metrics": {"spent_s": 0}, "environment": {}})
             for n, (kind, said) in enumerate(wrong)]  # fmt: skip
    (tmp_path / "x" / "journal.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.warns(PanningWarning, match="4 lines"):
        assert search(tmp_path / "x", Interrupting(0), **FREE).winners == whole[1].winners


def test_nobody_to_choose_is_said(tmp_path: Path) -> None:
    rungs = [{"keep": 1, "recipe": {**SHORT, "learning_rate": 1e9}}]
    with pytest.raises(JobError, match="No candidate of .* could be judged at density 0.1: The training loss"):
        search(tmp_path, **{**FREE, "rungs": rungs, "n_samples": 0, "baselines": []})


def test_why_no_candidate_has_a_mask_is_said(tmp_path: Path) -> None:
    class Broken(SerialExecutor):
        def run(self, jobs: Iterable[Job[Any] | None]) -> Iterator[tuple[Job[Any], Any]]:
            return ((job, job.spec.outcome(error="no such layer")) for job, _ in super().run(jobs))

    with pytest.raises(JobError, match="No candidate of .* could be judged at density 0.1: no such layer$"):
        run_search(check_search(config(**FREE)), tmp_path, Broken(), agent_workers=0, listen=lambda event: None)


def test_a_search_that_ended_keeps_the_masks_of_its_result_until_there_is_another(tmp_path: Path) -> None:
    one_seed = {**FREE, "rungs": [{"keep": 1, "recipe": SHORT}]}
    write_report(search(tmp_path, **one_seed, max_trials=1), tmp_path, formats=())
    masks = {path.name: path.read_bytes() for path in tmp_path.glob("choice-*.safetensors")}
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path, Interrupting(4), **one_seed, max_trials=4)
    assert len(masks) == 2 and masks == {path.name: path.read_bytes() for path in tmp_path.glob("choice-*.safetensors")}


def test_lines_that_others_have_numbered_do_not_end_a_search(
    whole: tuple[Path, SearchResult, list[Event]], tmp_path: Path
) -> None:
    shutil.copytree(whole[0], tmp_path / "x")
    path = tmp_path / "x" / "journal.jsonl"
    first, second, *_ = map(json.loads, path.read_text().splitlines())
    path.write_text("".join(json.dumps({**line, "key": key}) + "\n" for line, key in ((first, "3"), (second, "4"))))
    search(tmp_path / "x", Interrupting(0), **FREE)
    same(whole[0], tmp_path / "x")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"order": "loose"}, "order: must be 'fixed' or 'free'"),
        ({"rungs": CONFIG["rungs"]}, "rung 0 keeps 2, but in free order it must keep a share, like 0.3"),
        ({"order": "fixed"}, "rung 0 keeps 0.3, but in fixed order it must keep a number of candidates"),
        ({"order": "fixed", "rungs": CONFIG["rungs"], "max_trials": 3}, "max_trials goes with order: free"),
        ({"samplers": ["fixt"]}, "Unknown sampler 'fixt'. Did you mean 'fixed'?"),
        ({"samplers": [{"name": "fixed", "per_round": True}]}, "sampler 'fixed' chooses no actions"),
        ({"samplers": []}, "samplers: must have at least 1 item"),
        ({"samplers": ["agent", "agent"]}, "one of the samplers is named twice"),
        ({"max_trials": 0}, "must be at least 1"),
        ({"max_cost": 1.0}, "max_cost is 1, but one candidate of each density through all rungs costs up to 3"),
    ],
)
def test_what_does_not_go_together_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_search(config(**{**FREE, **change}))
    assert said in str(caught.value)


def test_limits_are_no_part_of_which_search_it_is() -> None:
    bound = config(**FREE, max_trials=3, max_cost=100.0, budget_s=60.0)
    assert bound.identity(None) == config(**FREE).identity(None)
    assert "order" in config(**FREE).identity(None) and not {"order", "samplers"} & config().identity(None).keys()
    assert not {"order", "samplers", "max_trials"} & config().model_dump().keys()
    (stage,) = [one for one in search_stages(bound) if one.name == "trying candidates"]
    assert stage.epochs == 9.0 and search_stages(config(**FREE, max_cost=2.5))[1].epochs == 2.5
