"""Jobs on the page while they run, in a real browser: the events are those that the test writes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from browser import DESK, PHONE, opened, watch
from served import PYTHON, TESTS, Served

from panning.foundation.progress import Event, Stage, plan_event
from panning.service.page.static import files

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

pytestmark = pytest.mark.browser
HOSTILE = "<img src=x onerror=alert(1)>"
INDICES = ("magnitude", "snip", "synflow")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A service whose jobs tell what the test writes, and end when it says so."""
    made = Served(tmp_path_factory.mktemp("service"), slots=8, runner=(*PYTHON, str(TESTS / "teller.py")))
    yield made
    made.close()


class Told:
    """A running job whose events the test writes."""

    def __init__(self, served: Served, token: str) -> None:
        self.served, self.token, self.number, self.n = served, token, served.submit(token), 0
        self.folder = served.service.scheduler.folder(self.number)
        self.folder.path.mkdir(parents=True, exist_ok=True)
        self.has_ended = False

    def tell(self, *events: Event) -> None:
        with open(self.folder.events, "a") as file:
            for event in events:
                self.n += 1
                file.write(json.dumps({"time": 1e9 + self.n, **event.as_json()}) + "\n")

    def end(self) -> None:
        if not self.has_ended:
            self.has_ended = True
            (self.folder.path / "end").touch()
            self.served.until_ended(self.token, self.number)


@pytest.fixture
def told(served: Served, token: str) -> Iterator[Callable[[], Told]]:
    made: list[Told] = []

    def one() -> Told:
        made.append(Told(served, token))
        return made[-1]

    yield one
    for job in made:
        job.end()


def rounds(n: int) -> list[Event]:
    return [
        Event("pruning", i, n, "round", {
            "round": i, "density": 0.9**i, "effective_density": 0.9**i * 0.99, "dead": 0.01 * i / n,
            "layers": {"fc1.weight": 0.88**i, f"{HOSTILE}.weight": 0.93**i}, "weights": dict.fromkeys(INDICES, 1 / 3),
        })
        for i in range(1, n + 1)
    ]  # fmt: skip


def rollouts(n: int, total: int | None = None) -> list[Event]:
    return [
        Event("training the agent", i, total or n, "rollout", {
            "reward": -1 + i / n, "advantage": -0.02 + 0.05 * i / n,
            "weights": dict(zip(INDICES, (1.0, 0.5, 0.5), strict=True)),
            "rounds": [{"round": k, "weights": dict.fromkeys(INDICES, 0.5), "spread": 0.1} for k in (1, 2, 3)],
        })
        for i in range(1, n + 1)
    ]  # fmt: skip


def row(item: str, density: float, accuracy: float, **more: Any) -> Event:
    facts = {
        "item": item,
        "table": "mlp on Digits",
        "density": density,
        "effective_density": density,
        "n_seeds": 3,
        "n_failed": 0,
    }
    facts |= {
        "accuracy": accuracy,
        "test_accuracy": accuracy - 0.01,
        "test_accuracy_std": 0.004,
        "compute_left": density,
    }
    return Event("final table", 1, 9, "row", {**facts, **more})


SEARCH = [
    plan_event("digits", [Stage("training the agent", 4, 40.0), Stage("rung 1", 2, 20.0), Stage("final table", 9, 90.0)]),
    Event("training the agent", 0, 4), *rollouts(4), Event("rung 1", 0, 2),
    Event("rung 1", 2, 2, "job", {
        "item": "panning", "seed": 0, "accuracy": 0.8, "rounds": [one.facts for one in rounds(4)]}),
    Event("rung 1", 2, 2, "rung", {"rung": 1, "density": 0.01, "candidates": [
        {"candidate": HOSTILE, "accuracy": 0.9, "compute_left": 0.02, "kept": True},
        {"candidate": "SNIP", "accuracy": 0.8, "compute_left": 0.02, "kept": False}]}),
    row("dense", 1.0, 0.97), row("SNIP", 0.05, 0.92), row("SNIP", 0.02, 0.85), row("SynFlow", 0.05, 0.93),
    row(HOSTILE, 0.02, 0.88), row("panning", 0.05, 0.95), row("panning", 0.02, 0.90),
]  # fmt: skip


def live(page: Page, job: Told, n: int | None = None) -> Locator:
    """The view, once all that the job told, or ``n`` events, is drawn."""
    found = page.locator(f"#live[data-events='{job.n if n is None else n}']")
    found.wait_for()
    return found


def show(page: Page, job: Told) -> Locator:
    page.goto(f"/jobs/{job.number}")
    return live(page, job)


def picture(view: Locator, name: str) -> Locator:
    return view.locator(f"[data-picture='{name}']:visible")


def as_table(view: Locator, name: str) -> list[list[str]]:
    found = picture(view, name)
    if not found.locator("table").is_visible():
        found.locator("summary").click()
    found.locator("tbody tr").first.wait_for()
    cells: list[list[str]] = found.locator("tbody tr").evaluate_all(
        "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))"
    )
    return cells


def test_a_search_is_shown_as_it_goes_and_the_same_once_it_has_ended(page: Page, told: Callable[[], Told]) -> None:
    job = told()
    job.tell(*SEARCH[:4])
    view = show(page, job)
    assert view.locator(".stage").inner_text().split("\n")[0].startswith("1/3 training the agent")
    assert "2 of 4" in view.locator(".stage").inner_text()
    assert "Rollout 2: reward −0.5, advantage 0.5 points" in view.inner_text()
    assert picture(view, "comparison").count() == 0  # there is no row yet
    job.tell(*SEARCH[4:])
    view = live(page, job)
    assert "3/3 final table" in view.inner_text()

    def seen() -> dict[str, list[list[str]]]:
        names = ("reward", "advantage", "mix", "mix-rounds", "heat", "dead", "rungs", "comparison")
        return {name: as_table(page.locator("#live"), name) for name in names}

    found = seen()
    assert [line[0] for line in found["reward"]] == ["1", "2", "3", "4"]
    assert found["mix"][0] == ["1", "50.0 %", "25.0 %", "25.0 %"]
    assert found["heat"][3][:2] == ["4", "65.61 %"] and len(found["heat"][3]) == 6
    assert found["rungs"][0] == [HOSTILE, "0.01", "1", "90.0 %", "2.0 %", "yes"]
    assert [line[0] for line in found["comparison"]] == [
        "dense",
        "panning",
        "SynFlow",
        "SNIP",
        "panning",
        HOSTILE,
        "SNIP",
    ]
    # 4.303 is Student's t of three seeds: 4.303 * 0.4 / sqrt(3) = 0.99
    assert found["comparison"][1] == [
        "panning",
        "0.05",
        "20×",
        "95.0",
        "94.0",
        "0.4",
        "93.0 to 95.0",
        "3",
        "5.0 %",
        "best",
    ]
    best = view.locator(".best-so-far li").all_inner_texts()
    assert [text.split(":")[0] for text in best] == [
        "panning at density 0.05",
        "panning at density 0.02",
        f"{HOSTILE} at density 0.01",
    ]
    job.end()
    page.locator("#live[data-state='succeeded']").wait_for()
    page.reload()
    view = live(page, job)
    assert seen() == found
    assert view.locator(".best-so-far li").all_inner_texts() == best and "It has succeeded" in view.inner_text()


def test_eight_tabs_are_live_at_once_over_one_stream(
    chromium: Browser, served: Served, token: str, told: Callable[[], Told]
) -> None:
    first, second = told(), told()
    for job in (first, second):
        job.tell(Event("pruning", 0, 9))
    with opened(chromium, served, token) as page:
        pages, wrong = [page, *(page.context.new_page() for _ in range(7))], []  # type: ignore[var-annotated]
        jobs = [first] * 5 + [second] * 3
        for one in pages[1:]:
            watch(one, served, wrong)
        for one, job in zip(pages, jobs, strict=True):
            show(one, job)
        first.tell(*rounds(9))
        second.tell(*rounds(4))
        for one, job in zip(pages, jobs, strict=True):
            live(one, job)
        assert served.service.streams.n_listeners == 2  # a reader a job,
        assert sum(served.service.listening.values()) == 1  # and one stream for all
        for one in pages[:5]:
            one.close()
        second.tell(*rounds(9)[4:])
        live(pages[-1], second)
        assert wrong == []


def test_the_list_of_jobs_shows_what_happens_by_the_same_stream(
    chromium: Browser, served: Served, token: str, told: Callable[[], Told]
) -> None:
    from playwright.sync_api import expect

    with opened(chromium, served, token) as page:
        page.goto("/jobs")
        page.evaluate("window.same = true")
        page.get_by_text("There is no job yet.").wait_for()
        job, other = told(), told()
        row = page.locator(f"tr[data-job='{job.number}'][data-state='running']")
        row.wait_for()
        job.tell(*SEARCH[:4])
        expect(row.locator("[data-place]")).to_have_text("1/3 training the agent, 2 of 4")
        tab = page.context.new_page()
        show(tab, job)
        job.tell(*SEARCH[4:6])
        expect(row.locator("[data-place]")).to_have_text("1/3 training the agent, 4 of 4")
        assert row.locator("progress").evaluate("one => one.value") == 1 and live(tab, job)
        assert sum(served.service.listening.values()) == 1, "tabs of both kinds share one stream"
        row.get_by_role("link").focus()
        foreign = served.submit(served.token())
        other.end()
        page.locator(f"tr[data-job='{other.number}'][data-state='succeeded']").wait_for()
        expect(page.locator(".filter .n").first).to_have_text("2")
        assert page.locator(f"tr[data-job='{foreign}']").count() == 0, "those of others are not there"
        assert row.get_by_role("link").evaluate("one => one === document.activeElement"), "the focus stays"
        assert row.locator("[data-place]").inner_text() == "1/3 training the agent, 4 of 4"
        served.ask("PUT", f"/api/v1/jobs/{other.number}/pin", token)
        page.locator(f"tr[data-job='{other.number}']").get_by_text("pinned").wait_for()
        served.ask("DELETE", f"/api/v1/jobs/{other.number}/pin", token)
        served.ask("DELETE", f"/api/v1/jobs/{other.number}", token)
        page.locator(f"tr[data-job='{other.number}']").wait_for(state="detached")
        assert page.evaluate("window.same"), "and it was not loaded anew"
        tab.close()
    (served.service.scheduler.folder(foreign).path / "end").touch()


def test_a_stream_that_is_cut_goes_on_behind_the_last_event(
    page: Page, served: Served, told: Callable[[], Told]
) -> None:
    job = told()
    job.tell(Event("training the agent", 0, 9), *rollouts(3, 9))
    view = show(page, job)
    streams = served.service.streams
    for n in (5, 7):
        assert streams._loop is not None
        streams._loop.call_soon_threadsafe(streams.close)
        page.locator("#trouble:visible").wait_for()
        job.tell(*rollouts(n, 9)[n - 2 :])
        streams._is_open = True
        view = live(page, job)
    assert [line[0] for line in as_table(view, "reward")] == [str(i) for i in range(1, 8)]
    page.locator("#trouble").wait_for(state="hidden")


def test_many_events_are_drawn_together(page: Page, told: Callable[[], Told]) -> None:
    job = told()
    job.tell(*rollouts(5000), *rounds(5000))
    view = show(page, job)
    draws, ms = page.evaluate("[Number(document.getElementById('live').dataset.draws), performance.now()]")
    assert draws <= ms / 100 + 1  # at most ten a second
    assert len(as_table(view, "reward")) <= 301 and len(as_table(view, "heat")) <= 301


def test_the_rounds_are_gone_through_by_keyboard_and_without_motion_nothing_plays(
    chromium: Browser, served: Served, token: str, told: Callable[[], Told]
) -> None:
    job = told()
    job.tell(*rounds(6), row("SNIP", 0.05, 0.9), row("panning", 0.05, 0.95))
    with opened(chromium, served, token, reduced_motion="reduce") as page:
        view = show(page, job)
        assert view.get_by_role("button", name="Play").count() == 0
        slider = view.get_by_role("slider", name="Round")
        assert "Round 6 of 6: 53.14 % left; fewest in fc1.weight" in view.inner_text()
        slider.press("ArrowLeft")
        assert "Round 5 of 6" in view.locator(".readout").inner_text()
        assert slider.get_attribute("aria-valuetext") == "round 5, 59.0 % left"
        button = view.get_by_role("button", name="SNIP")
        button.press("Enter")
        assert button.get_attribute("aria-pressed") == "true"
        assert view.locator(".series.dim").count() == 1
        for drawing in view.locator(".drawing:visible").all():
            drawing.focus()
            assert drawing.evaluate(
                "one => one === document.activeElement && one.getAttribute('aria-label').length > 20"
            )
    with opened(chromium, served, token) as page:
        show(page, job).get_by_role("button", name="Play").click()
        page.get_by_role("button", name="Stop").wait_for()
        page.get_by_role("button", name="Play").wait_for()
        assert "Round 6 of 6" in page.locator(".readout").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wrong_for_axe_nor_wider_than_the_screen(
    chromium: Browser, served: Served, token: str, told: Callable[[], Told], scheme: str
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    job = told()
    job.tell(*SEARCH, Event("training", 1, 2, "epoch", {"accuracy": 0.5, "loss": 1.5, "train_loss": 1.0}))
    job.end()
    for size in (DESK, PHONE):
        with opened(chromium, served, token, viewport=size, color_scheme=scheme) as page:
            view = show(page, job)
            for summary in view.locator(".picture:visible summary").all():
                if not summary.evaluate("one => one.parentElement.open"):
                    summary.click()
            found = axe.run(page, context="#live")
            assert found.violations_count == 0, found.generate_report()
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_the_scripts_and_styles_of_the_page_are_small() -> None:
    assert sum(len(one.content) for one in files().values()) < 150_000


def test_a_browser_without_shared_workers_has_a_stream_of_its_own(page: Page, told: Callable[[], Told]) -> None:
    job = told()
    job.tell(*rounds(2))
    page.add_init_script("delete window.SharedWorker")
    show(page, job)
    job.tell(*rounds(5)[2:])
    assert len(as_table(live(page, job), "heat")) == 5
