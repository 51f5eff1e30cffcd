"""Tables and a page of how much each lever changes accuracy (``panning.compare.levers``)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from panning.compare.levers import LEVERS, Study, crossed, level_name, studies
from panning.compare.probe import Probe, Tie, probes, ties
from panning.compare.variance import Effect
from panning.foundation.records import RunRecord
from panning.foundation.tables import markdown_table
from panning.foundation.text import in_markdown

#: Pairs with less than this share in every case stand in one line.
SMALL = 0.03
Cells = tuple[list[str], list[list[str]]]


def by_network(found: Sequence[Study]) -> dict[str, list[Study]]:
    """The studies of each network, by falling density."""
    return {name: [s for s in found if s.case.network == name] for name in dict.fromkeys(s.case.network for s in found)}


def share_cells(found: Sequence[Study]) -> Cells:
    """Columns and lines of the shares of one network: a line for each lever or pair, a column for each density."""
    pairs = [(effect, share.value) for s in found for effect, share in s.shares.items() if len(effect) == 2]
    large: set[Effect] = {effect for effect, share in pairs if share >= SMALL}
    effects: list[Effect] = [(lever,) for lever in LEVERS if any((lever,) in study.shares for study in found)]
    effects += sorted(large, key=lambda pair: [list(LEVERS).index(lever) for lever in pair])
    lines = [
        [" x ".join(effect), *(s.shares[effect].shown(100, ".0f") if effect in s.shares else "-" for s in found)]
        for effect in effects
    ]
    small = [
        sum(share.value for effect, share in s.shares.items() if len(effect) == 2 and effect not in large)
        for s in found
    ]
    return ["share of the variance between masks, %", *(f"{s.case.density:g}" for s in found)], [
        *lines,
        ["other pairs", *(f"{100 * share:.0f}" for share in small)],
        ["three or more at once", *(f"{100 * s.shares[()].value:.0f}" for s in found)],
        ["a lever without effect has up to", *(f"{100 * s.chance:.0f}" for s in found)],
        ["foreseen of masks left out (R²), %", *(_percent(s.foreseen) for s in found)],
        ["standard deviation between masks, points", *(f"{100 * s.case.spread:.2f}" for s in found)],
        ["of its variance by seeds alone, %", *(_percent(s.case.noise) for s in found)],
        ["masks x seeds", *(f"{len(s.case.rows)} x {s.case.accuracy.shape[1]}" for s in found)],
        ["failed cells, as chance", *(f"{s.case.n_failed}" for s in found)],
    ]  # fmt: skip


def _percent(share: float) -> str:
    return "-" if np.isnan(share) else f"{100 * share:.0f}"


def gain_cells(found: Sequence[Study]) -> Cells:
    """Columns and lines of the gains of one network: a line for each level, a column for each density; the best is bold."""
    columns = ["lever", "level", *(f"{study.case.density:g}" for study in found)]

    def shown(study: Study, lever: str, level: Any) -> str:
        if level not in study.gains.get(lever, {}):
            return "-"
        gain = study.gains[lever][level].shown(100, "+.2f")
        return f"**{gain}**" if study.best[lever] == level else gain

    return columns, [
        [lever, level_name(level), *(shown(s, lever, level) for s in found)] for lever, level in crossed(found)
    ]


def best_cells(found: Sequence[Study]) -> Cells:
    """Columns and lines of the best choice of each case; levels whose gain is sure to be above 0 are bold."""
    levers = [lever for lever in LEVERS if any(lever in study.gains for study in found)]

    def shown(study: Study, lever: str) -> str:
        if lever not in study.best:
            return "-"
        level = study.best[lever]
        name = level_name(level)
        return f"**{name}**" if study.gains[lever][level].low > 0 else name

    lines = [
        [
            study.case.network, f"{study.case.density:g}", *(shown(study, lever) for lever in levers),
            f"{100 * study.case.means.mean():.2f}", f"{100 * study.case.means.max():.2f}",
            study.case.labels[study.best_row],
        ]
        for study in found
    ]  # fmt: skip
    return ["network", "density", *levers, "mean of all, %", "best mask, %", "which"], lines


def probe_cells(found: Sequence[Probe]) -> Cells:
    """Columns and lines of the probes: mean gains in points."""
    columns = [
        "lever", "left out", "its own best", "best of the others", "from observations", "more than the best of the others",
        "cases",
    ]  # fmt: skip
    return columns, [
        [
            probe.lever, probe.left_out, f"{100 * probe.own:+.2f}", f"{100 * probe.fixed:+.2f}",
            f"{100 * probe.probed:+.2f}", probe.more.shown(100, "+.2f"), f"{probe.n}",
        ]
        for probe in found
    ]  # fmt: skip


def tie_cells(found: Sequence[Tie]) -> Cells:
    """Columns and lines of what gains go with."""
    return ["lever", "level", "observation", "rank correlation", "cases"], [
        [tie.lever, level_name(tie.level), tie.observation, f"{tie.rank_correlation:+.2f}", f"{tie.n}"] for tie in found
    ]


def markdown(records: Iterable[RunRecord]) -> str:
    """The page of the records of a study of levers."""
    return page(studies(records))


def page(found: Sequence[Study]) -> str:
    """Every table, with what a reader must know of it."""
    lines = [
        "What each lever is worth, over combinations of levers that were drawn once for all cases (a network, its data "
        "and a density). Accuracies are those of the validation part after the last epoch. A forest that is fitted to the "
        "combinations' means gives shares of the variance over all combinations, each lever's levels equally likely "
        "(functional analysis of variance), and the gain of each level. Intervals of 95 % are of a bootstrap over "
        "combinations and seeds. Shares below that of a lever without effect are none, and where the forest foresees "
        "little of the masks left out nothing should be read.",
        "",
        "## The best choice",
        "",
        "For each case the level of each lever with the largest gain, bold where its interval is above 0, and the mask "
        "that was best of all drawn ones, which had the luck of the best.",
        "",
        *_in_markdown(best_cells(found)),
        "",
        *_probed(found),
    ]
    for title, some in by_network(found).items():
        lines += [
            f"## {in_markdown(title)}", "", *_in_markdown(share_cells(some)), "",
            "Gain of each level: mean accuracy over all combinations with it minus that over all, in points; the best is "
            "bold.", "", *_in_markdown(gain_cells(some)), "",
        ]  # fmt: skip
    return "\n".join(lines)


def _probed(found: Sequence[Study]) -> list[str]:
    """The lines on whether observations tell the best choice."""
    if not (made := probes(found)):
        return ["Whether the best choice can be read from the network is not asked of fewer than four cases.", ""]
    return [
        "## Can it be read from the network?", "",
        "A ridge regression on observations of the dense network, which knows all cases but the one or the network that is "
        "left out, tells the gain of each level there. Gain of the level that is taken so, beside that of the one level "
        "that is best over the others, and that of the best level of the case itself, which nobody can know; in points, "
        "means over cases, the difference with Student's interval of 95 % over what is left out. Of the whole combination "
        "the own best has the luck of the best.", "",
        *_in_markdown(probe_cells(made)), "",
        "The observation that the gain of a level, in standard deviations between masks, goes with most; the largest of "
        "several correlations over few cases is large by luck, too.", "",
        *_in_markdown(tie_cells(ties(found))), "",
    ]  # fmt: skip


def _in_markdown(cells: Cells) -> list[str]:
    columns, lines = cells
    return list(markdown_table(columns, lines))
