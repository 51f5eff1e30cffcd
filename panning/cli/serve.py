"""``panning serve``: the service, which takes jobs over HTTP and runs them on this machine.

``panning backup``: a copy of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from panning.cli import options, output

app = typer.Typer()

GIB = 1 << 30
DATABASE = "PANNING_DATABASE"
#: The highest value of each limit: who wants no limit says 0.
MOST = 1e9


@app.command()
def serve(
    root: Annotated[
        Path, typer.Option("--root", help="Folder of the service: its database, and a folder for each job.")
    ] = Path("panning-service"),
    host: Annotated[str, typer.Option("--host", help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65_535, help="0 takes any free one.")] = 8750,
    names: Annotated[
        list[str] | None,
        typer.Option("--name", help="Another name that requests may call it by, as lab.example or lab.example:8750."),
    ] = None,
    slots: Annotated[int, typer.Option("--slots", min=1, help="So many jobs run at a time.")] = 1,
    workers: Annotated[int, typer.Option("--workers", min=0, help="Ray workers of each job; 0 runs without Ray.")] = 0,
    data_root: options.DataRoot = None,
    data_sets: Annotated[
        list[str] | None,
        typer.Option("--data-set", help="A data set by a name of your own: NAME=npz:FILE or NAME=folder:FOLDER."),
    ] = None,
    memory: Annotated[
        float, typer.Option("--memory-gib", min=0, max=MOST, help="Of each process of a job; 0 is no limit.")
    ] = 0.0,
    hours: Annotated[
        float, typer.Option("--hours", min=0, max=MOST, help="Of each attempt of a job; 0 is no limit.")
    ] = 0.0,
    disk: Annotated[float, typer.Option("--disk-gib", min=0, max=MOST, help="Of each job; 0 is no limit.")] = 0.0,
    epochs: Annotated[
        float,
        typer.Option("--dense-epochs", min=0, max=MOST, help="Of each job, by its estimated cost; 0 is no limit."),
    ] = 0.0,
    reduce_days: Annotated[
        float,
        typer.Option(
            "--reduce-days",
            min=0,
            max=36_500,
            help="So long after its end a job is reduced to masks, policies, tables, pictures and records; 0 is never.",
        ),
    ] = 0.0,
    remove_days: Annotated[
        float,
        typer.Option(
            "--remove-days",
            min=0,
            max=36_500,
            help="So long after its end all files of a job go, and uploads that no job needs; 0 is never.",
        ),
    ] = 0.0,
    jobs_gib: Annotated[
        float,
        typer.Option(
            "--jobs-gib",
            min=0,
            max=MOST,
            help="Of the files of all jobs: beyond it the oldest that have ended are reduced, then removed; 0 is no limit.",
        ),
    ] = 0.0,
    upload: Annotated[int, typer.Option("--upload-mib", min=1, max=1 << 20, help="Of one file that is sent.")] = 1024,
    https: Annotated[
        bool, typer.Option("--https", help="It is reached over https alone, through a proxy: cookies are marked so.")
    ] = False,
    database: Annotated[
        str | None,
        typer.Option(
            "--database",
            envvar=DATABASE,
            help="A Postgres database, as postgresql://USER@HOST/NAME; a password belongs into the variable. "
            "Default: SQLite in --root.",
        ),
    ] = None,
    new_token: Annotated[
        bool, typer.Option("--new-admin-token", help="Make one more token with the scope admin, and show it.")
    ] = False,
) -> None:
    """Run the service until Ctrl-C or SIGTERM; jobs that run then go on when it starts again.

    The first start shows a token, once. The log goes to stderr, as lines of JSON.

    Example: panning serve --slots 2
    """
    from panning.foundation.errors import ConfigError
    from panning.service.folder import Caps
    from panning.service.inputs import named_data
    from panning.service.log import log_to
    from panning.service.retention import Rules
    from panning.service.serve import Options, Running

    if host in ("0.0.0.0", "::", "") and not names:
        raise ConfigError(
            f"--host {host} listens everywhere: say which names it may be called by, as --name HOST:PORT."
        )
    os.environ.pop(DATABASE, None)  # the processes of jobs inherit the rest
    caps = Caps(int(memory * GIB), hours * 3600, int(disk * GIB), dense_epochs=epochs)
    rules = Rules(reduce_days, remove_days, int(jobs_gib * GIB))
    where = None if data_root is None else str(data_root.absolute())
    running = Running(
        Options(
            root=root.absolute(),
            host=host,
            port=port,
            names=names or (),
            slots=slots,
            workers=workers,
            data_root=where,
            caps=caps,
            upload_bytes=upload << 20,
            data_sets=named_data(data_sets or ()),
            rules=rules,
            https=https,
            database=database,
        )
    )
    log_to()
    output.say(f"panning serves at {running.url} from {root}")
    if (made := running.new_token(new_token)) is not None:
        output.say("A token with the scope admin, shown this once; it may do everything:")
        output.say(f"export PANNING_URL={running.url} PANNING_TOKEN={made[1]}")
    running.run()


@app.command()
def backup(
    out: Annotated[Path, typer.Argument(help="Folder for the backup, which is not there yet.", show_default=False)],
    root: Annotated[Path, typer.Option("--root", help="Folder of the service.")] = Path("panning-service"),
    as_json: options.AsJson = False,
) -> None:
    """Copy a service, also while it runs; `panning serve --root` takes the copy as it is.

    A service on Postgres is copied by pg_dump.

    Example: panning backup /backup/monday --root /srv/panning
    """
    from panning.foundation.text import in_bytes
    from panning.service.backup import back_up

    made = back_up(root, out)
    if as_json:
        output.print_json(
            {"path": str(made.path), "jobs": made.n_jobs, "uploads": made.n_uploads, "n_bytes": made.n_bytes}
        )
        return
    output.say(f"{made.n_jobs} jobs and {made.n_uploads} uploads, {in_bytes(made.n_bytes)}, in {out}")
