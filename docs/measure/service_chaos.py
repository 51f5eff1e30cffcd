"""Kill the service's processes at random moments while jobs are sent and run, and look what is lost.

    python docs/measure/service_chaos.py [N_JOBS] [N_KILLS] [SLOTS] [SEED]

The processes are the server's (a loop around the scheduler, which takes jobs through a socket in place of the API),
supervisors, runners, Ray's workers, and all of them at once. A client sends jobs under idempotency keys until each is
acknowledged. Readers follow the events of every job, and begin anew behind the last id that they have seen. Printed as JSON
at the end: jobs acknowledged, ended and lost, jobs of which two runners lived at a time, masks and policies that differ from
those of undisturbed runs, events that came twice, out of order or changed, and processes that are left.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from panning.service.events import EventReader
from panning.service.folder import JobFolder, Order, Outcome
from panning.service.runner import Stop, run_job
from panning.service.scheduler import RUNNER, Scheduler, Setup
from panning.service.store import Store
from panning.service.supervisor import parents
from panning.service.words import Quota

#: A job is killed so often at most: the third crash would fail it, as it should.
MOST_KILLS = 2
#: The share of kills that take all processes at once.
ALL_OF = 0.15


# --- the server ---


def serve(root: Path, slots: int, workers: int, runner: Sequence[str]) -> None:
    """The scheduler in a process of its own, which takes jobs through a socket."""
    store = Store.at(root / "service.sqlite")
    if not store.tokens.all():
        for name in ("Ada", "Bo"):
            store.tokens.add(name, "submit", Quota(running=slots, queued=10_000))
    over, wake = threading.Event(), threading.Event()
    scheduler = Scheduler(store, Setup(root / "jobs", slots, workers, grace_s=3.0, runner=tuple(runner)))

    class Answer(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            asked = json.loads(self.rfile.readline())
            if "config" in asked:
                job = store.submit(asked["token"], asked["config"], asked["key"]).job
                wake.set()
                answer: Any = job.id
            else:
                answer = {job.id: job.state for job in store.page(n=200)}
            self.wfile.write(json.dumps(answer).encode() + b"\n")

    class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
        daemon_threads = True

    address = str(root / "socket")
    Path(address).unlink(missing_ok=True)
    server = Server(address, Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: (over.set(), wake.set()))
    scheduler.run(over, wake)
    scheduler.close()


def ask(root: Path, once: bool = False, **request: Any) -> Any:
    """The server's answer; without ``once`` tried again until there is one."""
    while True:
        with contextlib.suppress(OSError, ValueError), socket.socket(socket.AF_UNIX) as line:
            line.settimeout(5.0)
            line.connect(str(root / "socket"))
            line.sendall(json.dumps(request).encode() + b"\n")
            return json.loads(line.makefile().readline())
        if once:
            return None
        time.sleep(0.05)


# --- who is there ---


@dataclass(frozen=True)
class Tree:
    """The living processes of one job."""

    supervisors: list[int]
    runners: list[int]
    others: list[int]


def tree_of(folder: JobFolder) -> Tree:
    """The processes of a job, by what they are."""
    parent, pids = dict(parents()), folder.processes()
    supervisors = [pid for pid in pids if "supervisor.py" in _command(pid)]
    # Between fork and exec a runner looks like its supervisor.
    runners = [pid for pid in pids if parent.get(pid) in supervisors and str(folder.path) == _last_argument(pid)]
    return Tree(supervisors, runners, [pid for pid in pids if pid not in (*supervisors, *runners)])


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    return ""


def _last_argument(pid: int) -> str:
    return _command(pid).rstrip("\0").rpartition("\0")[2]


def kill(pids: Sequence[int]) -> None:
    """SIGKILL to processes, as far as they are there."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


# --- the chaos ---


@dataclass
class Reader:
    """Follows the events of a job, and begins anew now and then."""

    path: Path
    seen: list[tuple[int, bytes]] = field(default_factory=list)
    reader: EventReader | None = None

    def follow(self, anew: bool) -> None:
        if anew or self.reader is None:
            self.reader = EventReader(self.path, after=self.seen[-1][0] if self.seen else 0)
        self.seen.extend(self.reader.lines())

    def faults(self) -> int:
        """Events that came twice, out of order, or are not those of the file."""
        in_file = self.path.read_bytes().splitlines() if self.path.exists() else []
        pairs = enumerate(zip(self.seen, in_file, strict=False), start=1)
        return abs(len(self.seen) - len(in_file)) + sum(seen != (number, line) for number, (seen, line) in pairs)


@dataclass
class Chaos:
    """One run of the whole.

    Attributes:
        configs: of the jobs to send.
        seconds: after so long it is given up.
        every_s: how long between two kills, on average.
    """

    root: Path
    configs: Sequence[dict[str, Any]]
    n_kills: int
    seed: int = 0
    slots: int = 2
    workers: int = 0
    runner: Sequence[str] = RUNNER
    every_s: float = 1.0
    seconds: float = 3600.0
    acknowledged: dict[int, int] = field(default_factory=dict)  # place in configs -> job
    readers: dict[int, Reader] = field(default_factory=dict)
    doubles: set[int] = field(default_factory=set)
    kills: Counter[str] = field(default_factory=Counter)
    killed: defaultdict[int, int] = field(default_factory=lambda: defaultdict(int))
    server: subprocess.Popen[bytes] | None = None

    def run(self) -> dict[str, Any]:
        """Send, kill, wait for the end, and count."""
        began, draw = time.monotonic(), random.Random(self.seed)
        next_kill, states = began + self.every_s, dict[int, str]()
        threading.Thread(target=self._send, daemon=True).start()
        while time.monotonic() - began < self.seconds:
            if self.server is None or self.server.poll() is not None:
                self.server = self._serve()
            self._look(draw)
            if time.monotonic() > next_kill and self.kills.total() < self.n_kills and self._kill(draw):
                next_kill = time.monotonic() + draw.uniform(0, 2 * self.every_s)
            answer = ask(self.root, once=True)
            states = states if answer is None else {int(job): state for job, state in answer.items()}
            sent = len(self.acknowledged) == len(self.configs) <= len(states)
            if sent and not {"queued", "running"} & set(states.values()):
                break
            time.sleep(0.03)
        assert self.server is not None
        self.server.terminate()
        self.server.wait(60)
        return {**self._counts(states), "seconds": round(time.monotonic() - began, 1)}

    def folder(self, job: int) -> JobFolder:
        return JobFolder(self.root / "jobs" / str(job))

    def _serve(self) -> subprocess.Popen[bytes]:
        what = [str(self.root), str(self.slots), str(self.workers), json.dumps(list(self.runner))]
        with open(self.root / "server.txt", "ab") as log:
            return subprocess.Popen([sys.executable, __file__, "serve", *what], stdout=log, stderr=log)

    def _send(self) -> None:
        for place, config in enumerate(self.configs):
            token = 1 + place % 2
            self.acknowledged[place] = ask(self.root, token=token, key=f"job {place}", config=config)
            time.sleep(self.every_s * self.n_kills / len(self.configs) / 2)

    def _look(self, draw: random.Random) -> None:
        for job in list(self.acknowledged.values()):
            self.readers.setdefault(job, Reader(self.folder(job).events)).follow(anew=draw.random() < 0.2)
            if len(tree_of(self.folder(job)).runners) > 1:
                self.doubles.add(job)

    def _kill(self, draw: random.Random) -> bool:
        """Kill one of those that are there, each kind as likely, or all; nothing where no job runs."""
        assert self.server is not None
        trees = {job: tree_of(self.folder(job)) for job in list(self.acknowledged.values())}
        alive = {job: tree for job, tree in trees.items() if tree.supervisors}
        if not alive:
            return False
        may = {job: tree for job, tree in alive.items() if self.killed[job] < MOST_KILLS}
        victims: dict[str, list[tuple[int, int]]] = {  # kind -> processes, each with its job
            "server": [(self.server.pid, 0)],
            "supervisor": [(pid, job) for job, tree in may.items() for pid in tree.supervisors],
            "runner": [(pid, job) for job, tree in may.items() for pid in tree.runners],
            "worker": [(pid, 0) for tree in alive.values() for pid in tree.others],
        }
        what = draw.choice([kind for kind, there in victims.items() if there])
        chosen = [draw.choice(victims[what])]
        if may and len(may) == len(alive) and draw.random() < ALL_OF:
            what, chosen = "all", [one for there in victims.values() for one in there]
        kill([pid for pid, _ in chosen])
        self.kills[what] += 1
        for job in {job for _, job in chosen if job}:
            self.killed[job] += 1
        return True

    def _counts(self, states: dict[int, str]) -> dict[str, Any]:
        left, end = 1, time.monotonic() + 10
        while left and time.monotonic() < end:
            left = sum(len(self.folder(job).processes()) for job in self.acknowledged.values())
        self._look(random.Random(0))
        outcomes = Counter(states.get(job, "lost") for job in self.acknowledged.values())
        return {
            "jobs": len(self.configs), "acknowledged": len(set(self.acknowledged.values())), "outcomes": dict(outcomes),
            "kills": dict(self.kills), "run twice at a time": len(self.doubles), "processes left": left,
            "events": sum(len(reader.seen) for reader in self.readers.values()),
            "faults of events": sum(reader.faults() for reader in self.readers.values()),
        }  # fmt: skip


# --- real jobs ---


def configs(n: int) -> list[dict[str, Any]]:
    """Small jobs of several kinds; every fifteenth trains an agent on Ray."""
    task = {"model": "mlp", "data": "digits"}
    ppo = {"n_rollouts": 3, "n_envs": 1, "n_steps": 4, "batch_size": 4}
    found: list[dict[str, Any]] = []
    for number in range(n):
        if number % 15 == 7:
            env = {"tasks": [{**task, "n_train": 100}], "densities": [0.1], "n_rounds": 2}
            found.append({"kind": "train-agent", "env": env, "ppo": ppo, "seed": number})
        elif number % 5 == 3:
            recipe = {"epochs": 20, "batch_size": 50}
            found.append({"kind": "train", "task": task, "seed": number, "recipe": recipe})
        else:
            method = ("synflow", "snip", "grasp", "iter_snip")[number % 4]
            found.append({"kind": "prune", "task": task, "density": 0.05, "method": method, "seed": number})
    return found


def left_by(run: Path) -> dict[str, bytes]:
    """The masks, weights and policies in a run's folder."""
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted(run.rglob("*.safetensors"))}


def undisturbed(config: dict[str, Any], root: Path) -> dict[str, bytes]:
    """Run a job alone, in this process and without Ray; the masks, weights and policies that it leaves."""
    folder = JobFolder(root)
    folder.give(Order(config, 1))
    outcome = run_job(folder, Stop(folder))
    assert outcome == Outcome("succeeded"), outcome
    return left_by(folder.run)


def main() -> None:
    n_jobs, n_kills, slots, seed = (int(text) for text in [*sys.argv[1:], "60", "30", "2", "0"][:4])
    root = Path(tempfile.mkdtemp(prefix="chaos-"))
    chaos = Chaos(root, configs(n_jobs), n_kills, seed, slots, workers=1, every_s=8.0)
    found = chaos.run()
    differing = [
        place for place, config in enumerate(chaos.configs)
        if left_by(chaos.folder(chaos.acknowledged[place]).run) != undisturbed(config, root / "alone" / str(place))
    ]  # fmt: skip
    print(json.dumps({**found, "results that differ": differing}, indent=2))
    shutil.rmtree(root)


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        where, n_slots, n_workers, command = sys.argv[2:]
        serve(Path(where), int(n_slots), int(n_workers), json.loads(command))
    else:
        main()
