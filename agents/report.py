"""The files of an agent's training that people read, beside policy and records: its config, a table and a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from panning.agents.config import AgentConfig
from panning.agents.pictures import reward_picture
from panning.agents.rollouts import read_rollouts
from panning.foundation.config import dump_config
from panning.foundation.files import write_atomic
from panning.foundation.pictures import save
from panning.foundation.records import RunRecord
from panning.foundation.tables import write_table

#: Figures of a rollout that are no columns of the table.
UNSHOWN = ("episodes", "timesteps")


def write_report(config: AgentConfig, folder: Path, formats: Sequence[str] = ("png",)) -> list[RunRecord]:
    """Write ``config.yaml``, ``table.md``, ``table.csv`` and the picture ``reward``; returns the records of the rollouts.

    Args:
        formats: of the picture; without one there is no picture.
    """
    write_atomic(folder / "config.yaml", dump_config(config))
    records = read_rollouts(folder / "rollouts.jsonl")
    columns = [name for name in records[-1].metrics if name not in UNSHOWN]
    rows = [[r.config["rollout"] + 1, *(f"{r.metrics.get(name, math.nan):.4g}" for name in columns)] for r in records]
    write_table(folder, ["rollout", *columns], rows)
    if formats:
        save(reward_picture(records, config.env), folder / "reward", formats)
    return records
