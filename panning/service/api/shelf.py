"""What the service has beside jobs: trained policies with their cards, and two masks compared."""

from __future__ import annotations

from pathlib import Path as FilePath
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, Field

from panning.service.api.access import Reader
from panning.service.api.jobs import Here
from panning.service.api.numbers import MAX_NUMBER, PLAIN
from panning.service.api.problems import ASKED, ONE, documented
from panning.service.api.service import Service
from panning.service.words import NoJobError, NoUploadError, Token

router = APIRouter(prefix="/api/v1", tags=["about"])
Name = Annotated[str, Path(pattern="^[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}$", description="Of the policy.")]
Sha256 = Annotated[str, Query(pattern="^[0-9a-f]{64}$", description="Of a mask file.")]
OfJob = Annotated[
    int | None,
    Query(ge=1, le=MAX_NUMBER, description="The job that has left the file; without one it is an upload."),
    PLAIN,
]


class Policy(BaseModel):
    """A trained policy that has a name, and its card."""

    name: str
    shipped: bool = Field(description="With the package; else the operator's own.")
    kind: Literal["policy"]
    summary: str
    trained: dict[str, Any] | None = Field(description="What it was trained on, and what that cost.")
    seen: dict[str, tuple[float, float]] = Field(description="Observation -> the lowest and the highest it has seen.")
    scores: dict[str, str] = Field(description="Case -> what it reached there, in words.")
    fails: list[str] = Field(description="Where it does badly.")


class OfMask(BaseModel):
    """All layers of a mask together."""

    n_weights: int
    n_kept: int
    density: float
    effective_density: float | None = Field(description="As the mask's record says; null if it does not.")


class OfLayer(BaseModel):
    """What a mask keeps of a layer."""

    n_kept: int
    density: float


class Layer(BaseModel):
    """A layer in both masks; null where a mask does not have it in this shape."""

    name: str
    shape: list[int]
    n_weights: int
    first: OfLayer | None
    second: OfLayer | None
    n_both: int | None = Field(description="Weights that both keep.")
    jaccard: float | None = Field(description="Those as a share of what either keeps; null if neither keeps any.")


class Compared(BaseModel):
    """Two masks beside each other."""

    first: OfMask
    second: OfMask
    n_both: int | None
    jaccard: float | None
    layers: list[Layer]


@router.get("/policies", responses=documented(*ASKED))
def policies(here: Here, token: Reader) -> list[Policy]:
    """The trained policies that have a name, with their cards."""
    return [Policy(**values) for values in here.checks.policies()]


@router.get("/policies/{name}", responses=documented(*ONE))
def policy(here: Here, token: Reader, name: Name) -> Policy:
    """One of them."""
    found = [values for values in here.checks.policies() if values["name"] == name]
    if not found:
        raise NoUploadError(f"There is no policy '{name}'.")
    return Policy(**found[0])


@router.get("/masks/compare", responses=documented(*ONE, "file"))
def compare(
    here: Here, token: Reader, first: Sha256, second: Sha256, first_job: OfJob = None, second_job: OfJob = None
) -> Compared:
    """Two masks layer by layer: files that jobs have left, or that were sent."""
    paths = [_mask(here, token, *one) for one in ((first, first_job), (second, second_job))]
    return Compared(**here.checks.compared(paths[0], paths[1], token.owner))


def _mask(here: Service, token: Token, sha256: str, number: int | None) -> FilePath:
    """Where a mask file lies that a token may see."""
    if number is None:
        return here.upload(sha256, token)
    folder = here.scheduler.folder(here.job(number, token).id)
    if (found := here.artefacts.open(folder, sha256)) is None:
        raise NoJobError(f"Job {number} has no file with this content.")
    artefact, file = found
    file.close()
    return folder.run / artefact.path
