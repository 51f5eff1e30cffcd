"""Kill what a search on a Ray cluster consists of at random moments, and look what is lost, paid twice, or left.

    python docs/measure/search_chaos.py [--driver 20] [--worker 15] [--node 10] [--raylet 5] [--gcs 5] [--sigterm 5]
                                        [--trials 200] [--epochs 12] [--timeout 60] [--out FOLDER] [--seed 0]

The cluster is a head without cores and two nodes of one core each on this machine (``ray.cluster_utils``); the search has
the shipped fixed candidates, an agent and random episodes of an MLP on the embedded digits. Of 100 trainings about one
hangs, one runs out of memory and one gives NaN, always the same ones. Once a search has ended before all kills, another
begins. In the end each search is run again without Ray in a new folder, in the order of its own journal, and all records are
compared. One kill in five does not wait until jobs run.

Printed as JSON: kills by kind, records that differ or lack, executions that were begun again, and those that had ended,
seconds until a new worker begins a job after a kill, and processes that are left.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import psutil
import yaml
from job_hook import write_hook
from search_chaos_parts import Driver, Log, Nodes, config_of, wait

from panning.foundation.records import read_records

#: Executions of jobs are noted, and some trainings fail in their way.
HOOK = """
def note(what, key):
    with open(os.environ["CHAOS_LOG"], "a") as file:
        file.write(json.dumps([time.time(), os.getpid(), what, key]) + "\\n")

def fault(job):
    number = int(job.key, 16) % 100
    return {1: "hangs", 2: "memory", 3: "nan"}.get(number) if job.spec.kind == "train" else None

def wrapped(module):
    plain = module.execute
    def execute(job):
        failing = fault(job)
        if failing != "memory":  # which is tried again
            note("begin", job.key)
        if failing == "hangs":
            if os.environ["CHAOS_HANGS"] == "yes":
                time.sleep(3600)
            return job.spec.outcome(error="it took too long", failure="time")
        if failing == "memory":
            return job.spec.outcome(**module.failed(MemoryError("chaos")))
        if failing == "nan":
            outcome = plain(job).model_copy(update={"accuracy": float("nan")})
        else:
            outcome = plain(job)
        note("end", job.key)
        return outcome
    module.execute = execute
"""
#: How long nothing may begin before the driver counts as stuck.
STUCK_S = 600.0


class Chaos:
    """One measurement."""

    def __init__(self, options: argparse.Namespace, root: Path) -> None:
        self.root, self.lot = root, random.Random(options.seed)
        kinds = ("driver", "worker", "node", "raylet", "gcs", "sigterm")
        self.plan = [kind for kind in kinds for _ in range(getattr(options, kind))]
        self.lot.shuffle(self.plan)
        write_hook(root / "hook", HOOK)
        self.log, self.options = Log(root / "executions.jsonl"), options
        os.environ |= {
            "PYTHONPATH": f"{root / 'hook'}:{os.environ.get('PYTHONPATH', '')}", "CHAOS_LOG": str(self.log.path),
            "CHAOS_HANGS": "yes", "OMP_NUM_THREADS": "1", "PANNING_CACHE": "off", "RAY_DEDUP_LOGS": "0",
        }  # fmt: skip
        self.nodes, self.kills, self.n_stuck = Nodes(), Counter[str](), 0
        self.goes_on: dict[str, list[float]] = defaultdict(list)
        self.gone: dict[str, list[float]] = defaultdict(list)
        self.ended: dict[str, list[float]] = defaultdict(list)

    def processes(self) -> list[psutil.Process]:
        """Living processes that this measurement began."""
        found, mark = [], str(self.log.path).encode()
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                marked = mark in Path(f"/proc/{process.pid}/environ").read_bytes() and process.pid != os.getpid()
                found += [process] if marked and process.status() != psutil.STATUS_ZOMBIE else []
        return found

    def run(self) -> dict[str, Any]:
        folders = []
        while self.plan or not folders:
            folder = self.root / f"search{len(folders)}"
            config = folder.with_suffix(".yaml")
            config.write_text(yaml.safe_dump(config_of(self.options, len(folders))))
            folders.append(folder)
            self.search(Driver(folder, config, dict(os.environ)))
        self.nodes.down()
        wait(lambda: not self.processes(), 30.0)
        left = [" ".join(process.cmdline())[:80] for process in self.processes()]
        found = [self.compared(folder) for folder in folders]
        sums = {name: sum(one[name] for one in found) for name in found[0]}
        return {
            "kills": dict(self.kills), "searches": len(folders), **sums, **self.counts(), "stuck": self.n_stuck,
            "left": left, "tracebacks": sum(folder.with_suffix(".log").read_text().count("Traceback") for folder in folders),
            "seconds until a new worker begins a job": {kind: spread(some) for kind, some in self.goes_on.items()},
            "seconds until the driver has ended": {kind: spread(some) for kind, some in self.ended.items()},
            "seconds until its workers have": {kind: spread(some) for kind, some in self.gone.items()},
        }  # fmt: skip

    def search(self, driver: Driver) -> None:
        """One search to its end; kills are at random moments."""
        n_starts = 0
        while not (driver.folder / "result.json").exists():
            if (n_starts := n_starts + 1) > sum(self.kills.values()) + 5:
                sys.exit(f"The search ends by itself, without a result: see {driver.folder.with_suffix('.log')}")
            if self.nodes.cluster is not None and not self.nodes.gcs_lives():
                self.nodes.down()
            self.nodes.up()
            driver.start(self.nodes.cluster.address)
            self.disturb(driver)
            if not wait(lambda: driver.has_ended, 4 * STUCK_S):
                self.n_stuck += 1
                driver.process.kill()
            driver.process.wait()
        print(f"{driver.folder.name} has ended; {len(self.plan)} kills are left", file=sys.stderr, flush=True)

    def disturb(self, driver: Driver) -> None:
        """Kill, again and again, until the driver has ended or there is nothing left to kill."""
        since = time.time()
        while self.plan and not driver.has_ended:
            is_early = self.plan[-1] != "worker" and self.lot.random() < 0.2
            moment = self.lot.uniform(0.0, 15.0 if is_early else 5.0)
            if not is_early and not self.goes_on_after(since, driver):
                self.n_stuck += 1
                driver.process.kill()
                return
            if wait(lambda: driver.has_ended, moment):
                return
            since = self.kill(self.plan.pop(), driver, is_early)

    def goes_on_after(self, since: float, driver: Driver, but: frozenset[int] = frozenset()) -> bool:
        """Wait until a job begins, in a process that is none of ``but``; nodes that are gone come again meanwhile."""

        def it_does() -> bool:
            if self.nodes.gcs_lives():
                self.nodes.up()
            return driver.has_ended or self.log.begun_since(since, but) is not None

        return wait(it_does, STUCK_S)

    def kill(self, kind: str, driver: Driver, is_early: bool) -> float:
        """Kill one thing; when it was."""
        workers = [p for p in self.processes() if "_JobWorker" in " ".join(p.cmdline())]
        self.kills[kind] += 1
        print(f"{sum(self.kills.values())}: {kind}", file=sys.stderr, flush=True)
        at, pids = time.time(), frozenset(process.pid for process in workers)
        if kind in ("driver", "sigterm"):
            driver.process.send_signal(signal.SIGKILL if kind == "driver" else signal.SIGTERM)
            driver.process.wait()
            self.ended[kind].append(time.time() - at)
            wait(lambda: not any(p.is_running() for p in workers), 60.0)
            self.gone[kind].append(time.time() - at)
            return at
        if kind == "worker" and workers:
            self.lot.choice(workers).kill()
        elif kind != "worker":
            self.nodes.kill(kind, self.lot)
        if kind == "gcs":
            wait(lambda: driver.has_ended, STUCK_S)
            self.ended[kind].append(time.time() - at)
        elif not is_early and self.goes_on_after(at, driver, pids) and not driver.has_ended:
            self.goes_on[kind].append((self.log.begun_since(at, pids) or at) - at)
        return at

    # --- what became of it ---

    def compared(self, folder: Path) -> dict[str, int]:
        """The records of a search beside those of an undisturbed one with the same journal."""
        reference = folder.with_name(f"{folder.name}-reference")
        reference.mkdir()
        for name in ("run.json", "begun.json", "journal.jsonl"):
            shutil.copy(folder / name, reference / name)
        driver = Driver(
            reference, folder.with_suffix(".yaml"), {**os.environ, "CHAOS_HANGS": "no", "CHAOS_LOG": os.devnull}
        )
        driver.start(None)
        driver.process.wait()
        here, there = ({r.key: r for r in read_records(one / "records.jsonl")} for one in (folder, reference))
        files = [
            [(one / name).read_bytes() for name in ("journal.jsonl", "agent/policy.safetensors")]
            for one in (folder, reference)
        ]
        return {
            "records": len(here), "records that lack": len(there.keys() - here.keys()),
            "records too many": len(here.keys() - there.keys()),
            "records that differ": sum(said(here[key]) != said(there[key]) for key in here.keys() & there.keys()),
            "failed trials": sum(record.metrics.get("failure") is not None for record in here.values()),
            "journals or policies that differ": int(files[0] != files[1]),
        }  # fmt: skip

    def counts(self) -> dict[str, Any]:
        """Executions, and those beyond one a job."""
        lines, ended, begun = self.log.lines(), Counter[str](), Counter[str]()
        for _, _, what, key in lines:
            (begun if what == "begin" else ended)[key] += 1
        return {
            "executions": begun.total(), "evaluations": len(begun), "begun again": begun.total() - len(begun),
            "ended more than once": ended.total() - len(ended),
        }  # fmt: skip


def said(record: Any) -> Any:
    """The part of a record that must be equal in both runs: of a failure its reason, else all figures but times."""
    if (failure := record.metrics.get("failure")) is not None:
        return record.kind, failure
    return record.kind, {k: v for k, v in record.metrics.items() if k not in ("wall_s", "timing")}


def spread(seconds: list[float]) -> dict[str, float]:
    return {"n": len(seconds), "median": round(statistics.median(seconds), 1), "worst": round(max(seconds), 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for kind, n in (("driver", 20), ("worker", 15), ("node", 10), ("raylet", 5), ("gcs", 5), ("sigterm", 5)):
        parser.add_argument(f"--{kind}", type=int, default=n)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--timeout", type=float, default=60.0, help="of a job, in seconds; more on a busy machine")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    root = options.out or Path(tempfile.mkdtemp(prefix="chaos"))
    root.mkdir(exist_ok=True)
    chaos = Chaos(options, root.resolve())
    try:
        found = chaos.run()
    finally:
        chaos.nodes.down()
        for process in chaos.processes():
            process.kill()
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
