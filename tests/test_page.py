"""The page in a real browser: jobs are sent, watched, changed, compared and fetched, by keyboard alone; everybody can read
it; and what others write or serve has no power over it."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from browser import DESK, PHONE, opened
from served import CONFIG, LONG, Served

from panning.service.words import Quota

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

pytestmark = pytest.mark.browser
#: What a page may load, its styles and modules included.
MOST_BYTES = 300_000
ONE, OTHER = {"fc1.weight": [1, 2, 3, 4], "fc2.weight": [1]}, {"fc1.weight": [3, 4, 5], "fc2.weight": [1, 2]}
#: Each tries to run `alert` where text stands, where a tag or an attribute is open, or in what is made of it.
PAYLOADS = [
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "<svg onload=alert(1)>", "\"><script>alert(1)</script>",
    "'><script>alert(1)</script>", "</td><script>alert(1)</script>", "</title><script>alert(1)</script>",
    "</pre><img src=x onerror=alert(1)>", "\" onmouseover=\"alert(1)", "' onfocus='alert(1)' autofocus='",
    "\" autofocus onfocus=alert(1) x=\"", "javascript:alert(1)", "<a href=javascript:alert(1)>x</a>",
    "<iframe src=javascript:alert(1)>", "<iframe srcdoc='<script>alert(1)</script>'>", "<body onload=alert(1)>",
    "<input onfocus=alert(1) autofocus>", "<details open ontoggle=alert(1)>", "<video src=x onerror=alert(1)>",
    "<audio src=x onerror=alert(1)>", "<object data=javascript:alert(1)>", "<embed src=javascript:alert(1)>",
    "<math><mtext><script>alert(1)</script></mtext></math>", "<svg><script>alert(1)</script></svg>",
    "<svg><animate onbegin=alert(1) attributeName=x dur=1s>", "<style>@import 'http://127.0.0.1:9/x'</style>",
    "<link rel=stylesheet href=http://127.0.0.1:9/x>", "<base href=http://127.0.0.1:9/>",
    "<meta http-equiv=refresh content='0;url=http://127.0.0.1:9/'>", "<form action=http://127.0.0.1:9><button>x</button>",
    "<img src=http://127.0.0.1:9/x>", "{{7*7}}", "{% raw %}", "{{config}}", "${alert(1)}", "`${alert(1)}`", "#{7*7}",
    "<%= 7*7 %>", "&lt;script&gt;alert(1)&lt;/script&gt;", "&#60;script&#62;alert(1)&#60;/script&#62;",
    "\\u003cscript\\u003ealert(1)", "\\x3cscript\\x3ealert(1)", "<scr<script>ipt>alert(1)</scr</script>ipt>",
    "<<script>alert(1)//<</script>", "<ScRiPt>alert(1)</sCrIpT>", "<script/src=http://127.0.0.1:9/x></script>",
    "--><script>alert(1)</script>", "]]><script>alert(1)</script>", "'-alert(1)-'", "\";alert(1)//",
]  # fmt: skip


def left(served: Served, token: str, mask: dict[str, list[int]], **config: Any) -> int:
    """A job that has succeeded, with the file of a mask."""
    number = served.submit(token, **config)
    served.until_ended(token, number)
    (served.service.scheduler.folder(number).run / "mask.safetensors").write_text(json.dumps(mask))
    return number


# --- what it is for ---


def test_by_keyboard_alone(chromium: Browser, served: Served, token: str) -> None:
    """Sign in, submit, watch, cancel, compare, fetch: keys are all that is pressed."""
    with opened(chromium, served, None, reduced_motion="reduce") as page:

        def to(name: str, key: str = "Enter", role: str = "link") -> None:
            """Go to what is called so by Tab, and press a key there."""
            wanted = page.get_by_role(role, name=name, exact=True).first  # type: ignore[arg-type]
            wanted.wait_for()
            for _ in range(60):
                page.keyboard.press("Tab")
                if wanted.evaluate("one => one === document.activeElement"):
                    page.keyboard.press(key)
                    return
            raise AssertionError(f"Tab does not lead to {name}")

        page.goto("/submit")
        page.wait_for_function("document.activeElement.id === 'token'")
        page.keyboard.type(token)
        page.keyboard.press("Enter")
        page.wait_for_url("**/submit")
        page.get_by_text("Estimated, at most: 50,826 parameters").wait_for()
        to("Send the job", role="button")
        page.wait_for_url("**/jobs/*")
        number = int(page.url.rpartition("/")[2])
        assert served.until_ended(token, number)["state"] == "succeeded"
        page.reload()
        with page.expect_download() as fetched:
            to("dug.json")
        assert json.loads(Path(fetched.value.path()).read_text())["steps"] == 3
        long = served.submit(token, **LONG)
        to("Jobs")
        page.wait_for_url("**/jobs")
        to(str(long))
        page.wait_for_url(f"**/jobs/{long}")
        to("Cancel", "Space", "button")
        assert served.until_ended(token, long)["state"] == "cancelled"
        one, other = left(served, token, ONE), left(served, token, OTHER)
        to("Compare")
        page.wait_for_url("**/compare")
        to("Job of mask A", "Home", "textbox")
        page.keyboard.type(str(one))
        to("Job of mask B", "Home", "textbox")
        page.keyboard.type(str(other))
        page.keyboard.press("Enter")
        rows = page.locator("table.layers tbody tr")
        rows.first.wait_for()
        cells = rows.evaluate_all("rows => rows.map(row => [...row.cells].map(cell => cell.innerText))")
        assert cells[0][:9] == ["fc1.weight", "1 × 8", "8", "0.5", "0.375", "2", "2", "1", "0.400"]
        assert cells[-1][0] == "all layers"
        to("Sign out", "Space", "button")
        page.wait_for_url("**/signin")


def test_a_job_is_pinned_tried_again_and_deleted(chromium: Browser, served: Served, token: str) -> None:
    number = served.submit(token, **LONG)
    served.ask("POST", f"/api/v1/jobs/{number}/cancel", token)
    served.until_ended(token, number)
    with opened(chromium, served, token) as page:
        page.goto(f"/jobs/{number}")
        page.get_by_role("button", name="Pin", exact=True).click()
        page.get_by_role("button", name="Unpin").wait_for()
        assert page.get_by_role("button", name="Delete").count() == 0
        page.get_by_role("button", name="Unpin").click()
        page.get_by_role("button", name="Retry").click()
        page.get_by_role("button", name="Cancel").click()
        served.until_ended(token, number)
        page.reload()
        page.get_by_role("button", name="Delete").click()
        page.get_by_role("button", name="Keep it").click()
        page.get_by_role("button", name="Delete").click()
        page.get_by_role("button", name="Delete the job").click()
        page.wait_for_url("**/jobs")
    assert served.ask("GET", f"/api/v1/jobs/{number}", token).problem == "absent"


def test_the_form_and_the_text_are_one_config(page: Page, served: Served, token: str) -> None:
    page.goto("/submit")
    told = page.get_by_text("Estimated, at most")
    told.wait_for()
    page.get_by_label("Seed").fill("7")
    page.get_by_label("Density").fill("0.25")
    page.get_by_role("button", name="Send the job").click()
    page.wait_for_url("**/jobs/*")
    number = int(page.url.rpartition("/")[2])
    config = served.ask("GET", f"/api/v1/jobs/{number}/config", token).json
    assert (config["seed"], config["density"], config["method"]) == (7, 0.25, "snip")


def test_what_is_written_while_a_look_is_on_its_way_is_kept(page: Page) -> None:
    from playwright.sync_api import expect

    page.goto("/submit")
    page.get_by_text("Estimated, at most").wait_for()
    text, seed, density = (page.get_by_label(one) for one in ("Config, as YAML or JSON", "Seed", "Density"))
    held: list[Route] = []

    def changed_while_it_looks(first: Callable[[], None], *then: Callable[[], None]) -> None:
        page.route("**/submit/read", lambda route: held.append(route), times=1)  # a method of a list is refused
        first()
        with page.expect_request("**/submit/read"):
            for change in then:
                change()
        held.pop().continue_()

    changed_while_it_looks(lambda: seed.fill("7"), lambda: density.fill("0.25"), density.blur)
    expect(text).to_have_value(re.compile(r"density\W+0\.25"))
    expect(text).to_have_value(re.compile(r"seed\W+7"))
    written = text.input_value().replace("0.25", "0.5")
    changed_while_it_looks(lambda: seed.fill("8"), lambda: text.fill(written))
    expect(text).to_have_value(re.compile(r"seed\W+8"))
    expect(text).to_have_value(re.compile(r"density\W+0\.5"))


def test_errors_stand_at_their_fields_and_nothing_is_sent(chromium: Browser, served: Served, token: str) -> None:
    wrong = {**CONFIG, "method": "none", "density": 3}
    with (
        pytest.raises(AssertionError, match="422"),
        opened(chromium, served, token) as page,
    ):  # what was refused is told
        page.goto("/submit")
        page.get_by_text("Estimated, at most").wait_for()
        text = page.get_by_label("Config, as YAML or JSON")
        text.fill(json.dumps({**wrong, "task": {"model": "../x", "data": "digits"}, "mask": "/etc/passwd"}))
        page.get_by_role("button", name="Send the job").click()
        page.locator("#density-wrong").get_by_text("must be from 0 to 1").wait_for()
        assert "must be a model's name" in page.locator("#model-wrong").inner_text()
        assert "mask: names a mask file" in page.locator("#text-wrong").inner_text()
        assert page.get_by_label("Density").get_attribute("aria-invalid") == "true"
        text.fill("not: [json")
        page.get_by_role("button", name="Send the job").click()
        page.get_by_text("The text is not valid YAML").wait_for()
        text.fill(json.dumps({**wrong, "density": 0.1}))
        page.get_by_role("button", name="Send the job").click()
        page.get_by_text("Unknown method 'none'.").wait_for()
        assert page.url.endswith("/submit")
    assert served.ask("GET", "/api/v1/jobs", token).json["jobs"] == []


# --- for everybody ---


@pytest.mark.parametrize(
    ("scheme", "viewport"),
    [
        ("light", DESK),
        ("dark", PHONE),
        pytest.param("dark", DESK, marks=pytest.mark.slow),
        pytest.param("light", PHONE, marks=pytest.mark.slow),
    ],
)
def test_every_page_can_be_read_by_all(
    scheme: str, viewport: dict[str, int], chromium: Browser, served: Served, token: str
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    one, other = left(served, token, ONE), left(served, token, OTHER, seed=3)
    found = {}
    with opened(chromium, served, token, color_scheme=scheme, viewport=viewport) as page:
        page.on("response", lambda answer: sizes.append(int(answer.headers.get("content-length", 0))))
        for path in ("/jobs", f"/jobs/{one}", "/submit", f"/compare?one={one}&other={other}", "/policies", "/signin"):
            sizes: list[int] = []
            if path == "/signin":
                page.context.clear_cookies()
            page.goto(path)
            if path == "/submit":
                page.get_by_text("Estimated, at most").wait_for()
            found[path] = [
                (each["id"], [node["html"] for node in each["nodes"]])
                for each in Axe().run(page).response["violations"]
            ]
            assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"], path
            assert 0 < sum(sizes) <= MOST_BYTES, (path, sum(sizes))
    assert {path: wrong for path, wrong in found.items() if wrong} == {}


def test_times_are_in_the_reader_s_zone(chromium: Browser, served: Served, token: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(served.service.store, "_now", lambda: datetime(2030, 1, 1, 12, 0, tzinfo=UTC))
    number = served.service.store.submit(served.service.access.of(token).id, {**LONG, "steps": 1}).job.id  # type: ignore[union-attr]
    with opened(chromium, served, token, timezone_id="Asia/Tokyo") as page:
        page.goto("/jobs")
        time = page.locator(f"tr[data-job='{number}'] time")
        assert time.inner_text() == "1 Jan 2030, 21:00"
        assert time.get_attribute("datetime") == "2030-01-01T12:00:00Z"
    with opened(chromium, served, token, java_script_enabled=False) as page:
        page.goto("/jobs")
        assert page.locator(f"tr[data-job='{number}'] time").inner_text() == "2030-01-01 12:00:00 UTC"
        assert "Without JavaScript this page shows what is stored" in page.locator("main").inner_text()
    served.ask("POST", f"/api/v1/jobs/{number}/cancel", token)


# --- against others ---


def test_what_others_have_written_is_text(chromium: Browser, served: Served) -> None:
    assert len(PAYLOADS) == len(set(PAYLOADS)) == 50
    store = served.service.store
    for payload in PAYLOADS:
        made = store.tokens.add(payload[:100], "submit", Quota(running=0))[0]
        store.submit(
            made.id, {**CONFIG, "name": payload, "method": payload, "task": {"model": payload, "data": payload}}
        )
    token = served.token()
    number = left(served, token, ONE)
    folder = served.service.scheduler.folder(number)
    for i, payload in enumerate(PAYLOADS):
        (folder.run / f"{i:02}{payload.replace('/', '∕')}").write_text("x")
    folder.log.write_text("\n".join(PAYLOADS) + "\x1b[2J")
    with opened(chromium, served, served.admin) as page:
        page.goto("/jobs")
        page.locator("tbody time[title]").first.wait_for()  # the modules have run
        names = page.locator("td.name").all_inner_texts()
        assert set(PAYLOADS[1:]) <= set(names), "the job of the first is on the next page"
        page.goto(f"/jobs/{number}")
        page.locator("#log summary").click()
        assert all(payload in page.locator("#log pre").inner_text() for payload in PAYLOADS)
        assert page.locator("#files tbody tr").count() == 52
        for payload in PAYLOADS[:4]:
            page.goto(f"/compare?one={payload[:20]}&other=1")
        job = page.request.get("/api/v1/jobs?limit=1").json()["jobs"][0]["id"]
        page.goto(f"/jobs/{job}")
        page.locator("#facts time[title]").first.wait_for()


@contextmanager
def foreign(text: str) -> Iterator[str]:
    """Another server on this machine, with one page; its address."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(text.encode() if self.path == "/" else b"")

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    with HTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def test_a_foreign_page_does_and_learns_nothing(chromium: Browser, served: Served, token: str) -> None:
    """It is of the same site, as sites have no ports: the cookie comes along."""
    number = served.submit(token, **LONG)
    api = f"{served.url}/api/v1/jobs"
    text = f"""<form method=post action={api}/{number}/cancel enctype=text/plain target=frame><input name=x></form>
    <iframe name=frame></iframe><iframe id=framed src={served.url}/jobs></iframe><script>
    document.forms[0].submit();
    const tries = [
      () => fetch("{api}/{number}/cancel", {{method: "POST", mode: "no-cors", credentials: "include"}}),
      () => fetch("{api}/{number}/cancel", {{method: "POST", credentials: "include", headers: {{"X-Panning": "1"}}}}),
      () => fetch("{api}/{number}", {{method: "DELETE", credentials: "include"}}),
      () => fetch("{api}", {{method: "POST", mode: "no-cors", credentials: "include", body: '{{"kind": "prune"}}'}}),
      () => fetch("{api}", {{credentials: "include"}}).then((answer) => answer.text()),
      () => new Promise((yes, no) => {{
        const events = new EventSource("{api}/{number}/events", {{withCredentials: true}});
        events.onmessage = yes; events.onerror = () => {{ events.close(); no("error"); }};
      }}),
      () => new Promise((yes, no) => {{
        const script = document.createElement("script");
        script.src = "{api}"; script.onload = yes; script.onerror = () => no("error"); document.body.append(script);
      }}),
    ];
    Promise.allSettled(tries.map((one) => one())).then((all) => {{
      window.told = all.map((one) => one.status === "fulfilled" && one.value && one.value.type !== "opaque");
    }});
    </script>"""
    context = chromium.new_context()
    made = served.service.access.sessions.begin(served.service.access.of(token))  # type: ignore[arg-type]
    context.add_cookies([{"name": f"panning-{served.port}", "value": made, "url": served.url, "sameSite": "Strict"}])
    page = context.new_page()
    with foreign(text) as address:
        page.goto(address)
        page.wait_for_function("window.told")
        assert page.evaluate("window.told") == [False] * 7
    context.close()
    job = served.ask("GET", f"/api/v1/jobs/{number}", token).json
    assert job["state"] in ("queued", "running") and job["cancel_asked"] is False
    assert len(served.ask("GET", "/api/v1/jobs", token).json["jobs"]) == 1
    served.ask("POST", f"/api/v1/jobs/{number}/cancel", token)
