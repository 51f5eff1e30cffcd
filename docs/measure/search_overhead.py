"""Measure the overhead of a trial on the same job: bare Ray actors, Ray Tune with Optuna, and panning's dispatcher.

    python docs/measure/search_overhead.py [--workers 2] [--seconds 0 0.1 1] [--trials 400 200 60] [--only bare tune ours]

The job sleeps, so that workers need no core of their own. Each way runs in a process of its own, with Ray started before the
clock runs and workers up: what is measured goes from the first trial sent to the last outcome told. Printed is a table:
milliseconds a trial beyond the sleep, the share of the ideal time, and processor milliseconds of the driver a trial. Run it
on an idle machine: side by side on a busy one, the ratio of two lines still says something, the lines do not. Tune needs
``pip install 'ray[tune]' optuna``.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from job_hook import write_hook

WAYS = ("bare", "tune", "ours")


def bare(n: int, seconds: float, n_workers: int) -> tuple[float, float]:
    """Actors with one call each at a time, and ``ray.wait``: the least that Ray allows."""
    import ray

    @ray.remote(num_cpus=1)
    class Sleeper:
        def work(self, seconds: float) -> float:
            time.sleep(seconds)
            return seconds

    actors = [Sleeper.remote() for _ in range(n_workers)]
    ray.get([actor.work.remote(0.0) for actor in actors], timeout=300)

    def run() -> None:
        calls = {actor.work.remote(seconds): actor for actor in actors[:n]}
        left = n - len(calls)
        while calls:
            (done,), _ = ray.wait(list(calls), num_returns=1, timeout=300)
            actor = calls.pop(done)
            ray.get(done, timeout=300)
            if left:
                calls[actor.work.remote(seconds)] = actor
                left -= 1

    return timed(run)


def tune(n: int, seconds: float, n_workers: int) -> tuple[float, float]:
    """Ray Tune, its trials asked of Optuna's random sampler; workers are used again (``reuse_actors``)."""
    import optuna
    from ray import tune as of_ray
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)

    def trial(config: dict[str, Any]) -> dict[str, float]:
        time.sleep(seconds)
        return {"accuracy": config["x"]}

    search = OptunaSearch(metric="accuracy", mode="max", sampler=optuna.samplers.RandomSampler(seed=0))
    with tempfile.TemporaryDirectory() as folder:
        tuner = of_ray.Tuner(
            trial, param_space={"x": of_ray.uniform(0.0, 1.0)},
            tune_config=of_ray.TuneConfig(
                search_alg=search, num_samples=n, max_concurrent_trials=n_workers, reuse_actors=True
            ),
            run_config=of_ray.RunConfig(storage_path=folder, verbose=0),
        )  # fmt: skip
        return timed(tuner.fit)


def ours(n: int, seconds: float, n_workers: int) -> tuple[float, float]:
    """The dispatcher on its Ray workers, with jobs whose work is replaced by the sleep, and each outcome kept durably."""
    from panning.jobs.patience import Patience
    from panning.jobs.ray_executor import RayExecutor
    from panning.jobs.spec import TrainSpec
    from panning.jobs.store import JobStore
    from panning.jobs.work import Job
    from panning.tasks import TaskSpec
    from panning.training import Recipe

    task, recipe = TaskSpec(model="mlp", data="digits", n_train=200), Recipe(epochs=1, batch_size=50)
    jobs = [Job(TrainSpec(task=task, seed=seed, mask=None, recipe=recipe)) for seed in range(n + n_workers)]
    with tempfile.TemporaryDirectory() as folder, RayExecutor(n_workers) as executor:
        executor.dispatcher.patience = Patience(600.0)
        store = JobStore(Path(folder))
        list(store.outcomes(jobs[n:], executor))  # the workers come up
        return timed(lambda: list(store.outcomes(jobs[:n], executor)))


#: In the workers of ``ours`` a job sleeps and gives the same outcome.
HOOK = """
def wrapped(module):
    def execute(job):
        time.sleep(float(os.environ["OVERHEAD_SLEEP"]))
        environment = module.environment_info(None, job.spec.plugins)
        return job.spec.outcome(accuracy=0.5, loss=1.0, train_loss=1.0, images_seen=200, wall_s=0.0, environment=environment)
    module.execute = execute
"""


def timed(run: Callable[[], Any]) -> tuple[float, float]:
    """Wall seconds and processor seconds of this process."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


def one(way: str, n: int, seconds: float, n_workers: int) -> None:
    """Measure one way in this process, and print what came out."""
    import ray

    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False, "include_dashboard": False}
    ray.init("local", num_cpus=n_workers, **quiet)
    try:
        wall, cpu = {"bare": bare, "tune": tune, "ours": ours}[way](n, seconds, n_workers)
    finally:
        ray.shutdown()
    print(json.dumps({"wall": wall, "cpu": cpu}))


def rows(options: argparse.Namespace) -> Iterator[tuple[str, float, int, dict[str, float]]]:
    """Way, seconds of a trial, number of trials, and what was measured."""
    with tempfile.TemporaryDirectory() as hook:
        write_hook(Path(hook), HOOK)
        for seconds, n in zip(options.seconds, options.trials, strict=True):
            for way in options.only:
                path = (
                    f"{hook}:{os.environ.get('PYTHONPATH', '')}" if way == "ours" else os.environ.get("PYTHONPATH", "")
                )
                environment = {**os.environ, "PYTHONPATH": path, "OVERHEAD_SLEEP": str(seconds), "OMP_NUM_THREADS": "1"}
                command = [sys.executable, __file__, "--one", way, "--workers", str(options.workers)]
                given = ["--seconds", str(seconds), "--trials", str(n)]
                done = subprocess.run([*command, *given], env=environment, capture_output=True, text=True)
                if done.returncode:
                    sys.exit(f"{way} failed:\n{done.stderr[-2000:]}")
                yield way, seconds, n, json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, nargs="+", default=[0.0, 0.1, 1.0])
    parser.add_argument("--trials", type=int, nargs="+", default=[400, 200, 60])
    parser.add_argument("--only", choices=WAYS, nargs="+", default=list(WAYS))
    parser.add_argument("--one", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one(options.one, options.trials[0], options.seconds[0], options.workers)
        return
    print(f"{options.workers} workers; load of the machine at the begin {os.getloadavg()[0]:.1f}")
    print("way   s a trial  trials  ms a trial beyond it  of ideal  driver CPU ms a trial", flush=True)
    for way, seconds, n, found in rows(options):
        ideal = seconds * n / options.workers
        beyond = 1000 * (found["wall"] - ideal) * options.workers / n
        share = f"{ideal / found['wall']:8.3f}" if seconds else "       -"
        print(f"{way:5} {seconds:9g}  {n:6d}  {beyond:20.2f}  {share}  {1000 * found['cpu'] / n:22.2f}", flush=True)


if __name__ == "__main__":
    main()
