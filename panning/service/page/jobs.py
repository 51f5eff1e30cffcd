"""The pages of jobs: the list, and one job."""

from __future__ import annotations

import os
from collections.abc import Mapping
from fnmatch import fnmatch
from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.responses import JSONResponse, RedirectResponse, Response

from panning.foundation.errors import ConfigError, JobError
from panning.foundation.files import open_regular
from panning.service.api.jobs import Here, Number
from panning.service.api.numbers import MAX_NUMBER, PLAIN
from panning.service.api.service import Service, whose
from panning.service.page.pages import PageRoute, Viewer
from panning.service.page.templates import answer
from panning.service.words import CODES, ENDED, STATES, BusyError, Job, NoJobError, State

router = APIRouter(include_in_schema=False, route_class=PageRoute)
#: Jobs on a page of the list, and files of a job that are shown; `panning fetch` takes all.
MOST_JOBS, MOST_FILES = 50, 200
#: What files of masks are called.
MASKS = ("mask*.safetensors", "choice-*.safetensors")
#: So much of a log is shown: its end.
LOG_BYTES = 1 << 14


@router.get("/")
async def first(viewer: Viewer) -> Response:
    """The list of jobs."""
    return RedirectResponse("/jobs", 303)


@router.get("/jobs")
def jobs(
    here: Here,
    viewer: Viewer,
    state: Annotated[State | None, Query()] = None,
    before: Annotated[int | None, Query(ge=1, le=MAX_NUMBER), PLAIN] = None,
) -> Response:
    """A page of jobs, the newest first."""
    page = here.store.page(whose(viewer), state, before, MOST_JOBS)
    rows = [(job, about(here.store.config(job.id))) for job in page]
    return answer(
        "jobs.html", viewer=viewer, rows=rows, state=state, states=STATES, counts=here.store.counts(whose(viewer)),
        before=before, next=page[-1].id if len(page) == MOST_JOBS else None, owners=owners(here, page),
    )  # fmt: skip


@router.get("/jobs/{job}")
def job(here: Here, viewer: Viewer, number: Number) -> Response:
    """One job: how it stands, what it has left, and its run as it goes on."""
    found = here.job(number, viewer)
    config = here.store.config(found.id)
    left = here.artefacts.all(here.scheduler.folder(found.id))
    return answer(
        "job.html", viewer=viewer, job=found, about=about(config), config=config, attempts=here.store.attempts(found.id),
        left=left[:MOST_FILES], n_left=len(left), log=_end_of_log(here, found), owners=owners(here, [found]),
        is_over=found.state in ENDED, codes=CODES, has_mask=any(is_mask(one.path) for one in left),
    )  # fmt: skip


@router.get("/costs")
def costs(
    here: Here, viewer: Viewer, job: Annotated[list[Annotated[int, PLAIN]], Query(max_length=MOST_JOBS)]
) -> JSONResponse:
    """What jobs were estimated to cost, by their numbers; those whose cost cannot be told are left out."""
    found = {}
    for number in job:
        try:
            asked = here.job(number, viewer)
            config = here.store.config(asked.id)
            found[number] = here.checks.known_cost(config, viewer.owner, here.files(asked.token, config))
        except (NoJobError, ConfigError, JobError):
            continue  # it has gone, or asks for what is here no more
        except BusyError:
            break
    return JSONResponse(found)


def is_mask(path: str) -> bool:
    """Whether a file that a job has left is called as masks are."""
    return any(fnmatch(path, pattern) for pattern in MASKS)


def owners(here: Service, jobs: list[Job]) -> Mapping[int, str]:
    """The names of the tokens that jobs are of."""
    wanted = {job.token for job in jobs}
    return {token.id: token.name for token in here.store.tokens.all() if token.id in wanted}


def about(config: Mapping[str, Any]) -> str:
    """What a config is for, in a line: its name, network and data, way and density, as far as it has them.

    Examples:
        >>> from panning.service.page.jobs import about
        >>> about({"kind": "prune", "task": {"model": "mlp", "data": "digits"}, "density": 0.1, "method": "snip"})
        'mlp on digits, snip, density 0.1'
    """
    tasks = config.get("tasks")
    task = config.get("task") or (tasks[0] if isinstance(tasks, list) and tasks else None)
    if isinstance(task, dict) and isinstance(task.get("task"), dict):
        task = task["task"]
    found = [config["name"]] if isinstance(config.get("name"), str) else []
    if isinstance(task, dict):
        found.append(" on ".join(str(task[key]) for key in ("model", "data") if isinstance(task.get(key), str)))
    dynamic = config.get("dynamic")
    way = config.get("method") or (dynamic.get("name") if isinstance(dynamic, dict) else dynamic)
    found += [way] if isinstance(way, str) else []
    densities = config.get("densities", [config["density"]] if "density" in config else [])
    if isinstance(densities, list) and densities:
        found.append(("density " if len(densities) == 1 else "densities ") + ", ".join(f"{one}" for one in densities))
    if "seed" in config:
        found.append(f"seed {config['seed']}")
    return ", ".join(part for part in found if part)


def _end_of_log(here: Service, job: Job) -> str | None:
    """The last of what a job's processes printed; None if it has printed nothing."""
    try:
        with open_regular(here.scheduler.folder(job.id).log, os.O_NOFOLLOW) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - LOG_BYTES))
            return file.read(LOG_BYTES).decode(errors="replace") or None
    except OSError:
        return None
