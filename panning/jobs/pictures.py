"""Pictures of one mask and of one training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from panning.foundation.pictures import (
    BLUE,
    GREEN,
    OURS,
    Picture,
    draw_layers,
    figure,
    in_style,
    layer_axes,
    legend,
    log_axis,
)

#: Figures of an epoch that the picture of a training shows, panel by panel: title -> label -> figure.
PANELS = {
    "training loss": {"loss": "train_loss"},
    "validation error, %": {"error": "accuracy"},
    "density": {"kept weights": "density", "alive weights": "effective_density"},
}


@in_style
def mask_picture(densities: Mapping[str, float], kept: Sequence[int], title: str, is_ours: bool) -> Picture:
    """The density of each layer of one mask.

    Args:
        kept: how many weights of each layer are kept.
    """
    names = list(densities)
    whole, (axes,) = figure(title, width=max(5.2, 0.2 * len(names)), height=2.9)
    none = layer_axes([axes], names, densities.values())
    draw_layers(axes, list(densities.values()), none, {"color": OURS if is_ours else BLUE, "marker": "o"})
    axes.set_ylabel("kept weights / weights of the layer")
    rows = [[name, n, density] for (name, density), n in zip(densities.items(), kept, strict=True)]
    return Picture(whole, ("layer", "kept", "density"), rows)


@in_style
def curve_picture(history: Sequence[Mapping[str, float]], title: str) -> Picture:
    """Loss, validation error and, where masks move, densities over the epochs.

    Args:
        history: an entry an epoch; a figure that the first one lacks is not shown.
    """
    shown = {name: lines for name, lines in PANELS.items() if set(lines.values()) <= history[0].keys()}
    whole, panels = figure(title, len(shown), width=3.4, height=2.9)
    epochs = [entry["epoch"] for entry in history]
    for axes, (name, lines) in zip(panels, shown.items(), strict=True):
        for (label, figure_of), colour in zip(lines.items(), (BLUE, GREEN), strict=False):
            values = [entry[figure_of] for entry in history]
            values = [100.0 * (1.0 - value) for value in values] if figure_of == "accuracy" else values
            style = "-" if len(values) > 30 else "o-"
            axes.plot(epochs, values, style, color=colour, markersize=3, label=label if len(lines) > 1 else "_")
        axes.set(xlabel="epoch", title=name)
        axes.xaxis.get_major_locator().set_params(integer=True)
    if "density" in shown:
        found = [entry[name] for entry in history for name in shown["density"].values() if entry[name] > 0]
        log_axis(panels[-1].yaxis, min(found) / 1.2, max(found) * 1.2)
    legend(whole, panels)
    columns = ["epoch", *(name for lines in shown.values() for name in lines.values())]
    return Picture(whole, columns, [[entry[name] for name in columns] for entry in history])
