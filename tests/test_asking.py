"""The asking of a search in free order, on the real dispatcher and workers with a clock of their own: no Ray, no waiting."""

from __future__ import annotations

import functools
import itertools
import random
from collections import defaultdict
from typing import Any

import pytest
from asked import PRICES, SHARES, Listed, World, job, lane, lognormal, outcome_of
from hypothesis import given, settings
from hypothesis import strategies as st

from panning.jobs.outcome import TrainOutcome
from panning.jobs.ways import Way
from panning.searches.asking import Asking
from panning.searches.lanes import MOST_IN_VAIN, MOST_IN_VAIN_LATE, Candidate, Dropped, Lane, Trial
from panning.searches.rungs import JudgedRung, Ladder
from panning.searches.trials import Verdict


def verdict(accuracy: float) -> Verdict:
    return Verdict(accuracy, 1.0, (accuracy, 0.0))


# --- rungs ---


def test_who_is_in_the_top_share_goes_on_at_once() -> None:
    """By hand: a third of 1, 2 judged is nobody, of 3 the best, of 6 the two best."""
    rung = JudgedRung(1 / 3)
    went = []
    for number, accuracy in enumerate([0.1, 0.5, 0.3, 0.6, 0.2, 0.4]):
        rung.judge(number, verdict(accuracy))
        while (found := rung.promotable()) is not None:
            rung.promote(found)
            went.append((number, found))
    assert went == [(2, 1), (3, 3)]  # of 4 the best is a newcomer; of 6 the two best are on already
    assert rung.best == 3 and [number for number, _ in rung.ranked()] == [3, 1, 5, 2, 4, 0]


def test_who_failed_never_goes_on_and_equals_go_in_their_order() -> None:
    rung = JudgedRung(0.5)
    for number, one in enumerate([Verdict.failed("x"), verdict(0.5), verdict(0.5), Verdict.failed("y")]):
        rung.judge(number, one)
    assert rung.promotable() == 1
    rung.promote(1)
    assert rung.promotable() == 2
    rung.promote(2)
    assert rung.promotable() is None and rung.best_waiting() is None
    assert JudgedRung(0.5).best is None


def test_the_best_is_that_of_the_highest_rung_in_which_one_stands() -> None:
    ladder = Ladder([0.5])
    ladder.rungs[0].judge(0, verdict(0.9))
    assert ladder.best == (0, 1)
    ladder.rungs[0].judge(1, verdict(0.8))
    ladder.rungs[1].judge(0, Verdict.failed("diverged"))
    assert ladder.best == (0, 1) and ladder.promotion() == (0, 2)
    ladder.rungs[0].promote(0)
    assert ladder.promotion() is None and ladder.last_promotion() == (1, 2)
    assert ladder.may_promote(1, 2) and not ladder.may_promote(0, 2) and not ladder.may_promote(7, 2)
    assert not ladder.may_promote(1, 1) and not ladder.may_promote(1, 3)


# --- the stream ---


def test_one_worker_does_what_can_be_said_by_hand() -> None:
    """Six candidates: 3 are judged before one goes on, and the last rung gets its one when nothing else is left."""
    levels = {number: 0.1 * number for number in range(6)}
    world = World(
        [lane(6)], outcome=lambda asked: outcome_of(asked).model_copy(update={"accuracy": levels[asked.spec.seed]})
    )
    lines = [(kind, said.get("number"), said.get("rung")) for kind, said in world.run().notes.lines if kind != "told"]
    ask = ("ask", None, None)
    assert lines == [
        ask, ask, ask, ("promote", 2, 2), ask, ("promote", 3, 2), ask, ("promote", 4, 2), ("promote", 4, 3), ask,
        ("promote", 5, 2), ("promote", 5, 3), ("close", None, None),
    ]  # fmt: skip
    assert world.asking.lanes[0.1].ladder.best == (5, 3)


def test_the_samplers_are_told_every_result() -> None:
    held = lane(9)
    World([held], n_workers=3).run()
    told = held.samplers["listed"].told
    assert len(told) == held.n_begun and {result.rung for result in told} == {1, 2, 3}
    assert all(result.cost == PRICES[result.rung - 1] / 10 and result.value == result.accuracy > 0 for result in told)


def test_a_candidate_that_failed_is_worth_no_more_than_the_worst() -> None:
    held = lane(3)
    for said in (Verdict(0.1, 1.0, (-0.4, 0.0)), Verdict.failed("diverged"), Dropped("no path"), Dropped("as 0", True)):
        trial = Trial(Candidate(0, "listed", Way(), Way()), 1, (one for one in ()))  # type: ignore[arg-type]
        held.begin(trial)
        held.end(trial, said)
    assert [result.value for result in held.samplers["listed"].told] == [-0.4] * 4  # type: ignore[attr-defined]
    assert held.reasons == {"diverged", "no path"}


def test_densities_take_turns_and_share_the_workers() -> None:
    world = World([lane(20, density) for density in (0.1, 0.05)], n_workers=4).run()
    asked = [said["density"] for kind, said in world.notes.lines if kind == "ask"][:8]
    assert asked == [0.1, 0.05] * 4
    assert all(held.ladder.best is not None and held.ladder.best[1] == 3 for held in world.asking.lanes.values())


def idle_share(world: World, until: float) -> float:
    """Of the workers' time up to then, what they had no job in."""
    busy = sum(max(0.0, min(until, when + seconds) - when) for when, _, seconds in world.fake.spans)
    return 1.0 - busy / (until * world.fake.n_places)


def test_64_workers_are_idle_for_less_than_a_twentieth_of_the_time_that_there_are_candidates() -> None:
    """1,000 candidates, lognormal durations with sigma 1; the start of the workers counts."""
    world = World([lane(1000)], n_workers=64, seconds=lognormal).run()
    asked = [said for kind, said in world.notes.lines if kind == "ask"]
    last_ask = next(when for when, _, seed in world.fake.sent if seed == 999)
    assert len(asked) == 1000 and world.asking.lanes[0.1].ladder.best[1] == 3
    assert idle_share(world, last_ask) <= 0.05


# --- replay ---


def test_a_replay_of_the_journal_decides_the_same() -> None:
    """At every point of a run with 5 workers: what was decided next is what a replay decides next."""
    lanes = lambda: [lane(25, density) for density in (0.1, 0.05)]  # noqa: E731
    world = World(lanes(), n_workers=5, seconds=lognormal).run()
    lines = world.notes.lines
    for cut in [n for n, (kind, _) in enumerate(lines) if kind != "told"][::5]:
        again = World(lanes(), before=lines[:cut], known=dict(world.known))
        told = {said["key"] for kind, said in lines[:cut] if kind == "told"}
        again.known = {key: outcome for key, outcome in world.known.items() if key in told}
        for _ in again.asking.jobs(lines[:cut]):
            if len(again.notes.lines) > cut:
                break
        assert again.notes.lines[cut] == lines[cut] and again.asking.n_passed_over == 0
    whole = World(lanes(), before=lines, known=world.known).run()
    assert whole.notes.lines == lines and not whole.fake.sent  # nothing is left, and nothing runs
    for density, held in whole.asking.lanes.items():
        assert [rung.verdicts for rung in held.ladder.rungs] == [
            rung.verdicts for rung in world.asking.lanes[density].ladder.rungs
        ]


def test_killed_at_any_point_one_worker_comes_to_the_same_journal() -> None:
    whole = World([lane(12), lane(12, 0.05)]).run().notes.lines
    for stop in range(1, len(whole)):
        cut = World([lane(12), lane(12, 0.05)]).run(stop)
        kept = cut.notes.lines[: stop + 1]
        again = World([lane(12), lane(12, 0.05)], before=kept, known=cut.known).run()
        assert again.notes.lines == whole, stop


def test_a_resume_runs_what_was_under_way_and_nothing_twice() -> None:
    first = World([lane(30)], n_workers=6, seconds=lognormal).run(stop=40)
    second = World([lane(30)], n_workers=6, before=first.notes.lines, known=dict(first.known), seconds=lognormal).run()
    again = {seed_and_time[2] for seed_and_time in second.fake.sent}
    sent = [key for key in second.fake.tries if key in first.known]
    assert sent == [] and again and second.asking.lanes[0.1].ladder.best[1] == 3


def test_what_is_noted_of_trials_that_run_again_is_passed_over_and_the_search_ends() -> None:
    """Half of the outcomes are gone and come out otherwise, as after `panning runs retry`."""
    world = World([lane(20)], n_workers=3, seconds=lognormal).run()
    kept = {key: outcome for n, (key, outcome) in enumerate(world.known.items()) if n % 2}
    other = World([lane(20)], n_workers=3, before=world.notes.lines, known=kept,
                  outcome=lambda asked: outcome_of(asked, failing=0.5)).run()  # fmt: skip
    assert other.asking.lanes[0.1].ladder.best is not None and not other.fake.busy


# --- whatever the order ---


@functools.cache
def keys_of_jobs() -> dict[str, tuple[int, int]]:
    return {job(0.1, number, rung).key: (number, rung) for number in range(40) for rung in (1, 2, 3)}


def judged_when(
    lines: list[Any], known: dict[str, TrainOutcome]
) -> list[tuple[dict[int, list[tuple[float, int]]], Any, bool]]:
    """Before each promotion: rung -> what was judged there, best first; and whether nothing ran."""
    found, judged, running, closed = [], defaultdict(list), 0, False
    keys = keys_of_jobs()
    for kind, said in lines:
        if kind == "told":
            number, rung = keys[said["key"]]
            outcome = known[said["key"]]
            judged[rung].append((-outcome.accuracy if outcome.error is None else 1.0, number))
            running -= 1
        elif kind == "promote":
            found.append(({rung: sorted(of) for rung, of in judged.items()}, said, closed and running == 0))
            running += 1
        running += kind == "ask"
        closed = closed or kind == "close"
    return found


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 12), st.sampled_from([2, 10**6]), st.sampled_from([0.0, 0.3]))
def test_every_promotion_was_justified_when_it_came(seed: int, n_workers: int, n_levels: int, failing: float) -> None:
    """Of ties as of failures, and in whatever order results come."""
    lot = random.Random(seed)
    world = World([lane(40)], n_workers, seconds=lambda asked, price: lot.lognormvariate(0, 1.5),
                  outcome=lambda asked: outcome_of(asked, n_levels, failing)).run()  # fmt: skip
    gone = set()
    for judged, said, is_last in judged_when(world.notes.lines, world.known):
        ranked = judged[said["rung"] - 1]
        n_top = int(len(ranked) * SHARES[0])
        assert (said["number"], said["rung"]) not in gone
        gone.add((said["number"], said["rung"]))
        place = [number for _, number in ranked].index(said["number"])
        assert ranked[place][0] <= 0, "it failed"
        assert place < n_top or is_last
    assert len({key for key in world.fake.tries}) == sum(world.fake.tries.values())  # nothing ran twice


# --- limits ---


@pytest.mark.parametrize("n_workers", [1, 7])
@pytest.mark.parametrize("images", [130, 500, 1111])
def test_the_cost_is_never_above_what_is_allowed_and_one_gets_to_the_top(images: int, n_workers: int) -> None:
    held = lane(images=images)
    World([held], n_workers, seconds=lognormal, outcome=lambda asked: outcome_of(asked, failing=0.1)).run()
    assert sum(held.paid.values()) <= images and held.closed == "max_cost"
    assert held.ladder.rungs[2].verdicts and held.ladder.best is not None
    assert sum(held.paid.values()) > images - sum(PRICES)  # what is left would take nobody to the top


def test_so_many_candidates_and_no_more_are_asked_for_and_a_later_call_may_go_on() -> None:
    world = World([lane(n_candidates=7)]).run()
    held = world.asking.lanes[0.1]
    assert len(held.candidates) == 7 and held.closed == "max_trials" and held.ladder.best[1] == 3
    same = World([lane(n_candidates=7)], before=world.notes.lines, known=world.known).run()
    assert same.notes.lines == world.notes.lines
    more = World([lane(n_candidates=11)], before=world.notes.lines, known=world.known).run()
    assert ("open", {"density": 0.1}) in more.notes.lines and len(more.asking.lanes[0.1].candidates) == 11


def two(**limits: Any) -> list[Lane]:
    return [lane(**limits), lane(density=0.05, **limits)]


def test_when_the_time_is_over_what_runs_is_withdrawn_and_nothing_new_begins() -> None:
    world = World(two(), n_workers=4, budget_s=200.0).run()
    assert max(when for when, *_ in world.fake.sent) < 200.0 and not world.fake.busy
    assert [said["why"] for kind, said in world.notes.lines if kind == "close"] == ["budget"] * 2
    n_open = sum(len(held.running) for held in world.asking.lanes.values())
    assert n_open == len(world.fake.withdrawn) > 0 and 200.0 <= world.fake.now <= 203.0
    told = [said["key"] for kind, said in world.notes.lines if kind == "told"]
    assert sorted(told) == sorted(world.known)  # what was withdrawn is nowhere
    same = World(two(), n_workers=4, budget_s=0.0, before=world.notes.lines, known=world.known).run()
    assert same.notes.lines == world.notes.lines and same.fake.sent == []
    more = World(two(), n_workers=4, budget_s=100.0, before=world.notes.lines, known=world.known).run()
    assert [kind for kind, _ in more.notes.lines].count("open") == 2
    begun_again = [seed for _, _, seed in more.fake.sent[:n_open]]
    assert sorted(begun_again) == sorted(seed for _, seed in world.fake.withdrawn)


def test_a_search_whose_trials_were_withdrawn_ends_with_more_time_as_one_that_was_killed_there() -> None:
    """One worker: a withdrawn trial and one in flight at a kill are alike."""
    for budget_s in (25.0, 60.0, 130.0, 190.0):
        world = World(two(n_candidates=9), budget_s=budget_s).run()
        lines = [line for line in world.notes.lines if line[0] != "close"]
        killed = World(two(n_candidates=9), before=lines, known=dict(world.known)).run()
        more = World(two(n_candidates=9), before=world.notes.lines, known=dict(world.known)).run()
        assert more.known == killed.known
        for density, held in more.asking.lanes.items():
            assert held.ladder.best == killed.asking.lanes[density].ladder.best and held.closed == "max_trials"


def test_a_trial_is_awaited_where_there_is_nobody_to_choose_yet_though_the_time_is_over() -> None:
    """Three trainings of one density begin; the first to end takes 200 s, and the others are then wanted no more."""
    world = World(
        [lane()], n_workers=3, budget_s=50.0, seconds=lambda asked, price: 200.0 if asked.spec.seed == 1 else 400.0
    ).run()
    assert world.asking.lanes[0.1].ladder.best == (1, 1) and world.asking.lanes[0.1].closed == "budget"
    assert sorted(seed for _, seed in world.fake.withdrawn) == [0, 2] and 202.0 < world.fake.now < 206.0


def test_a_density_that_asks_no_more_ends_with_the_time_too() -> None:
    """Its last trial runs as the time is over."""
    world = World([lane(2)], n_workers=1, budget_s=30.0, seconds=lambda asked, price: 20.0).run()
    assert [kind for kind, _ in world.notes.lines] == ["ask", "told", "ask", "close"]
    world = World([lane(1)], n_workers=1, budget_s=40.0, seconds=lambda asked, price: 30.0).run()
    kinds = [(kind, said.get("why")) for kind, said in world.notes.lines if kind != "told"]
    assert kinds == [("ask", None), ("close", "samplers"), ("promote", None), ("close", "budget")]
    more = World([lane(1)], before=world.notes.lines, known=world.known).run()
    assert more.asking.lanes[0.1].ladder.best == (0, 3)


def test_a_result_that_comes_after_the_time_is_over_counts() -> None:
    """As one whose worker was at its last step: the journal has it behind the end of the asking."""
    world = World([lane()], n_workers=2, budget_s=55.0)
    world.fake.step_s = None  # nobody hears that a job is not wanted
    world.run()
    kinds = [kind for kind, _ in world.notes.lines]
    assert "told" in kinds[kinds.index("close") :] and not world.asking.lanes[0.1].running
    same = World([lane()], n_workers=2, budget_s=0.0, before=world.notes.lines, known=world.known).run()
    assert same.notes.lines == world.notes.lines and same.asking.n_passed_over == 0


def test_one_candidate_of_each_density_is_judged_though_the_time_is_over_at_once() -> None:
    world = World([lane(), lane(density=0.05)], n_workers=4, budget_s=0.0).run()
    for held in world.asking.lanes.values():
        assert len(held.candidates) == 1 and held.ladder.best == (0, 1)


def test_when_the_time_is_over_failures_do_not_go_on_for_ever_and_more_time_tries_more() -> None:
    def fails(asked: Any) -> TrainOutcome:
        return TrainOutcome(error="diverged", images_seen=10)

    world = World([lane()], n_workers=4, budget_s=0.0, outcome=fails).run()
    held = world.asking.lanes[0.1]
    assert len(held.candidates) == MOST_IN_VAIN_LATE and held.closed == "budget"
    more = World([lane(n_candidates=40)], n_workers=4, budget_s=1e9, before=world.notes.lines, known=world.known).run()
    assert len(more.asking.lanes[0.1].candidates) == 40


def test_a_sampler_that_finds_nothing_is_not_asked_for_ever() -> None:
    def begin(lane: Lane, candidate: Any, rung: int) -> Any:
        return Dropped("no path")
        yield

    asking = Asking([lane()], begin, lambda asked: None, World([]).notes)
    assert list(asking.jobs()) == []
    assert len(asking.lanes[0.1].candidates) == MOST_IN_VAIN and asking.lanes[0.1].closed == "vain"


def test_samplers_take_turns_until_they_have_no_more() -> None:
    held = lane(3)
    held.samplers["other"] = Listed(1)
    held._turns.append("other")
    assert [held.ask()[0] for _ in range(4)] == ["listed", "other", "listed", "listed"] and held.ask() is None
    assert list(itertools.islice(iter(held.samplers), 2)) == ["listed", "other"]
