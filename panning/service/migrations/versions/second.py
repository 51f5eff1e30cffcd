"""Schema 2: a token may be made for another one, whose jobs it sees."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "2"
down_revision = "1"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; a token without one owns its jobs itself."""
    op.add_column("tokens", sa.Column("owner", sa.Integer))


def downgrade() -> None:
    """Take it away."""
    op.drop_column("tokens", "owner")
