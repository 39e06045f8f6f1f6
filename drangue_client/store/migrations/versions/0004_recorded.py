"""When events were recorded, to be asked for the latest of all runs: a BRIN, which costs an append next to nothing."""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(
        "ix_events_recorded_at",
        "events",
        ["recorded_at"],
        postgresql_using="brin",
        postgresql_with={"autosummarize": True},
    )


def downgrade() -> None:
    op.drop_index("ix_events_recorded_at", table_name="events")
