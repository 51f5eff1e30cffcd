"""The pages that put things beside each other: two masks, and the cards of the policies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.responses import Response

from panning.service.api.jobs import Here
from panning.service.api.service import Service
from panning.service.artefacts import Artefact
from panning.service.page.jobs import is_mask
from panning.service.page.pages import PageRoute, Viewer
from panning.service.page.templates import answer
from panning.service.words import Job, NoJobError, Token, UploadError

router = APIRouter(include_in_schema=False, route_class=PageRoute)


@dataclass(frozen=True)
class Side:
    """One of the two masks, as far as it was named.

    Attributes:
        given: the number of its job, as it was written.
        wrong: why there is no mask.
    """

    given: str
    job: Job | None = None
    files: tuple[Artefact, ...] = ()
    chosen: Artefact | None = None
    wrong: str = ""


@router.get("/compare")
def compare(
    here: Here,
    viewer: Viewer,
    one: Annotated[str, Query(max_length=20)] = "",
    other: Annotated[str, Query(max_length=20)] = "",
    one_file: Annotated[str, Query(max_length=64)] = "",
    other_file: Annotated[str, Query(max_length=64)] = "",
) -> Response:
    """Two masks compared layer by layer, of two jobs or of one."""
    sides = [_side(here, viewer, *given) for given in ((one, one_file), (other, other_file))]
    found, wrong = None, ""
    if all(side.chosen is not None for side in sides):
        try:
            found = here.checks.compared(_path(here, sides[0]), _path(here, sides[1]), viewer.owner)
        except UploadError as error:
            wrong = str(error)
    return answer(
        "compare.html", viewer=viewer, sides=sides, found=None if found is None else shares(found), wrong=wrong
    )


@router.get("/policies")
def policies(here: Here, viewer: Viewer) -> Response:
    """The cards of the policies that have a name."""
    return answer("policies.html", viewer=viewer, policies=here.checks.policies())


def shares(found: dict[str, Any]) -> dict[str, Any]:
    """A comparison with the counts that its pictures show: of a layer in both masks, what either keeps alone.

    Examples:
        >>> from panning.service.page.compare import shares
        >>> kept = {"n_weights": 4, "n_kept": 2, "density": 0.5}
        >>> both = {"first": kept, "second": kept, "n_both": 1, "jaccard": 1 / 3}
        >>> shares({**both, "layers": []})["all"]["n_first"]
        1
    """
    rows = [_shares(layer) for layer in found["layers"]]
    total = {"name": "all layers", "shape": [], "n_weights": found["first"]["n_weights"], **found}
    return {"layers": rows, "all": _shares(total), "jaccard": found["jaccard"]}


def _shares(layer: dict[str, Any]) -> dict[str, Any]:
    one, other, n_both = layer["first"], layer["second"], layer["n_both"]
    if one is None or other is None or n_both is None:
        return {**layer, "n_first": None}
    return {**layer, "n_first": one["n_kept"] - n_both, "n_second": other["n_kept"] - n_both}


def _side(here: Service, viewer: Token, given: str, file: str) -> Side:
    if not given.strip():
        return Side("")
    number = given.strip()
    if not (number.isascii() and number.isdigit()) or len(number) > 15 or int(number) == 0:
        return Side(given, wrong="A job's number is needed.")
    try:
        job = here.job(int(number), viewer)
    except NoJobError as error:
        return Side(given, wrong=str(error))
    found = here.artefacts.all(here.scheduler.folder(job.id))
    files = tuple(one for one in found if is_mask(one.path))
    if not files:
        return Side(given, job, wrong=f"Job {job.id} has left no mask{' yet' if job.ended is None else ''}.")
    return Side(given, job, files, next((one for one in files if one.sha256 == file), files[0]))


def _path(here: Service, side: Side) -> Path:
    assert side.job is not None and side.chosen is not None
    return here.scheduler.folder(side.job.id).run / side.chosen.path
