"""The command line. One file per command or group, each with an ``app``; a new one costs its name in ``COMMANDS``.

Command files import torch and the rest of the package inside their functions, so that ``--help`` answers at once.
"""

from __future__ import annotations

import importlib.metadata
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from panning.cli import (
    bench,
    configs,
    explain,
    export,
    mask,
    methods,
    output,
    policies,
    prune,
    remote,
    reproduce,
    runs,
    search,
    serve,
    token,
    train,
    train_agent,
    validate,
)
from panning.cli.shape import Command, Group
from panning.foundation.errors import PanningError
from panning.foundation.extras import extra_packages
from panning.foundation.memory import keep_freed_memory

COMMANDS = (
    search,
    train_agent,
    policies,
    prune,
    methods,
    train,
    export,
    mask,
    explain,
    bench,
    reproduce,
    runs,
    configs,
    validate,
    serve,
    remote,
    token,
)  # in the order of the help

app = typer.Typer(
    name="panning",
    help="Find, before training, which weights of a network may go.",
    epilog="Start with: panning demo",
    no_args_is_help=True,
    cls=Group,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
for command in COMMANDS:
    for declared in command.app.registered_commands:
        declared.cls = Command
    app.add_typer(command.app)

INTERRUPTED, TERMINATED = 130, 143


class _TerminatedError(KeyboardInterrupt):
    """SIGTERM came: what a batch system or a container sends before it kills. It ends a command as Ctrl-C does."""


@contextmanager
def _sigterm_interrupts() -> Iterator[list[int]]:
    """Within, SIGTERM interrupts what is done, so that it ends in order; the list then holds the signal."""
    came: list[int] = []

    def interrupt(signum: int, _: Any) -> None:
        came.append(signum)
        raise _TerminatedError

    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield came
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _say_version(asked: bool) -> None:
    if asked:
        output.say(importlib.metadata.version("panning"))
        raise typer.Exit


@app.callback()
def panning(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_say_version, is_eager=True)
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Show no progress; results, warnings and errors stay.")
    ] = False,
) -> None:
    """Find, before training, which weights of a network may go."""
    output.show_progress(not quiet)


def main(arguments: list[str] | None = None) -> None:
    """Run one command and exit: 0 if it worked, 2 for wrong input, 1 for a job that failed, 130 if interrupted, 143 if
    interrupted by SIGTERM.

    Args:
        arguments: instead of the process's own.
    """
    keep_freed_memory()
    came: list[int] = []
    try:
        with _sigterm_interrupts() as came, output.of_one_command(), extra_packages():
            app(args=arguments, prog_name="panning")
    except PanningError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:  # a full disk, a folder that is a file: nothing the code could foresee
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}", file=sys.stderr)
        sys.exit(1)
    except (KeyboardInterrupt, SystemExit) as error:  # typer turns the one into the other
        if isinstance(error, SystemExit) and error.code != INTERRUPTED:
            raise
        print(f"Interrupted{output.standing()}; run the same command again to go on.", file=sys.stderr)
        sys.exit(TERMINATED if came else INTERRUPTED)
