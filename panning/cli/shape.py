"""The form of every command: a flag is shown as a flag, and a value that an option does not take is refused in our words."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from panning.foundation.wrong import what_is_wrong


class _PlainFlags:
    """Mixed into typer's classes."""

    def get_params(self, ctx: Any) -> list[Any]:
        params: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for param in params:
            if getattr(param, "is_flag", False):
                param.metavar = ""
        return params


_AS_MASK = (
    "panning train takes the mask that panning prune --{} finds, as --mask; masks that move keep a number of weights alone, "
    "--density"
)
#: (A command, an option that it lacks and another command has) -> what the error tells the user to do.
ELSEWHERE = {
    ("train", f"--{name}"): _AS_MASK.format(name)
    for name in ("target-macs", "target-parameters", "min-density", "max-density", "quotas", "place", "method")
}


class Command(_PlainFlags, TyperCommand):
    """A command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            if found := getattr(error.__cause__, "errors", None):  # typer lets pydantic read numbers
                error.message = what_is_wrong(found(include_url=False)[0])
            raise
        except Exception as error:  # of typer's own click, or of click, which differ by version
            if place := ELSEWHERE.get((str(ctx.command.name), getattr(error, "option_name", ""))):
                raise typer.BadParameter(place, ctx) from None
            raise


class Group(_PlainFlags, TyperGroup):
    """A group of commands."""
