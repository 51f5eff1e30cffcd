"""``panning token``: who may use a service. The token of the environment needs the scope admin."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from panning.cli import options, output
from panning.cli.remote import HERE, TokenFile, Url, client_of
from panning.cli.shape import Group

app = typer.Typer(name="token", help="Make, list and revoke the tokens of a service.", cls=Group, no_args_is_help=True)

COLUMNS = ("token", "name", "scope", "owner", "expires", "revoked")


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="Whose it is.", show_default=False)],
    scope: Annotated[
        str, typer.Option("--scope", help="read, submit (which includes it), admin (which includes all), or metrics.")
    ] = "submit",
    days: Annotated[
        float | None, typer.Option("--days", min=0, max=36_500, help="It is good for so long. Default: it lasts.")
    ] = None,
    owner: Annotated[
        int | None,
        typer.Option("--owner", help="The token whose jobs it sees and whose quota it has. Default: its own."),
    ] = None,
    running: Annotated[int | None, typer.Option("--running", min=0, help="So many of its jobs run at a time.")] = None,
    queued: Annotated[int | None, typer.Option("--queued", min=0, help="So many of its jobs wait at most.")] = None,
    stored: Annotated[
        float | None, typer.Option("--stored-gib", min=0, max=1 << 30, help="So much its jobs may leave.")
    ] = None,
    url: Url = HERE,
    token_file: TokenFile = None,
    as_json: options.AsJson = False,
) -> None:
    """Make a token; its secret is shown this once.

    Example: panning token add Ada --days 90
    """
    from datetime import UTC, datetime, timedelta

    expires = None if days is None else (datetime.now(UTC) + timedelta(days=days)).isoformat()
    made = client_of(url, token_file).make_token(
        name, scope, expires=expires, owner=owner, running=running, queued=queued,
        stored_bytes=None if stored is None else int(stored * (1 << 30)),
    )  # fmt: skip
    if as_json:
        output.print_json(made)
        return
    output.say(
        f"Token {made['token']['id']} of {made['token']['name']}, scope {made['token']['scope']}, shown this once:"
    )
    output.say(made["secret"])


@app.command("list")
def list_(url: Url = HERE, token_file: TokenFile = None, as_json: options.AsJson = False) -> None:
    """List all tokens, also those that are no good any more."""
    found = client_of(url, token_file).tokens()
    if as_json:
        output.print_json(found)
        return
    output.print_table(COLUMNS, [[_shown(one[name]) for name in ("id", *COLUMNS[1:])] for one in found])


@app.command()
def revoke(
    number: Annotated[int, typer.Argument(metavar="TOKEN", min=1, help="The token's number.", show_default=False)],
    url: Url = HERE,
    token_file: TokenFile = None,
    as_json: options.AsJson = False,
) -> None:
    """End a token at once; its jobs stay."""
    client_of(url, token_file).revoke_token(number)
    if as_json:
        output.print_json({"revoked": number})
        return
    output.say(f"Token {number} is good for nothing any more.")


def _shown(value: Any) -> Any:
    return "-" if value is None else value
