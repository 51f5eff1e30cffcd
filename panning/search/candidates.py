"""Candidates: every baseline, every fixed policy and the agent's episodes, each with and without all-alive.

The baselines are among them, so that the search can only do worse than one of them by misjudging it on validation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from panning.episode.policies import available_policies
from panning.foundation.records import content_key
from panning.pruners import PRUNERS
from panning.search.config import AgentPart


@dataclass(frozen=True)
class Candidate:
    """A way to make a mask for any seed's network.

    Attributes:
        name: as tables show it.
        by: what a ``prune`` job wants to know (see ``prune_job``).
    """

    name: str
    by: dict[str, Any]
    all_alive: bool

    @property
    def key(self) -> str:
        """Tells candidates apart: a policy and a baseline may have one name."""
        return content_key({"by": self.by, "all_alive": self.all_alive})


def with_and_without_all_alive(name: str, by: dict[str, Any]) -> list[Candidate]:
    """Both forms of a way to prune; of two that give one mask on the first network, the all-alive one is tried further."""
    return [Candidate(f"{name} + all-alive", by, True), Candidate(name, by, False)]


def baseline(name: str) -> Candidate:
    """A row of ``PRUNERS`` as it stands in the final table."""
    return Candidate(PRUNERS[name].label, {"method": name}, False)


def fixed_candidates(part: AgentPart, baselines: Sequence[str]) -> list[Candidate]:
    """The baselines, every fixed policy that the action space can express, and the agent itself."""
    episode = {"n_rounds": part.n_rounds, "action": part.action.model_dump(mode="json")}
    candidates = []
    for name in baselines:
        candidates += with_and_without_all_alive(PRUNERS[name].label, baseline(name).by)
    for name in (*available_policies(part.action), "agent"):
        candidates += with_and_without_all_alive(name, {"policy": name, **episode})
    return candidates


def sample_by(part: AgentPart, number: int) -> dict[str, Any]:
    """How sampled episode ``number`` of the agent is made on one network; its actions then replay it on others."""
    return {
        "policy": "agent", "sample": number, "n_rounds": part.n_rounds, "action": part.action.model_dump(mode="json"),
    }  # fmt: skip


def replay_candidates(part: AgentPart, number: int, actions: list[list[float]]) -> list[Candidate]:
    """A sampled episode as a candidate for every seed."""
    by = {
        "policy": "actions", "actions": actions, "n_rounds": part.n_rounds, "action": part.action.model_dump(mode="json"),
    }  # fmt: skip
    return with_and_without_all_alive(f"agent, sample {number}", by)
