"""Schema 7: when uploads were last sent or named by a job, for the rules of retention."""

from __future__ import annotations

from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import op

revision = "7"
down_revision = "6"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; uploads that are there count as used now, so that none goes at once."""
    now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    op.add_column("uploads", sa.Column("used", sa.String(32)))
    op.execute(sa.text("UPDATE uploads SET used = :now").bindparams(now=now))
    op.create_index("uploads_used", "uploads", ["used"])


def downgrade() -> None:
    """Take it away."""
    op.drop_index("uploads_used", "uploads")
    op.drop_column("uploads", "used")
