"""Schema 3: files that callers have sent."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "3"
down_revision = "2"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table; the files themselves lie in a folder."""
    op.create_table(
        "uploads",
        sa.Column("token", sa.Integer, sa.ForeignKey("tokens.id"), primary_key=True),
        sa.Column("sha256", sa.String(64), primary_key=True),
        sa.Column("kind", sa.String(20), nullable=False),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("n_bytes", sa.BigInteger, nullable=False),
        sa.Column("made", sa.String(32), nullable=False),
        sa.Column("facts", sa.Text, nullable=False),
    )


def downgrade() -> None:
    """Take it away."""
    op.drop_table("uploads")
