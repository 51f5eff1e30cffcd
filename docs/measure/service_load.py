"""Measure a running service on this machine's loopback: many clients at once, streams, an artefact, cancelling, overhead.

    python docs/measure/service_load.py [N_CLIENTS] [SECONDS] [N_STREAMS] [ARTEFACT_MIB]

Each client sends one request a second: 10 % submissions, 40 % lists, 50 % single jobs. Half of the time passes with
``N_STREAMS`` open streams on a running job, half of it without. Then 500 requests are sent by half, an artefact is read, a
running job is cancelled and the server gets SIGTERM. The server is `panning serve` in a process of its own with one slot.
Prints JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import resource
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from panning.client import Client
from panning.foundation.machine import environment_info
from panning.service.folder import JobFolder

TASK = {"model": "mlp", "data": "digits"}
CONFIG = {"kind": "prune", "task": TASK, "density": 0.1, "method": "snip"}
#: Runs until it is cancelled, and tells of every step.
LONG = {**CONFIG, "method": "synflow", "rounds": 10_000}


@dataclass
class Load:
    """Clients that ask, each once a second.

    Attributes:
        seconds: kind of request -> how long each took, answered well.
        statuses: how often each status came.
    """

    port: int
    token: str
    job: int
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    statuses: dict[int, int] = field(default_factory=lambda: defaultdict(int))

    async def run(self, n_clients: int, duration_s: float) -> None:
        end = time.monotonic() + duration_s
        await asyncio.gather(*(self._client(number, end) for number in range(n_clients)))

    async def _client(self, number: int, end: float) -> None:
        draw = random.Random(number)
        await asyncio.sleep(draw.random())
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        while (began := time.monotonic()) < end:
            kind = draw.choices(["submission", "list", "job"], [1, 4, 5])[0]
            status = await self._ask(reader, writer, kind, draw)
            took = time.monotonic() - began
            self.statuses[status] += 1
            self.seconds[kind].append(took)
            await asyncio.sleep(max(0.0, 1 - took))
        writer.close()

    async def _ask(self, reader: Any, writer: Any, kind: str, draw: random.Random) -> int:
        body = json.dumps({**CONFIG, "seed": draw.randrange(10**9)}).encode() if kind == "submission" else b""
        path = {"submission": "/jobs", "list": "/jobs?limit=50", "job": f"/jobs/{self.job}"}[kind]
        head = [
            f"{'POST' if body else 'GET'} /api/v1{path} HTTP/1.1", f"Host: 127.0.0.1:{self.port}",
            f"Authorization: Bearer {self.token}", "Content-Type: application/json", f"Content-Length: {len(body)}", "", "",
        ]  # fmt: skip
        writer.write("\r\n".join(head).encode() + body)
        status = int((await reader.readline()).split()[1])
        length = 0
        while line := (await reader.readline()).strip():
            name, _, value = line.partition(b": ")
            length = int(value) if name.lower() == b"content-length" else length
        await reader.readexactly(length)
        return status

    def found(self) -> dict[str, Any]:
        """Milliseconds by kind of request."""
        times = {
            kind: {"n": len(all_), "p50": _ms(statistics.median(all_)), "p99": _ms(statistics.quantiles(all_, n=100)[-1])}
            for kind, all_ in self.seconds.items()
        }  # fmt: skip
        return {"ms": times, "statuses": dict(self.statuses)}


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 1)


@contextmanager
def streams(client: Client, job: int, n: int, lags: list[float]) -> Iterator[None]:
    """So many listeners to a job; ``lags`` gets how long each event was on its way."""
    is_over = threading.Event()

    def listen() -> None:
        began = time.time()
        for _, values in client.events(job):
            if values["time"] > began:  # the others lay in the file already
                lags.append(time.time() - values["time"])
            if is_over.is_set():
                return

    listeners = [threading.Thread(target=listen, daemon=True) for _ in range(n)]
    for one in listeners:
        one.start()
    yield
    is_over.set()
    for one in listeners:
        one.join(30)


def main() -> None:
    n_clients, seconds, n_streams, mib = (int(text) for text in _arguments("200", "60", "50", "1024"))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        with open(root / "log", "w") as log:
            command = [sys.executable, "-m", "panning", "serve", "--port", "0", "--root", str(root / "service")]
            server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            found = measure(server, root, n_clients, seconds, n_streams, mib)
        finally:
            if server.poll() is None:
                server.kill()
    print(json.dumps({**found, "environment": environment_info()}, indent=2))


def _arguments(*defaults: str) -> list[str]:
    return [*sys.argv[1:], *defaults[len(sys.argv) - 1 :]]


def measure(server: subprocess.Popen[str], root: Path, n_clients: int, seconds: int, n_streams: int, mib: int) -> Any:
    """All figures of a server that starts."""
    began = time.monotonic()
    assert server.stdout is not None
    url, token = next(line.split()[1:] for line in server.stdout if line.startswith("export"))
    url, token = url.partition("=")[2], token.partition("=")[2]
    port, admin = urlsplit(url).port, Client(url, token)
    token = admin.make_token("load", running=1, queued=10**6)["secret"]
    client = Client(url, token)
    found: dict[str, Any] = {"clients": n_clients, "seconds": seconds, "streams": n_streams}
    found["ready_s"] = time.monotonic() - began
    began = time.monotonic()
    first = client.submit(CONFIG)
    found["first_submission_s"] = time.monotonic() - began
    client.wait(first.id)
    done = client.job(first.id)
    assert done.ended is not None and done.started is not None
    found["a_job_s"] = (done.ended - done.started).total_seconds()
    alone = time.monotonic()
    (root / "config.yaml").write_text(json.dumps(CONFIG))
    command = [sys.executable, "-m", "panning", "prune", str(root / "config.yaml"), "--out", str(root / "alone")]
    subprocess.run(command, check=True, capture_output=True)
    found["the_same_command_s"] = time.monotonic() - alone
    long, lags = client.submit(LONG), list[float]()
    for _ in client.events(long.id):
        break  # it runs
    for name, n in (("without streams", 0), ("with streams", n_streams)):
        load = Load(int(port or 0), token, long.id)
        with streams(client, long.id, n, lags):
            cpu = _cpu(server.pid)
            asyncio.run(load.run(n_clients, seconds / 2))
            n_requests = sum(load.statuses.values())
            found[name] = {**load.found(), "cpu_ms_a_request": _ms((_cpu(server.pid) - cpu) / n_requests)}
    if lags:
        found["event_lag_ms"] = {"p50": _ms(statistics.median(lags)), "p99": _ms(statistics.quantiles(lags, n=100)[-1])}
    found["server_mib"] = _mib(server.pid)
    found |= _half(client, int(port or 0))
    found |= _artefact(client, root, first.id, mib, server.pid) | _cancel(client, root, long.id)
    told = client.events(first.id)
    began = time.monotonic()
    server.send_signal(signal.SIGTERM)
    found["sigterm_exit_code"] = server.wait(120)
    found["sigterm_s"] = time.monotonic() - began
    told.close()
    return {name: round(value, 3) if isinstance(value, float) else value for name, value in found.items()}


def _artefact(client: Client, root: Path, job: int, mib: int, pid: int) -> dict[str, Any]:
    """How fast a large file is fetched, hashing at both ends apart."""
    with open(JobFolder(root / "service" / "jobs" / str(job)).run / "large.bin", "wb") as file:
        for _ in range(mib):
            file.write(os.urandom(1 << 20))
    sha256 = next(one.sha256 for one in client.artefacts(job) if one.path == "large.bin")
    before, began = _mib(pid, "VmHWM"), time.monotonic()
    with client._requests.open("GET", f"/jobs/{job}/artefacts/{sha256}") as answer:
        while answer.read(1 << 20):
            pass
    return {
        "artefact_mb_a_s": mib * 1.048576 / (time.monotonic() - began),
        "artefact_more_mib": _mib(pid, "VmHWM") - before,
    }


def _half(client: Client, port: int, n: int = 500) -> dict[str, Any]:
    """How long halves of requests stay open, and how long others wait meanwhile."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    began, others = time.monotonic(), list[float]()
    waiting = [socket.create_connection(("127.0.0.1", port)) for _ in range(n)]
    for number, one in enumerate(waiting):
        one.setblocking(False)
        one.send(b"POST /api/v1/jobs HTTP/1.1\r\nContent-Length: 9\r\n"[: 1 + number % 40])
    while waiting:
        asked = time.monotonic()
        client.jobs(n=1)
        others.append(time.monotonic() - asked)
        waiting = [one for one in waiting if not _is_closed(one)]
        time.sleep(0.02)
    return {
        "half_requests_closed_s": time.monotonic() - began,
        "others_p99_ms": _ms(statistics.quantiles(others, n=100)[-1]),
    }


def _is_closed(one: socket.socket) -> bool:
    try:
        if one.recv(1 << 12):
            return False
    except BlockingIOError:
        return False
    one.close()
    return True


def _cancel(client: Client, root: Path, job: int) -> dict[str, Any]:
    """How long a cancellation takes to be answered, and the job's last process to be gone."""
    began = time.monotonic()
    client.cancel(job)
    answered = time.monotonic() - began
    folder = JobFolder(root / "service" / "jobs" / str(job))
    while folder.processes():
        time.sleep(0.02)
    return {"cancel_answered_ms": _ms(answered), "cancel_gone_s": time.monotonic() - began}


def _cpu(pid: int) -> float:
    """Seconds of the processor that a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _mib(pid: int, name: str = "VmRSS") -> float:
    """Memory of a process: what it takes, or with VmHWM what it took at most."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(name))
    return round(int(line.split()[1]) / 1024, 1)


if __name__ == "__main__":
    main()
