"""What an agent is trained on and how."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    GetJsonSchemaHandler,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from panning.agents.population import Population
from panning.agents.ranges import DensityRange
from panning.envs import PanningEnv, RewardSpec
from panning.episode.actions import ActionSpec
from panning.episode.levers import Levers
from panning.episode.observations import ObservationSpec
from panning.episode.round_reward import ROUND_TERMS
from panning.foundation.config import DISTINCT, Grown, Seed
from panning.foundation.errors import ConfigError, PolicyError
from panning.foundation.registry import origins
from panning.masks.masks import Density
from panning.pruners.rounds import MAX_ROUNDS
from panning.tasks import DataSource, NamedTask, RunConfig, TaskSpec

#: The most transitions of a rollout; each holds an observation.
MAX_STEPS = 10_000_000
#: The stages that the events of an agent's training name.
STARTING = "trying actions to begin at"
TRAINING = "training the agent"


class EpisodeSpec(ObservationSpec):
    """An agent's episodes: their rounds, actions, reward and observations."""

    n_rounds: Annotated[int, Field(ge=1, le=MAX_ROUNDS)] = 6
    action: ActionSpec = ActionSpec()
    reward: RewardSpec = RewardSpec()


class _OrRange:
    """For the schema alone."""

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"anyOf": [handler(core), handler(DensityRange.__pydantic_core_schema__)]}


def _densities(given: Any) -> Any:
    return DensityRange.model_validate(given).values if isinstance(given, Mapping) else given


class EnvSpec(EpisodeSpec):
    """The environment an agent is trained on; each episode draws a task, a seed and a density.

    >>> from panning.agents import EnvSpec
    >>> EnvSpec.model_validate({"tasks": [{"model": "mlp", "data": "digits"}], "densities": [0.05]}).n_rounds
    6

    Attributes:
        tasks: that are named.
        population: tasks that are drawn, beside these.
        densities: a list, or ``{low: 0.01, high: 0.2, n: 6}``: so many evenly in the log. What fixed policies give at each
            is trained once for a task and a seed. A population may have targets of its own (``kept_fan_in``).
    """

    later = EpisodeSpec.later | {"population"}

    tasks: tuple[NamedTask, ...] = ()
    population: Population | None = None
    densities: Annotated[tuple[Density, ...], BeforeValidator(_densities), _OrRange()] = ()
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (100, 101, 102, 103)

    @model_validator(mode="after")
    def _has_tasks(self) -> EnvSpec:
        if not self.tasks and self.population is None:
            raise ValueError("tasks: at least one is needed, or a population")
        has_targets = self.population is not None and self.population.kept_fan_in is not None
        if not self.densities and (self.tasks or not has_targets):
            raise ValueError("densities: at least one is needed")
        if self.densities and not self.tasks and has_targets:
            raise ValueError(
                "densities: no task has them, for the population has kept_fan_in: leave one of the two out"
            )
        return self

    @property
    def every_task(self) -> tuple[TaskSpec, ...]:
        """The tasks that are named, and then those that are drawn."""
        return (*self.tasks, *(() if self.population is None else self.population.tasks))

    @functools.cached_property
    def targets(self) -> tuple[tuple[float, ...], ...]:
        """The densities that an episode may aim at: a tuple for each task of ``every_task``."""
        drawn = () if self.population is None else map(self.population.densities_of, self.population.tasks)
        return (*(self.densities for _ in self.tasks), *(own or self.densities for own in drawn))

    @property
    def plugins(self) -> dict[str, str]:
        """The installed packages whose rows its episodes use (``registry.origins``)."""
        models = {name: package for task in self.tasks for name, package in task.plugins.items()}
        return {**models, **self.action.plugins, **origins((ROUND_TERMS, self.reward.terms))}

    def make(self, source: DataSource, cache: Path | None = None) -> PanningEnv:
        """A fresh environment.

        Args:
            cache: the folder of what short trainings gave.
        """
        return PanningEnv(
            self.every_task, self.targets, self.seeds, self.n_rounds, action=self.action, reward=self.reward,
            observations=self.observations, data_root=source.root, device=source.device, cache=cache,
        )  # fmt: skip


class PPOSpec(Grown):
    """PPO's settings (Schulman et al. 2017), in Stable-Baselines3's names where it has one.

    >>> from panning.agents import PPOSpec
    >>> PPOSpec(n_envs=2, n_steps=24).batch_size  # divides a rollout of 48 rounds
    48

    Attributes:
        n_rollouts: collected and learned from, one after the other; a checkpoint is written after each.
        n_envs: environments side by side; part of the result, the number of workers is not.
        n_steps: rounds of each environment in a rollout. A multiple of the episode's rounds wastes least.
        schedule: ``linear`` lowers the learning rate from rollout to rollout, to a share of 1 / n_rollouts in the last.
        target_kl: ends the epochs of a rollout early once the policy has moved so far; None never does.
        gamma: episodes are short and the reward comes at their end: no discount.
        log_std_init: of the Gaussian of ``mix``; actions live in [-1, 1].
        start: a fixed policy whose action the untrained agent's mean is near, so that exploration begins at a method
            that works and not in the middle of the action space; None begins there. Or several actions by their levers:
            every task, seed and density takes an episode with each, and the agent begins at the one that is foreseen to do
            best for what it sees (``panning.agents.demonstrations``).
    """

    later = frozenset({"schedule", "vf_coef", "max_grad_norm", "target_kl"})

    n_rollouts: Annotated[int, Field(ge=1, le=10**6)] = 30
    n_envs: Annotated[int, Field(ge=1, le=1024)] = 4
    n_steps: Annotated[int, Field(ge=2, le=10**6)] = 24
    batch_size: Annotated[int, Field(ge=2, le=2**31)] = 48
    n_epochs: Annotated[int, Field(ge=1, le=10_000)] = 8
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    schedule: Literal["constant", "linear"] = "constant"
    gamma: Annotated[float, Field(gt=0, le=1)] = 1.0
    gae_lambda: Annotated[float, Field(ge=0, le=1)] = 0.95
    clip_range: Annotated[float, Field(gt=0)] = 0.2
    ent_coef: Annotated[float, Field(ge=0)] = 0.002
    vf_coef: Annotated[float, Field(ge=0)] = 0.5
    max_grad_norm: Annotated[float, Field(gt=0)] = 0.5
    target_kl: Annotated[float, Field(gt=0)] | None = None
    log_std_init: float = -0.7
    start: (
        Literal["magnitude", "snip", "grasp", "synflow"]
        | Annotated[tuple[Levers, ...], Field(min_length=2, max_length=100), DISTINCT]
        | None
    ) = None
    net_arch: Annotated[tuple[Annotated[int, Field(ge=1, le=4096)], ...], Field(min_length=1, max_length=16)] = (64, 64)

    @property
    def tried(self) -> tuple[Levers, ...]:
        """The actions that are tried for the agent's start."""
        return () if isinstance(self.start, str | None) else self.start

    @model_validator(mode="after")
    def _batches_fit(self) -> PPOSpec:
        if self.n_steps * self.n_envs > MAX_STEPS:
            raise ValueError(f"a rollout of n_steps * n_envs = {self.n_steps * self.n_envs} has more than {MAX_STEPS}")
        if (self.n_steps * self.n_envs) % self.batch_size:
            raise ValueError(
                f"batch_size {self.batch_size} must divide a rollout of n_steps * n_envs = {self.n_steps * self.n_envs}"
            )
        return self


class AgentConfig(RunConfig):
    """A training run of an agent.

    >>> from panning.agents import AgentConfig
    >>> env = {"tasks": [{"model": "mlp", "data": "digits"}], "densities": [0.05]}
    >>> AgentConfig.model_validate({"env": env, "ppo": {"n_rollouts": 10}}).ppo.n_rollouts
    10
    """

    kind: Literal["train-agent"] = "train-agent"
    env: EnvSpec
    ppo: PPOSpec = PPOSpec()
    seed: Seed = 0

    @model_validator(mode="after")
    def _can_begin(self) -> AgentConfig:
        for levers in self.ppo.tried:
            if levers.n_rounds > 1:
                raise ValueError(f"ppo.start: '{levers.text}' takes env.n_rounds rounds: leave its n_rounds out")
            try:
                levers.action(self.env.action)
            except PolicyError as error:
                raise ValueError(f"ppo.start: '{levers.text}': {error}") from None
        return self

    def with_tasks(self, change: Callable[[TaskSpec], TaskSpec]) -> AgentConfig:
        if self.env.population is not None:
            raise ConfigError("The networks of a population are drawn: none can be put in their place.")
        env = self.env.model_copy(update={"tasks": tuple(map(change, self.env.tasks))})
        return self.model_copy(update={"env": env})

    @property
    def identity(self) -> dict[str, Any]:
        """All that the result depends on, as JSON."""
        return self.model_dump(mode="json", exclude=self.PLACES)
