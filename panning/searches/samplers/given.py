"""Samplers of candidates that are there before the first result: what every search tries, and the agent's episodes."""

from __future__ import annotations

from collections.abc import Iterator

from panning.jobs.ways import Way
from panning.searches.candidates import fixed_candidates, sampled_candidates
from panning.searches.samplers.base import Result, Sampler, Setting


class _Listed(Sampler):
    """Candidates one by one, whatever becomes of them."""

    def __init__(self, ways: list[Way]) -> None:
        self._ways: Iterator[Way] = iter(ways)

    def ask(self) -> Way | None:
        return next(self._ways, None)

    def tell(self, result: Result) -> None:
        pass


class Fixed(_Listed):
    """The baselines, every fixed policy that the action space can express, and the agent itself."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(fixed_candidates(setting.episode, setting.baselines))


class AgentsEpisodes(_Listed):
    """Sampled episodes of the agent, with and without all-alive repair."""

    def __init__(self, setting: Setting) -> None:
        numbers = range(setting.n_samples)
        super().__init__([way for n in numbers for way in sampled_candidates(setting.episode, n)])
