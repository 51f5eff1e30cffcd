"""Schema 1: tokens, jobs with their attempts, idempotency keys."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "1"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "tokens",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False, unique=True),
        sa.Column("scopes", sa.String(100), nullable=False),
        sa.Column("made", sa.String(32), nullable=False),
        sa.Column("expires", sa.String(32)),
        sa.Column("revoked", sa.String(32)),
        sa.Column("max_running", sa.Integer, nullable=False),
        sa.Column("max_queued", sa.Integer, nullable=False),
        sa.Column("max_stored_bytes", sa.BigInteger, nullable=False),
        sa.Column("served", sa.Integer, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "jobs",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("token", sa.Integer, sa.ForeignKey("tokens.id"), nullable=False),
        sa.Column("kind", sa.String(20), nullable=False),
        sa.Column("config", sa.Text, nullable=False),
        sa.Column("state", sa.String(20), nullable=False),
        sa.Column("code", sa.String(20)),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("crashes", sa.Integer, nullable=False),
        sa.Column("cancel_asked", sa.Boolean, nullable=False),
        sa.Column("pinned", sa.Boolean, nullable=False),
        sa.Column("deleted", sa.Boolean, nullable=False),
        sa.Column("n_bytes", sa.BigInteger, nullable=False),
        sa.Column("submitted", sa.String(32), nullable=False),
        sa.Column("started", sa.String(32)),
        sa.Column("ended", sa.String(32)),
        sqlite_autoincrement=True,
    )
    # Each ends with the id, as indexes of SQLite do anyway: pages are by key.
    op.create_index("jobs_listed", "jobs", ["deleted", "id"])
    op.create_index("jobs_state", "jobs", ["deleted", "state", "id"])
    op.create_index("jobs_token_state", "jobs", ["token", "deleted", "state", "id"])
    op.create_index("jobs_token", "jobs", ["token", "deleted", "id"])
    op.create_index("jobs_stored", "jobs", ["token", "n_bytes"])
    op.create_table(
        "attempts",
        sa.Column("job", sa.Integer, sa.ForeignKey("jobs.id"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("boot", sa.String(64), nullable=False),
        sa.Column("started", sa.String(32), nullable=False),
        sa.Column("ended", sa.String(32)),
        sa.Column("how", sa.String(20)),
        sa.Column("message", sa.Text, nullable=False),
    )
    op.create_table(
        "keys",
        sa.Column("token", sa.Integer, sa.ForeignKey("tokens.id"), primary_key=True),
        sa.Column("key", sa.String(200), primary_key=True),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("job", sa.Integer, sa.ForeignKey("jobs.id"), nullable=False),
    )
    op.create_index("keys_job", "keys", ["job"])


def downgrade() -> None:
    """There is nothing before the first schema."""
    for name in ("keys", "attempts", "jobs", "tokens"):
        op.drop_table(name)
