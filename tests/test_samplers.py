"""Samplers: the contract over the whole table, what each asks for by hand, and one search with all of them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_free_order import FREE, lines_of
from test_search import Interrupting, config, search

from panning.agents.config import EpisodeSpec
from panning.foundation.errors import ConfigError, MissingExtraError
from panning.foundation.records import read_records
from panning.jobs.ways import Method, Way
from panning.searches.run import check_search
from panning.searches.samplers import SAMPLERS, Result, Sampler, Setting
from panning.searches.samplers.space import Space
from panning.testing import SamplerContract

MIX = EpisodeSpec(n_rounds=3, action={"indices": ["snip", "synflow"]})
PICK = EpisodeSpec(n_rounds=3, action={"form": "pick", "indices": ["snip", "synflow"]})
OF_OPTUNA = ("tpe", "cma_es", "qmc")


class TestEverySampler(SamplerContract):
    @pytest.fixture(params=SAMPLERS)
    def make(self, request: pytest.FixtureRequest) -> Callable[[Setting], Sampler]:
        if request.param in OF_OPTUNA:
            pytest.importorskip("optuna")
        return SAMPLERS[request.param].make


class TestEverySamplerPerRound(TestEverySampler):
    @pytest.fixture(params=[name for name, row in SAMPLERS.items() if row.chooses_actions])
    def make(self, request: pytest.FixtureRequest) -> Callable[[Setting], Sampler]:
        if request.param in OF_OPTUNA:
            pytest.importorskip("optuna")
        made: Callable[[Setting], Sampler] = SAMPLERS[request.param].make
        return lambda setting: made(Setting(setting.density, setting.episode, seed=setting.seed, per_round=True))


def sampler(name: str, episode: EpisodeSpec = MIX, **more: Any) -> Sampler:
    if name in OF_OPTUNA:
        pytest.importorskip("optuna")
    return SAMPLERS[name].make(Setting(0.05, episode, (Method(method="erk"),), **more))


def actions_of(way: Way | None) -> Any:
    assert way is not None
    return np.array(way.by.actions)


# --- by hand ---


def test_fixed_ones_are_the_candidates_of_every_search_and_the_agents_are_its_episodes() -> None:
    fixed, agent = sampler("fixed"), sampler("agent", n_samples=2)
    ways = [way for way in iter(fixed.ask, None)]
    assert ways[:2] == [Way(by=Method(method="erk"), all_alive=alive) for alive in (True, False)]
    assert ways[-1].by.policy == "agent" and ways[-1].by.sample is None
    assert [(way.by.sample, way.all_alive) for way in iter(agent.ask, None)] == [
        (0, True), (0, False), (1, True), (1, False),
    ]  # fmt: skip


def test_random_actions_fill_their_space_one_action_or_one_a_round() -> None:
    drawn = sampler("random")
    rows = np.concatenate([actions_of(drawn.ask()) for _ in range(300)])
    assert rows.shape == (300, 4) and rows.min() < -0.95 and rows.max() > 0.95 and abs(rows.mean()) < 0.1
    per_round = actions_of(sampler("random", per_round=True).ask())
    assert per_round.shape == (3, 4) and len({tuple(row) for row in per_round}) == 3
    drawn = sampler("random", PICK)
    picks = np.concatenate([actions_of(drawn.ask()) for _ in range(300)])
    assert {tuple(np.unique(picks[:, n])) for n in range(3)} == {(0.0, 1.0), (0.0, 1.0, 2.0, 3.0), (0.0, 1.0, 2.0)}
    assert {drawn.ask().all_alive for _ in range(20)} == {True, False}


def test_the_space_of_pick_takes_whole_numbers_and_repairs_by_its_last() -> None:
    space = Space(PICK)
    assert space.names == ("index", "step", "spread", "all-alive") and space.choices == (2, 4, 3, 2)
    assert space.way([1, 3, 0, 1]).all_alive is True and space.way([1, 3, 0, 0]).all_alive is False
    wide = Space(PICK, per_round=True)
    assert len(wide.names) == 10 and wide.names[3] == "round 2: index" and len(wide.choices) == 10


@pytest.mark.parametrize("per_round", [False, True])
@pytest.mark.parametrize("episode", [MIX, PICK])
def test_local_changes_are_one_entry_away_from_the_best_so_far(episode: EpisodeSpec, per_round: bool) -> None:
    local = sampler("local", episode, per_round=per_round)
    best = ((1.0, 0.0, 1.0), (0.0, 1.0, 0.0)) if episode is PICK else ((0.5, 0.1, 0.0, -1.0), (0.25, 0.1, 0.0, 1.0))
    way = Space(episode).replay(((0.0,) * len(best[0]),), all_alive=False)
    local.tell(Result(way, 1, 0.9, 0.9, failure="it failed", actions=best))
    assert local.ask() is not None  # nothing to change yet
    local.tell(Result(way, 2, 0.3, 0.3, actions=best))
    local.tell(Result(way, 1, 0.8, 0.8, actions=best[:1]))  # better in a lower rung
    whole = np.array([best[0], best[1], best[1]])
    seen = set()
    for _ in range(60):
        asked = local.ask()
        if asked.all_alive:
            assert asked.by.actions == best
            seen.add("all-alive")
            continue
        differs = actions_of(asked) != whole
        assert differs.any(axis=0).sum() == 1 and (differs.sum() == 1 or not per_round)
        seen.add(int(differs.any(axis=0).argmax()))
    assert len(seen) == len(best[0]) + 1  # each of them came


@pytest.mark.parametrize("name", OF_OPTUNA)
def test_samplers_of_optuna_get_better_or_fill_the_space(name: str) -> None:
    """Best near (0.5, -0.5) of two entries; TPE and CMA-ES come near, quasi-random points stay spread out."""
    asked = sampler(name, seed=3)
    found = []
    for _ in range(150):
        way = asked.ask()
        found.append(actions_of(way)[0][:2])
        value = 1.0 - float(np.square(found[-1] - [0.5, -0.5]).sum())
        asked.tell(Result(way, 1, value, value))
        asked.tell(Result(way, 2, 0.0, 0.0))  # a higher rung is another measure
    late = np.square(np.array(found[-40:]) - [0.5, -0.5]).sum(axis=1)
    early = np.square(np.array(found[:20]) - [0.5, -0.5]).sum(axis=1)
    if name == "qmc":
        quarters = {(x > 0, y > 0) for x, y in found[1:17]}
        assert len(quarters) == 4 and np.abs(np.mean(found[1:129], axis=0)).max() < 0.05
    else:
        assert np.median(late) < 0.5 * np.median(early)


def test_a_mask_that_was_tried_before_says_nothing_and_one_without_a_path_is_worth_nothing() -> None:
    asked = sampler("tpe")
    ways = [asked.ask() for _ in range(2)]
    asked.tell(Result(ways[0], 1, 0.0, 0.0, failure="as another", is_repeated=True))
    asked.tell(Result(ways[1], 1, 0.0, 0.0, failure="no path"))
    assert [trial.state.name for trial in asked._study.trials] == ["FAIL", "COMPLETE"]
    assert asked._study.best_value == 0.0


# --- in a search ---


ALL = ["fixed", "random", {"name": "local", "n": 3, "per_round": True}, *OF_OPTUNA]


def test_a_search_with_every_sampler_goes_on_where_it_was(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    asked = {**FREE, "samplers": ALL, "max_trials": 20, "n_samples": 0}
    whole = search(tmp_path / "whole", **asked)
    assert whole.ended == ("At density 0.1, candidates tried: 20; more were not allowed (max_trials).",)
    names = [said["sampler"] for kind, said in lines_of(tmp_path / "whole") if kind == "ask"]
    assert names[:6] == ["fixed", "random", "local", *OF_OPTUNA] and names.count("local") == 3
    names_tried = {(entry["sampler"], entry["candidate"].partition("'s episode")[0]) for entry in whole.rungs}
    assert ("tpe", "panning (tpe") in names_tried and ("local", "panning (local") in names_tried
    made = {
        r.config["by"].get("drawn_by") for r in read_records(tmp_path / "whole" / "records.jsonl") if r.kind == "prune"
    }
    assert {"random", "cma_es", "qmc", None} <= made
    for n_jobs in (9, 8):
        with pytest.raises(KeyboardInterrupt):
            search(tmp_path / "cut", Interrupting(n_jobs), **asked)
    search(tmp_path / "cut", **asked)
    assert lines_of(tmp_path / "cut") == lines_of(tmp_path / "whole")
    more = search(tmp_path / "cut", **{**asked, "max_trials": 22})
    assert "candidates tried: 22" in more.ended[0]


def test_a_sampler_that_never_ends_needs_a_limit() -> None:
    with pytest.raises(ConfigError, match="sampler 'random' never ends: give it n, or give max_trials"):
        config(**FREE, samplers=["fixed", "random"])
    for limit in ({"max_trials": 5}, {"max_cost": 50.0}, {"budget_s": 3.0}, {"samplers": [{"name": "random", "n": 3}]}):
        config(**{**FREE, "samplers": ["random"], **limit})


@pytest.mark.parametrize("name", OF_OPTUNA)
def test_a_sampler_of_optuna_says_which_extra_it_lacks_before_anything_starts(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.setitem(sys.modules, "cmaes", None)
    monkeypatch.delitem(sys.modules, "panning.searches.samplers.optuna_samplers", raising=False)
    with pytest.raises(MissingExtraError, match=r"pip install 'panning\[samplers\]'"):
        check_search(config(**FREE, samplers=[name], max_trials=3))
