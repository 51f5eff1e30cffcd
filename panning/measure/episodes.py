"""Rounds of the environment as the speed benchmark times them: single ones, those of shipped agents, and an episode's parts.

A trained agent spreads weights, weighs several indices at once and cuts as it likes, so what its rounds cost is measured
with its own actions: those that the policy takes on the network that is timed.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache, partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from panning.data import ImageData, InMemorySplit
from panning.envs import PanningEnv
from panning.episode.actions import ActionSpec
from panning.episode.episode import initial, run_policy
from panning.episode.observations import STANDARD, observe
from panning.episode.policies import make_policy
from panning.episode.policy_net import PolicyNet, load_policy
from panning.foundation.config import load_config
from panning.foundation.errors import PolicyError
from panning.foundation.packaged import packaged_configs
from panning.foundation.seeding import torch_generator
from panning.measure.clock import Run
from panning.measure.workbench import DENSITY, SEED, Workbench
from panning.pruners.rounds import PruneResult, make_all_alive
from panning.scoring.indices import INDICES
from panning.scoring.problem import Problem
from panning.tasks import Task, TaskSpec
from panning.training.loop import train_copy

if TYPE_CHECKING:
    from panning.agents.config import AgentConfig

#: The timed environment round leads from one of these densities to the next.
ROUND_DENSITIES = (0.2, 0.1)
#: How far a layer's weights are spread in a round that is timed with spread.
SPREAD = 0.3
N_ROUNDS = 3
#: The target of shipped agents' episodes.
AGENTS_DENSITY = 0.01
FIRST_ORDER = {"magnitude": 1.0, "snip": 1.0, "synflow": 1.0}
SECOND_ORDER = {**FIRST_ORDER, "grasp": 1.0}
#: Of the data sets that shipped agents were trained on: a tenth of the train part of Fashion-MNIST.
VALIDATION_IMAGES = 6000
#: A network that an agent was trained on -> the shipped policy; other networks take the second.
AGENTS = {"lenet5": "fashion-lenet5", "resnet20": "cifar10-resnet20"}


class BenchEnv(PanningEnv):
    """The environment over a workbench's network and batch, in place of a task that is loaded by name."""

    def __init__(
        self, problem: Problem, density: float = DENSITY, n_rounds: int = N_ROUNDS,
        action: ActionSpec = ActionSpec(), observations: tuple[str, ...] = STANDARD,  # noqa: B008 (frozen)
    ) -> None:  # fmt: skip
        super().__init__(densities=(density,), n_rounds=n_rounds, action=action, observations=observations)
        self.problem = problem

    def _load(self, number: int, seed: int) -> Task:
        return Task(self.tasks[number], self.problem, None)

    def action(self, weights: dict[str, float], density: float, spread: float = 0.0) -> NDArray[np.float32]:
        """The action that gives indices these weights and leads from the present density to ``density``."""
        way = math.log(density / self.state.density) / math.log(self.densities[0][0] / self.state.density)
        step = 1.0 + math.log(way) / math.log(self.state.rounds_left)  # way = (1 / rounds left)^(1 - step)
        return self.spec_of_action.encode(weights, step=step, spread=spread)


def environment_round(bench: Workbench, weights: dict[str, float], spread: float = 0.0) -> Run:
    """``env.step`` in the middle of an episode: scores at the current mask, choice of the next, its loss and its alive
    weights, reward and observation.

    The state comes from a real step, which has taken the gradient at its mask already, for the observation.
    """
    env = BenchEnv(bench.problem)
    env.reset()
    before, after = ROUND_DENSITIES
    env.step(env.action(weights, before, spread))
    action = env.action(weights, after, spread)
    return lambda: env.step(action)


# --- a shipped agent ---


@cache
def shipped_policy(name: str) -> PolicyNet:
    """A policy that is installed with the package, by the stem of its file."""
    return load_policy(next(iter(packaged_configs("bench").values())).with_name(f"{name}.safetensors"))


def policy_for(bench: Workbench) -> PolicyNet:
    """The shipped policy that was trained on this network, or the one of residual networks."""
    return shipped_policy(AGENTS.get(bench.name, AGENTS["resnet20"]))


def agents_episode(bench: Workbench, second_order: bool = True) -> Run:
    """All rounds of a shipped agent's episode to ``AGENTS_DENSITY``, by the actions that it takes here.

    Args:
        second_order: False leaves indices out that need a Hessian product; all else of the actions stays.
    """
    policy = policy_for(bench)
    env = BenchEnv(bench.problem, AGENTS_DENSITY, policy.n_rounds, policy.spec, policy.observations)
    first, _ = env.reset()
    left_out = [] if second_order else [i for i, name in enumerate(policy.spec.indices) if INDICES[name].second_order]

    def run() -> None:
        seen, over = first, False
        while not over:
            action = policy(seen)
            action[left_out] = -1.0
            seen, _, over, _, _ = env.step(action)

    return run


def agents_rounds(bench: Workbench) -> int:
    return policy_for(bench).n_rounds


# --- the parts of an episode of an agent's training ---


def reset(bench: Workbench) -> Run:
    """The dense network's loss, gradient and observation, of a problem that has computed nothing."""
    problem, n_rounds = replace(bench.problem), agents_rounds(bench)
    return lambda: observe(initial(problem, AGENTS_DENSITY, n_rounds))


def references_rounds(bench: Workbench) -> Run:
    """The rounds of the fixed policy whose mask an episode's is compared with."""
    name, action = agents_config(bench).env.reward.reference, ActionSpec()
    n_rounds = agents_rounds(bench)
    return lambda: run_policy(bench.problem, AGENTS_DENSITY, make_policy(name, action), action, n_rounds)


def repair(bench: Workbench) -> Run:
    """The final mask of the agent's episode made all alive."""
    result = _final(bench)
    return lambda: make_all_alive(bench.problem, result)


def short_training(bench: Workbench) -> Run:
    """The training by which the agent's config judges a mask, evaluated once; on noise, which takes as long as images."""
    masks = make_all_alive(bench.problem, _final(bench)).masks
    task = Task(TaskSpec(model="mlp", data="digits"), bench.problem, _noise(bench))
    return partial(train_copy, task, masks, agents_config(bench).env.reward.recipe, SEED)


def agents_config(bench: Workbench) -> AgentConfig:
    """The config by which the shipped agent of a network was trained.

    Raises:
        PolicyError: if none was trained on it.
    """
    from panning.agents.config import AgentConfig  # imports what trains agents, which is no part of a round's memory

    if bench.name not in AGENTS:
        raise PolicyError(f"No shipped agent was trained on '{bench.name}'; there are those of {', '.join(AGENTS)}.")
    return load_config(AgentConfig, packaged_configs("agent")[f"agent/{AGENTS[bench.name]}"])


def references_per_episode(bench: Workbench) -> float:
    """How many references are made for an episode: one for each seed and density that comes up, in all episodes at most."""
    config = agents_config(bench)
    env, ppo = config.env, config.ppo
    n_episodes = ppo.n_rollouts * ppo.n_envs * ppo.n_steps / env.n_rounds
    return min(1.0, len(env.every_task) * len(env.seeds) * len(env.densities) / n_episodes)


def _final(bench: Workbench) -> PruneResult:
    policy = policy_for(bench)
    return run_policy(bench.problem, AGENTS_DENSITY, policy, policy.spec, policy.n_rounds)[0]


def _noise(bench: Workbench) -> ImageData:
    """Images of the network's shape, as many as the agent's task trains and validates on."""
    shape, generator = bench.inputs.shape[1:], torch_generator(SEED, "noise")
    images = torch.randint(256, (VALIDATION_IMAGES, *shape), generator=generator).to(torch.uint8)
    part = InMemorySplit(images, torch.arange(len(images)) % 10)
    half = (0.5,) * shape[0]
    return ImageData("noise", "noise", part, part, 10, tuple(shape), half, half, "none", lambda: part)
