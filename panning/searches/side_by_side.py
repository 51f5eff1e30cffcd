"""Searches in free order side by side: the best validation accuracy of the last rung against what had been paid for it.

All is read from the folders of searches that have ended: no data, no network, nothing is run.
"""

from __future__ import annotations

import json
import statistics
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from panning.compare.statistics import SUMMARY, summary
from panning.foundation.config import load_config, parse_config
from panning.foundation.errors import ConfigError
from panning.foundation.files import read_regular, strict_json, write_atomic
from panning.foundation.pictures import PALETTE, Picture, figure, in_style, legend, save
from panning.foundation.records import RunRecord
from panning.foundation.tables import csv_table, markdown_table
from panning.foundation.text import one_line
from panning.jobs.kept import Kept
from panning.jobs.outcome import TrainOutcome
from panning.jobs.spec import TrainSpec, nameless
from panning.searches.config import SearchConfig
from panning.searches.journal import FILE, Journal

#: More than any result.json of ours has.
MAX_RESULT_BYTES = 2**28
#: Shares of the common cost at which a table looks.
SHARES = (0.25, 0.5, 1.0)
COLUMNS = ("task", "density", "samplers", "runs", *(f"at {share:.0%} of the cost" for share in SHARES), "cost", "agent")

#: Columns of the plain numbers behind a table.
NUMBERS = ("task", "density", "samplers", "share", "cost_epochs", *SUMMARY)


@dataclass(frozen=True)
class Course:
    """How one search went at one density.

    Attributes:
        task: model and data, for people.
        samplers: who was asked, for people.
        steps: what had been paid, in dense epochs, when a better candidate came out of the last rung; and its validation
            accuracy, the mean over the seeds of that rung.
        paid: dense epochs of short trainings in all.
        agent: dense epochs that the agent was trained for before.
    """

    task: str
    density: float
    samplers: str
    steps: tuple[tuple[float, float], ...]
    paid: float
    agent: float

    def best_at(self, cost: float) -> float | None:
        """The best accuracy by then, if any candidate was through."""
        place = bisect_right([step[0] for step in self.steps], cost)
        return self.steps[place - 1][1] if place else None


def courses(folder: Path) -> list[Course]:
    """How the search in a folder went, at each density.

    Raises:
        ConfigError: if it is none in free order that has ended.
        PanningError: if a record or a line of the journal is none, with file, line and field.
    """
    if not (folder / FILE).exists() or not (folder / "result.json").exists():
        raise ConfigError(f"{folder} is no search in free order that has ended: it needs {FILE} and result.json.")
    config, kept = load_config(SearchConfig, folder / "config.yaml"), Kept(folder)
    keys = dict.fromkeys(said["key"] for kind, said in Journal(folder, 0.0) if kind == "told")  # each is paid for once
    told = [kept.records[key] for key in keys if key in kept.records]
    n_train = next((r.metrics["n_train"] for r in kept.records if r.kind == "cell" and "n_train" in r.metrics), None)
    if n_train is None:
        raise ConfigError(f"{folder} holds no final training that succeeded, which says how large an epoch is.")
    label = f"{config.task.model_name} on {config.task.label or config.task.data}"
    names = " + ".join(_name(part.name, config.agent.policy) for part in config.samplers)
    agent = _agent_epochs(folder / "result.json")
    return [
        Course(label, density, names, *_steps(config, density, told, n_train), agent) for density in config.densities
    ]


def _name(sampler: str, policy: str | None) -> str:
    """A sampler for people; an agent that was not trained in the search by its file."""
    return f"agent ({one_line(Path(policy).stem)[:40]})" if sampler == "agent" and policy is not None else sampler


def _steps(
    config: SearchConfig, density: float, told: Sequence[RunRecord], n_train: int
) -> tuple[tuple[tuple[float, float], ...], float]:
    """The steps of a course, and what was paid."""
    last = config.rungs[-1]
    ways: dict[tuple[int, str], set[str]] = defaultdict(set)  # seed and mask -> who made it
    accuracies: dict[str, dict[int, float]] = defaultdict(dict)
    steps: list[tuple[float, float]] = []
    images, best = 0, -1.0
    for record in told:
        asked, seed = record.config, record.config.get("seed", 0)
        if record.kind == "prune" and asked.get("density") == density and "file" in record.metrics:
            ways[seed, record.metrics["file"]].add(
                json.dumps([nameless(asked["by"]), asked["all_alive"]], sort_keys=True)
            )
        if record.kind != "train" or (seed, asked["mask"]) not in ways:
            continue
        outcome = parse_config(TrainOutcome, record.metrics, f"the record {record.key}")
        images += outcome.images_seen
        recipe = TrainSpec.model_validate_json(json.dumps(asked)).recipe
        if recipe.model_copy(update={"start": last.recipe.start}) != last.recipe or outcome.error is not None:
            continue
        for way in ways[seed, asked["mask"]]:
            accuracies[way][seed] = outcome.accuracy
            mean = statistics.fmean(accuracies[way].values())
            if len(accuracies[way]) == last.n_seeds and mean > best:
                best = mean
                steps.append((images / n_train, mean))
    return tuple(steps), images / n_train


def _agent_epochs(path: Path) -> float:
    try:
        epochs = strict_json(read_regular(path, MAX_RESULT_BYTES))["cost_epochs"]["agent"]
        return float(epochs)
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        raise ConfigError(f"{path} is no result of a search: it says no cost_epochs of the agent.") from None


# --- tables and pictures ---

Case = tuple[str, float]


@dataclass(frozen=True)
class Row:
    """The runs of the same samplers at one task and density.

    Attributes:
        common: the least that any run of the case paid, with all samplers: shares are of that.
        accuracies: at each of ``SHARES`` of it, one a run; runs of which no candidate was through lack.
    """

    case: Case
    samplers: str
    courses: tuple[Course, ...]
    common: float

    @property
    def accuracies(self) -> list[list[float]]:
        return [
            [best for one in self.courses if (best := one.best_at(share * self.common)) is not None] for share in SHARES
        ]

    @property
    def cells(self) -> list[str]:
        """As text."""
        texts = [
            f"{100 * mean:.2f}" + (f" [{100 * low:.2f}, {100 * high:.2f}]" if n > 1 else "") if n else "none yet"
            for mean, _, n, low, high in map(summary, self.accuracies)
        ]
        paid = statistics.fmean(one.paid for one in self.courses)
        agent = statistics.fmean(one.agent for one in self.courses)
        n = str(len(self.courses))
        return [self.case[0], f"{self.case[1]:g}", self.samplers, n, *texts, f"{paid:.1f}", f"{agent:.1f}"]

    @property
    def numbers(self) -> list[list[Any]]:
        """A line for each of ``SHARES``, as ``NUMBERS`` calls its columns."""
        return [
            [*self.case, self.samplers, share, share * self.common, *summary(some)]
            for share, some in zip(SHARES, self.accuracies, strict=True)
        ]


def side_by_side(found: Sequence[Course]) -> list[Row]:
    """The rows of a table, the best of each case first."""
    cases: dict[Case, dict[str, list[Course]]] = defaultdict(lambda: defaultdict(list))
    for one in found:
        cases[one.task, one.density][one.samplers].append(one)
    rows = []
    for case, by_samplers in cases.items():
        common = min(one.paid for some in by_samplers.values() for one in some)
        of_case = [Row(case, samplers, tuple(some), common) for samplers, some in by_samplers.items()]
        rows += sorted(of_case, key=lambda row: -statistics.fmean(row.accuracies[-1] or [0.0]))
    return rows


def markdown(rows: Sequence[Row]) -> str:
    """The table with what one must know to read it."""
    lines = [
        "# Searches side by side", "",
        "Best validation accuracy in percent of the last rung, mean over runs with its interval of 95 %, when a share of "
        "what the cheapest run of the case paid in all had been paid. Cost is in dense epochs (passes over the training "
        "part) of short trainings, whoever paid for them; what the agent was trained for comes before that.", "",
        *markdown_table(COLUMNS, [row.cells for row in rows]), "",
    ]  # fmt: skip
    return "\n".join(lines)


@in_style
def picture(rows: Sequence[Row]) -> Picture:
    """A panel a case: mean of the best accuracies against the cost, thin lines are runs."""
    cases = list(dict.fromkeys(row.case for row in rows))
    whole, panels = figure("Best validation accuracy in the last rung", len(cases), width=3.4, height=2.7)
    names = sorted({row.samplers for row in rows})
    numbers: list[list[Any]] = []
    for axes, case in zip(panels, cases, strict=True):
        for row in (row for row in rows if row.case == case):
            colour = PALETTE[names.index(row.samplers) % len(PALETTE)]
            for run, one in enumerate(row.courses):
                costs = [*(cost for cost, _ in one.steps), one.paid]
                bests = [*(100 * best for _, best in one.steps), *(100 * best for _, best in one.steps[-1:])]
                if one.steps:
                    axes.step(costs, bests, where="post", color=colour, linewidth=0.6, alpha=0.5)
                numbers += [[*case, row.samplers, run, cost, best] for cost, best in one.steps]
            axes.step(*_mean(row.courses), where="post", color=colour, label=row.samplers)
        axes.set(xlabel="dense epochs paid", title=f"{case[0]}, density {case[1]:g}")
    panels[0].set_ylabel("accuracy, %")
    legend(whole, panels, names)
    return Picture(whole, ("task", "density", "samplers", "run", "cost_epochs", "accuracy"), numbers)


def _mean(some: Sequence[Course]) -> tuple[list[float], list[float]]:
    """The mean of all runs from when each has a candidate through, up to the end of the cheapest."""
    if not all(one.steps for one in some):
        return [], []
    first, end = max(one.steps[0][0] for one in some), min(one.paid for one in some)
    costs = sorted({first, end, *(cost for one in some for cost, _ in one.steps if first <= cost <= end)})
    means = [statistics.fmean(best for one in some if (best := one.best_at(cost)) is not None) for cost in costs]
    return costs, [100 * mean for mean in means]


def write(rows: Sequence[Row], out: Path, formats: Sequence[str]) -> None:
    """``compare.md`` and ``compare.csv``, and the picture ``compare-course`` with its numbers."""
    write_atomic(out / "compare.md", markdown(rows))
    write_atomic(out / "compare.csv", csv_table(NUMBERS, [line for row in rows for line in row.numbers]))
    save(picture(rows), out / "compare-course", formats)
