"""Fixed policies: each index alone, the paper's stages, random. They act as a trained agent does.

A row in ``POLICIES`` makes a policy from the action's spec; those whose indices the spec lacks are left out by
``available_policies``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from panning.episode.actions import ActionSpec
from panning.episode.episode import Action, Observation, Policy
from panning.episode.observations import SPARSEST, STANDARD
from panning.foundation.errors import PolicyError
from panning.foundation.registry import lookup
from panning.foundation.seeding import numpy_rng
from panning.pruners.staged import next_stage, stage_weights


@dataclass(frozen=True)
class Constant(Policy):
    """A policy that takes the same action in every round."""

    action: Action

    def __call__(self, observation: Observation) -> Action:
        return self.action


@dataclass
class Staged(Policy):
    """The paper's staged policy: its weights follow the sparsity that is reached (see ``pruners.staged``)."""

    spec: ActionSpec
    stage: int = 0

    def reset(self) -> None:
        self.stage = 0

    def __call__(self, observation: Observation) -> Action:
        seen = dict(zip(self.observations, observation.tolist(), strict=True))
        # With the neutral step, this round goes 1 / rounds_left of the way that is left; rounds_left is only seen as a
        # share, so the stage follows the density reached so far and is one round late at most.
        density = float(np.exp(seen["progress"] * seen["target_density"] * SPARSEST))
        self.stage = next_stage(self.stage, density)
        return self.spec.encode(stage_weights(self.stage, self.spec.combination))


@dataclass
class Random(Policy):
    """A policy of uniform actions, drawn from its own seed; it draws on when an episode begins."""

    spec: ActionSpec
    seed: int = 0
    rng: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.rng = numpy_rng(self.seed, "random policy")

    def __call__(self, observation: Observation) -> Action:
        if self.spec.form == "pick":
            return self.rng.integers(0, self.spec.choices).astype(np.float32)
        return self.rng.uniform(-1.0, 1.0, len(self.spec.dimensions)).astype(np.float32)


@dataclass
class Replay(Policy):
    """A policy that repeats an earlier episode, one action a round; further rounds repeat the last action."""

    actions: Sequence[Sequence[float]]
    position: int = 0

    def reset(self) -> None:
        self.position = 0

    def __call__(self, observation: Observation) -> Action:
        action = np.array(self.actions[min(self.position, len(self.actions) - 1)], np.float32)
        self.position += 1
        return action


def _alone(index: str, spread: float = 0.0) -> Callable[[ActionSpec], Policy]:
    return lambda spec: Constant(spec.encode({index: 1.0}, spread=spread))


#: Name -> maker. "half" and "spread" keep the index's layer quotas, and place a layer's weights half and wholly at random.
POLICIES: dict[str, Callable[[ActionSpec], Policy]] = {
    "magnitude": _alone("magnitude"),
    "snip": _alone("snip"),
    "grasp": _alone("grasp"),
    "synflow": _alone("synflow"),
    "magnitude_half": _alone("magnitude", 0.5),
    "snip_half": _alone("snip", 0.5),
    "grasp_half": _alone("grasp", 0.5),
    "synflow_half": _alone("synflow", 0.5),
    "magnitude_spread": _alone("magnitude", 1.0),
    "snip_spread": _alone("snip", 1.0),
    "grasp_spread": _alone("grasp", 1.0),
    "synflow_spread": _alone("synflow", 1.0),
    "staged": Staged,
    "random": Random,
}


def make_policy(name: str, spec: ActionSpec) -> Policy:
    """A fresh fixed policy.

    Raises:
        UnknownNameError: for a name that is not in ``POLICIES``.
        PolicyError: if the policy weighs an index that the spec's actions lack.
    """
    return lookup(POLICIES, name, "policy")(spec)


def available_policies(spec: ActionSpec) -> list[str]:
    """The fixed policies that this spec can express."""
    names = []
    for name in POLICIES:
        try:
            policy = make_policy(name, spec)
            policy(np.zeros(len(STANDARD), np.float32))
        except PolicyError:
            continue
        names.append(name)
    return names
