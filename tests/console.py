"""Commands, run in the process of a test."""

from __future__ import annotations

from panning import cli


def run(*arguments: str) -> int:
    """The exit code of a command run in this process."""
    try:
        cli.main(list(arguments))
    except SystemExit as end:
        return int(end.code or 0)
    return 0
