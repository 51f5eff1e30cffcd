"""Pictures of an episode: the density of each layer over the rounds, as text or as an image."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from panning.episode.state import EpisodeState

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


def as_picture(frames: Sequence[Frame]) -> NDArray[np.uint8]:
    """An RGB image [height, width, 3]: layers down, rounds across, log density as colour."""
    from matplotlib.figure import Figure  # slow to import, and only pictures need it

    grid = np.array([[max(d, 1e-6) for d in frame.layer_densities.values()] for frame in frames]).T
    figure = Figure(figsize=(6, 4), dpi=100)
    axes = figure.add_subplot()
    image = axes.imshow(np.log10(grid), aspect="auto", cmap="viridis", vmin=-4, vmax=0, interpolation="nearest")
    axes.set_yticks(range(len(grid)), list(frames[-1].layer_densities), fontsize=7)
    axes.set_xlabel("round")
    axes.set_title(f"density {frames[-1].density:.4g}, effective {frames[-1].effective_density:.4g}", fontsize=9)
    figure.colorbar(image, ax=axes, label="log10 layer density")
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="rgba")
    width, height = figure.canvas.get_width_height()
    pixels = np.frombuffer(buffer.getvalue(), np.uint8).reshape(height, width, 4)
    return pixels[..., :3].copy()
