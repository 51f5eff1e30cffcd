"""Descriptions of jobs: their JSON and keys are those of every record, and what is wrong in one is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from panning.compare.cells import check_cell
from panning.foundation.errors import ConfigError, PanningError
from panning.foundation.records import RunRecord, content_key, read_records
from panning.jobs.outcome import CellOutcome
from panning.jobs.spec import CellSpec, PruneSpec, TrainSpec
from panning.jobs.ways import Agent, FixedPolicy, Method, ReplayedEpisode, Way
from panning.jobs.work import Job
from panning.tasks import TaskSpec
from panning.training import Recipe

RESULTS = Path(__file__).parent.parent / "docs" / "results"
TASK = TaskSpec(model="mlp", data="digits")
EPISODE = {"n_rounds": 2, "action": {"form": "mix", "indices": ["magnitude", "synflow"], "combination": "sum"}}


@pytest.mark.parametrize("file", sorted(RESULTS.glob("*.jsonl")), ids=lambda path: path.stem)
def test_every_committed_record_has_the_key_of_its_description(file: Path) -> None:
    records = read_records(file)
    assert records
    for record in records:
        assert Job(CellSpec.model_validate(record.config)).key == record.key
        outcome = CellOutcome.model_validate(record.metrics)
        assert outcome.metrics == record.metrics


@pytest.mark.parametrize(
    ("by", "kind", "label"),
    [
        ({"method": "snip"}, Method, "SNIP"),
        ({"method": "snip", "released": True, "control": "shuffle"}, Method, "SNIP (released; shuffled)"),
        ({"method": "erk", "members": 2}, Method, "random (ERK), 2 together"),
        ({"policy": "synflow_half", **EPISODE}, FixedPolicy, "panning (synflow_half)"),
        ({"policy": "agent", **EPISODE}, Agent, "panning (agent)"),
        ({"policy": "agent", "sample": 3, **EPISODE}, Agent, "panning (agent, sample 3)"),
        (
            {"policy": "actions", "actions": [[0.5, -1.0, 0.0, 0.25]], **EPISODE},
            ReplayedEpisode,
            f"panning (agent's episode {content_key([[0.5, -1.0, 0.0, 0.25]])[:6]})",
        ),
    ],
)
def test_a_way_is_its_type_and_its_json_says_what_is_not_as_by_default(
    by: dict[str, Any], kind: type, label: str
) -> None:
    way = Way.model_validate({"by": by})
    assert type(way.by) is kind and way.label == label
    assert way.model_dump(mode="json") == {"by": by, "all_alive": False}
    assert Way.model_validate_json(way.model_dump_json(), strict=True) == way and hash(way) == hash(way.model_copy())


def test_a_dynamic_method_stands_with_all_its_numbers() -> None:
    by = Way.model_validate({"by": {"dynamic": "rigl", "method": "snip"}}).model_dump(mode="json")["by"]
    assert set(by) == {"dynamic", "method"} and by["dynamic"]["name"] == "rigl" and "every" in by["dynamic"]["options"]


@pytest.mark.parametrize(
    ("by", "message"),
    [
        ({"policy": "snyflow", **EPISODE}, "Did you mean 'synflow'"),
        ({"policy": "actions", "actions": [], **EPISODE}, "actions"),
        ({"policy": "agent"}, "n_rounds"),
        ({"policy": "agent", "method": "snip", **EPISODE}, "Extra inputs"),
        ({"policy": "agent", "dynamic": "gmp", **EPISODE}, "only prunes.*leave the policy out"),
        ({}, "name a method"),
        ({"method": "snip", "members": 0}, "members"),
    ],
)
def test_what_makes_no_mask_is_refused(by: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Way.model_validate({"by": by})


def test_only_the_agent_names_its_file() -> None:
    PruneSpec(task=TASK, seed=0, by=Agent(policy="agent", **EPISODE), policy="abc")
    for by, policy in ((Agent(policy="agent", **EPISODE), None), (Method(method="snip"), "abc"), (None, "abc")):
        with pytest.raises(ConfigError, match="names its policy file"):
            PruneSpec(task=TASK, seed=0, by=by, policy=policy)


def test_names_of_a_task_are_checked_and_import_paths_refused() -> None:
    with pytest.raises(ConfigError, match="Unknown model 'os:system'"):
        TrainSpec(task=TaskSpec(model="os:system", data="digits"), seed=0, mask=None, recipe=Recipe())


def test_a_record_says_no_more_than_its_job_would() -> None:
    """Or two records of one cell would have two keys."""
    record = read_records(RESULTS / "dynamics-fashion.jsonl")[0]
    moving = next(r for r in read_records(RESULTS / "dynamics-fashion.jsonl") if "dynamic" in (r.config["by"] or {}))
    assert check_cell(record) and check_cell(moving)
    fewer = {"name": moving.config["by"]["dynamic"]["name"], "options": {}}
    for by in ({**moving.config["by"], "members": 1}, {**moving.config["by"], "dynamic": fewer}):
        with pytest.raises(PanningError, match="as by default"):
            check_cell(with_key(replace(moving, config={**moving.config, "by": by})))


def with_key(record: RunRecord) -> RunRecord:
    return replace(record, key=content_key({"kind": record.kind, **record.config}))
