"""Agents of Stable-Baselines3 as plain networks, read from the agent in memory; nothing is imported or loaded for it.

PPO and A2C share one form of actor, the one that ``PolicyNet`` runs. The agent's environment says what the policy was made
for: its actions, observations and rounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from panning.episode.actions import ActionSpec
from panning.episode.policy_net import PolicyNet
from panning.foundation.errors import PolicyError

ALGORITHMS = ("PPO", "A2C")


def sb3_algorithm(agent: Any) -> str | None:
    """The name of Stable-Baselines3's algorithm that an object is an agent of; None if it is none."""
    names = [
        kind.__name__ for kind in type(agent).__mro__ if kind.__module__.startswith(("stable_baselines3.", "sb3_"))
    ]
    known = [name for name in names if name in ALGORITHMS]
    return next(iter(known or names), None)


def policy_of_agent(agent: Any, facts: Mapping[str, Any] | None = None) -> PolicyNet:
    """The actor of a PPO or A2C agent as a plain network, for episodes like those of its environment.

    Raises:
        PolicyError: for another algorithm, another form of policy, an agent without its environment, or one whose
            environment shows or takes other numbers than ``PanningEnv``.
    """
    if (algorithm := sb3_algorithm(agent)) not in ALGORITHMS:
        what = f"an agent of {algorithm}" if algorithm else f"a {type(agent).__name__}"
        raise PolicyError(
            f"The policy is {what}; pass the path of a policy file, a PolicyNet, or an agent of Stable-Baselines3's PPO or "
            "A2C, whose actors a policy file can hold."
        )
    spec, n_rounds, observations = _episode(agent)
    return actor_of(agent.policy, spec, n_rounds, observations, dict(facts or {}))


def actor_of(
    policy: Any, spec: ActionSpec, n_rounds: int, observations: tuple[str, ...], facts: dict[str, Any]
) -> PolicyNet:
    """The actor of an ``ActorCriticPolicy`` as a plain network.

    Raises:
        PolicyError: if it is no multi-layer perceptron with tanh between the layers.
    """
    hidden = list(getattr(getattr(policy, "mlp_extractor", None), "policy_net", None) or [])
    features = type(getattr(policy, "features_extractor", None)).__name__
    if (
        features != "FlattenExtractor"
        or not all(isinstance(layer, nn.Linear | nn.Tanh) for layer in hidden)
        or len(hidden) != 2 * sum(isinstance(layer, nn.Linear) for layer in hidden)
        or policy.use_sde
        or getattr(policy, "squash_output", False)
    ):
        raise PolicyError(
            'The agent has a policy of another form: a policy file holds an "MlpPolicy" with activation_fn=torch.nn.Tanh, '
            "without use_sde, squash_output and features extractors of its own."
        )
    layers = [*(layer for layer in hidden if isinstance(layer, nn.Linear)), policy.action_net]
    log_std = policy.log_std if spec.form == "mix" else torch.zeros(0)

    def array(tensor: torch.Tensor) -> Any:
        return tensor.detach().cpu().numpy().astype(np.float32)

    return PolicyNet(
        spec=spec, n_rounds=n_rounds, weights=tuple(array(layer.weight) for layer in layers),
        biases=tuple(array(layer.bias) for layer in layers), log_std=array(log_std), facts=facts,
        observations=tuple(observations),
    )  # fmt: skip


def _episode(agent: Any) -> tuple[ActionSpec, int, tuple[str, ...]]:
    """What the agent's environment says of its episodes."""
    env = agent.get_env()
    if env is None:
        raise PolicyError(
            "The agent has no environment, which says what its policy was made for: call "
            "agent.set_env(panning.envs.PanningEnv(...)) with the arguments of its training."
        )
    inner = env
    while inner is not None:
        if type(inner).__name__ == "VecNormalize" and inner.norm_obs:
            raise PolicyError(
                "The agent saw normalised observations (VecNormalize), which no policy file can hold: train with "
                "norm_obs=False; they lie in [-1, 1] as they are."
            )
        inner = getattr(inner, "venv", None)
    try:
        spec, n_rounds, observations = (
            env.get_attr(name)[0] for name in ("spec_of_action", "n_rounds", "observations")
        )
    except (AttributeError, NotImplementedError, IndexError):
        raise PolicyError("The agent's environment is no panning.envs.PanningEnv.") from None
    seen, taken = agent.observation_space, agent.action_space
    fits = tuple(seen.shape) == (len(observations),) and _bounded(seen)
    if spec.form == "pick":
        fits = fits and list(getattr(taken, "nvec", [])) == list(spec.choices)
    else:
        fits = fits and tuple(taken.shape or ()) == (len(spec.dimensions),) and _bounded(taken)
    if not fits:
        raise PolicyError(
            f"The agent sees {seen} and acts in {taken}, but PanningEnv shows {len(observations)} numbers in [-1, 1] and "
            f"takes {spec.form} actions: a wrapper changes them, and a policy file cannot hold wrappers. Train without it."
        )
    return spec, n_rounds, observations


def _bounded(space: Any) -> bool:
    """Whether a space is a box from -1 to 1."""
    return bool(np.all(getattr(space, "low", 0) == -1) and np.all(getattr(space, "high", 0) == 1))
