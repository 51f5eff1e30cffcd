"""Several actions are tried on every case, and an untrained agent is fitted to the best of them for what it sees.

Each case (task, seed, density) takes an episode with each action. What one short training says of a case is half chance, so
that the best action is not read off case by case: a kernel ridge regression foresees from a first observation how far each
action lies above the others, and the agent's mean and value are fitted to the action that is foreseen to be first. A case
is foreseen from the other tasks alone, so that its own chance has no say; that also tells what choosing by sight is worth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from panning.agents.config import STARTING, AgentConfig
from panning.envs import PanningEnv
from panning.episode.policies import Constant
from panning.foundation.machine import environment_info
from panning.foundation.progress import Event, Listener
from panning.foundation.records import RecordStore, RunRecord, content_key
from panning.foundation.stopping import check_stop

#: Tried for the regression: in units of the kernel, from hardly any penalty to the best action for all.
PENALTIES = tuple(10.0**exponent for exponent in range(-2, 6))
#: The fit of the agent to the chosen actions: full-batch steps of Adam, and what keeps ``pick`` from certainty.
N_STEPS, LEARNING_RATE, UNCERTAINTY = 2000, 3e-3, 0.3
Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Demonstrations:
    """The episodes that were taken with each action, to choose the agent's start from.

    Attributes:
        rewards: of each episode, [cases, actions].
        tasks: [cases], the number of each case's task.
        seen: of each case and action the episode's observations, [rounds, observations].
        images_seen: by the short trainings that judged the episodes.
    """

    rewards: Array
    tasks: NDArray[np.int64]
    seen: tuple[tuple[Array, ...], ...]
    images_seen: int

    @classmethod
    def of(cls, records: Iterable[RunRecord]) -> Demonstrations:
        """The episodes of all records of a ``demonstrations.jsonl``."""
        ordered = sorted(records, key=lambda record: (record.config["task"], record.config["seed"]))
        rewards = [row for record in ordered for row in record.metrics["rewards"]]
        tasks = [record.config["task"] for record in ordered for _ in record.metrics["rewards"]]
        seen = [tuple(map(np.array, row)) for record in ordered for row in record.metrics["seen"]]
        images = sum(record.metrics["images_seen"] for record in ordered)
        return cls(np.array(rewards, float), np.array(tasks), tuple(seen), images)


def demonstrate(config: AgentConfig, envs: VecEnv, path: Path, listen: Listener) -> Demonstrations:
    """Take the episodes that the file ``path`` does not hold yet, and give all of them.

    Raises:
        PanningError: if the file is damaged.
    """
    actions, n_rounds = config.ppo.tried, config.env.n_rounds
    n_observations, targets = len(config.env.observations), config.env.targets

    def check(record: RunRecord) -> None:
        try:
            rewards, images = np.array(record.metrics["rewards"], float), record.metrics["images_seen"]
            n_densities = len(targets[record.config["task"]])
            episodes = [np.array(episode, float) for row in record.metrics["seen"] for episode in row]
        except (IndexError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"it holds no rewards and observations ({error!r})") from None
        if type(images) is not int:
            raise ValueError("it does not say how many images were seen")
        if rewards.shape != (n_densities, len(actions)) or not np.isfinite(rewards).all():
            raise ValueError("it holds no reward for each density and action")
        if len(episodes) != rewards.size:
            raise ValueError("what was observed does not fit")
        for episode in episodes:
            if (
                not 1 <= len(episode) <= n_rounds
                or episode.shape[1:] != (n_observations,)
                or not np.isfinite(episode).all()
            ):
                raise ValueError("what was observed does not fit")

    store, of_agent = RecordStore(path, check), content_key(config.identity)
    asked: list[dict[str, Any]] = [
        {"agent": of_agent, "task": task, "seed": seed, "actions": [levers.text for levers in actions]}
        for task in range(len(config.env.every_task))
        for seed in config.env.seeds
    ]
    left = [config for config in asked if content_key(config) not in store]
    given = [(each["task"], each["seed"], targets[each["task"]], encoded_of(config)) for each in left]
    listen(Event(STARTING, len(asked) - len(left), len(asked)))
    for number, metrics in _each(envs, taken, given):
        store.append(RunRecord(content_key(left[number]), "demonstrations", left[number], metrics, environment_info()))
        listen(Event(STARTING, len(store), len(asked)))
        check_stop()
    return Demonstrations.of(store)


def taken(env: PanningEnv, asked: tuple[int, int, Sequence[float], Sequence[NDArray[Any]]]) -> dict[str, Any]:
    """The rewards and observations of an episode of one task and seed at each density with each action."""
    task, seed, densities, actions = asked
    played = [[play(env, Constant(action), (task, seed, density)) for action in actions] for density in densities]
    return {
        "rewards": [[one.reward for one in row] for row in played],
        "seen": [[one.seen for one in row] for row in played],
        "images_seen": sum(one.images_seen for row in played for one in row),
    }


@dataclass(frozen=True)
class Played:
    """An episode that was taken.

    Attributes:
        reward: the sum over its rounds.
        seen: what was observed before each round, rounded.
        images_seen: by the short training that judged its mask.
    """

    reward: float
    seen: list[list[float]]
    images_seen: int


def play(env: PanningEnv, act: Callable[[Any], Any], start: tuple[int, int, float]) -> Played:
    """Take an episode.

    Args:
        act: gives an action for an observation.
        start: the number of the task, the seed and the density.
    """
    observed, _ = env.reset(options=dict(zip(("task", "seed", "density"), start, strict=True)))
    seen: list[list[float]] = []
    total, ended = 0.0, False
    while not ended:
        check_stop()
        seen.append(observed.astype(np.float64).round(6).tolist())
        observed, reward, ended, _, info = env.step(act(observed))
        total += reward
    return Played(total, seen, int(info.get("images_seen", 0)))


def encoded_of(config: AgentConfig) -> list[NDArray[np.float32]]:
    """The actions that are tried, as the agent takes them."""
    return [levers.action(config.env.action) for levers in config.ppo.tried]


def _each(envs: VecEnv, function: Callable[[PanningEnv, Any], Any], given: Sequence[Any]) -> Iterator[tuple[int, Any]]:
    """The number and the result of each item, as they come."""
    if isinstance(envs, DummyVecEnv):
        env: Any = envs.envs[0].unwrapped
        return ((number, function(env, item)) for number, item in enumerate(given))
    on_ray: Any = envs
    found: Iterator[tuple[int, Any]] = on_ray.each(function, given)
    return found


def foresee(observations: Array, rewards: Array, groups: NDArray[np.int64]) -> Array:
    """The reward that a regression expects of each action, minus the mean of the case's actions: [cases, actions].

    The regression is a kernel ridge on the observations, each in units of its standard deviation. It foresees a case from
    the cases of other groups, with the penalty that errs least.

    Args:
        observations: [cases, observations]
        rewards: [cases, actions]
        groups: [cases]; a case is foreseen without all cases of its group.

    Examples:
        >>> import numpy as np
        >>> from panning.agents.demonstrations import foresee
        >>> seen = np.linspace(-1, 1, 8)[:, None]
        >>> rewards = np.hstack([seen, -seen])  # the first action is better where more is seen
        >>> foresee(seen, rewards, np.arange(8)).argmax(1)
        array([1, 1, 1, 1, 0, 0, 0, 0])
    """
    spread = observations.std(0)
    scaled = (observations - observations.mean(0)) / np.where(spread > 0, spread, 1.0)
    squares = (scaled**2).mean(1)
    kernel = np.exp(2.0 * scaled @ scaled.T / scaled.shape[1] - squares - squares[:, None])
    beside = rewards - rewards.mean(1, keepdims=True)  # how hard a case is, says nothing of the choice
    mean = beside.mean(0)
    target, unit = beside - mean, np.eye(len(kernel))
    found: list[tuple[float, Array]] = []
    for penalty in PENALTIES:
        hat = np.linalg.solve(kernel + penalty * unit, kernel).T
        fitted, held_out = hat @ target, target.copy()
        for group in np.unique(groups):
            of = np.flatnonzero(groups == group)
            held_out[of] -= np.linalg.solve(np.eye(len(of)) - hat[np.ix_(of, of)], target[of] - fitted[of])
        error = float(((held_out - target) ** 2).mean())
        found.append((error, held_out + mean))
    return min(found, key=lambda pair: pair[0])[1]


@dataclass(frozen=True, eq=False)
class Choice:
    """For each case the action that is foreseen to be first, as the agent is fitted to it.

    Attributes:
        facts: JSON-able: the mean reward of the actions that are foreseen (``foreseen``), of the best action for all
            (``one_action``), of each case's best in hindsight (``hindsight``); for how many cases each action is foreseen to
            be first (``first``).
        observations: [rounds of all cases, observations].
        actions: [rounds of all cases, entries of an action].
        values: [rounds of all cases], the reward of the episode that a round belongs to.
    """

    facts: dict[str, Any]
    observations: Array
    actions: NDArray[np.float32]
    values: Array


def choose(config: AgentConfig, shown: Demonstrations) -> Choice:
    """Choose among the actions that were tried, by what is observed."""
    first = np.array([row[0][0] for row in shown.seen])
    best, cases = foresee(first, shown.rewards, shown.tasks).argmax(1), np.arange(len(first))
    episodes = [shown.seen[case][choice] for case, choice in enumerate(best)]
    rounds = [len(episode) for episode in episodes]
    facts = {
        "foreseen": round(float(shown.rewards[cases, best].mean()), 6),
        "one_action": round(float(shown.rewards.mean(0).max()), 6),
        "hindsight": round(float(shown.rewards.max(1).mean()), 6),
        "first": {levers.text: int((best == number).sum()) for number, levers in enumerate(config.ppo.tried)},
    }
    return Choice(
        facts, np.concatenate(episodes), np.repeat(np.array(encoded_of(config))[best], rounds, axis=0),
        np.repeat(shown.rewards[cases, best], rounds),
    )  # fmt: skip


def fit(model: PPO, choice: Choice) -> None:
    """Fit the agent's mean (``mix``) or logits (``pick``) to the actions of a choice, and its value to their rewards."""
    policy: Any = model.policy
    parameters = [parameter for name, parameter in policy.named_parameters() if name != "log_std"]
    optimizer = torch.optim.Adam(parameters, LEARNING_RATE)
    parts = choice.observations, choice.actions, choice.values
    seen, chosen, wanted = (torch.tensor(part, dtype=torch.float32) for part in parts)
    for step in range(N_STEPS):
        value, log_prob, entropy = policy.evaluate_actions(seen, chosen)
        loss = ((value.flatten() - wanted) ** 2).mean() - log_prob.mean() - UNCERTAINTY * entropy.mean()
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1.0 - step / N_STEPS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    policy.zero_grad()
