"""Tokens: random texts that callers show; the table has their hashes alone."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from panning.foundation.errors import ConfigError
from panning.foundation.registry import unknown_name_message
from panning.service.database import TOKENS, Database
from panning.service.words import SCOPES, Quota, Scope, Token

PREFIX = "pan_"
MAX_NAME = 100


def now_utc() -> datetime:
    """The present time."""
    return datetime.now(UTC)


class Tokens:
    """The tokens of a database.

    >>> from pathlib import Path
    >>> from panning.service.database import Database
    >>> from panning.service.tokens import Tokens
    >>> tokens = Tokens(Database(Path("service.sqlite")))
    >>> token, secret = tokens.add("Ada", "submit")
    >>> tokens.of(secret).name, tokens.of("pan_guessed"), token.may("read"), token.may("admin")
    ('Ada', None, True, False)

    Args:
        clock: gives the present time.
    """

    def __init__(self, database: Database, clock: Callable[[], datetime] = now_utc) -> None:
        self.database = database
        self._now = clock

    def add(
        self,
        name: str,
        scope: Scope,
        quota: Quota = Quota(),  # noqa: B008
        expires: datetime | None = None,
        owner: int | None = None,
    ) -> tuple[Token, str]:
        """Make a token; also its secret, which nothing can tell again.

        Args:
            owner: the token whose jobs and quota it has; None gives it its own.

        Raises:
            ConfigError: for a scope that is none, a name that is no short line, or an owner that is no token.
        """
        if scope not in SCOPES:
            raise ConfigError(unknown_name_message("scope", scope, SCOPES))
        if not name or len(name) > MAX_NAME or not name.isprintable():
            raise ConfigError(f"A token's name has 1 to {MAX_NAME} printable characters on one line.")
        secret = PREFIX + secrets.token_urlsafe(32)
        values = {
            "name": name, "hash": _hash(secret), "scopes": scope, "made": self._now(), "expires": expires,
            "max_running": quota.running, "max_queued": quota.queued, "max_stored_bytes": quota.stored_bytes, "served": 0,
        }  # fmt: skip
        with self.database.writes() as connection:
            if owner is not None:
                values["owner"] = _owner(connection, owner)
            made = connection.execute(sa.insert(TOKENS).values(values)).inserted_primary_key[0]
            row = connection.execute(sa.select(TOKENS).where(TOKENS.c.id == made)).one()
        return _token(row), secret

    def of(self, secret: str) -> Token | None:
        """The token of a secret; None if there is none that is good now."""
        with self.database.reads() as connection:
            row = connection.execute(sa.select(TOKENS).where(TOKENS.c.hash == _hash(secret))).one_or_none()
        token = None if row is None else _token(row)
        return token if token is not None and self.is_good(token) else None

    def is_good(self, token: Token) -> bool:
        """Whether a token, as it was read, is neither revoked nor expired by now."""
        return token.revoked is None and (token.expires is None or token.expires > self._now())

    def all(self) -> list[Token]:
        """All tokens, also those that are no good any more."""
        with self.database.reads() as connection:
            return [_token(row) for row in connection.execute(sa.select(TOKENS).order_by(TOKENS.c.id))]

    def revoke(self, number: int) -> bool:
        """End a token; whether it was good until now. Its jobs stay."""
        end = sa.update(TOKENS).where(TOKENS.c.id == number, TOKENS.c.revoked.is_(None)).values(revoked=self._now())
        with self.database.writes() as connection:
            return connection.execute(end).rowcount == 1


def _hash(secret: str) -> str:
    # The secret has 256 random bits: nothing is gained by a slow hash, which would only cost each request.
    return hashlib.sha256(secret.encode(errors="replace")).hexdigest()


def _owner(connection: Connection, number: int) -> int:
    row = connection.execute(sa.select(TOKENS).where(TOKENS.c.id == number)).one_or_none()
    if row is None:
        raise ConfigError(f"There is no token {number} whose jobs a token could see.")
    return _token(row).owner


def _token(row: Any) -> Token:
    quota = Quota(row.max_running, row.max_queued, row.max_stored_bytes)
    return Token(row.id, row.owner or row.id, row.name, row.scopes, quota, row.made, row.expires, row.revoked)
