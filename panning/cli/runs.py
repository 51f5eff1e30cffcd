"""``panning runs``: the folders that commands have made, what lies in them, and what may go."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from panning.cli import options, output
from panning.cli.shape import Group

app = typer.Typer(
    name="runs", help="List, show and compare the folders of runs; delete masks that nothing needs.", cls=Group,
    no_args_is_help=True,
)  # fmt: skip

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder of a run.", show_default=False)]


@app.command("list")
def list_(
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="Where the folders of runs lie.")] = Path("runs"),
    as_json: options.AsJson = False,
) -> None:
    """List runs, the latest first."""
    from panning.jobs.runs import run_folders

    rows = [run.row() for run in run_folders(folder)]
    if as_json:
        output.print_json(rows)
    elif rows:
        output.print_table(list(rows[0]), [list(row.values()) for row in rows])
        output.note(f"Runs in {folder.resolve()}; of another folder: panning runs list FOLDER")
    else:
        itself = f" It is a run itself: panning runs show {folder}" if (folder / "run.json").exists() else ""
        output.note(f"No run in {folder.resolve()}: no folder in it has a run.json.{itself}")


@app.command()
def show(folder: Folder, as_json: options.AsJson = False) -> None:
    """Show what a run was asked, which files it left, and its table.

    Example: panning runs show runs/demo
    """
    from panning.jobs.runs import RunFolder

    run = RunFolder.at(folder)
    run.check()
    files = {str(file.relative_to(folder)): file.stat().st_size for file in run.files()}
    if as_json:
        output.print_json({**run.row(), "identity": run.identity, "files": files})
        return
    for name, value in {**run.row(), **run.identity}.items():
        output.say(f"{name}: {value}")
    output.print_table(["file", "bytes"], [[name, size] for name, size in files.items() if "masks/" not in name])
    if (table := folder / "table.md").exists():
        output.say(table.read_text().rstrip())


@app.command()
def prune(
    folder: Folder,
    yes: Annotated[bool, typer.Option("--yes", help="Delete; without it the command only says what it would.")] = False,
) -> None:
    """Delete the masks of a search's candidates that its final table does not name.

    Records, tables and the masks of table and winners stay. A search that is run again makes the deleted masks anew.

    Example: panning runs prune runs/demo --yes
    """
    from panning.jobs.runs import RunFolder, delete_masks, needless_masks

    run = RunFolder.at(folder)
    run.check()
    files = needless_masks(run)
    megabytes = sum(file.stat().st_size for file in files) / 2**20
    said = f"{len(files)} masks of candidates, {megabytes:.1f} MiB"
    if not yes:
        output.say(f"{said} in {folder / 'masks'} may go; --yes deletes them.")
        return
    delete_masks(run, files)
    output.say(f"Deleted {said}.")


@app.command()
def retry(folder: Folder, as_json: options.AsJson = False) -> None:
    """Forget the trials that failed by an error, memory, time or a lost worker; they run again when the run goes on.

    Example: panning runs retry runs/demo
    """
    from panning.jobs.runs import RunFolder, retry_failures

    n = retry_failures(RunFolder.at(folder))
    if as_json:
        output.print_json({"run_again": n})
        return
    output.say(f"{n} failed trial{'' if n == 1 else 's'} of {folder} will run again when the run goes on.")


@app.command()
def compare(
    folders: Annotated[
        list[Path], typer.Argument(metavar="FOLDERS...", help="Folders of searches in free order.", show_default=False)
    ],
    out: Annotated[Path | None, typer.Option("--out", help="Write the table and the picture there.")] = None,
    formats: options.Formats = "png",
    as_json: options.AsJson = False,
) -> None:
    """Show searches side by side: the best validation accuracy against what was paid for it, by samplers.

    Example: panning runs compare runs/equal-lenet5-* --out runs/equal-lenet5
    """
    from panning.foundation.pictures import parse_formats
    from panning.searches import side_by_side

    wanted = parse_formats(formats)
    rows = side_by_side.side_by_side([course for folder in folders for course in side_by_side.courses(folder)])
    if out is not None:
        side_by_side.write(rows, out, wanted)
    if as_json:
        output.print_json([dict(zip(side_by_side.COLUMNS, row.cells, strict=True)) for row in rows])
        return
    output.print_table(side_by_side.COLUMNS, [row.cells for row in rows])
