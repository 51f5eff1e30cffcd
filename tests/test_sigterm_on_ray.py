"""SIGTERM, by which a batch system or a container ends a command, while a worker of Ray is at a job that does not end."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from job_hook import write_hook
from test_stopping import RECIPE, TASK, left_by

from panning.compare.grid import GridConfig
from panning.foundation.config import dump_config, parse_config
from panning.searches.whole import How, whole_grid

#: Every process of the run has it in its environment, whatever group it is in.
MARK = "PANNING_TEST_SIGTERM"
CONFIG = {
    "name": "it", "tasks": [{"task": TASK, "recipe": RECIPE}], "densities": [0.1], "methods": ["snip"], "seeds": [0],
    "controls": False, "kind": "bench",
}  # fmt: skip
HUNG = """
def wrapped(module):
    import signal
    def execute(*given, **named):
        with open(os.environ["PANNING_TEST_SIGTERM"], "w") as told:
            told.write(str(os.getpid()))
        signal.pause()
    module.execute = execute
"""


def processes_of(mark: str) -> list[int]:
    """Those that were started with the mark in their environment and are there yet."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:  # it has ended, or is another user's
            continue
    return found


def ends(pid: int, within_s: float) -> bool:
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    with open(handle, "rb", buffering=0):
        return bool(select.select([handle], [], [], within_s)[0])


@pytest.mark.timeout(300)
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_sigterm_ends_a_run_on_ray_in_order_and_leaves_no_process(tmp_path: Path) -> None:
    config, out, fifo = parse_config(GridConfig, CONFIG, "bench"), tmp_path / "out", tmp_path / "told"
    (tmp_path / "it.yaml").write_text(dump_config(config))
    write_hook(tmp_path / "hook", HUNG)
    os.mkfifo(fifo)
    command = ["bench", "run", str(tmp_path / "it.yaml"), "--workers", "1", "--out", str(out)]
    paths = os.pathsep.join([str(tmp_path / "hook"), *filter(None, [os.environ.get("PYTHONPATH")])])
    driver = subprocess.Popen(
        [sys.executable, "-m", "panning", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, MARK: str(fifo), "PYTHONPATH": paths},
    )  # fmt: skip
    worker = int(fifo.read_text())  # waits until a job has begun
    assert worker != driver.pid and worker in processes_of(str(fifo))
    driver.send_signal(signal.SIGTERM)
    _, said = driver.communicate(timeout=120)
    assert driver.returncode == 128 + signal.SIGTERM, said
    assert "run the same command again" in said and "Traceback" not in said
    assert all([ends(pid, 30) for pid in (worker, *processes_of(str(fifo)))]), processes_of(str(fifo))
    whole_grid(config, tmp_path, out, How())
    whole_grid(config, tmp_path, tmp_path / "whole", How())
    assert left_by(out) == left_by(tmp_path / "whole")
