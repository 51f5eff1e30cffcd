"""Jobs: sent, listed, looked at, cancelled, tried again, kept, deleted."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Header, Path, Query, Response
from pydantic import BaseModel, Field

from panning.foundation.remote import RUNS, Bounds, check_remote
from panning.service.api.access import Reader, Submitter
from panning.service.api.numbers import MAX_NUMBER, PLAIN
from panning.service.api.problems import ASKED, ONE, documented
from panning.service.api.service import Service, service_of, whose
from panning.service.store import MAX_PAGE
from panning.service.words import Attempt, Job, State

#: What a config may ask for here.
BOUNDS = Bounds(uploads=True)
Number = Annotated[int, Path(alias="job", ge=1, le=MAX_NUMBER, description="The job's id."), PLAIN]
Here = Annotated[Service, Depends(service_of)]
Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key", min_length=1, max_length=200, pattern=r"^[!-~]+$",
        description="The same request under the same key is the same job; another one is refused.",
    ),
]  # fmt: skip
Config = Annotated[
    dict[str, Any],
    Body(
        description=f"The config of a run, with its kind: {', '.join(RUNS)}.",
        examples=[{"kind": "prune", "task": {"model": "mlp", "data": "digits"}, "density": 0.1, "method": "snip"}],
    ),
]  # fmt: skip

router = APIRouter(prefix="/api/v1", tags=["jobs"])


class Jobs(BaseModel):
    """A page of jobs, the newest first."""

    jobs: list[Job]
    next: int | None = Field(description="Ask for the page before this id; null if this is the last page.")


@router.post(
    "/jobs",
    status_code=201,
    responses={
        **documented(*ASKED, "key", "config", "quota"),
        200: {"model": Job, "description": "Sent before"},
    },
)
def submit(here: Here, token: Submitter, config: Config, response: Response, key: Key = None) -> Job:
    """Send a job. Once this is answered, the job is on the disk. A request that was sent before is answered with 200."""
    check_remote(config, BOUNDS)
    here.checks.config(config, token.owner, here.files(token.owner, config))
    done = here.store.submit(token.owner, config, key)
    response.headers["Location"] = f"/api/v1/jobs/{done.job.id}"
    if not done.is_new:
        response.status_code = 200
        return done.job
    return here.told(done.job)


@router.get("/jobs", responses=documented(*ASKED))
def jobs(
    here: Here,
    token: Reader,
    state: Annotated[State | None, Query(description="Those in this state alone.")] = None,
    before: Annotated[int | None, Query(ge=1, le=MAX_NUMBER, description="Those with smaller ids."), PLAIN] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE), PLAIN] = 50,
) -> Jobs:
    """Jobs that the token may see, the newest first."""
    page = here.store.page(whose(token), state, before, limit)
    return Jobs(jobs=page, next=page[-1].id if len(page) == limit else None)


@router.get("/jobs/{job}", responses=documented(*ONE))
def job(here: Here, token: Reader, number: Number) -> Job:
    """One job."""
    return here.job(number, token)


@router.get("/jobs/{job}/config", responses=documented(*ONE))
def config(here: Here, token: Reader, number: Number) -> dict[str, Any]:
    """The config of a job, as it was sent."""
    return here.store.config(here.job(number, token).id)


@router.get("/jobs/{job}/attempts", responses=documented(*ONE))
def attempts(here: Here, token: Reader, number: Number) -> list[Attempt]:
    """The attempts of a job, the first first."""
    return here.store.attempts(here.job(number, token).id)


@router.post("/jobs/{job}/cancel", status_code=202, responses=documented(*ONE, "step"))
def cancel(here: Here, token: Submitter, number: Number) -> Job:
    """End a queued job, and ask a running one to end; what is done is kept."""
    return here.told(here.store.cancel(here.job(number, token).id))


@router.post("/jobs/{job}/retry", status_code=202, responses=documented(*ONE, "step", "quota"))
def retry(here: Here, token: Submitter, number: Number) -> Job:
    """Queue a job that failed or was cancelled once more; it goes on where it was. One whose files are gone is refused."""
    return here.told(here.store.retry(here.job(number, token).id))


@router.put("/jobs/{job}/pin", responses=documented(*ONE))
def pin(here: Here, token: Submitter, number: Number) -> Job:
    """Keep a job and its files from being deleted, by anybody and by the service's rules."""
    return here.seen(here.store.pin(here.job(number, token).id))


@router.delete("/jobs/{job}/pin", responses=documented(*ONE))
def unpin(here: Here, token: Submitter, number: Number) -> Job:
    """Let a job and its files be deleted again."""
    return here.seen(here.store.pin(here.job(number, token).id, pinned=False))


@router.delete("/jobs/{job}", status_code=204, responses=documented(*ONE, "step"))
def delete(here: Here, token: Submitter, number: Number) -> None:
    """Delete a job that has ended, with its files."""
    job = here.job(number, token)
    here.store.delete(job.id)
    here.streams.gone(job)
    here.wake.set()
