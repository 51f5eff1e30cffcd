"""Parts of the chaos measurement of a search: it kills nodes and the driver, and reads which jobs were executed."""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil


def config_of(options: argparse.Namespace, number: int = 0) -> dict[str, Any]:
    """A search whose trainings take some tenths of a second; others of another number have no job in common with it."""
    short = {"epochs": options.epochs, "batch_size": 50, "learning_rate": 0.05}
    return {
        "kind": "search", "name": "chaos", "task": {"model": "mlp", "data": "digits"}, "densities": [0.1],
        "seeds": [100 + 2 * number, 101 + 2 * number],
        "order": "free", "samplers": ["fixed", "random"], "max_trials": options.trials, "job_timeout_s": options.timeout,
        "agent": {"seeds": [9], "n_rounds": 2, "action": {"indices": ["snip", "synflow"]},
                  "ppo": {"n_rollouts": 2, "n_envs": 2, "n_steps": 2, "batch_size": 4}},
        "rungs": [{"keep": 0.3, "recipe": short}, {"keep": 1, "n_seeds": 2, "recipe": short}],
        "baselines": ["erk", "snip"], "recipe": short,
    }  # fmt: skip


class Nodes:
    """A head without cores and two nodes of one each, which die and come again."""

    def __init__(self) -> None:
        self.cluster: Any = None

    def up(self) -> None:
        """Begin anew, or put the nodes there that lack."""
        from ray.cluster_utils import Cluster

        if self.cluster is None:
            self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        for node in [node for node in self.cluster.worker_nodes if self.raylet(node).poll() is not None]:
            self.cluster.remove_node(node, allow_graceful=False)
        while len(self.cluster.worker_nodes) < 2:
            with contextlib.suppress(Exception):  # a busy machine was too slow; it is asked for again
                self.cluster.add_node(num_cpus=1)

    def down(self) -> None:
        with contextlib.suppress(Exception):  # it was never up, or parts of it were killed
            self.cluster.shutdown()
        self.cluster = None

    def gcs_lives(self) -> bool:
        return self.cluster.head_node.all_processes["gcs_server"][0].process.poll() is None

    @staticmethod
    def raylet(node: Any) -> Any:
        return node.all_processes["raylet"][0].process

    def kill(self, kind: str, lot: random.Random) -> None:
        node = lot.choice(sorted(self.cluster.worker_nodes, key=lambda node: node.unique_id))
        if kind == "node":
            self.cluster.remove_node(node, allow_graceful=False)
        elif kind == "gcs":
            self.cluster.head_node.all_processes["gcs_server"][0].process.kill()
        else:
            raylet = self.raylet(node)
            agents = [child for child in psutil.Process(raylet.pid).children() if "gent" in " ".join(child.cmdline())]
            lot.choice([raylet, *agents]).kill()


class Driver:
    """``panning search`` in a process of its own, begun again after each end until the search has its result."""

    def __init__(self, folder: Path, config: Path, environment: dict[str, str]) -> None:
        self.folder, self.config, self.environment = folder, config, environment
        self.process: Any = None

    def start(self, address: str | None) -> None:
        where = ["--workers", "2", "--ray-address", address] if address else ["--workers", "0"]
        command = [sys.executable, "-m", "panning", "search", str(self.config), "--out", str(self.folder), *where]
        with open(self.folder.with_suffix(".log"), "a") as log:
            self.process = subprocess.Popen(
                command, env=self.environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )

    @property
    def has_ended(self) -> bool:
        return self.process.poll() is not None


class Log:
    """Executions of jobs, as the hook notes them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def lines(self) -> list[tuple[float, int, str, str]]:
        return [tuple(json.loads(line)) for line in self.path.read_text().splitlines()]

    def begun_since(self, when: float, but: frozenset[int] = frozenset()) -> float | None:
        """When the first job began after ``when``, in a process that is none of ``but``."""
        return next((at for at, pid, what, _ in self.lines() if what == "begin" and at > when and pid not in but), None)


def wait(until: Any, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if until():
            return True
        time.sleep(0.1)
    return False
