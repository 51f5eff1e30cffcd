"""Schema 4: what is left of a job's files, by the rules of retention."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "4"
down_revision = "3"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns; of jobs that are there, nothing has gone."""
    op.add_column("jobs", sa.Column("kept", sa.String(20), nullable=False, server_default="all"))
    op.add_column("jobs", sa.Column("freed_bytes", sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("jobs", sa.Column("reduced", sa.String(32)))
    op.add_column("jobs", sa.Column("sweeping", sa.Boolean, nullable=False, server_default=sa.false()))
    op.create_index("jobs_kept", "jobs", ["deleted", "kept", "ended"])
    op.create_index("jobs_sweeping", "jobs", ["sweeping"])


def downgrade() -> None:
    """Take them away."""
    op.drop_index("jobs_sweeping", "jobs")
    op.drop_index("jobs_kept", "jobs")
    for name in ("sweeping", "reduced", "freed_bytes", "kept"):
        op.drop_column("jobs", name)
