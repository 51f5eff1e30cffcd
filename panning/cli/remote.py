"""``panning submit``, ``status``, ``watch``, ``fetch``, ``cancel``, ``retry``, ``pin``, ``unpin`` and ``delete``: jobs of a
service, here or elsewhere."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from panning.cli import options, output
from panning.foundation.text import in_bytes

if TYPE_CHECKING:
    from panning.client import Client
    from panning.service.words import Job

app = typer.Typer()

Url = Annotated[str, typer.Option("--url", envvar="PANNING_URL", help="Of the service.")]
TokenFile = Annotated[
    Path | None,
    typer.Option("--token-file", help="A file with the token. Default: $PANNING_TOKEN.", dir_okay=False),
]
Number = Annotated[int, typer.Argument(metavar="JOB", min=1, help="The job's number.", show_default=False)]
HERE = "http://127.0.0.1:8750"
COLUMNS = ("job", "kind", "state", "attempt", "submitted", "message")


@app.command()
def submit(
    config: options.Config,
    changes: options.Changes = None,
    key: Annotated[
        str | None,
        typer.Option("--key", help="The same config under the same key is one job, however often it is sent."),
    ] = None,
    network: Annotated[
        Path | None, typer.Option("--network", help="A network file to send, in place of the task's model.")
    ] = None,
    data: Annotated[Path | None, typer.Option("--data", help="An .npz to send, in place of the task's data.")] = None,
    mask: Annotated[Path | None, typer.Option("--mask", help="A mask file to send, for a training.")] = None,
    weights: Annotated[
        Path | None, typer.Option("--weights", help="A safetensors file to send, to start from.")
    ] = None,
    policy: Annotated[Path | None, typer.Option("--policy", help="A policy file to send.")] = None,
    url: Url = HERE,
    token_file: TokenFile = None,
    as_json: options.AsJson = False,
) -> None:
    """Send a job to a service, with the files that it needs; a file that the service has is not sent again.

    Example: panning submit prune/digits-mlp seed=1 --network small/network.safetensors
    """
    given = {"model": network, "data": data, "mask": mask, "weights": weights, "policy": policy}
    files = {field: path for field, path in given.items() if path is not None}
    job = client_of(url, token_file).submit(config, changes or [], key, files)
    if as_json:
        output.print_json(_values(job))
        return
    output.say(f"Job {job.id} is {job.state}.")
    output.note(f"Next: panning watch {job.id}")


@app.command()
def status(
    number: Annotated[int | None, typer.Argument(metavar="[JOB]", min=1, show_default=False)] = None,
    url: Url = HERE,
    token_file: TokenFile = None,
    as_json: options.AsJson = False,
) -> None:
    """Show a job, or the newest jobs."""
    client = client_of(url, token_file)
    jobs = client.jobs() if number is None else [client.job(number)]
    if as_json:
        output.print_json(_values(jobs[0]) if number is not None else [_values(job) for job in jobs])
    elif jobs:
        output.print_table(COLUMNS, [_row(job) for job in jobs])
    else:
        output.note("No job yet: panning submit CONFIG")


@app.command()
def watch(number: Number, url: Url = HERE, token_file: TokenFile = None, as_json: options.AsJson = False) -> None:
    """Follow a job until it has ended; the exit code is 1 unless it succeeded. Ctrl-C ends the watching, not the job."""
    from panning.foundation.errors import PanningError
    from panning.foundation.progress import Event

    client = client_of(url, token_file)
    with output.listener() as listen:
        for _, values in client.events(number):
            try:
                event = Event.of_json(values)
            except PanningError:
                continue  # of a newer service
            listen(event)
    job = client.job(number)
    if as_json:
        output.print_json(_values(job))
    else:
        _say(job)
    if job.state != "succeeded":
        raise typer.Exit(1)


@app.command()
def fetch(
    number: Number,
    paths: Annotated[
        list[str] | None, typer.Argument(metavar="[FILE]...", help="These files alone.", show_default=False)
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the files. Default: runs/job-JOB.")] = None,
    url: Url = HERE,
    token_file: TokenFile = None,
    as_json: options.AsJson = False,
) -> None:
    """Fetch what a job has left; what is there already is not fetched again, and every file is checked.

    Example: panning fetch 1 --out runs/demo
    """
    found = client_of(url, token_file).fetch(number, folder := out or Path("runs") / f"job-{number}", paths or [])
    if as_json:
        output.print_json([str(path) for path in found])
        return
    output.say(f"{len(found)} files in {folder}")


@app.command()
def cancel(number: Number, url: Url = HERE, token_file: TokenFile = None, as_json: options.AsJson = False) -> None:
    """End a queued job, and ask a running one to end; what it has done is kept."""
    job = client_of(url, token_file).cancel(number)
    if as_json:
        output.print_json(_values(job))
    elif job.cancel_asked:
        output.say(f"Job {job.id} is asked to end.")
    else:
        _say(job)


@app.command()
def retry(number: Number, url: Url = HERE, token_file: TokenFile = None, as_json: options.AsJson = False) -> None:
    """Queue a job that failed or was cancelled once more; it goes on where it was."""
    job = client_of(url, token_file).retry(number)
    if as_json:
        output.print_json(_values(job))
        return
    output.say(f"Job {job.id} is queued again.")
    output.note(f"Next: panning watch {job.id}")


@app.command()
def pin(number: Number, url: Url = HERE, token_file: TokenFile = None, as_json: options.AsJson = False) -> None:
    """Keep a job and its files: neither `panning delete` nor the rules of the service remove them."""
    _pin(client_of(url, token_file), number, True, as_json)


@app.command()
def unpin(number: Number, url: Url = HERE, token_file: TokenFile = None, as_json: options.AsJson = False) -> None:
    """Let a job that was pinned be deleted again."""
    _pin(client_of(url, token_file), number, False, as_json)


@app.command()
def delete(number: Number, url: Url = HERE, token_file: TokenFile = None, as_json: options.AsJson = False) -> None:
    """Delete a job that has ended, with all its files."""
    client = client_of(url, token_file)
    job = client.job(number)
    client.delete(number)
    if as_json:
        output.print_json({"deleted": number, "n_bytes": job.n_bytes})
        return
    output.say(f"Job {number} is deleted; its files ({in_bytes(job.n_bytes)}) go now.")


def _pin(client: Client, number: int, pinned: bool, as_json: bool) -> None:
    job = client.pin(number, pinned)
    if as_json:
        output.print_json(_values(job))
    else:
        output.say(f"Job {job.id} {'stays until it is unpinned' if pinned else 'may be deleted'}. {job.gone}".rstrip())


def client_of(url: str, token_file: Path | None) -> Client:
    """The client of a command: with the token of a file, or of the environment.

    Raises:
        ConfigError: if there is no token.
    """
    import os

    from panning.client import Client
    from panning.foundation.errors import ConfigError

    token = os.environ.get("PANNING_TOKEN", "") if token_file is None else token_file.read_text().strip()
    if not token:
        raise ConfigError(
            "There is no token: set PANNING_TOKEN, or name its file with --token-file (panning token add)."
        )
    return Client(url, token)


def _values(job: Job) -> dict[str, Any]:
    times = {
        name: time and time.isoformat()
        for name in ("submitted", "started", "ended", "reduced")
        if (time := getattr(job, name))
    }
    return {**asdict(job), **times}


def _row(job: Job) -> list[object]:
    when = job.submitted.astimezone().strftime("%Y-%m-%d %H:%M %Z")
    pinned = "It is pinned." if job.pinned else ""
    said = " ".join(filter(None, (job.message, pinned, job.gone)))
    return [job.id, job.kind, job.state, job.attempt, when, said]


def _say(job: Job) -> None:
    code = f" ({job.code})" if job.code else ""
    message = f": {job.message}" if job.message else ""
    output.say(
        f"Job {job.id} {'is' if job.state in ('queued', 'cancelled') else 'has'} {job.state}{code}{message or '.'}"
    )
    if job.state == "succeeded":
        output.note(f"Next: panning fetch {job.id}")
