"""How many calls of a run wait for leave, and when events were recorded, to be asked for the latest of all runs: a
BRIN, which costs an append next to nothing."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("runs", sa.Column("asked", sa.Integer(), nullable=False, server_default=sa.text("0")))
    op.create_index("ix_runs_asked", "runs", ["created_at"], postgresql_where=sa.text("asked > 0"))
    op.create_index(
        "ix_events_recorded_at",
        "events",
        ["recorded_at"],
        postgresql_using="brin",
        postgresql_with={"autosummarize": True},
    )


def downgrade() -> None:
    op.drop_index("ix_events_recorded_at", table_name="events")
    op.drop_index("ix_runs_asked", table_name="runs")
    op.drop_column("runs", "asked")
