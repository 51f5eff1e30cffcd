"""One look for all pictures, and the files that each leaves: the drawing, and its numbers as CSV.

Colours are those of Okabe and Ito, which the colour-blind tell apart; vermilion is ours alone.
"""

from __future__ import annotations

import functools
import io
import math
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from panning.foundation.errors import UnknownNameError
from panning.foundation.extras import extra_packages
from panning.foundation.files import write_atomic
from panning.foundation.registry import unknown_name_message
from panning.foundation.tables import csv_table
from panning.foundation.text import one_line, printable

BLACK, BLUE, GREEN, ORANGE, SKY, PURPLE = "#000000", "#0072B2", "#009E73", "#E69F00", "#56B4E9", "#CC79A7"
#: The agent, what a search has chosen, and the mask of an agent.
OURS = "#D55E00"
#: Everything else; yellow is missing, which nobody sees on white.
PALETTE = (BLUE, GREEN, ORANGE, SKY, PURPLE, BLACK)
GREY = "#B0B0B0"

FORMATS = ("png", "pdf", "svg")
#: No time and no random name in a file: the same picture has the same bytes.
_METADATA: dict[str, dict[str, Any]] = {"png": {}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}
STYLE: Any = {
    "figure.dpi": 130, "savefig.dpi": 130, "figure.constrained_layout.use": True, "font.size": 9, "axes.titlesize": 9,
    "figure.titlesize": 10, "axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "axes.axisbelow": True, "grid.alpha": 0.25, "lines.linewidth": 1.5, "lines.markersize": 4.5,
    "legend.frameon": False, "legend.fontsize": 8, "xtick.labelsize": 8, "ytick.labelsize": 8, "svg.hashsalt": "panning",
    "svg.fonttype": "none", "pdf.fonttype": 42, "text.parse_math": False,
}  # fmt: skip

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Picture:
    """A drawing and the numbers in it.

    Attributes:
        drawing: matplotlib's figure.
        rows: plain numbers and names; None where there is none.
    """

    drawing: Any
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]

    def __post_init__(self) -> None:
        self.drawing.draw_without_rendering()
        self.drawing.set_layout_engine("none")  # laid out once: every file shows the same, whichever is written first

    def image(self, form: str) -> bytes:
        """The bytes of a file of one of ``FORMATS``."""
        return in_style(self._saved)(form)

    def _saved(self, form: str) -> bytes:
        buffer = io.BytesIO()
        self.drawing.savefig(buffer, format=form, metadata=_METADATA[form])
        return _of_few_colours(buffer) if form == "png" else buffer.getvalue()

    @property
    def csv(self) -> str:
        """The numbers, to seven digits."""
        return csv_table(self.columns, self.rows)


def _of_few_colours(drawn: io.BytesIO) -> bytes:
    """A PNG file with a palette, a third as large."""
    from PIL import Image, PngImagePlugin

    with Image.open(drawn) as image:
        few = image.convert("RGB").quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        about = PngImagePlugin.PngInfo()
        about.add_text("Software", str(image.info["Software"]))
    buffer = io.BytesIO()
    few.save(buffer, format="png", optimize=True, pnginfo=about)
    return buffer.getvalue()


def save(picture: Picture, path: Path, formats: Sequence[str] = ("png",)) -> None:
    """Write the drawing in each format, and the numbers beside it as CSV; ``path`` has no suffix."""
    for form in formats:
        write_atomic(path.with_name(f"{path.name}.{form}"), picture.image(form))
    write_atomic(path.with_name(f"{path.name}.csv"), picture.csv)


def parse_formats(text: str) -> tuple[str, ...]:
    """The formats in a list with commas, each once.

    Raises:
        UnknownNameError: if one is none of ``FORMATS``.

    Examples:
        >>> from panning.foundation.pictures import parse_formats
        >>> parse_formats("pdf, svg")
        ('pdf', 'svg')
    """
    found = tuple(dict.fromkeys(part.strip().lower().lstrip(".") for part in text.split(",")))
    for form in found:
        if form not in FORMATS:
            raise UnknownNameError(unknown_name_message("picture format", form, FORMATS))
    return found


def in_style(draw: Callable[P, T]) -> Callable[P, T]:
    """The same function, drawing in ``STYLE`` whatever the user's matplotlib is set to."""

    @functools.wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> T:
        with extra_packages():
            import matplotlib  # slow to import, and only pictures need it

        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return drawn


def figure(title: str, n_panels: int = 1, *, width: float, height: float, columns: int = 3, **shared: Any) -> Any:
    """A figure and its panels, at most ``columns`` in a row, each ``width`` by ``height`` inches.

    Args:
        shared: of matplotlib's ``subplots``, as ``sharey=True``.
    """
    from matplotlib.figure import Figure

    columns = min(columns, n_panels)
    n_rows = -(-n_panels // columns)
    fitting = int(width * columns * 13)  # letters of the title
    title = "\n".join(textwrap.fill(printable(line), fitting) for line in title.splitlines())
    whole = Figure(figsize=(width * columns, height * n_rows + 0.2 * (1 + title.count("\n"))))
    panels = list(whole.subplots(n_rows, columns, squeeze=False, **shared).flat)
    for axes in panels[n_panels:]:
        axes.set_axis_off()
    whole.suptitle(title, x=0.01, ha="left")
    return whole, panels[:n_panels]


def legend(whole: Any, panels: Sequence[Any], order: Sequence[str] = ()) -> None:
    """One legend for all panels, below them: the names in ``order`` first, as they stand there."""
    shown = {name: handle for axes in panels for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    names = sorted(shown, key=lambda name: order.index(name) if name in order else len(order))
    if names:
        fitting = int(whole.get_figwidth() / (0.5 + 0.06 * max(map(len, names))))
        n_columns = max(1, min(fitting, len(names)))
        n_lines = -(-len(names) // n_columns)
        n_columns = -(-len(names) // n_lines)  # as many lines, evenly filled
        whole.set_figheight(whole.get_figheight() + 0.1 + 0.17 * n_lines)
        whole.legend([shown[name] for name in names], names, loc="outside lower left", ncols=n_columns)


# --- axes ---

_DIGITS = ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9))


def log_ticks(low: float, high: float, most: int = 7) -> list[float]:
    """Round numbers between ``low`` and ``high`` for a logarithmic axis, as many as there can be without more than ``most``.

    Examples:
        >>> from panning.foundation.pictures import log_ticks
        >>> log_ticks(8, 95)
        [10.0, 15.0, 20.0, 30.0, 50.0, 70.0]
        >>> log_ticks(10.2, 13.5)
        [10.5, 11.0, 11.5, 12.0, 12.5, 13.0, 13.5]
    """
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found: list[float] = []
    for digits in _DIGITS:
        ticks = [float(f"{digit * 10.0**exponent:.6g}") for exponent in exponents for digit in digits]
        inside = [tick for tick in ticks if low * 0.9999 <= tick <= high * 1.0001]
        if len(inside) > most:
            break
        found = inside
    if len(found) > 2:
        return found
    step = next(s for e in range(-6, 7) for d in (1, 2, 5) if (high - low) / (s := d * 10.0**e) < most)
    return [float(f"{n * step:.6g}") for n in range(math.ceil(low / step - 1e-6), math.floor(high / step + 1e-6) + 1)]


def log_axis(axis: Any, low: float, high: float, most: int = 7) -> None:
    """Make an axis logarithmic, from ``low`` to ``high``, with round numbers written out."""
    ticks = log_ticks(low, high, most)
    axes, which = axis.axes, axis.axis_name
    axes.set(**{f"{which}scale": "log", f"{which}lim": (low, high)})
    axis.set_ticks(ticks, [written(tick) for tick in ticks])
    axis.set_ticks([], minor=True)


def written(number: float) -> str:
    """A number as people write it, without an exponent.

    Examples:
        >>> from panning.foundation.pictures import written
        >>> written(1e-05), written(1000.0)
        ('0.00001', '1,000')
    """
    return f"{number:,.12f}".rstrip("0").rstrip(".")


def short_layers(names: Sequence[str]) -> list[str]:
    """The names of layers for an axis: the last part where it tells them apart; else modules by letter and number.

    Examples:
        >>> from panning.foundation.pictures import short_layers
        >>> short_layers(["model.hidden.linear1.weight", "model.classifier.weight"])
        ['linear1', 'classifier']
        >>> short_layers(["conv.weight", "stages.stage1.block1.conv1.weight", "stages.stage1.block2.conv1.weight"])
        ['conv', 's1.b1.conv1', 's1.b2.conv1']
        >>> short_layers(["model.features.0.weight", "model.features.3.weight", "model.classifier.weight"])
        ['f.0', 'f.3', 'classifier']
    """
    parts = [one_line(name).removesuffix(".weight").split(".") for name in names]
    if len({part[-1] for part in parts}) == len(parts) and not any(part[-1].isdecimal() for part in parts):
        return [part[-1] for part in parts]
    while len(parts) > 1 and min(map(len, parts)) > 1 and len({part[0] for part in parts}) == 1:
        parts = [part[1:] for part in parts]
    short = [".".join([*_folders(part[:-1]), part[-1]]) for part in parts]
    return short if len(set(short)) == len(short) else [".".join(part) for part in parts]


def _folders(parts: Sequence[str]) -> list[str]:
    """Letters and numbers; a folder goes whose name its only child has with a number, as ``stages.stage1``."""
    followed = zip(parts, [*parts, ""][1:], strict=True)
    kept = [one for one, after in followed if not re.match(re.escape(one.rstrip("s")) + r"\d", after)]
    return [one if one.isdecimal() else one[0] + "".join(re.findall(r"\d+$", one)) for one in kept]


# --- densities of layers ---


def layer_axes(panels: Sequence[Any], names: Sequence[str], densities: Iterable[float]) -> float:
    """Make panels of layers across and densities up, logarithmic; gives the height of layers without a weight.

    Args:
        densities: all that will be drawn.
    """
    densities = list(densities)
    low = min((density for density in densities if density > 0), default=1.0) / 1.5
    none = low / 2.2
    for axes in panels:
        log_axis(axes.yaxis, low, 1.3)
        if 0.0 in densities:
            ticks = axes.get_yticks()
            axes.set_ylim(none / 1.5, 1.3)
            axes.set_yticks([none, *ticks], ["none", *map(written, ticks)])
        short = short_layers(names)
        axes.set_xticks(range(len(short)), short, rotation=90 if len(short) > 6 else 0, fontsize=7, parse_math=False)
    return none


def draw_layers(axes: Any, densities: Sequence[float], none: float, style: Mapping[str, Any]) -> None:
    """A line through the layers, broken where a layer has no weight left: its point lies at ``none``."""
    kept = [density if density > 0 else math.nan for density in densities]
    gone = [i for i, density in enumerate(densities) if density == 0]
    axes.plot(range(len(kept)), kept, **style)
    axes.plot(gone, [none] * len(gone), **{**style, "linestyle": "none", "label": "_"})
