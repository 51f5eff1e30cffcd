"""Schema 5: sessions of browsers, which go on when the server is started again."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "5"
down_revision = "4"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table; it has the hashes of sessions' ids alone."""
    op.create_table(
        "sessions",
        sa.Column("hash", sa.String(64), primary_key=True),
        sa.Column("token", sa.Integer, sa.ForeignKey("tokens.id"), nullable=False),
        sa.Column("until", sa.String(32), nullable=False),
    )


def downgrade() -> None:
    """Take it away: everybody signs in again."""
    op.drop_table("sessions")
