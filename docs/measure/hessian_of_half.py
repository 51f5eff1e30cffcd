"""Count the kept weights that change if GraSP takes its Hessian on half of the samples, and if it takes another batch.

From a SynFlow mask of one density, one round by GraSP alone and by an agent's mix leads to another density: with all
samples of a batch (the yardstick), with the Hessian of half of them, and with all samples of another batch. A cell is the
share of the yardstick's weights that is kept too.

    python docs/measure/hessian_of_half.py --data-root DIR --task lenet5/fashion_mnist resnet20/cifar10
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from panning.foundation.tables import markdown_table
from panning.masks.masks import n_kept_at
from panning.pruners import RoundAction, Rounds, prune_problem, prune_round
from panning.scoring.problem import Problem
from panning.scoring.signals import Signals
from panning.tasks import DataSource, TaskSpec, load_task

#: From which density to which.
ROUNDS = ((1.0, 0.1), (0.1, 0.05), (0.02, 0.01))
MIX = ("magnitude", "snip", "synflow")
COLUMNS = ("task", "scores", "round", "Hessian of half of the samples", "another batch")


def shares(problem: Problem, before: float, after: float, mixed: bool) -> tuple[float, float]:
    """The share of the kept weights that stays with the Hessian of half, and with another batch."""
    start = torch.ones(problem.layout.n_prunable, dtype=torch.bool)
    if before < 1.0:
        start = prune_problem(problem, before, "synflow", rounds=Rounds(n_rounds=20)).mask

    def kept(index: str, batch: int) -> Tensor:
        weights = dict.fromkeys((*(MIX if mixed else ()), index), 1.0)
        return prune_round(Signals(problem, start, batch), RoundAction(weights, after)).mask

    whole, n = kept("grasp", 0), n_kept_at(after, problem.layout.n_prunable)
    others = kept("grasp_half_batch", 0), kept("grasp", 1)
    half, another = (int((whole & other).sum()) / n for other in others)
    return half, another


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description="GraSP with the Hessian of half of the samples.")
    parser.add_argument("--task", nargs="+", default=["lenet5/fashion_mnist"], help="MODEL/DATA")
    parser.add_argument("--data-root", type=Path)
    given = parser.parse_args(arguments)
    rows = []
    for name in given.task:
        model, data = name.split("/", 1)
        problem = load_task(TaskSpec(model=model, data=data), 0, DataSource.at(given.data_root)).problem
        for mixed in (False, True):
            for before, after in ROUNDS:
                found = shares(problem, before, after, mixed)
                scores = "GraSP, " + ", ".join(MIX) if mixed else "GraSP"
                rows.append([name, scores, f"{before:g} to {after:g}", *(f"{share:.3f}" for share in found)])
                print(*rows[-1], flush=True)
    print("\n".join(markdown_table(COLUMNS, rows)))


if __name__ == "__main__":
    main()
