"""The page in a real browser: it is read, and its jobs are looked at and changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from browser import opened
from served import LONG, Served

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser


def test_sign_in_list_one_job_and_sign_out(chromium: Browser, served: Served, token: str) -> None:
    number = served.submit(token)
    served.until_ended(token, number)
    with opened(chromium, served, None) as page:
        page.goto(f"/jobs/{number}")
        page.get_by_label("Token").fill(token)
        page.get_by_role("button", name="Sign in").click()
        page.wait_for_url(f"**/jobs/{number}")
        assert page.get_by_role("heading", level=1).inner_text() == f"Job {number}"
        page.get_by_role("link", name="Jobs").click()
        row = page.locator(f"tr[data-job='{number}']")
        assert "succeeded" in row.inner_text() and "mlp on digits, snip, density 0.1" in row.inner_text()
        page.get_by_role("button", name="Sign out").click()
        page.wait_for_url("**/signin")
        page.goto("/jobs")
        page.wait_for_url("**/signin?next=/jobs")


def test_a_job_is_cancelled_pinned_and_tried_again(page: Page, served: Served, token: str) -> None:
    number = served.submit(token, **LONG)
    page.goto(f"/jobs/{number}")
    page.get_by_role("button", name="Cancel").click()
    served.until_ended(token, number)
    page.reload()
    page.get_by_role("button", name="Pin", exact=True).click()
    page.get_by_role("button", name="Unpin").click()
    page.get_by_role("button", name="Pin", exact=True).wait_for()
    page.get_by_role("button", name="Retry").click()
    page.get_by_role("button", name="Cancel").wait_for()
    assert served.ask("GET", f"/api/v1/jobs/{number}", token).json["state"] in ("queued", "running")
    served.ask("POST", f"/api/v1/jobs/{number}/cancel", token)
