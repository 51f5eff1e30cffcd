"""The page that sends a job: a config is written or put together, its cost is told, and the API takes it."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse, Response

from panning.foundation.torchvision_sizes import OURS
from panning.service.api.access import Submitter
from panning.service.api.jobs import Here
from panning.service.api.problems import ProblemError
from panning.service.page.pages import PageRoute, Viewer
from panning.service.page.templates import answer

router = APIRouter(include_in_schema=False)
pages = APIRouter(include_in_schema=False, route_class=PageRoute)
#: Networks of the package that the form offers; any other name may be written.
MODELS = sorted({*OURS, "mlp", "lenet300_100", "lenet5", "conv6", "resnet20", "resnet32x2", "wrn28_2"})
#: A field of the form -> where configs have it: the first place that a config has, or by its kind the first of all.
FIELDS = {
    "model": ("Network", ["task.model", "env.tasks.0.model", "tasks.0.task.model", "tasks.0.model"]),
    "data": ("Data set", ["task.data", "env.tasks.0.data", "tasks.0.task.data", "tasks.0.data"]),
    "method": ("Method", ["method", "dynamic.name"]),
    "density": ("Density", ["density"]),
    "seed": ("Seed", ["seed"]),
}  # fmt: skip


class Written(BaseModel):
    """A config as somebody has written it, with changes."""

    text: str = Field(max_length=100_000)
    changes: list[Annotated[str, Field(max_length=1000)]] = Field(default=[], max_length=20)


@pages.get("/submit")
def submit(here: Here, viewer: Viewer) -> Response:
    """The form."""
    if not viewer.may("submit"):
        raise ProblemError("scope", f"The scope of this token is {viewer.scope}, and submit is needed to send jobs.")
    return answer(
        "submit.html", viewer=viewer, packaged=here.checks.packaged(), fields=FIELDS, models=MODELS,
        methods=here.checks.methods(), data=here.checks.data_sets(),
    )  # fmt: skip


@router.get("/submit/packaged")
def packaged(here: Here, token: Submitter, name: Annotated[str, Query(max_length=200)]) -> JSONResponse:
    """The text of a packaged config."""
    for one in here.checks.packaged():
        if one["name"] == name:
            return JSONResponse(one)
    raise ProblemError("absent", "There is no such packaged config.")


@router.post("/submit/read")
def read(here: Here, token: Submitter, written: Written) -> JSONResponse:
    """What a text of YAML or JSON says, with the form's changes; nothing is sent by it."""
    found: dict[str, Any] = here.checks.text(written.text, written.changes, token.owner)
    return JSONResponse(found)


router.include_router(pages)
