"""The rules of the table of jobs: whose turn it is, what follows when an attempt has ended, and what one that left no word
says of its job."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from panning.service.database import ATTEMPTS, JOBS, TOKENS
from panning.service.folder import Outcome
from panning.service.words import MAX_CRASHES

#: Jobs that are not deleted.
THERE = JOBS.c.deleted.is_(False)
#: Why a job was asked to stop -> the code of its failure; any other reason ends it as cancelled or queues it again.
OF_REASON = {"time": "time", "disk": "quota"}


def following(row: Any, outcome: Outcome, how: str, is_stuck: bool = False) -> dict[str, Any]:
    """The state behind ``running``, with the reason for it.

    Args:
        is_stuck: its processes were killed so often at one place that it ends.
    """
    if outcome.state == "succeeded":
        return {"state": "succeeded", "code": None, "message": outcome.message}
    if outcome.state == "failed":
        return {"state": "failed", "code": outcome.code or "error", "message": outcome.message}
    if outcome.state == "stopped" and outcome.reason in OF_REASON:
        return {"state": "failed", "code": OF_REASON[outcome.reason], "message": outcome.message}
    if row.cancel_asked:
        return {"state": "cancelled", "message": "It was cancelled while it ran."}
    crashes = row.crashes + (how == "crashed")
    if is_stuck or (how == "crashed" and crashes >= MAX_CRASHES):
        return {"state": "failed", "code": "crashed", "crashes": crashes, "message": outcome.message}
    return {"state": "queued", "crashes": crashes, "message": ""}


def without_word(connection: Connection, number: int, attempt: int, boot: str, place: int) -> tuple[Outcome, bool]:
    """The outcome of an attempt that ended without writing one, and whether the job ends by it.

    The supervisor was killed as well as the job's own process, as with a container or the machine. The job is not to blame
    and is tried again. ``MAX_CRASHES`` times in a row at the same place, the job itself may be what kills them, and ends.

    Args:
        boot: of now; an attempt of another one ended with the machine, which never counts.
        place: how far the job has come.
    """
    known = sa.select(ATTEMPTS.c.boot).where(ATTEMPTS.c.job == number, ATTEMPTS.c.number == attempt)
    if boot != "" and connection.execute(known).scalar_one_or_none() != boot:
        return Outcome("crashed", message="The machine was started anew while it ran."), False
    before = ATTEMPTS.c.number.between(attempt - MAX_CRASHES + 1, attempt - 1)
    alike = sa.select(sa.func.count()).where(
        ATTEMPTS.c.job == number, before, ATTEMPTS.c.how == "interrupted", ATTEMPTS.c.place == place
    )  # fmt: skip
    if int(connection.execute(alike).scalar_one()) == MAX_CRASHES - 1:
        said = f"All its processes were killed {MAX_CRASHES} times in a row before it had come any further."
        return Outcome("crashed", message=said), True
    return Outcome("crashed", message="All its processes were killed, as with a container."), False


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
