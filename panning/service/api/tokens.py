"""Tokens: made, listed, revoked, by whoever has the scope admin."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Path
from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field

from panning.service.api.access import Admin
from panning.service.api.jobs import Here
from panning.service.api.numbers import MAX_NUMBER, PLAIN
from panning.service.api.problems import ASKED, ONE, documented
from panning.service.tokens import MAX_NAME
from panning.service.words import NoJobError, Quota, Scope, Token

router = APIRouter(prefix="/api/v1", tags=["tokens"])
Number = Annotated[int, Path(alias="token", ge=1, le=MAX_NUMBER, description="The token's id."), PLAIN]


def _written(given: object) -> object:
    if not isinstance(given, str | datetime):
        raise ValueError("a time is written out, as 2030-01-01T00:00:00Z")
    return given


def _in_utc(given: datetime) -> datetime:
    try:
        return given.astimezone(UTC)
    except OverflowError:
        raise ValueError("a time lies in the years 1 to 9999 of UTC") from None


class NewToken(BaseModel):
    """A token to be made."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(min_length=1, max_length=MAX_NAME, description="Whose it is, on one line.")
    scope: Scope = "submit"
    expires: Annotated[AwareDatetime, BeforeValidator(_written), AfterValidator(_in_utc)] | None = Field(
        None, description="With a zone; null lets it last."
    )
    owner: int | None = Field(
        None, strict=True, ge=1, le=MAX_NUMBER, description="The token whose jobs and quota it has."
    )
    running: int = Field(Quota.running, strict=True, ge=0, le=1_000, description="So many of its jobs run at a time.")
    queued: int = Field(Quota.queued, strict=True, ge=0, le=1_000_000, description="So many wait at most.")
    stored_bytes: int = Field(
        Quota.stored_bytes, strict=True, ge=0, le=2**60, description="So much may its jobs leave."
    )


class MadeToken(BaseModel):
    """A token that was made, with its secret, which is told this once."""

    token: Token
    secret: str


@router.get("/tokens", responses=documented(*ASKED))
def tokens(here: Here, token: Admin) -> list[Token]:
    """All tokens, also those that are no good any more."""
    return here.store.tokens.all()


@router.post("/tokens", status_code=201, responses=documented(*ASKED, "config"))
def make(here: Here, token: Admin, new: NewToken) -> MadeToken:
    """Make a token."""
    quota = Quota(new.running, new.queued, new.stored_bytes)
    expires: datetime | None = new.expires
    made, secret = here.store.tokens.add(new.name, new.scope, quota, expires, new.owner)
    return MadeToken(token=made, secret=secret)


@router.delete("/tokens/{token}", status_code=204, responses=documented(*ONE))
def revoke(here: Here, token: Admin, number: Number) -> None:
    """End a token at once; its jobs stay."""
    if not here.access.revoke(number):
        raise NoJobError(f"There is no token {number} that is good.")
