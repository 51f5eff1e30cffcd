"""What the service can do and how it is: checks of configs, methods, data sets, limits; health and figures."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.responses import Response

from panning.foundation.errors import PanningError
from panning.foundation.remote import check_remote
from panning.service.api.access import Reader, Scraper, Submitter
from panning.service.api.jobs import BOUNDS, Config, Here
from panning.service.api.metrics import MEDIA
from panning.service.api.problems import ASKED, ProblemError, documented
from panning.service.folder import Caps
from panning.service.retention import Rules
from panning.service.words import State, Token

router = APIRouter(prefix="/api/v1", tags=["about"])
#: Beside the API: for whoever watches the process.
health = APIRouter(tags=["health"])
_TEXT: dict[int | str, dict[str, Any]] = {
    200: {"description": "The figures", "content": {"text/plain": {"schema": {"type": "string"}}}}
}


class DataSet(BaseModel):
    """A data set that configs may name."""

    name: str
    there: bool = Field(description="Whether this machine has it.")


class Limits(BaseModel):
    """What a token may, and what it has taken."""

    token: Token
    jobs: dict[State, int] = Field(description="Of its owner, by state.")
    stored_bytes: int
    caps: Caps = Field(description="Of each job; 0 is no limit.")
    upload_bytes: int = Field(description="Of one upload.")
    slots: int = Field(description="So many jobs of all tokens run at a time.")
    retention: Rules = Field(description="When files of jobs that have ended go; 0 is never.")


class Health(BaseModel):
    """How the service is."""

    status: str


@router.post("/validate", responses=documented(*ASKED, "config"))
def validate(here: Here, token: Submitter, config: Config) -> Health:
    """Check a config as a submission does; all its errors come at once."""
    check_remote(config, BOUNDS)
    here.checks.config(config, token.owner, here.files(token.owner, config))
    return Health(status="well-formed")


@router.post("/cost", responses=documented(*ASKED, "config"))
def cost(here: Here, token: Submitter, config: Config) -> dict[str, Any]:
    """What a run of a config costs at most: parameters, dense epochs, memory and disk in bytes, steps of each stage."""
    check_remote(config, BOUNDS)
    return here.checks.cost(config, token.owner, here.files(token.owner, config))


@router.get("/methods", responses=documented(*ASKED))
def methods(here: Here, token: Reader) -> list[dict[str, Any]]:
    """Every method, with its paper and what it needs."""
    return here.checks.methods()


@router.get("/data-sets", responses=documented(*ASKED))
def data_sets(here: Here, token: Reader) -> list[DataSet]:
    """The data sets that configs may name."""
    return [DataSet(name=name, there=there) for name, there in here.checks.data_sets().items()]


@router.get("/limits", responses=documented(*ASKED))
def limits(here: Here, token: Reader) -> Limits:
    """What the token may, and what it has taken."""
    jobs, stored = here.store.counts(token.owner), here.store.stored(token.owner)
    setup = here.scheduler.setup
    most = here.most_upload_bytes
    return Limits(
        token=token, jobs=jobs, stored_bytes=stored, caps=setup.caps, upload_bytes=most, slots=setup.slots,
        retention=setup.rules,
    )  # fmt: skip


@health.get("/healthz", responses=documented("host", "origin", "too-large"))
async def healthz() -> Health:
    """Whether the process answers."""
    return Health(status="alive")


@health.get("/readyz", responses=documented("host", "origin", "too-large", "busy"))
def readyz(here: Here) -> Health:
    """Whether jobs are taken in and looked after."""
    try:
        here.store.counts()
    except (OSError, PanningError) as error:
        raise ProblemError("busy", f"The table of jobs cannot be read: {error}.") from None
    if not here.is_scheduling:
        raise ProblemError("busy", "Jobs are not looked after: the service begins, or ends.")
    if trouble := here.scheduler.trouble.text:
        raise ProblemError("busy", f"Jobs are not looked after: {trouble}")
    return Health(status="ready")


@health.get("/metrics", responses={**documented(*ASKED), **_TEXT}, response_class=Response)
def metrics(here: Here, token: Scraper) -> Response:
    """Figures for Prometheus; they have a scope of their own."""
    return Response(here.metrics.text(), media_type=MEDIA)
