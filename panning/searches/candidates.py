"""Candidates: every baseline, every fixed policy and the agent's episodes, each with and without all-alive.

The baselines are among them, so that the search can only do worse than one of them by misjudging it on validation.
"""

from __future__ import annotations

from collections.abc import Sequence

from panning.episode.policies import available_policies
from panning.jobs.by import Actions
from panning.jobs.ways import Agent, FixedPolicy, MaskSpec, Method, ReplayedEpisode, Way
from panning.searches.config import AgentPart


def fixed_candidates(part: AgentPart, baselines: Sequence[Method]) -> list[Way]:
    """The baselines, every fixed policy that the action space can express, and the agent itself."""
    n_rounds, action = part.n_rounds, part.action
    policies = [FixedPolicy(policy=name, n_rounds=n_rounds, action=action) for name in available_policies(action)]
    return _both_forms(*baselines, *policies, agent_itself(part).by)


def agent_itself(part: AgentPart) -> Way:
    """The agent with its most likely actions."""
    return Way(by=Agent(policy="agent", n_rounds=part.n_rounds, action=part.action))


def sample_of(part: AgentPart, number: int) -> Way:
    """Sampled episode ``number`` of the agent on one network; its actions then replay it on others."""
    return Way(by=Agent(policy="agent", sample=number, n_rounds=part.n_rounds, action=part.action))


def replay_candidates(part: AgentPart, actions: Actions) -> list[Way]:
    """A sampled episode as a candidate for every seed."""
    return _both_forms(ReplayedEpisode(policy="actions", actions=actions, n_rounds=part.n_rounds, action=part.action))


def _both_forms(*masks: MaskSpec | None) -> list[Way]:
    """With and without all-alive repair, which breaks a shape. Of two that give one mask on the first network, the first is
    tried further."""
    return [
        Way(by=by, all_alive=all_alive)
        for by in masks
        for all_alive in (True, False)
        if not (all_alive and by is not None and by.form.shape is not None)
    ]
