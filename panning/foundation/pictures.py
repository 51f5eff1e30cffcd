"""Pictures as PNG bytes, drawn without a window system."""

from __future__ import annotations

import io
from typing import Any

from panning.foundation.extras import extra_packages


@extra_packages()
def figure(n_panels: int, width: float, height: float) -> tuple[Any, list[Any]]:
    """A figure and its panels, side by side; ``width`` inches each."""
    from matplotlib.figure import Figure  # slow to import, and only pictures need it

    whole = Figure(figsize=(width * n_panels, height), dpi=110)
    return whole, list(whole.subplots(1, n_panels, squeeze=False)[0])


def png(whole: Any) -> bytes:
    """A figure as the bytes of a PNG file."""
    whole.tight_layout()
    buffer = io.BytesIO()
    whole.savefig(buffer, format="png")
    return buffer.getvalue()
