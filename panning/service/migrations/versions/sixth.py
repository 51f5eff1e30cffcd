"""Schema 6: how far a job had come when all its processes were killed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "6"
down_revision = "5"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; of attempts that are over it says nothing."""
    op.add_column("attempts", sa.Column("place", sa.BigInteger))


def downgrade() -> None:
    """Take it away."""
    op.drop_column("attempts", "place")
