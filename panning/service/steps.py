"""The two rules of the table of jobs: whose turn it is, and what follows when an attempt has ended."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from panning.service.database import JOBS, TOKENS
from panning.service.folder import Outcome
from panning.service.words import MAX_CRASHES

#: Jobs that are not deleted.
THERE = JOBS.c.deleted.is_(False)
#: Why a job was asked to stop -> the code of its failure; any other reason ends it as cancelled or queues it again.
OF_REASON = {"time": "time", "disk": "quota"}


def following(row: Any, outcome: Outcome, how: str) -> dict[str, Any]:
    """The state behind ``running``, with the reason for it."""
    if outcome.state == "succeeded":
        return {"state": "succeeded", "code": None, "message": outcome.message}
    if outcome.state == "failed":
        return {"state": "failed", "code": outcome.code or "error", "message": outcome.message}
    if outcome.state == "stopped" and outcome.reason in OF_REASON:
        return {"state": "failed", "code": OF_REASON[outcome.reason], "message": outcome.message}
    if row.cancel_asked:
        return {"state": "cancelled", "message": "It was cancelled while it ran."}
    crashes = row.crashes + (how == "crashed")
    if how == "crashed" and crashes >= MAX_CRASHES:
        return {"state": "failed", "code": "crashed", "crashes": crashes, "message": outcome.message}
    return {"state": "queued", "crashes": crashes, "message": ""}


def _turn() -> sa.Select[Any]:
    of_token = (JOBS.c.token == TOKENS.c.id, THERE)
    first = sa.select(sa.func.min(JOBS.c.id)).where(*of_token, JOBS.c.state == "queued").scalar_subquery()
    n_running = sa.select(sa.func.count(JOBS.c.id)).where(*of_token, JOBS.c.state == "running").scalar_subquery()
    turns = sa.select(
        TOKENS.c.id, TOKENS.c.served, TOKENS.c.max_running, first.label("first"), n_running.label("running")
    ).subquery()  # fmt: skip
    waiting = sa.select(turns).where(turns.c.first.is_not(None), turns.c.running < turns.c.max_running)
    return waiting.order_by(turns.c.running, turns.c.served, turns.c.first).limit(1)


#: A row with ``first``, the number of the job whose turn it is, and ``id``, its token; none if none may start.
TURN = _turn()
