"""How many outcomes of a run nobody knows, and what is done about a step whose turn is ended while it runs."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("runs", sa.Column("unknown", sa.Integer(), nullable=False, server_default=sa.text("0")))
    op.add_column("steps", sa.Column("on_cancel", sa.String(length=12), nullable=True))
    op.create_index("ix_runs_unknown", "runs", ["created_at"], postgresql_where=sa.text("unknown > 0"))


def downgrade() -> None:
    op.drop_index("ix_runs_unknown", table_name="runs")
    op.drop_column("steps", "on_cancel")
    op.drop_column("runs", "unknown")
