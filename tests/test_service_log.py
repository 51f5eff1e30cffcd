"""A failure that repeats is logged as it begins, once a minute, and as it is over: not at every try."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from panning.service.log import AGAIN_S, Trouble


@pytest.fixture(autouse=True)
def _all_is_heard(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "panning.service")


def facts(caplog: pytest.LogCaptureFixture) -> list[dict[str, str]]:
    records: list[Any] = caplog.records
    return [record.facts for record in records]


def test_a_trouble_is_logged_as_it_begins_then_once_a_minute_and_as_it_is_over(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = [1000.0]
    trouble = Trouble("scheduler", lambda: now[0])
    trouble.over()  # nothing was wrong
    for _ in range(300):
        trouble.met(OSError("the server is away"))
        now[0] += 0.2
    assert facts(caplog) == [{"error": "the server is away"}] and trouble.text == "the server is away"
    now[0] = 1000.0 + AGAIN_S
    trouble.met(OSError("the server is away"))
    assert len(caplog.records) == 2
    trouble.over()
    assert facts(caplog)[-1] == {"over": "the server is away"} and trouble.text == ""
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING", "INFO"]


def test_another_trouble_and_one_that_comes_back_are_logged_at_once(caplog: pytest.LogCaptureFixture) -> None:
    trouble = Trouble("board", lambda: 5.0)
    for text in ("full\n  disk", "full\n  disk", "away", "full disk"):
        trouble.met(OSError(text))
    trouble.over()
    trouble.met(OSError("full disk of pan_secret"))
    assert facts(caplog) == [
        {"error": "full\n  disk"}, {"error": "away"}, {"error": "full disk"}, {"over": "full disk"},
        {"error": "full disk of pan_***"},
    ]  # fmt: skip
