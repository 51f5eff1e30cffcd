"""Pictures of an episode: the density of each layer over the rounds, as text or as an image."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from panning.episode.state import EpisodeState
from panning.foundation.pictures import figure, in_style, short_layers, written

BLOCKS = " ▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Frame:
    """The numbers of one round that a picture shows."""

    density: float
    effective_density: float
    target_density: float
    layer_densities: dict[str, float]


def frame(state: EpisodeState) -> Frame:
    """The frame of a state."""
    layout = state.problem.layout
    densities = {
        name: count / size
        for name, count, size in zip(layout.names, layout.counts(state.mask), layout.sizes, strict=True)
    }
    return Frame(state.density, state.effective_density, state.target_density, densities)


def as_text(frames: Sequence[Frame]) -> str:
    """One line a layer with a bar for each round (log scale, down to a tenth of the target), and the totals."""
    if not frames:
        return "no episode yet: call reset()"
    lowest = np.log(frames[-1].target_density / 10.0)
    width = max(len(name) for name in frames[-1].layer_densities)
    lines = []
    for name in frames[-1].layer_densities:
        values = [frame.layer_densities[name] for frame in frames]
        bars = "".join(_bar(value, lowest) for value in values)
        lines.append(f"{name:<{width}}  {bars}  {values[-1]:.5f}")
    last = frames[-1]
    lines.append(
        f"round {len(frames) - 1}: density {last.density:.5f}, effective {last.effective_density:.5f}, "
        f"target {last.target_density:.5f}"
    )
    return "\n".join(lines)


def _bar(density: float, lowest: float) -> str:
    if density <= 0.0:
        return BLOCKS[0]
    share = 1.0 - max(float(np.log(density)), lowest) / lowest
    return BLOCKS[1 + round(share * (len(BLOCKS) - 2))]


@in_style
def as_picture(frames: Sequence[Frame], about: str) -> NDArray[np.uint8]:
    """An RGB image [height, width, 3]: layers down, rounds across, density as colour; a layer without a weight is white.

    Args:
        about: the network and its data; it begins the title.
    """
    last, layers = frames[-1], list(frames[-1].layer_densities)
    title = (
        f"{about}: panning to density {last.target_density:.4g}\n"
        f"round {len(frames) - 1}: density {last.density:.4g}, effective {last.effective_density:.4g}"
    )
    whole, (axes,) = figure(title, width=6.0, height=3.6)
    grid = np.array([list(frame.layer_densities.values()) for frame in frames]).T
    lowest = float(np.floor(np.log10(last.target_density / 10.0)))
    kept = np.log10(grid, out=np.full(grid.shape, np.nan), where=grid > 0)
    image = axes.imshow(kept, aspect="auto", cmap="cividis", vmin=lowest, vmax=0, interpolation="nearest")
    axes.grid(visible=False)
    axes.set_yticks(range(len(layers)), short_layers(layers), fontsize=7)
    axes.set_xticks(range(0, len(frames), -(-len(frames) // 12)))
    axes.set_xlabel("round")
    bar = whole.colorbar(image, ax=axes, label="kept weights / weights of the layer")
    exponents = range(int(lowest), 1)
    bar.set_ticks(list(exponents), labels=[written(10.0**exponent) for exponent in exponents])
    buffer = io.BytesIO()
    whole.savefig(buffer, format="rgba", dpi=100)
    width, height = (round(100 * inches) for inches in whole.get_size_inches())
    pixels = np.frombuffer(buffer.getvalue(), np.uint8).reshape(height, width, 4)
    return pixels[..., :3].copy()
