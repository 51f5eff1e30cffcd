"""The levers of an action that are off by default: quotas, balance and start, from the numbers to the training."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3.common.env_checker import check_env
from torch import Tensor

import panning
import panning.configs
from panning.agents import AgentConfig, train_agent
from panning.compare.grid import Contender, GridTask, Group
from panning.envs import PanningEnv, RewardSpec
from panning.envs.ending import ending_terms
from panning.episode import episode
from panning.episode.actions import ActionSpec
from panning.episode.episode import run_policy
from panning.episode.observations import STANDARD
from panning.episode.policies import Constant, Replay
from panning.episode.policy_net import PolicyNet, dump_policy, load_policy, parse_policy, save_policy
from panning.foundation.errors import ConfigError, MaskError, PolicyError
from panning.foundation.progress import Event, Listener
from panning.jobs.outcome import CellOutcome, PruneOutcome
from panning.jobs.spec import CellSpec, PruneSpec, TrainSpec
from panning.jobs.ways import Agent, ReplayedEpisode, Way
from panning.jobs.work import Job, execute
from panning.masks.allocation import uniform_counts
from panning.masks.budgets import fitted_counts
from panning.masks.masks import n_kept_at
from panning.pruners import Form, Rounds, prune_problem, prune_round
from panning.pruners.rounds import RoundAction
from panning.scoring.problem import Problem
from panning.scoring.signals import Signals
from panning.searches.fixed_order import _distinct
from panning.tasks import TaskSpec, load_task
from panning.testing.networks import residual_problem
from panning.training import Recipe

ALL = ActionSpec(quotas=("erk", "synflow"), balance=True, start=True)
PICKED = ALL.model_copy(update={"form": "pick"})
TASK = {"model": "mlp", "data": "digits", "n_train": 200}
SHORT = Recipe(epochs=1, batch_size=32, learning_rate=0.05)


def one_round(problem: Problem, density: float, spec: ActionSpec = ALL, **choice: Any) -> Tensor:
    """The mask of an episode of one round by magnitude."""
    policy = Constant(spec.encode({"magnitude": 1.0}, **choice))
    return run_policy(problem, density, policy, spec, 1)[0].mask


# --- numbers ---


def test_levers_that_are_off_leave_no_trace() -> None:
    assert ActionSpec().model_dump(mode="json") == {
        "form": "mix", "indices": ["magnitude", "snip", "grasp", "synflow"], "combination": "sum",
    }  # fmt: skip
    way = Way(by=Agent(policy="agent", n_rounds=2, action=ActionSpec()))
    spec = PruneSpec(task=TaskSpec.model_validate(TASK), seed=0, density=0.1, by=way.by, policy="x")
    assert Job(spec).key == "15a520c2bf512be87ec1"
    folder = Path(panning.configs.__file__).parent / "bench"
    for name in ("fashion-lenet5", "cifar10-resnet20"):
        data = (folder / f"{name}.safetensors").read_bytes()
        assert dump_policy(parse_policy(data, name)) == data
    result, _ = run_policy(residual_problem(), 0.1, Constant(ActionSpec().encode({"snip": 1.0})), ActionSpec(), 2)
    assert result.start is None and set(result.history[0]) == {
        "round", "density", "effective_density", "weights", "spread",
    }  # fmt: skip


def test_each_lever_is_an_entry_and_says_what_it_says() -> None:
    assert ALL.dimensions[4:] == ("step", "spread", "quotas: erk", "quotas: synflow", "balance", "start")
    assert PICKED.dimensions[1:] == ALL.dimensions[4:] and PICKED.choices == (4, 4, 3, 3, 3, 3, 2)

    def decoded(*levers: float) -> RoundAction:
        return ALL.decode(np.array([-1, 1, -1, -1, 0, -1, *levers]), 1.0, 0.01, 2)

    assert decoded(-1, -1, -1, -1) == RoundAction({"snip": 1.0}, pytest.approx(0.1), start="none")
    action = decoded(-0.5, 0.0, 0.5, 0.0)
    assert action.quotas == {"erk": 0.25, "synflow": 0.5} and action.balance == 0.75 and action.start == "gain"
    assert decoded(1, 1, 0, -0.01).quotas == {"erk": 0.5, "synflow": 0.5}  # 2 in all are divided by 2
    assert decoded(0.5, 0.5, 0, -0.01).start == "none" and decoded(0.99, -0.99, 0, 0).quotas == {"erk": 1.0}
    picked = PICKED.decode(np.array([1, 3, 0, 1, 0, 2, 1]), 1.0, 0.01, 2)
    assert picked == RoundAction({"snip": 1.0}, 0.01, quotas={"erk": 0.5}, balance=1.0, start="gain")


@pytest.mark.parametrize("spec", [ALL, PICKED], ids=["mix", "pick"])
def test_encoding_levers_is_undone_by_decoding(spec: ActionSpec) -> None:
    action = spec.encode({"snip": 1.0}, 0.5, 0.5, quotas={"erk": 0.5, "synflow": 0.5}, balance=0.5, start="gain")
    again = spec.decode(action, 1.0, 0.1, 3)
    assert again.quotas == {"erk": 0.5, "synflow": 0.5} and (again.balance, again.start) == (0.5, "gain")
    assert again.spread == 0.5 and again.weights == {"snip": 1.0}


def test_levers_that_a_spec_lacks_and_sources_that_are_none_are_refused() -> None:
    for choice in ({"quotas": {"erk": 1.0}}, {"balance": 1.0}, {"start": "gain"}):
        with pytest.raises(PolicyError, match=r"Lever .* is not among the action's levers \['step', 'spread'\]"):
            ActionSpec().encode({"snip": 1.0}, **choice)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="Unknown source of quotas 'synflo'. Did you mean 'synflow'"):
        ActionSpec(quotas=("synflo",))
    with pytest.raises(ConfigError, match="named twice"):
        ActionSpec(quotas=("erk", "erk"))
    with pytest.raises(MaskError, match="leave revive on"):
        RoundAction({"snip": 1.0}, 0.1, revive=False, balance=0.5)


# --- masks ---


@pytest.mark.parametrize("density", [0.2, 0.03])
def test_a_round_with_levers_is_the_mask_of_the_same_form(density: float) -> None:
    problem = residual_problem()
    for choice, form in [
        ({"quotas": {"erk": 1.0}}, {"quotas": "erk"}),
        ({"quotas": {"synflow": 1.0}}, {"quotas": "synflow"}),
        ({"quotas": {"erk": 0.5}}, {"quotas": "erk + magnitude"}),  # what is left is the mix's own, here magnitude's
        ({"quotas": {"erk": 0.25, "synflow": 0.5}}, {"quotas": "0.25 erk + 0.5 synflow + 0.25 magnitude"}),
        ({"quotas": {"erk": 1.0}, "spread": 1.0}, {"quotas": "erk", "place": "lot"}),
        ({"balance": 1.0}, {"place": "balanced:magnitude"}),
        ({"balance": 1.0, "spread": 1.0}, {"place": "balanced:lot"}),
        ({"quotas": {"synflow": 1.0}, "balance": 1.0}, {"quotas": "synflow", "place": "balanced:magnitude"}),
    ]:
        form = {"place": form.get("place", "magnitude"), **form}
        form |= {} if "quotas" in form else {"quotas": "magnitude"}
        wanted = prune_problem(problem, density, None, form=Form(**form)).mask
        assert torch.equal(one_round(problem, density, **choice), wanted), choice
    assert torch.equal(one_round(problem, density), one_round(problem, density, ActionSpec()))


def test_sources_count_at_the_target_once_and_in_proportion_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rounds to 0.02: the first has 10 times as many weights as the counts of the target, divided as they are."""
    asked: list[tuple[str, float]] = []

    def counted(problem: Problem, source: str, density: float, *, listen: Listener) -> Sequence[int]:
        asked.append((source, density))
        return panning.pruners.source_counts(problem, source, density, listen)

    monkeypatch.setattr(episode, "source_counts", counted)
    problem = residual_problem()
    layout, n = problem.layout, problem.layout.n_prunable
    action = RoundAction({"snip": 1.0}, 0.2, quotas={"uniform": 1.0})
    for _ in range(2):
        state = episode.transition(episode.initial(problem, 0.02, 2), action)
        assert layout.counts(state.mask) == fitted_counts(
            uniform_counts(layout, n_kept_at(0.02, n)), n_kept_at(0.2, n), layout.sizes
        )
        state = episode.transition(state, dataclasses.replace(action, density=0.02))
        assert layout.counts(state.mask) == uniform_counts(layout, n_kept_at(0.02, n))
    assert asked == [("uniform", 0.02)]


def test_a_half_balance_deals_half_of_a_layer_and_ranks_the_rest() -> None:
    """By hand: of four weights two are dealt, one a unit (9 to the first, 2 to the second, whose best input is taken); then
    follow the two best of the others."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 2, bias=False), torch.nn.Flatten())
    model[0].weight.data = torch.tensor([[9.0, 8.0, 7.0], [3.0, 1.0, 2.0]])  # type: ignore[operator, union-attr]
    problem = Problem.of(model, (3,), None)
    signals = Signals(problem, torch.ones(6, dtype=torch.bool))

    def mask(balance: float) -> list[int]:
        action = RoundAction({"magnitude": 1.0}, 4 / 6, balance=balance)
        return prune_round(signals, action).mask.int().tolist()

    assert mask(0.0) == [1, 1, 1, 1, 0, 0]
    assert mask(0.5) == [1, 1, 1, 0, 0, 1]
    assert mask(1.0) == [1, 1, 0, 1, 0, 1]


def test_all_alive_goes_on_by_the_counts_that_the_round_had() -> None:
    problem = residual_problem()
    action = RoundAction({"snip": 1.0}, 0.02, quotas={"erk": 1.0})
    n = problem.layout.n_prunable
    counts = [int(count) for count in panning.pruners.source_counts(problem, "erk", 0.02)]
    found = prune_round(Signals(problem, torch.ones(n, dtype=torch.bool)), action, {"erk": counts})
    assert problem.layout.counts(found.mask) == counts
    best = found.scores.topk(n_kept_at(0.01, n)).indices  # of half as many weights each layer has half
    half = problem.layout.counts(torch.zeros(n, dtype=torch.bool).index_fill(0, best, True))
    assert all(abs(2 * few - many) <= 1 for few, many in zip(half, counts, strict=True))


# --- episodes and what follows from them ---


@pytest.mark.parametrize("spec", [ALL, PICKED], ids=["mix", "pick"])
def test_the_checker_of_sb3_passes_with_every_lever(spec: ActionSpec) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gymnasium.make(
            "panning:Panning-v0", tasks=[TASK], action=spec.model_dump(), n_rounds=2, render_mode="ansi"
        )
        check_env(env.unwrapped)


def test_the_environment_trains_from_the_start_that_was_chosen_and_notes_it() -> None:
    task = load_task(TaskSpec.model_validate(TASK), 0)
    reward = RewardSpec(training=1.0, recipe=SHORT, all_alive=False)
    figures = {}
    for start in ("none", "gain"):
        env = PanningEnv([TASK], [0.2], n_rounds=1, action=ALL)
        env.reset(seed=0)
        *_, info = env.step(ALL.encode({"magnitude": 1.0}, start=start))
        assert info["masks"].manifest["start"] == start
        figures[start] = ending_terms(reward, task, env.state)["accuracy"]
    plain = RewardSpec(training=1.0, recipe=SHORT.starting("gain", "a test"), all_alive=False)
    env = PanningEnv([TASK], [0.2], n_rounds=1)
    env.reset(seed=0)
    *_, info = env.step(env.spec_of_action.encode({"magnitude": 1.0}))
    assert ending_terms(plain, task, env.state)["accuracy"] == figures["gain"] != figures["none"]
    assert "start" not in info["masks"].manifest


def net(spec: ActionSpec, action: np.ndarray[Any, Any]) -> PolicyNet:
    """A policy that takes one action whatever it sees."""
    weight = np.zeros((len(action), len(STANDARD)), np.float32)
    return PolicyNet(spec, 1, (weight,), (action.astype(np.float32),), np.zeros(len(action), np.float32), {})


def test_prune_notes_the_start_that_a_policy_chose() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.ReLU(), torch.nn.Linear(30, 5))
    data = (torch.linspace(-1, 1, 160).view(8, 20).sin(), torch.arange(8) % 5)
    for all_alive in (False, True):
        policy = net(ALL, ALL.encode({"snip": 1.0}, quotas={"erk": 1.0}, start="gain"))
        masks = panning.prune(model, data, density=0.1, policy=policy, all_alive=all_alive)
        assert masks.manifest["start"] == "gain"
    assert Recipe().noted(masks).start == Recipe(start="gain").start
    assert Recipe(start="fan_in").noted(masks) == Recipe(start="fan_in")
    with pytest.raises(ConfigError, match="(?s)the mask's manifest.*start"):
        Recipe().noted(masks.with_manifest(start="gian"))


def cell(by: Any, **recipe: Any) -> CellOutcome:
    recipe_of = SHORT.model_copy(update=recipe)
    spec = CellSpec(task=TaskSpec.model_validate(TASK), seed=0, density=0.2, by=by, recipe=recipe_of, test=False)
    return execute(Job(spec))


def test_cells_and_searches_train_from_the_start_that_a_policy_chose() -> None:
    plain = ActionSpec()

    def replayed(spec: ActionSpec, **choice: Any) -> ReplayedEpisode:
        actions = (tuple(spec.encode({"magnitude": 1.0}, **choice).tolist()),)
        return ReplayedEpisode(policy="actions", n_rounds=1, action=spec, actions=actions)

    chosen = cell(replayed(ALL, start="gain"))
    given = cell(replayed(plain), start=Recipe(start="gain").start)
    assert (chosen.start, given.start) == ("gain", None) and chosen.loss == given.loss and chosen.mask == given.mask
    as_drawn = cell(replayed(ALL))
    assert as_drawn.start == "none" and as_drawn.loss == cell(replayed(plain)).loss != chosen.loss
    with pytest.raises(ConfigError, match="choose the start: leave it out of the recipe"):
        cell(replayed(ALL), start=Recipe(start="gain").start)

    tried = []
    for choice in ({"start": "gain"}, {}, {}):
        way = Way(by=replayed(ALL, **choice))
        job = Job(PruneSpec(task=TaskSpec.model_validate(TASK), seed=0, density=0.2, by=way.by))
        tried.append((way, execute(job)))
    assert _distinct(0.2, tried) == [tried[0][0], tried[1][0]]  # one mask, two starts
    losses = {trained(outcome).loss for _, outcome in tried[:2]}
    assert losses == {chosen.loss, as_drawn.loss}


def trained(outcome: PruneOutcome) -> Any:
    assert outcome.mask is not None
    spec = TrainSpec(task=TaskSpec.model_validate(TASK), seed=0, mask="x", recipe=SHORT)
    return execute(Job(spec, attachment=outcome.mask))


def test_grids_leave_the_start_to_a_policy_that_chooses_it(tmp_path: Path) -> None:
    save_policy(net(ALL, ALL.encode({"snip": 1.0})), tmp_path / "p.safetensors")
    way, policy = Contender(policy="p.safetensors").way(tmp_path)
    task = GridTask.model_validate({"task": TASK, "recipe": SHORT.model_dump() | {"start": "gain"}})
    group = Group(task, (0,), Job(CellSpec(task=task.task, seed=0, recipe=SHORT)).source, way, 0.1, policy)
    assert group.recipe.start is None and group.tried == []
    tried = task.model_copy(update={"starts": (None, Recipe(start="gain").start), "learning_rates": (0.1, 0.2)})
    rates = [(recipe.learning_rate, recipe.start) for recipe in dataclasses.replace(group, task=tried).tried]
    assert rates == [(0.1, None), (0.2, None)]
    with pytest.raises(ConfigError, match="chooses the start of its masks: leave start out"):
        Contender(policy="p.safetensors", start="gain").way(tmp_path)  # type: ignore[arg-type]


def test_an_agent_is_trained_on_every_lever_and_acts_the_same_from_its_file(tmp_path: Path) -> None:
    env = {"tasks": [TASK], "densities": [0.05], "n_rounds": 2, "action": ALL.model_dump()}
    ppo = {"n_rollouts": 1, "n_envs": 1, "n_steps": 4, "batch_size": 4, "start": "synflow"}
    policy = train_agent(AgentConfig.model_validate({"env": env, "ppo": ppo}), tmp_path)
    again = load_policy(tmp_path / "policy.safetensors")
    assert again.spec == policy.spec == ALL and json.loads((tmp_path / "rollouts.jsonl").read_text().splitlines()[0])
    problem = residual_problem()
    result, actions = run_policy(problem, 0.05, again, ALL, 2)
    replayed, _ = run_policy(problem, 0.05, Replay([action.tolist() for action in actions]), ALL, 2)
    assert torch.equal(result.mask, replayed.mask) and result.start == replayed.start is not None


@pytest.mark.parametrize("way", ["method", "form", "policy"])
def test_a_mask_that_lends_quotas_tells_how_far_it_is(way: str) -> None:
    """A hundred rounds of SynFlow on a large network take an hour. They are no rounds of the network that is pruned."""
    told: list[Event] = []
    problem, rounds = residual_problem(), Rounds(listen=told.append)
    if way == "method":
        prune_problem(problem, 0.2, "precrop", rounds=rounds)
    elif way == "form":
        prune_problem(problem, 0.2, "snip", form=Form(quotas="synflow"), rounds=rounds)
    else:
        spec = ActionSpec(quotas=("synflow",))
        action = spec.encode({"snip": 1.0}, quotas={"synflow": 1.0})
        run_policy(problem, 0.2, Constant(action), spec, 1, listen=told.append)
    assert [event for event in told if event.kind != "round"] == [
        Event("quotas of SynFlow", done, 100) for done in range(1, 101)
    ]
    assert [(event.stage, event.done, event.total) for event in told if event.kind == "round"] == [("pruning", 1, 1)]
