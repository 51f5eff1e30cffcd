"""A real browser for tests of the page: Debian's Chromium, driven by Playwright, which downloads nothing for it.

Every page is watched: an error on its console (a refusal by the content security policy is one), a dialog, and a request to
anybody but the service fail the test in the end.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pytest
from served import Served

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-quic",
]  # fmt: skip
NAMES = ("chromium", "chromium-browser")
#: No wait of a test lasts longer; the machine may have much else to do.
PATIENCE_MS = 60_000
DESK, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}


def missing() -> str | None:
    """What tests in the browser lack here, in a sentence."""
    if find_spec("playwright") is None:
        return "Tests in the browser need playwright: pip install 'panning[dev]'."
    if not any(map(shutil.which, NAMES)):
        return "Tests in the browser need Chromium: apt-get install chromium."
    return None


@contextmanager
def started() -> Iterator[Browser]:
    """A browser; without one the test is skipped, and where CI is set it fails, unless it is said that there is none."""
    if (lack := missing()) is not None:
        if "CI" in os.environ and "PANNING_NO_BROWSER" not in os.environ:
            pytest.fail(lack)
        pytest.skip(lack)
    from playwright.sync_api import sync_playwright

    path = next(filter(None, map(shutil.which, NAMES)))
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@contextmanager
def opened(browser: Browser, served: Served, secret: str | None, **options: Any) -> Iterator[Page]:
    """A page of a service, in a browser that is signed in by a token; what it does wrong fails in the end.

    Args:
        secret: of the token; None signs nobody in.
        options: of the browser's context, as ``viewport``, ``color_scheme``, ``reduced_motion``.
    """
    context = browser.new_context(**{"base_url": served.url, "viewport": DESK, "locale": "en-GB", **options})
    context.set_default_timeout(PATIENCE_MS)
    if secret is not None:
        token = served.service.access.of(secret)
        assert token is not None
        made = served.service.access.sessions.begin(token)
        context.add_cookies(
            [{"name": f"panning-{served.port}", "value": made, "url": served.url, "sameSite": "Strict"}]
        )
    wrong: list[str] = []
    page = context.new_page()
    watch(page, served, wrong)
    try:
        yield page
    finally:
        context.close()
    assert wrong == [], wrong


def watch(page: Page, served: Served, wrong: list[str]) -> None:
    """Note what a page does that none should."""

    def dialog(shown: Any) -> None:
        wrong.append(f"dialog: {shown.message}")
        shown.dismiss()

    def asked(request: Any) -> None:
        if not request.url.startswith((served.url, "data:", "blob:")):
            wrong.append(f"request: {request.url}")

    page.on("dialog", dialog)
    page.on(
        "console", lambda said: wrong.append(f"console: {said.text}") if said.type in ("error", "warning") else None
    )
    page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
    page.context.on("request", asked)
