"""The modules of the page alone, in a real browser: what they keep of events, how they read a stream, when a run ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from test_page_live import SEARCH

from panning.foundation.course import Course
from panning.foundation.progress import Event
from panning.service.page.static import files

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser


def of_module(page: Page, code: str, argument: Any = None) -> Any:
    """What a function gives in the page; it may import the page's modules."""
    page.goto("/jobs")
    return page.evaluate(code, argument)


def test_the_time_left_is_that_of_the_command_line(page: Page) -> None:
    now = 0.0
    course, lines, expected = Course(clock=lambda: now), [], []
    told = [
        SEARCH[0],
        Event("ray", 0, 1),
        *SEARCH[1:8],
        *(Event("final table", i, 9, "job", {"item": "a"}) for i in range(9)),
    ]
    for i, event in enumerate(told):
        now += 1.0 + i % 3
        course.hear(event)
        lines.append([i + 1, {"time": now, **event.as_json()}])
        expected.append(course.seconds_left)
    found = of_module(
        page,
        """async (lines) => {
            const { fresh, take, secondsLeft } = await import("/static/course.js");
            const course = fresh();
            return lines.map((line) => { take(course, [line]); return secondsLeft(course, course.time); });
        }""",
        lines,
    )
    assert expected[-1] is not None and found[0] is None
    assert [None if one is None else round(one, 6) for one in found] == [
        None if one is None else round(one, 6) for one in expected
    ]


def test_what_is_kept_is_bounded_and_steps_that_are_told_again_replace_the_old(page: Page) -> None:
    n, xs, again, twice = of_module(
        page,
        """async () => {
            const { fresh, take } = await import("/static/course.js");
            const rollout = (done) => ({ stage: "a", done, total: 9999, kind: "rollout", facts: { reward: done } });
            const many = fresh();
            for (let i = 1; i <= 9999; i += 1) take(many, [[i, rollout(i)]]);
            const xs = many.rollouts.points.map((one) => one.x);
            const some = fresh();
            take(some, [1, 2, 3, 2].map((done, i) => [i + 1, rollout(done)]));
            const again = some.rollouts.points.map((one) => one.x);
            take(some, [[4, rollout(7)], [3, rollout(8)]]);
            return [xs.length, xs, again, some.rollouts.points.map((one) => one.x)];
        }""",
    )
    assert 1000 <= n <= 2001 and xs[0] == 1 and xs[-1] == 9999 and xs == sorted(set(xs))
    assert again == [1, 2] and twice == [1, 2]


def test_a_stream_is_read_in_any_pieces(page: Page) -> None:
    whole = ['event: job\ndata: {"id":1,"state":"running"}', 'id: 1:1\ndata: {"a":\ndata: 1}', ":"]
    text = "".join(f"{one}\n\n" for one in [*whole, *['id: 1:2\ndata: {"a":2}'] * 2])
    found = of_module(
        page,
        """async (text) => {
            const { Reader } = await import("/static/reader.js");
            const told = [];
            const bytes = new TextEncoder().encode(text);
            for (const size of [1, 7, 1000]) {
                const heard = [], reader = new Reader((job, one) => heard.push([job, one]));
                reader.after.set(1, 0);
                reader.control = {};
                const pieces = new ReadableStream({ start(to) {
                    for (let i = 0; i < bytes.length; i += size) to.enqueue(bytes.slice(i, i + size));
                    to.close();
                } });
                await reader.take(pieces, reader.control);
                told.push([heard.flatMap(([job, one]) => one.events ?? []), heard.filter(([, one]) => one.row).length]);
            }
            return told;
        }""",
        text,
    )
    assert found == [[[[1, {"a": 1}], [2, {"a": 2}]], 1]] * 3


def test_no_module_writes_markup_or_runs_text() -> None:
    for name, one in files().items():
        if name.endswith(".js"):
            text = one.content.decode()
            for word in (
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "document.write",
                "eval(",
                "Function(",
                "https://",
            ):
                assert word not in text, (name, word)
