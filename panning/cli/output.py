"""What commands print: results on stdout, progress on stderr; plain lines wherever there is no terminal."""

from __future__ import annotations

import io
import json
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich import progress
from rich.console import Console
from rich.table import Table
from rich.text import Text

from panning.cli.live import Bars, Live
from panning.foundation.course import Course, duration, lines
from panning.foundation.errors import PanningWarning
from panning.foundation.progress import BESIDE, Event, Listener, silent
from panning.foundation.text import printable

if TYPE_CHECKING:
    from panning.measure.dry_run import DryRun

#: Values come from files and data sets, so nothing in them is markup or an emoji code.
OPTIONS: dict[str, Any] = {"highlight": False, "markup": False, "emoji": False, "soft_wrap": True}

#: Fact of an event -> how the terminal shows it; other facts are not shown.
SHOWN = {
    "item": "{}", "reward": "reward {:.3f}", "accuracy": "validation {:.2%}", "density": "density {:.4g}",
    "effective_density": "effective {:.4g}",
}  # fmt: skip


def say(text: str) -> None:
    """Print a line on stdout."""
    Console().print(printable(text), **OPTIONS)


def note(text: str) -> None:
    """Print a line on stderr: what a reader should know and a program that reads the result should not."""
    Console(stderr=True).print(printable(text), **OPTIONS)


def note_slow_precision(config: Any, device: str) -> None:
    """Say on stderr that a run trains in bfloat16 where that is slower than float32.

    Args:
        config: of the run, as JSON.
        device: that it trains on, by name; workers on other machines may be faster.
    """
    from panning.foundation.device import emulates_bfloat16, find_device

    if "bfloat16" in _precisions(config) and emulates_bfloat16(find_device(device)):
        note(
            "note: this processor has no bfloat16 of its own, so that training in it takes several times as long as in "
            "float32: precision: float32 in each recipe is faster here, and gives other figures."
        )


def _precisions(config: Any) -> set[str]:
    """The values of all keys ``precision`` in a config."""
    if isinstance(config, Mapping):
        own = {config["precision"]} if isinstance(config.get("precision"), str) else set()
        return own.union(*map(_precisions, config.values()))
    return set().union(*map(_precisions, config)) if isinstance(config, list | tuple) else set()


def print_json(value: Any) -> None:
    """Print a JSON value on stdout, never wrapped or coloured."""
    print(json.dumps(value, indent=2, allow_nan=False))


def print_dry_run(run: DryRun, as_json: bool = False) -> None:
    """Print what a run would cost."""
    from panning.measure.dry_run import COLUMNS

    if as_json:
        print_json(run.as_json())
        return
    print_table(COLUMNS, run.rows())
    for sentence in run.sentences():
        say(sentence)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table on stdout, numbers to the right; without a terminal one line for each row, at any width.

    On a terminal that is too narrow headings stand in a word a line and spreads below their means, so that the first column
    keeps its room.
    """
    console = Console()
    cells = [[printable(str(cell)).replace("\n", " ") for cell in row] for row in rows]
    right = [_is_of_numbers([row[i] for row in cells]) for i in range(len(columns))]
    widths = [max(len(row[i]) for row in [list(columns), *cells]) for i in range(len(columns))]
    if console.is_terminal:
        narrow = sum(widths) + 3 * len(widths) + 1 > console.width  # two of padding and a rule for each column
        table = Table(header_style="bold")
        for column, to_right in zip(columns, right, strict=True):
            stacked = narrow and to_right
            heading = column.replace(" ", "\n") if stacked else column
            table.add_column(Text(heading), justify="right" if to_right else "left", overflow="fold", no_wrap=stacked)
        for row in cells:
            table.add_row(*(Text(cell.replace(" ± ", "\n± ") if narrow else cell) for cell in row))
        console.print(table)
        return
    for row in [list(columns), *cells]:
        padded = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)]
        print("  ".join(padded).rstrip())


_progress_is_shown = True
_last: Event | None = None


def show_progress(shown: bool) -> None:
    """Whether this command shows how far it is."""
    global _progress_is_shown
    _progress_is_shown = shown


def write_any_letter() -> None:
    """Let stdout and stderr write out the letters that the terminal's encoding lacks, as ``\\xb1`` for ±: what a run ends
    with is not lost where the locale knows ASCII alone."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def of_one_command() -> Iterator[None]:
    """Within, our warnings are lines like our errors, without a place in the code; what a command sets ends with it."""
    global _last
    plain, _last = warnings.formatwarning, None
    write_any_letter()

    def line(message: Warning | str, category: type[Warning], *place: Any) -> str:
        return f"warning: {message}\n" if issubclass(category, PanningWarning) else plain(message, category, *place)

    warnings.formatwarning = line  # type: ignore[assignment]
    try:
        yield
    finally:
        warnings.formatwarning = plain
        show_progress(True)


def standing() -> str:
    """How far the command has come, as the end of a sentence: " at 'pruning', 2 of 5". Empty if it has told of no stage."""
    return "" if _last is None else printable(f" at '{_last.stage}', {_last.done} of {_last.total}")


@contextmanager
def listener(*others: Listener) -> Iterator[Listener]:
    """Show how far a command is: the block gets a listener of events, which tells them to ``others``, too.

    On a terminal each stage has a bar, with the time that the whole run still takes, and below them stand the jobs that have
    run for some seconds and the best candidates so far. Elsewhere there is a line at each full tenth, so that a log stays
    short. Where the run tells its plan, stages are numbered.
    """
    with _shown(Console(stderr=True), Course()) as show:

        def tell(event: Event) -> None:
            global _last
            _last = _last if event.kind == "plan" else event
            for hear in (show, *others):
                hear(event)

        yield tell


@contextmanager
def _shown(console: Console, course: Course) -> Iterator[Listener]:
    if not _progress_is_shown:
        yield silent
        return
    if not console.is_terminal:
        plain = _lines(console, course)

        def told(event: Event) -> None:
            plain(event)
            if event.kind == "plan":
                note(_plan(event))

        yield told
        return
    columns = (
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        _TimeLeft(course),
        progress.TextColumn("{task.fields[note]}", markup=False),
    )
    live = Live()
    with Bars(*columns, below=live, console=console) as bars:
        tasks: dict[str, progress.TaskID] = {}

        def show(event: Event) -> None:
            course.hear(event)
            live.hear(event)
            if event.kind == "plan":
                note(_plan(event))
            if event.kind in BESIDE:
                return
            if event.stage not in tasks:
                tasks[event.stage] = bars.add_task(printable(course.title(event)), total=event.total, note="")
            bars.update(tasks[event.stage], completed=event.done, note=_note(event.facts))

        yield show


def _plan(event: Event) -> str:
    """The plan of a run in a sentence: how many steps its stages have at most, and how much they train."""
    stages = event.facts["stages"]
    epochs = sum(stage["epochs"] for stage in stages)
    trained = f", trainings of {epochs:,.4g} passes over the training part" if epochs else ""
    return f"At most {event.total:,} steps in {len(stages)} stages{trained}"


class _TimeLeft(progress.ProgressColumn):
    """How long the whole run still takes, beside the stage that is at work."""

    def __init__(self, course: Course) -> None:
        super().__init__()
        self.course = course

    def render(self, task: progress.Task) -> Text:
        left = None if task.finished else self.course.seconds_left
        return Text("" if left is None else f"{duration(left)} left")


def _lines(console: Console, course: Course) -> Listener:
    return lines(lambda text: console.print(printable(text), **OPTIONS), _note, course)


def _note(facts: Mapping[str, Any]) -> str:
    return printable(", ".join(form.format(facts[name]) for name, form in SHOWN.items() if name in facts))


def _is_of_numbers(cells: Sequence[str]) -> bool:
    """Whether a column's cells are numbers, apart from those where there is none."""
    given = [cell for cell in cells if cell not in ("", "-", "failed")]
    return bool(given) and all(map(_is_number, given))


def _is_number(cell: str) -> bool:
    try:
        float(cell.partition(" ± ")[0].rstrip("%"))
    except ValueError:
        return False
    return True
