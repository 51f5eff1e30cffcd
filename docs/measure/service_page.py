"""Measure the page in a real browser: how long a job with 10,000 events takes to be drawn, and an event on its way to a tab.

    python docs/measure/service_page.py [N_EVENTS] [N_TIMES]

The service and the browser are those of the tests. Prints JSON.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from browser import opened, started
from served import PYTHON, TESTS, Served
from test_page_live import Told, live, rollouts, rounds, show

from panning.foundation.machine import environment_info
from panning.service.page.static import files


def main(n_events: int = 10_000, n_times: int = 20) -> None:
    served = Served(Path(tempfile.mkdtemp()), slots=4, runner=(*PYTHON, str(TESTS / "teller.py")))
    token = served.token()
    try:
        many, few = Told(served, token), Told(served, token)
        many.tell(*rollouts(n_events // 2), *rounds(n_events // 2))
        with started() as browser, opened(browser, served, token) as page:
            show(page, few)  # what is loaded once is there
            page.goto("/jobs")
            show(page, many)
            drawn_ms = page.evaluate("Number(document.getElementById('live').dataset.drawn)")
            draws = page.evaluate("Number(document.getElementById('live').dataset.draws)")
            show(page, few)
            took = []
            for event in rollouts(n_times):
                began = time.perf_counter()
                few.tell(event)
                live(page, few)
                took.append(time.perf_counter() - began)
        for job in (many, few):
            job.end()
    finally:
        served.close()
    print(json.dumps({
        "events": n_events, "drawn_ms": round(drawn_ms), "draws": draws, "event_median_s": round(statistics.median(took), 3),
        "event_max_s": round(max(took), 3), "page_bytes": sum(len(one.content) for one in files().values()),
        "load": os.getloadavg()[0], "environment": environment_info(),
    }, indent=1))  # fmt: skip


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
