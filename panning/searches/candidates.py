"""Candidates: every baseline, every fixed policy and the agent's episodes, each with and without all-alive.

The baselines are among them, so that the search can only do worse than one of them by misjudging it on validation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from panning.agents.config import EpisodeSpec
from panning.episode.policies import available_policies
from panning.jobs.by import Actions
from panning.jobs.ways import Agent, FixedPolicy, MaskSpec, Method, ReplayedEpisode, Way


def fixed_candidates(part: EpisodeSpec, baselines: Sequence[Method]) -> list[Way]:
    """The baselines, every fixed policy that the action space can express, and the agent itself."""
    n_rounds, action = part.n_rounds, part.action
    policies = [FixedPolicy(policy=name, n_rounds=n_rounds, action=action) for name in available_policies(action)]
    return _both_forms(*baselines, *policies, agent_itself(part).by)


def agent_itself(part: EpisodeSpec) -> Way:
    """The agent with its most likely actions."""
    return Way(by=Agent(policy="agent", n_rounds=part.n_rounds, action=part.action))


def sample_of(part: EpisodeSpec, number: int) -> Way:
    """Sampled episode ``number`` of the agent on one network; its actions then replay it on others."""
    return Way(by=Agent(policy="agent", sample=number, n_rounds=part.n_rounds, action=part.action))


def sampled_candidates(part: EpisodeSpec, number: int) -> list[Way]:
    """Sampled episode ``number`` as a candidate, which is then replayed (``replay_of``)."""
    return _both_forms(sample_of(part, number).by)


def replay_of(way: Way, actions: Actions) -> Way:
    """A sampled episode by its actions."""
    by = way.by
    assert isinstance(by, Agent)  # no other way is sampled
    episode = ReplayedEpisode(policy="actions", actions=actions, n_rounds=by.n_rounds, action=by.action)
    return way.model_copy(update={"by": episode})


def named(way: Way, sampler: str) -> Way:
    """An episode whose actions a sampler chose, under its name."""
    if not isinstance(way.by, ReplayedEpisode):
        return way
    name = re.sub(r"[^\w .+-]", "_", sampler)[:60]
    return way.model_copy(update={"by": way.by.model_copy(update={"drawn_by": name})})


def plain(way: Way) -> Way:
    """A way without repair of dead weights."""
    return way.model_copy(update={"all_alive": False})


def is_sampled(way: Way) -> bool:
    """Whether a way draws its actions anew on every network."""
    return isinstance(way.by, Agent) and way.by.sample is not None


def replay_candidates(part: EpisodeSpec, actions: Actions) -> list[Way]:
    """A sampled episode as a candidate for every seed."""
    return [replay_of(way, actions) for way in sampled_candidates(part, 0)]


def _both_forms(*masks: MaskSpec | None) -> list[Way]:
    """With and without all-alive repair, which breaks a shape. Of two that give one mask on the first network, the first is
    tried further."""
    return [
        Way(by=by, all_alive=all_alive)
        for by in masks
        for all_alive in (True, False)
        if not (all_alive and by is not None and by.form.shape is not None)
    ]
