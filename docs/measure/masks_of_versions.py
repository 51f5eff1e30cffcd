"""Count the kept weights in which masks of two versions of this package's scoring differ, from one another and from float64.

Every mask is made by version 1, by the newest version and in float64 (weights, images and all that is computed of them),
on one batch of noise, and the kept weights are counted that another of the three does not keep. The last column is the
yardstick: by what version 1 itself differs from float64 is what rounding explains.

    python docs/measure/masks_of_versions.py --models lenet5 --samples 100          # goes on where it was
    python docs/measure/masks_of_versions.py --table

A method of many rounds is cut to ``--rounds``: rounding grows from round to round, and the whole of ViT-B/16 takes days.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from panning.foundation.errors import PanningError
from panning.foundation.machine import environment_info
from panning.foundation.making import NEWEST, made_by
from panning.foundation.memory import keep_freed_memory
from panning.foundation.records import RecordStore, RunRecord, content_key
from panning.foundation.seeding import torch_generator
from panning.foundation.tables import markdown_table, origin
from panning.models import build_model
from panning.pruners import PRUNERS, Rounds, prune_problem
from panning.scoring.problem import Problem

RECORDS = Path(__file__).with_suffix(".jsonl")
#: Model -> the shape of its images.
SHAPES = {
    "lenet5": (1, 28, 28), "resnet20": (3, 32, 32), "vgg19": (3, 32, 32), "torchvision:vit_b_16": (3, 224, 224),
}  # fmt: skip
DENSITIES = (0.1, 0.02, 0.005)
COLUMNS = (
    "model", "samples", "method", "rounds", "density", "kept", "from version 1", "from float64", "version 1 from float64",
)  # fmt: skip


class Asked(NamedTuple):
    """A row: the masks of one method at one density."""

    model: str
    samples: int
    method: str
    rounds: int
    density: float


def problem_of(model: str, samples: int, dtype: torch.dtype) -> Problem:
    """The network's problem of a batch of noise; the same numbers in every dtype."""
    shape, generator = SHAPES[model], torch_generator(0, "versions")
    inputs = torch.randn(samples, *shape, generator=generator).to(dtype)
    labels = torch.arange(samples) % 10
    network = build_model(model, input_shape=shape, n_classes=10, seed=0)
    return Problem.of(copy.deepcopy(network).to(dtype), shape, lambda number: (inputs, labels))


def mask_of(asked: Asked, version: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The mask, flat."""
    n_rounds = min(asked.rounds, PRUNERS[asked.method].pruner.n_rounds)
    with made_by(version):
        problem = problem_of(asked.model, asked.samples, dtype)
        return prune_problem(problem, asked.density, asked.method, rounds=Rounds(n_rounds=n_rounds)).mask


def measured(asked: Asked) -> dict[str, object]:
    """The row of the table for one method at one density."""
    begun = time.process_time()
    try:
        before, now, exact = mask_of(asked, 1), mask_of(asked, NEWEST), mask_of(asked, NEWEST, torch.float64)
    except PanningError as error:
        return {"error": str(error)}
    return {
        "kept": int(now.sum()), "from_first": int((now & ~before).sum()), "from_float64": int((now & ~exact).sum()),
        "first_from_float64": int((before & ~exact).sum()), "cpu_s": time.process_time() - begun,
    }  # fmt: skip


def table_cells(records: Iterable[RunRecord]) -> list[list[str]]:
    """The lines of the table, one for each record."""
    cells = []
    for record in records:
        asked, found = Asked(**record.config), record.metrics
        begin = [asked.model, str(asked.samples), asked.method, str(asked.rounds), f"{asked.density:g}"]
        names = ("kept", "from_first", "from_float64", "first_from_float64")
        cells.append(begin + [str(found.get(name, "-")) for name in names])
    return cells


def markdown(records: Sequence[RunRecord]) -> str:
    """The table, with the machine and the state of the code that it comes from."""
    lines = markdown_table(COLUMNS, table_cells(records))
    for text in dict.fromkeys(origin(record.environment) for record in records):
        lines += ["", text]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is missing, or print the table."""
    parser = argparse.ArgumentParser(description="Count what differs between the versions of how masks are made.")
    parser.add_argument("--models", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--methods", nargs="+", default=list(PRUNERS))
    parser.add_argument("--densities", nargs="+", type=float, default=list(DENSITIES))
    parser.add_argument("--samples", type=int, default=100, help="of the batch of noise")
    parser.add_argument("--rounds", type=int, default=3, help="of methods that have more")
    parser.add_argument("--records", type=Path, default=RECORDS)
    parser.add_argument("--table", action="store_true", help="print the table of the records alone")
    given = parser.parse_args(arguments)
    keep_freed_memory()
    store = RecordStore(given.records)
    wanted = [
        Asked(model, given.samples, method, min(given.rounds, PRUNERS[method].pruner.n_rounds), density)
        for model in given.models for method in given.methods for density in given.densities
    ]  # fmt: skip
    for asked in [] if given.table else wanted:
        key = content_key({"kind": "versions", **asked._asdict()})
        if key not in store:
            store.append(RunRecord(key, "versions", asked._asdict(), measured(asked), environment_info()))
            print(*table_cells([store[key]])[0], store[key].metrics.get("error", ""), flush=True)
    print(markdown(list(store)))


if __name__ == "__main__":
    main()
