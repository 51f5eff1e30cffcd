"""Pictures of a study of levers, from its effects alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from panning.compare.levers import LEVERS, Study, all_levels, level_name
from panning.foundation.pictures import GREY, PALETTE, Picture, figure, in_style, legend

#: A colour for each lever, or network: those of all pictures and two lighter ones.
COLOURS = (*PALETTE, "#99C6E0", "#99D8C7")
MARKERS = ("o", "s", "^", "v", "D", "P", "X", "<", ">")
LINES = ("-", "--", ":", "-.")


@in_style
def share_picture(found: Sequence[Study]) -> Picture:
    """The shares of each case as a bar: levers, pairs together, and the rest."""
    levers = [lever for lever in LEVERS if any((lever,) in study.shares for study in found)]
    whole, (axes,) = figure(
        "Share of each lever in the variance between masks", width=8.6, height=0.9 + 0.24 * len(found)
    )
    rows: list[list[object]] = []
    for y, study in enumerate(found):
        parts = {lever: study.shares[lever,].value if (lever,) in study.shares else 0.0 for lever in levers}
        parts["pairs of levers"] = sum(share.value for effect, share in study.shares.items() if len(effect) == 2)
        parts["three or more"] = study.shares[()].value
        left = 0.0
        for number, (name, share) in enumerate(parts.items()):
            is_lever = name in levers
            colour = COLOURS[number % len(COLOURS)] if is_lever else "0.85" if name.startswith("pairs") else "0.95"
            axes.barh(y, 100 * share, left=100 * left, color=colour, edgecolor="white", label="_" if y else name)
            left += share
            rows.append([study.case.network, study.case.density, name, share])
    axes.set_yticks(range(len(found)), [study.case.name for study in found], fontsize=7)
    axes.invert_yaxis()
    axes.set(xlabel="share of the variance over all combinations, %", xlim=(0, 100))
    axes.grid(visible=False, axis="y")
    legend(whole, [axes])
    return Picture(whole, ("network", "density", "effect", "share"), rows)


@in_style
def gain_picture(found: Sequence[Study]) -> Picture:
    """The gain of each level, in standard deviations between masks, a panel a lever and a line a case."""
    of_all = all_levels([study.case for study in found])
    title = "Gain of each level, in standard deviations between the masks of a case"
    whole, panels = figure(title, len(of_all), width=3.3, height=2.5, sharey=True)
    networks = list(dict.fromkeys(study.case.network for study in found))
    rows: list[list[object]] = []
    for axes, (lever, levels) in zip(panels, of_all.items(), strict=True):
        for study in found:
            gains = study.gains.get(lever, {})
            there = [(x, gains[level].value) for x, level in enumerate(levels) if level in gains]
            same = [other for other in found if other.case.network == study.case.network]
            number = networks.index(study.case.network)
            axes.plot(
                [x for x, _ in there], [gain / (study.case.spread or 1.0) for _, gain in there],
                color=COLOURS[number % len(COLOURS)], marker=MARKERS[number % len(MARKERS)], markersize=3,
                linestyle=LINES[same.index(study) % len(LINES)], linewidth=1, label=study.case.name,
            )  # fmt: skip
            rows += [[*_named(study), lever, level_name(levels[x]), gain, study.case.spread] for x, gain in there]
        axes.axhline(0.0, color=GREY, linewidth=0.8)
        axes.set_title(lever)
        names = [level_name(level) for level in levels]
        turned = max(map(len, names)) * len(names) > 24
        axes.set_xticks(range(len(names)), names, rotation=60 if turned else 0, fontsize=7)
    legend(whole, panels)
    return Picture(whole, ("network", "density", "lever", "level", "gain", "spread"), rows)


def _named(study: Study) -> tuple[str, float]:
    return study.case.network, study.case.density


def pictures(found: Sequence[Study]) -> Iterator[tuple[Picture, str]]:
    """Every picture, with the stem of its files."""
    yield share_picture(found), "shares"
    yield gain_picture(found), "gains"
