"""Measure the service's table of jobs at a size that years of work have: pages, counts, one job, a submission, a start.

    python docs/measure/service_store.py [N_JOBS] [N_TOKENS] [URL of an empty Postgres database]

Prints JSON: milliseconds of wall time and of this process's own processor time (what Postgres takes is not in it), the
median and the slowest of 30 calls of each kind.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from panning.foundation.machine import environment_info
from panning.foundation.records import canonical_json
from panning.service.database import JOBS
from panning.service.store import Store
from panning.service.words import Quota

CONFIG = {"kind": "prune", "task": {"model": "mlp", "data": "digits"}, "density": 0.1, "method": "snip"}
N_CALLS = 30


def fill(store: Store, n_jobs: int, n_tokens: int) -> None:
    """Jobs of many tokens; one in a hundred is queued, and four run."""
    tokens = [store.tokens.add(f"token {n}", "submit", Quota(running=4, queued=10**6))[0].id for n in range(n_tokens)]
    draw, text, first = random.Random(0), canonical_json(CONFIG), datetime(2026, 1, 1, tzinfo=UTC)
    ends = ("succeeded", "succeeded", "succeeded", "failed", "cancelled")
    rows = [
        {
            "token": draw.choice(tokens), "kind": "prune", "config": text, "message": "", "attempt": 1, "crashes": 0,
            "state": "running" if n % (n_jobs // 4) == 0 else "queued" if n % 100 == 1 else draw.choice(ends),
            "cancel_asked": False, "pinned": False, "deleted": False, "n_bytes": 10_000,
            "submitted": first + timedelta(seconds=n),
        }
        for n in range(n_jobs)
    ]  # fmt: skip
    with store.database.writes() as connection:
        connection.execute(sa.insert(JOBS), rows)


def measured(call: Callable[[int], Any]) -> dict[str, float]:
    """The times of a call in milliseconds, over ``N_CALLS`` repetitions."""
    wall, cpu = [], []
    for number in range(N_CALLS):
        began, worked = time.perf_counter(), time.process_time()
        call(number)
        wall.append(1000 * (time.perf_counter() - began))
        cpu.append(1000 * (time.process_time() - worked))
    found = {"median": statistics.median(wall), "slowest": max(wall), "median of CPU": statistics.median(cpu)}
    return {name: round(value, 2) for name, value in found.items()}


def size_of(store: Store) -> int:
    """The bytes of a database of Postgres."""
    with store.database.reads() as connection:
        return int(connection.execute(sa.text("SELECT pg_database_size(current_database())")).scalar_one())


def main() -> None:
    n_jobs, n_tokens = (int(text) for text in [*sys.argv[1:], "100000", "20"][:2])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "service.sqlite"
        place = sys.argv[3] if len(sys.argv) > 3 else path
        store = Store.at(place)
        fill(store, n_jobs, n_tokens)
        if place is not path:  # Postgres counts by itself what tables hold, within a minute
            with store.database.writes() as connection:
                connection.exec_driver_sql("ANALYZE")
        store.close()
        began = time.perf_counter()
        store = Store.at(place)
        opened = round(1000 * (time.perf_counter() - began), 1)
        draw, one = random.Random(1), store.tokens.all()[0].id
        calls: dict[str, Callable[[int], Any]] = {
            "newest page of 50": lambda _: store.page(),
            "any page of 50": lambda _: store.page(before=draw.randrange(n_jobs)),
            "page of one token": lambda _: store.page(one, before=draw.randrange(n_jobs)),
            "page of failed jobs": lambda _: store.page(state="failed", before=draw.randrange(n_jobs)),
            "page of failed jobs of one token": lambda _: store.page(one, "failed", before=draw.randrange(n_jobs)),
            "one job": lambda _: store.job(1 + draw.randrange(n_jobs)),
            "counts by state": lambda _: store.counts(),
            "counts by state of one token": lambda _: store.counts(one),
            "submission": lambda number: store.submit(one, CONFIG, key=f"key {number}"),
            "start of the next job": lambda _: store.start_next("boot"),
            "running jobs": lambda _: store.running(),
        }
        found = {name: measured(call) for name, call in calls.items()}
        n_bytes = path.stat().st_size if place is path else size_of(store)
        size = round(n_bytes / 2**20, 1)
        store.close()
    machine = environment_info()
    backend = "SQLite" if place is path else "Postgres"
    told = {
        "backend": backend, "load": os.getloadavg()[0], "jobs": n_jobs, "tokens": n_tokens, "MiB": size, "opening": opened,
        "ms": found, "environment": machine,
    }  # fmt: skip
    print(json.dumps(told, indent=2))


if __name__ == "__main__":
    main()
