"""The method ``panning``: the trained policy that the package ships under this name.

Two files in ``panning.configs/policies`` ship it: ``panning.safetensors``, and its card, ``panning.yaml``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from panning.foundation.packaged import packaged_configs
from panning.pruners.rounds import METHODS_OWN, PruneResult, Rounds
from panning.pruners.row import PrunerRow
from panning.scoring.problem import Problem

if TYPE_CHECKING:
    from panning.episode.agent_pruner import AgentPruner

#: The method's name, which is that of its files, and their folder.
METHOD, POLICIES = "panning", "policies"


@dataclass(frozen=True)
class ShippedPolicy:
    """A policy file as a row's pruner; the file is read when the method is first used."""

    path: Path

    @cached_property
    def agent(self) -> AgentPruner:
        from panning.episode.agent_pruner import AgentPruner

        return AgentPruner.of(self.path)

    @property
    def indices(self) -> tuple[str, ...]:
        return self.agent.indices

    @property
    def n_rounds(self) -> int:
        return self.agent.n_rounds

    def __call__(self, problem: Problem, density: float, rounds: Rounds = METHODS_OWN) -> PruneResult:
        return self.agent(problem, density, rounds)


SHIPPED = PrunerRow(
    ShippedPolicy(packaged_configs(POLICIES)[f"{POLICIES}/{METHOD}"].with_suffix(".safetensors")),
    "panning", "the policy that panning ships",
)  # fmt: skip
