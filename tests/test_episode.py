"""Episodes: actions, observations, fixed policies, exported policies; all without Gymnasium."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save
from toys import mlp_problem, residual_problem

import panning.configs
from panning import flow
from panning.episode.actions import PICK_SPREADS, PICK_STEPS, ActionSpec
from panning.episode.episode import decode, initial, is_terminated, run_policy, transition
from panning.episode.observations import OBSERVATIONS, STANDARD, observe
from panning.episode.policies import POLICIES, Constant, Replay, available_policies, make_policy
from panning.episode.policy_net import PolicyNet, load_policy, save_policy
from panning.episode.state import EpisodeState
from panning.flow import example
from panning.foundation.errors import DensityError, PolicyError
from panning.pruners.rounds import RoundAction
from panning.scoring.indices import INDICES
from panning.scoring.signals import PASSES

MIX, PICK = ActionSpec(), ActionSpec(form="pick")


def test_an_action_has_one_entry_per_dimension() -> None:
    assert MIX.dimensions == ("magnitude", "snip", "grasp", "synflow", "step", "spread")
    assert PICK.dimensions == ("index", "step", "spread") and PICK.choices == (4, len(PICK_STEPS), len(PICK_SPREADS))


def test_decoding_a_mix() -> None:
    action = MIX.decode(np.array([-1.0, 1.0, 0.0, -0.95, 0.0, -1.0]), 1.0, 0.01, 2)
    assert action.weights == {"snip": 1.0, "grasp": 0.5}  # below OFF is off
    assert action.density == pytest.approx(0.1) and action.spread == 0.0 and action.revive


def test_decoding_a_pick() -> None:
    action = PICK.decode(np.array([3, 3, 2]), 0.5, 0.01, 5)
    assert action.weights == {"synflow": 1.0} and action.density == 0.01 and action.spread == 1.0


@given(st.floats(-1, 1), st.floats(1e-4, 0.9), st.integers(1, 20))
def test_the_step_never_passes_the_target_and_the_last_round_reaches_it(step: float, target: float, left: int) -> None:
    action = MIX.encode({"snip": 1.0}, step=step)
    density = MIX.decode(action, 1.0, target, left).density
    assert target <= density <= 1.0
    assert MIX.decode(action, density, target, 1).density == target


@given(st.lists(st.floats(0.06, 1.0), min_size=4, max_size=4), st.floats(-1, 1), st.sampled_from([0.0, 0.3, 1.0]))
def test_encoding_is_undone_by_decoding(weights: list[float], step: float, spread: float) -> None:
    chosen = dict(zip(MIX.indices, weights, strict=True))
    action = MIX.decode(MIX.encode(chosen, step, spread), 1.0, 0.01, 4)
    assert action.weights == pytest.approx(chosen, abs=1e-6) and action.spread == pytest.approx(spread, abs=1e-6)


def test_wrong_actions_and_specs_are_refused() -> None:
    with pytest.raises(PolicyError, match="6 finite entries"):
        MIX.decode(np.zeros(3), 1.0, 0.1, 3)
    with pytest.raises(PolicyError, match="6 finite entries"):
        MIX.decode(np.full(6, np.nan), 1.0, 0.1, 3)
    with pytest.raises(PolicyError, match="below"):
        PICK.decode(np.array([4, 0, 0]), 1.0, 0.1, 3)
    with pytest.raises(ValueError, match="Did you mean 'snip'"):
        ActionSpec(indices=("snp",))
    with pytest.raises(ValueError, match="negative scores"):
        ActionSpec(indices=("grasp_signed",))
    with pytest.raises(ValueError, match="named twice"):
        ActionSpec(indices=("snip", "snip"))
    with pytest.raises(PolicyError, match="not among"):
        MIX.encode({"random": 1.0})


def test_an_episode_starts_dense_and_ends_on_the_target() -> None:
    state = initial(residual_problem(), 0.05, 4)
    assert state.density == 1.0 and state.round_number == 0 and not is_terminated(state)
    while not is_terminated(state):
        state = transition(state, decode(MIX, make_policy("synflow", MIX)(observe(state)), state))
    assert state.round_number == 4 and state.n_kept == round(0.05 * state.mask.numel())


def facts_of(state: EpisodeState) -> dict[str, Any]:
    """What a state says, as plain values."""
    values = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    problem, signals = values.pop("problem"), values.pop("signals")
    values |= {"loss": signals.loss, "grad_norm": signals.grad_norm, "observation": observe(state)}
    values |= {f"network {name}": tensor for name, tensor in problem.model.state_dict().items()}
    return {name: value.tolist() if hasattr(value, "tolist") else value for name, value in values.items()}


def test_a_transition_is_a_function_of_state_and_action_alone() -> None:
    one, other = RoundAction({"snip": 0.5, "grasp": 1.0}, 0.3, spread=0.5), RoundAction({"synflow": 1.0}, 0.2)
    state = transition(initial(residual_problem(), 0.05, 4), RoundAction({"magnitude": 1.0}, 0.5))
    before, drawn = facts_of(state), torch.get_rng_state()
    after = transition(state, one)
    aside = transition(state, other)  # from the state that the first one has left
    assert facts_of(state) == before and torch.equal(torch.get_rng_state(), drawn)
    assert facts_of(transition(state, one)) == facts_of(after) != facts_of(aside)
    assert facts_of(transition(after, other)) == facts_of(transition(transition(state, one), other))
    with pytest.raises(dataclasses.FrozenInstanceError):
        state.round_number = 0  # type: ignore[misc]


def test_a_dead_network_ends_the_episode() -> None:
    problem = mlp_problem(sizes=(8, 32, 32, 3))
    state = initial(problem, 0.003, 3)
    problem.weight[: 8 * 32] += 100.0  # everything goes into the first layer
    state = transition(state, RoundAction({"magnitude": 1.0}, 0.1))
    assert state.is_dead and is_terminated(state) and not state.reached_target
    assert np.isfinite(observe(state)).all()


def test_impossible_targets_are_refused_at_the_start() -> None:
    with pytest.raises(DensityError, match="a path needs 3"):
        initial(mlp_problem(), 2 / mlp_problem().layout.n_prunable, 3)
    with pytest.raises(DensityError, match="at least 1"):
        initial(mlp_problem(), 0.1, 0)


def test_observations_have_one_length_for_every_network_and_known_values_at_the_start() -> None:
    for problem in (residual_problem(), mlp_problem()):
        seen = dict(zip(STANDARD, observe(initial(problem, 0.05, 5)).tolist(), strict=True))
        assert seen["loss"] == seen["grad_norm"] == seen["progress"] == seen["effective_density"] == 0.0
        assert seen["rounds_left"] == seen["alive_share"] == seen["units_in_use"] == 1.0
        assert seen["target_density"] == pytest.approx(np.log(0.05) / np.log(1e-5))
    assert seen["linear_share"] == 1.0


def test_observations_follow_the_mask() -> None:
    state = transition(initial(mlp_problem(), 0.1, 2), RoundAction({"snip": 1.0}, 0.4, spread=0.5))
    seen = dict(zip(STANDARD, observe(state).tolist(), strict=True))
    assert seen["progress"] == pytest.approx(np.log(state.density) / np.log(0.1))
    assert seen["alive_share"] == pytest.approx(state.effective_density / state.density)
    assert seen["rounds_left"] == 0.5 and seen["last_spread"] == 0.5
    assert 0 < seen["units_in_use"] <= 1 and seen["grad_norm"] != 0.0


@pytest.mark.parametrize("spec", [MIX, PICK], ids=["mix", "pick"])
@pytest.mark.parametrize("name", POLICIES)
def test_every_fixed_policy_prunes_to_the_target(name: str, spec: ActionSpec) -> None:
    assert name in available_policies(spec)
    result, actions = run_policy(residual_problem(), 0.05, make_policy(name, spec), spec, 3)
    assert int(result.mask.sum()) == round(0.05 * result.mask.numel())
    assert 1 <= len(actions) <= 3 and len(result.history) == len(actions)


def test_an_episode_is_replayed_from_its_actions() -> None:
    result, actions = run_policy(residual_problem(), 0.05, make_policy("random", MIX), MIX, 4)
    again, _ = run_policy(residual_problem(), 0.05, Replay([a.tolist() for a in actions]), MIX, 4)
    assert torch.equal(result.mask, again.mask)


def test_policies_that_need_an_index_the_actions_lack_are_left_out() -> None:
    names = available_policies(ActionSpec(indices=("snip", "magnitude")))
    assert "snip" in names and "synflow" not in names and "staged" not in names and "random" in names
    with pytest.raises(KeyError, match="Did you mean 'staged'"):
        make_policy("stagd", MIX)


# --- exported policies ---


def small_policy(spec: ActionSpec = MIX) -> PolicyNet:
    rng = np.random.default_rng(0)
    n_output = len(spec.dimensions) if spec.form == "mix" else sum(spec.choices)
    sizes = (len(STANDARD), 5, n_output)
    weights = tuple(rng.normal(size=(o, i)).astype(np.float32) for i, o in zip(sizes[:-1], sizes[1:], strict=True))
    biases = tuple(np.zeros(o, np.float32) for o in sizes[1:])
    log_std = np.full(n_output if spec.form == "mix" else 0, -1.0, np.float32)
    return PolicyNet(spec, 4, weights, biases, log_std, {"made": "by hand"})


@pytest.mark.parametrize("spec", [MIX, PICK], ids=["mix", "pick"])
def test_a_saved_policy_acts_as_before(spec: ActionSpec, tmp_path: Path) -> None:
    policy = small_policy(spec)
    save_policy(policy, tmp_path / "p")
    loaded = load_policy(tmp_path / "p")
    observation = np.linspace(-1, 1, len(STANDARD)).astype(np.float32)
    assert np.array_equal(policy(observation), loaded(observation))
    draws = [p.sample(observation, np.random.default_rng(1)) for p in (policy, loaded)]
    assert np.array_equal(draws[0], draws[1]) and loaded.spec == spec and loaded.facts == {"made": "by hand"}
    save_policy(loaded, tmp_path / "q")
    assert (tmp_path / "p").read_bytes() == (tmp_path / "q").read_bytes()


def test_the_network_is_tanh_between_linear_layers() -> None:
    spec = ActionSpec(indices=("snip",))
    first, second = np.zeros((1, len(STANDARD)), np.float32), np.array([[2.0], [0.5], [-9.0]], np.float32)
    first[0, 0] = 1.0
    policy = PolicyNet(spec, 2, (first, second), (np.zeros(1, np.float32),) + (np.full(3, 0.1, np.float32),), *EXTRA)
    observation = np.zeros(len(STANDARD), np.float32)
    observation[0] = 0.5
    expected = np.clip(np.array([2.0, 0.5, -9.0]) * np.tanh(0.5) + 0.1, -1, 1)
    np.testing.assert_allclose(policy(observation), expected, rtol=1e-6)


EXTRA: tuple[Any, ...] = (np.zeros(3, np.float32), {})


def test_policy_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    save_policy(small_policy(), good := tmp_path / "good")
    header_size = int.from_bytes(good.read_bytes()[:8], "little")
    header = json.loads(good.read_bytes()[8 : 8 + header_size])
    tensors = {n: torch.zeros(m["shape"]) for n, m in header.items() if n != "__metadata__"}
    description = json.loads(header["__metadata__"]["panning_policy"])

    def write(change: dict[str, Any], **other: torch.Tensor) -> Path:
        path = tmp_path / "bad"
        path.write_bytes(save({**tensors, **other}, {"panning_policy": json.dumps({**description, **change})}))
        return path

    with pytest.raises(PolicyError, match="Unknown observation 'progres'. Did you mean 'progress'"):
        load_policy(write({"observations": [*STANDARD[1:], "progres"]}))
    with pytest.raises(PolicyError, match="do not fit 1 observations"):
        load_policy(write({"observations": ["loss"]}))
    with pytest.raises(PolicyError, match="policy format 2"):
        load_policy(write({"format_version": 2}))
    with pytest.raises(PolicyError, match="do not fit"):
        load_policy(write({"action": ActionSpec(indices=("snip",)).model_dump(mode="json")}))
    with pytest.raises(PolicyError, match="do not fit"):
        load_policy(write({}, log_std=torch.full((6,), float("nan"))))
    for content in (b"", b"\x80\x04pickle", good.read_bytes()[:-3], b"PK\x03\x04"):
        (tmp_path / "junk").write_bytes(content)
        with pytest.raises(PolicyError):
            load_policy(tmp_path / "junk")
    with pytest.raises(PolicyError, match="No policy file"):
        load_policy(tmp_path / "absent")


@pytest.mark.parametrize(
    ("name", "action"),
    [
        ("fashion-lenet5", [-1.0, -1.0, -0.5439098, 0.825366, -0.0652234, -0.5935691]),
        ("cifar10-resnet20", [-1.0, -0.6406037, -0.5899031, 0.4606665, -0.153209, -1.0]),
    ],
)
def test_shipped_policies_load_and_act_as_ever_whatever_rows_join_the_observations(
    name: str, action: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(OBSERVATIONS, "new", lambda state: 1.0)
    policy = load_policy(Path(panning.configs.__file__).parent / "bench" / f"{name}.safetensors")
    assert policy.observations == STANDARD
    np.testing.assert_allclose(policy(np.linspace(-1, 1, 16).astype(np.float32)), action, atol=1e-6)


def test_a_policy_sees_the_observations_that_it_names(tmp_path: Path) -> None:
    seen: list[Any] = []

    class Sparing(Constant):
        observations = ("rounds_left", "loss")

        def __call__(self, observation: Any) -> Any:
            seen.append(observation)
            return super().__call__(observation)

    run_policy(residual_problem(), 0.05, Sparing(MIX.encode({"snip": 1.0})), MIX, 4)
    assert [observation[0] for observation in seen] == [1.0, 0.75, 0.5, 0.25] and seen[0].shape == (2,)
    small = small_policy()
    weights = (small.weights[0][:, :2], *small.weights[1:])
    save_policy(dataclasses.replace(small, weights=weights, observations=Sparing.observations), tmp_path / "p")
    assert load_policy(tmp_path / "p").observations == Sparing.observations


def test_policies_that_keep_state_forget_the_last_episode() -> None:
    for policy in (make_policy("staged", MIX), Replay([[0.0] * 6, [0.5] * 6])):
        first, again = (run_policy(residual_problem(), 0.005, policy, MIX, 6)[1] for _ in range(2))
        assert np.array_equal(first, again)


def test_problems_are_values_that_can_be_varied() -> None:
    problem = mlp_problem()
    assert dataclasses.replace(problem, seed=2).weight.equal(problem.weight)


def test_every_index_can_be_weighed() -> None:
    names = tuple(name for name, row in INDICES.items() if not row.signed)
    spec = ActionSpec(indices=names)
    for combination in ("sum", "product"):
        spec = ActionSpec(indices=names, combination=combination)
        policy = Constant(spec.encode(dict.fromkeys(names, 1.0)))
        result, _ = run_policy(residual_problem(), 0.2, policy, spec, 2)
        assert int(result.mask.sum()) == round(0.2 * result.layout.n_prunable)
        assert torch.isfinite(result.scores).all()


def test_a_second_order_index_is_computed_ahead_only_where_it_is_weighed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ActionSpec()
    computed: list[str] = []
    for name in ("hessian_grad", "loss"):
        run = PASSES[name].run
        monkeypatch.setitem(
            PASSES,
            name,
            dataclasses.replace(PASSES[name], run=lambda site, n=name, r=run: (computed.append(n), r(site))[1]),
        )
    run_policy(residual_problem(), 0.1, Constant(spec.encode({"snip": 1.0, "grasp": 1.0})), spec, 3)
    assert computed == ["loss", "hessian_grad", "hessian_grad", "hessian_grad", "loss"]  # none after the last round
    computed.clear()
    run_policy(residual_problem(), 0.1, Constant(spec.encode({"snip": 1.0, "synflow": 1.0})), spec, 3)
    assert set(computed) == {"loss"}


def test_a_state_can_be_left_twice_and_its_past_holds_no_signals() -> None:
    problem = residual_problem()
    state = initial(problem, 0.1, 4)
    action = RoundAction({"snip": 1.0, "synflow": 1.0}, 0.5)
    first = transition(state, action)
    assert all(values.dim() == 0 for values in state.signals._known.values())
    again = transition(state, action)
    assert torch.equal(first.mask, again.mask) and first.signals.loss == again.signals.loss


def test_an_episode_that_begins_where_another_began_computes_nothing_of_the_dense_network_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    n_runs = 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal n_runs
        n_runs += 1
        return run(*args, **kwargs)

    run = flow.run
    for module in (flow, example):
        monkeypatch.setattr(module, "run", counted)
    problem = residual_problem()
    action = RoundAction({"snip": 1.0, "grasp": 1.0, "synflow": 1.0}, 0.3, spread=0.4)
    fresh = transition(initial(residual_problem(), 0.1, 3), action)
    first = transition(initial(problem, 0.1, 3), action)
    n_before, n_runs = n_runs, 0
    again = initial(problem, 0.2, 2)
    assert n_before > 0 and n_runs == 0
    again = transition(again, action)
    assert n_runs == 2  # the loss and the alive weights of the new mask
    for state in (first, again):
        assert torch.equal(state.mask, fresh.mask) and torch.equal(state.scores, fresh.scores)
        assert state.signals.loss == fresh.signals.loss and torch.equal(state.alive, fresh.alive)
    again = transition(initial(problem, 0.1, 3), RoundAction({"snip": 1.0}, 0.3))
    assert torch.equal(
        again.scores, transition(initial(residual_problem(), 0.1, 3), RoundAction({"snip": 1.0}, 0.3)).scores
    )
