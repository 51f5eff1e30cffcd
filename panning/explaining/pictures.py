"""The picture of an explanation: the layers beside those of other masks, what each round left, and what was chosen in it."""

from __future__ import annotations

from typing import Any

from panning.explaining.explanation import Explanation, RoundSketch
from panning.foundation.pictures import (
    BLACK,
    BLUE,
    OURS,
    PALETTE,
    PURPLE,
    Picture,
    draw_layers,
    figure,
    in_style,
    layer_axes,
    legend,
    log_axis,
)

STYLES = {"SynFlow": (BLUE, "o"), "ERK": (BLACK, "X")}
MARKERS = ("o", "s", "^", "v", "P", "X")


@in_style
def explanation_picture(found: Explanation) -> Picture:
    """Densities of layers beside those of other masks; where rounds are told, what each chose and left."""
    masks, rounds = (found.of, *found.beside), found.rounds
    names = list(found.of.kept)
    whole, panels = figure(
        f"{found.source}: {found.method or 'a mask'}, density {found.of.density:.4g}", 5 if rounds else 1,
        width=max(3.4, 0.16 * len(names)) if rounds else max(5.6, 0.2 * len(names)), height=2.9,
    )  # fmt: skip
    rows: list[list[object]] = []
    none = layer_axes(panels[:1], names, [density for one in masks for density in one.layer_densities.values()])
    for one in masks:
        colour, marker = STYLES.get(one.name, (_own_colour(found), "D"))
        style = {"color": colour, "marker": marker, "label": one.name}
        draw_layers(panels[0], list(one.layer_densities.values()), none, style)
        rows += [[one.name, "", name, density, None, None] for name, density in one.layer_densities.items()]
    panels[0].set_ylabel("kept weights / weights of the layer")
    if rounds:
        _draw_rounds(found, panels[1:])
        rows += [
            ["this mask", r.number, name, density, r.of.dead_share, r.of.report and r.of.report.log10_paths]
            for r in rounds for name, density in r.of.layer_densities.items()
        ]  # fmt: skip
    legend(whole, panels)
    return Picture(whole, ("mask", "round", "layer", "density", "dead_share", "log10_paths"), rows)


def _own_colour(found: Explanation) -> str:
    return OURS if (found.method or "").startswith("panning") else PURPLE


def _draw_rounds(found: Explanation, panels: list[Any]) -> None:
    layers, chosen, dead, paths = panels
    numbers = [r.number for r in found.rounds]
    held = [density for r in found.rounds for density in r.of.layer_densities.values() if density > 0]
    for i, name in enumerate(found.of.kept):
        shade = str(0.15 + 0.65 * i / max(1, len(found.of.kept) - 1))
        densities = [r.of.layer_densities[name] or float("nan") for r in found.rounds]
        layers.plot(numbers, densities, color=shade, marker=".", linewidth=1, label="_")
    log_axis(layers.yaxis, min(held) / 1.3, 1.3)
    layers.set(title="density of each layer, the first darkest")
    of_rounds = [shares_of(r) for r in found.rounds]
    for i, name in enumerate(dict.fromkeys(name for shares in of_rounds for name in shares)):
        style = {"color": PALETTE[i % len(PALETTE)], "marker": MARKERS[i % len(MARKERS)], "label": name}
        chosen.plot(numbers, [shares.get(name, 0.0) for shares in of_rounds], **style)
    chosen.set(title="chosen: indices, quotas, places", ylim=(-0.05, 1.05))
    colour = _own_colour(found)
    shares = [100 * (r.of.dead_share or 0.0) for r in found.rounds]
    dead.plot(numbers, shares, color=colour, marker="D", label="_")
    dead.set(title="dead weights, %", ylim=(0, max(1.0, 1.05 * max(shares))))
    counted = [r.of.report and r.of.report.log10_paths for r in found.rounds]
    paths.plot(numbers, [float("nan") if n is None else n for n in counted], color=colour, marker="D", label="_")
    paths.set(title="paths, log10")
    for axes in panels:
        axes.set_xlabel("round")
        axes.xaxis.get_major_locator().set_params(integer=True)


def shares_of(one: RoundSketch) -> dict[str, float]:
    """What was chosen in a round, in [0, 1]: shares of the indices in the mix and of sources of quotas, spread, balance."""
    weights = one.choice.get("weights") or {}
    total = sum(weights.values()) or 1.0
    return {
        **{name: weight / total for name, weight in weights.items()},
        **{f"quotas: {name}": share for name, share in (one.choice.get("quotas") or {}).items()},
        **{name: one.choice[name] for name in ("spread", "balance") if one.choice.get(name)},
    }
