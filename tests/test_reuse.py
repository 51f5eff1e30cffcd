"""Evaluations of other runs: taken over where all that they depend on is the same, said, and checked as anyone's records."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_free_order import FREE
from test_search import Interrupting, config, said
from test_search import search as plain_search

from panning.compare.grid import GridConfig
from panning.compare.run import run_grid
from panning.foundation.config import parse_config
from panning.foundation.errors import ConfigError, MaskError, OutputError, PanningError, PanningWarning
from panning.foundation.progress import silent
from panning.foundation.records import RunRecord, content_key, read_records, record_line
from panning.jobs.executor import SerialExecutor
from panning.jobs.reuse import OtherRuns, reused_sentences
from panning.jobs.runs import RunFolder, needless_masks
from panning.jobs.spec import CellSpec, PruneSpec, TrainSpec, key_of
from panning.jobs.store import JobStore
from panning.jobs.ways import ReplayedEpisode
from panning.jobs.work import Job, execute
from panning.searches.run import check_search, run_search
from panning.searches.whole import How, whole_search
from panning.tasks import DataSource, TaskSpec

SMALL: dict[str, Any] = {**FREE, "seeds": [0], "rungs": [{"keep": 1, "recipe": FREE["recipe"]}], "n_samples": 0}


class Counting(SerialExecutor):
    """Counts the jobs that are run."""

    def __init__(self) -> None:
        super().__init__()
        self.ran: list[Job[Any]] = []

    def run(self, jobs: Iterable[Job[Any] | None]) -> Iterator[tuple[Job[Any], Any]]:
        for job, outcome in super().run(jobs):
            self.ran.append(job)
            yield job, outcome


@pytest.fixture(scope="module")
def paid(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A search that paid for all of its evaluations, and its result."""
    out = tmp_path_factory.mktemp("paid")
    return out, plain_search(out, **SMALL)


@pytest.fixture
def other(paid: tuple[Path, Any], tmp_path: Path) -> Path:
    shutil.copytree(paid[0], tmp_path / "other")
    return tmp_path / "other"


def search(out: Path, *folders: Path, **change: Any) -> tuple[Any, list[Job[Any]]]:
    """A search that may take over from other folders, and the jobs that it ran."""
    counting = Counting()
    others = OtherRuns(folders, out)
    ready = check_search(config(**{**SMALL, **change}))
    return run_search(ready, out, counting, agent_workers=0, listen=silent, others=others), counting.ran


def changed(folder: Path, change: Any) -> None:
    """The records of a folder after ``change``, which gets each and gives another."""
    path = folder / "records.jsonl"
    path.write_text("".join(record_line(change(record)) for record in read_records(path)))


def test_what_another_search_has_paid_for_is_not_paid_again(
    paid: tuple[Path, Any], other: Path, tmp_path: Path
) -> None:
    held = {record.key: record for record in read_records(other / "records.jsonl")}
    result, ran = search(tmp_path / "new", other)
    assert ran == [] and said(result) == said(paid[1])
    records = read_records(tmp_path / "new" / "records.jsonl")
    assert {one.key for one in records} == held.keys()
    assert all(one.metrics == held[one.key].metrics for one in records)
    assert all(
        one.environment == {**held[one.key].environment, "reused_from": str(other)} for one in records
    )  # fmt: skip
    n = len(records)
    assert result.ended[-1] == f"{n} of {n} evaluations were paid for by other runs and reused: {n} from {other}."
    masks = sorted(path.name for path in (other / "masks").glob("*.safetensors"))
    assert masks and all((tmp_path / "new" / "masks" / name).read_bytes() == (other / "masks" / name).read_bytes()
                         for name in masks)  # fmt: skip
    shutil.rmtree(other)  # nothing is needed of it any more, and who paid is still said
    assert plain_search(tmp_path / "new", Interrupting(0), **SMALL).ended == result.ended


def test_only_what_is_the_same_is_taken(other: Path, tmp_path: Path) -> None:
    longer = {**FREE["recipe"], "epochs": 2}
    result, ran = search(tmp_path / "new", other, rungs=[{"keep": 1, "recipe": longer}])
    kinds = {job.spec.kind for job in ran}
    assert "train" in kinds and "prune" not in kinds  # masks are the same
    assert "were paid for by other runs" in result.ended[-1]
    again, ran = search(tmp_path / "third", other, tmp_path / "new", rungs=[{"keep": 1, "recipe": longer}])
    assert ran == [] and f"from {other}" in again.ended[-1] and f"from {tmp_path / 'new'}" in again.ended[-1]


def test_a_search_in_fixed_order_and_a_grid_take_over_as_well(other: Path, tmp_path: Path) -> None:
    fixed = {"order": "fixed", "rungs": [{"keep": 1, "recipe": FREE["recipe"]}]}
    result, ran = search(tmp_path / "fixed", other, **fixed)
    assert ran == [] and len(result.ended) == 1
    grid = {
        "name": "cells", "tasks": [{"task": config().task.model_dump(mode="json"), "recipe": FREE["recipe"]}],
        "densities": [0.1], "seeds": [0], "methods": ["erk"], "controls": False,
    }  # fmt: skip
    counting = Counting()
    parsed = parse_config(GridConfig, grid, "test")
    records = run_grid(parsed, tmp_path, tmp_path / "grid", counting, silent, others=OtherRuns([other]))
    assert counting.ran == [] and len(records) == 2
    assert reused_sentences(records) == (f"2 of 2 evaluations were paid for by other runs and reused: 2 from {other}.",)


def not_taken(folder: Path) -> list[str]:
    """The kinds of a folder's records that are not taken over for jobs of their own descriptions."""
    others, specs = OtherRuns([folder]), {spec.kind: spec for spec in (PruneSpec, TrainSpec, CellSpec)}
    records = read_records(folder / "records.jsonl")
    return [r.kind for r in records if others.get(Job(specs[r.kind].model_validate_json(json.dumps(r.config)))) is None]


def aged(record: RunRecord, **change: Any) -> RunRecord:
    return replace(record, environment={**record.environment, **change})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: aged(r, source="0123"), "were made by other code .panning 0123, torch .*; here panning"),
        (lambda r: aged(r, versions={**r.environment["versions"], "torch": "2.0"}), "were made by other code .*torch 2.0"),
        (lambda r: aged(r, making=1), "were made by other code .*masks 1"),
        (lambda r: aged(r, plugins={"panning.methods: x": "x 1"}), "were made by other code .*x 1"),
        (lambda r: aged(r, hardware={"accelerator": "H200"}), "were computed on another kind of device"),
        (lambda r: aged(r, versions="many", hardware=3), "were made by other code .*torch None"),
        (lambda r: replace(r, metrics={**r.metrics, "data": "elsewhere"} if r.kind == "cell" else r.metrics),
         "were made with other data"),
    ],
)  # fmt: skip
def test_what_something_else_made_is_made_again_and_said(other: Path, change: Any, words: str) -> None:
    changed(other, change)
    with pytest.warns(PanningWarning, match=f"Evaluations of {other} {words}.*; they are not reused"):
        left = not_taken(other)
    records = read_records(other / "records.jsonl")
    assert left == [r.kind for r in records if "other data" not in words or r.kind == "cell"]


def test_other_data_of_the_same_name_are_other_evaluations(other: Path) -> None:
    begun = json.loads((other / "begun.json").read_text())
    (other / "begun.json").write_text(json.dumps({**begun, "data": "elsewhere"}))
    with pytest.warns(PanningWarning, match="other data"):
        assert {*not_taken(other)} == {"prune", "train"}  # cells say themselves with which data


def test_failures_that_befell_a_process_are_tried_again(other: Path) -> None:
    failed = {"error": "it took too long", "failure": "time"}
    changed(other, lambda r: replace(r, metrics=failed) if r.kind == "train" else r)
    assert {*not_taken(other)} == {"train"}


def test_records_that_name_no_data_are_not_taken(other: Path) -> None:
    (other / "begun.json").unlink()
    with pytest.warns(PanningWarning, match="do not say with which data they were made"):
        assert {*not_taken(other)} == {"prune", "train"}


def test_a_mask_that_is_gone_is_made_again_and_another_is_refused(other: Path, tmp_path: Path) -> None:
    first, second, *_ = sorted((other / "masks").glob("*.safetensors"))
    first.unlink()
    _, ran = search(tmp_path / "new", other)
    assert [job.key for job in ran] == [first.stem]
    second.write_bytes((tmp_path / "new" / "masks" / first.name).read_bytes())
    with pytest.raises(MaskError, match=f"{second} is not the mask that its record tells of"):
        search(tmp_path / "third", other)


def test_records_of_others_are_checked_with_line_and_field(other: Path, tmp_path: Path) -> None:
    lines = (other / "records.jsonl").read_text().splitlines(keepends=True)
    for number, field, value in ((1, "n_kept", -1), (1, "density", "much"), (2, "accuracy", 7)):
        kinds = [json.loads(line)["kind"] for line in lines]
        place = [i for i, kind in enumerate(kinds) if kind == ("prune" if number == 1 else "train")][0]
        values = json.loads(lines[place])
        values["metrics"][field] = value
        text = "".join([*lines[:place], json.dumps(values) + "\n", *lines[place + 1 :]])
        (other / "records.jsonl").write_text(text)
        with pytest.raises(PanningError, match=f"other/records.jsonl, line {place + 1}: .*{field}"):
            OtherRuns([other])
    (other / "records.jsonl").write_text("".join(lines) + '{"config":{"torn')
    assert len(search(tmp_path / "new", other)[1]) == 0  # as of a run that is being written
    assert (other / "records.jsonl").read_text().endswith("torn")  # and nothing is written there


def test_what_is_no_run_or_leads_elsewhere_is_refused_before_anything_starts(other: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    ready, where = config(**SMALL), tmp_path / "new"
    with pytest.raises(ConfigError, match="empty is no folder of a search or benchmark: it has no records.jsonl"):
        whole_search(ready, where, How(reuse=[tmp_path / "empty"]))
    with pytest.raises(ConfigError, match="is the folder of this run itself"):
        whole_search(ready, other, How(reuse=[other]))
    (other / "masks" / "x.safetensors").symlink_to("/etc/hostname")
    with pytest.raises(OutputError, match="is a link"):
        whole_search(ready, where, How(reuse=[other]))
    assert not where.exists()


# --- who asked ---


def episode(drawn_by: str | None) -> Job[Any]:
    by = ReplayedEpisode(
        policy="actions", actions=((0.5,),), n_rounds=1, action={"indices": ["snip"]}, drawn_by=drawn_by
    )
    spec = PruneSpec(task=TaskSpec(model="mlp", data="digits", n_train=200), seed=0, density=0.1, by=by)
    return Job(spec, DataSource())


def test_who_asked_is_no_part_of_what_an_evaluation_is(tmp_path: Path) -> None:
    job = episode("tpe")
    assert job.key == episode("random").key == episode(None).key
    assert job.spec.label != episode("random").spec.label
    assert job.key == content_key(
        {"kind": "prune", **episode(None).config}
    )  # as of searches before there were samplers
    store, outcome = JobStore(tmp_path), execute(job)
    store.put(job, outcome)
    assert (found := store.get(episode("random"))) is not None and found.mask == outcome.mask == execute(
        episode("x")
    ).mask


def test_older_records_whose_key_names_who_asked_are_read(tmp_path: Path) -> None:
    job = episode("tpe")
    store, outcome = JobStore(tmp_path), execute(job)
    store.put(job, outcome)
    changed(tmp_path, lambda r: replace(r, key=content_key({"kind": r.kind, **r.config})))
    (record,) = JobStore(tmp_path).records
    assert record.key != job.key == key_of("prune", record.config)
    changed(tmp_path, lambda r: replace(r, key="0" * 20))
    with pytest.raises(PanningError, match="its key is not that of its config"):
        JobStore(tmp_path)


def test_masks_that_a_row_of_another_asker_shows_are_needed(other: Path) -> None:
    """A winner's cell may be one sampler's while the mask's record is another's."""
    (other / "result.json").write_text("{}")
    records = read_records(other / "records.jsonl")
    prune = next(r for r in records if r.kind == "prune" and "actions" not in r.config["by"])
    cell = next(r for r in records if r.kind == "cell" and r.config["by"] is not None)
    by = {"policy": "actions", "actions": [[0.5]], "n_rounds": 1}
    asked = [
        replace(prune, config={**prune.config, "by": {**by, "drawn_by": "tpe"}}),
        replace(cell, config={**cell.config, **{key: prune.config[key] for key in ("all_alive", "density", "seed")},
                              "by": {**by, "drawn_by": "random"}}),
    ]  # fmt: skip
    (other / "records.jsonl").write_text("".join(map(record_line, asked)))
    assert needless_masks(RunFolder.at(other)) == []
