"""The precision of an agent's short trainings, chosen by time where its config asks for the faster one.

It is measured once, as the training begins, and kept in the run's folder: a training that goes on, here or on another
machine, goes on in the precision that it began with.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import get_args

from panning.agents.config import AgentConfig
from panning.foundation.errors import ConfigError
from panning.foundation.files import read_regular, strict_json, write_atomic
from panning.tasks import load_task
from panning.training.loop import train_copy
from panning.training.recipe import Precision

CHOICE = "precision.json"
#: Steps of a timed training, and how often each precision is timed, in turns; a first turn warms up.
N_STEPS, N_TURNS = 8, 5


def with_fastest(config: AgentConfig, out: Path) -> AgentConfig:
    """The config with the precision of its short trainings settled, if its reward asks for the fastest.

    Raises:
        ConfigError: if the folder's choice is damaged.
    """
    if not config.env.reward.fastest:
        return config
    path = out / CHOICE
    if not path.exists():
        times = measured(config)
        chosen = min(times, key=lambda precision: times[precision])
        milliseconds = {precision: round(1e3 * seconds / N_STEPS, 3) for precision, seconds in times.items()}
        write_atomic(path, json.dumps({"precision": chosen, "cpu_ms_of_a_step": milliseconds}, indent=2))
    try:
        precision = strict_json(read_regular(path, 2**16))["precision"]
        if precision not in get_args(Precision):
            raise ValueError(f"no precision is called {precision!r}")
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ConfigError(f"{path} is damaged ({error}); delete {out} to train the agent again.") from None
    recipe = config.env.reward.recipe.model_copy(update={"precision": precision})
    reward = config.env.reward.model_copy(update={"recipe": recipe})
    return config.model_copy(update={"env": config.env.model_copy(update={"reward": reward})})


def measured(config: AgentConfig) -> dict[str, float]:
    """Seconds of processor time of a training of the first task's dense network in each precision; the medians.

    A training has ``N_STEPS`` steps and one evaluation on the validation part, which is counted too.
    """
    recipe = config.env.reward.recipe
    task = load_task(config.env.every_task[0], config.env.seeds[0], config.source)
    short = {"epochs": 1.0, "n_images": N_STEPS * recipe.batch_size}
    taken: dict[str, list[float]] = {precision: [] for precision in get_args(Precision)}
    for _ in range(1 + N_TURNS):
        for precision, times in taken.items():
            start = time.process_time()
            train_copy(task, None, recipe.model_copy(update={**short, "precision": precision}), 0)
            times.append(time.process_time() - start)
    return {precision: statistics.median(times[1:]) for precision, times in taken.items()}
