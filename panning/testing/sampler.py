"""What must hold for every sampler."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from panning.agents.config import EpisodeSpec
from panning.jobs.ways import Method, Way
from panning.searches.samplers import Result, Sampler, Setting

#: A sampler is asked so often.
N_ASKED = 40


class SamplerContract:
    """A suite for one sampler; the fixture ``make`` gives what makes it from a ``Setting``, as an entry point does."""

    @pytest.fixture
    def make(self) -> Callable[[Setting], Sampler]:
        raise NotImplementedError("a subclass gives the sampler")

    @pytest.fixture(params=["mix", "pick"])
    def setting(self, request: pytest.FixtureRequest) -> Setting:
        """A small search, in both forms of actions."""
        episode = EpisodeSpec(n_rounds=3, action={"form": request.param, "indices": ["snip", "synflow"]})
        return Setting(0.05, episode, (Method(method="snip"),), n_samples=5, seed=7)

    def test_what_it_asks_for_depends_on_its_seed_and_on_what_it_was_told_alone(
        self, make: Callable[[Setting], Sampler], setting: Setting
    ) -> None:
        random.seed(1)
        first = asked(make(setting), seed=0)
        random.seed(2)
        assert asked(make(setting), seed=0) == first

    def test_every_candidate_is_a_way_to_make_a_mask_in_the_search_s_action_space(
        self, make: Callable[[Setting], Sampler], setting: Setting
    ) -> None:
        for way in asked(make(setting), seed=1):
            assert Way.model_validate(way.model_dump(mode="json")) == way and way.by is not None
            for action in getattr(way.by, "actions", ()):
                chosen = setting.episode.action.decode(action, 1.0, setting.density, setting.episode.n_rounds)
                assert setting.density <= chosen.density <= 1.0

    def test_it_takes_in_results_in_any_order_and_of_other_samplers(
        self, make: Callable[[Setting], Sampler], setting: Setting
    ) -> None:
        sampler, other = make(setting), Way(by=Method(method="erk"))
        ways = [way for _ in range(4) if (way := sampler.ask()) is not None]
        for way in [*reversed(ways), other]:
            for rung in (1, 2, 3):
                sampler.tell(result_of(way, rung, 0.5))
        sampler.tell(Result(other, 1, 0.0, 0.0, failure="it failed"))
        sampler.ask()

    def test_it_goes_on_though_everything_fails(self, make: Callable[[Setting], Sampler], setting: Setting) -> None:
        sampler = make(setting)
        for number in range(N_ASKED):
            if (way := sampler.ask()) is None:
                return
            sampler.tell(Result(way, 1, 0.0, 0.0, failure="no path", is_repeated=number % 2 == 0))


def asked(sampler: Sampler, seed: int) -> list[Way]:
    """What a sampler asks for that is told of three candidates at a time, some of which fail."""
    lot, waiting, found = random.Random(seed), list[Way](), list[Way]()
    for _ in range(N_ASKED):
        if (way := sampler.ask()) is None:
            break
        found.append(way)
        waiting.append(way)
        if len(waiting) > 2:
            done = waiting.pop(lot.randrange(len(waiting)))
            value = lot.random()
            if value < 0.2:
                sampler.tell(Result(done, 1, 0.0, 0.0, failure="no path", is_repeated=value < 0.1))
            else:
                sampler.tell(result_of(done, 1, value))
    assert found, "it gave no candidate"
    return found


def result_of(way: Way, rung: int, value: float) -> Result:
    """The result of a candidate that did not fail."""
    actions = getattr(way.by, "actions", ())
    assert math.isfinite(value)
    return Result(way, rung, value, value, 1.0, None, actions)
