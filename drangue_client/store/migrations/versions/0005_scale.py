"""What keeps statements quick at a million events and a hundred thousand open steps: indexes, and when to vacuum."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

INDEXES = (
    ("ix_runs_finished_at", "runs", ["finished_at"], "finished_at is not null"),
    ("ix_steps_due", "steps", ["available_at"], "sent_at < available_at"),
    ("ix_steps_waiting", "steps", ["queue", "sent_at"], "claim is null and sent_at >= available_at"),
    ("ix_steps_attempted", "steps", ["worker", "sent_at"], "attempt > 0"),
)
OPTIONS = {
    "runs": "fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 2000,"
    " autovacuum_analyze_scale_factor = 0.02",
    "events": "autovacuum_vacuum_insert_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.02",
    "steps": "fillfactor = 40, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000,"
    " autovacuum_vacuum_cost_delay = 0, autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 10000,"
    " vacuum_truncate = off",
}


def upgrade() -> None:
    # Another order of the letters alone: the rows stay as they are.
    op.alter_column("steps", "worker", type_=sa.String(length=200, collation="C"))
    for name, table, columns, where in INDEXES:
        op.create_index(name, table, columns, postgresql_where=sa.text(where))
    for table, options in OPTIONS.items():
        op.execute(f"alter table {table} set ({options})")


def downgrade() -> None:
    for table, options in OPTIONS.items():
        names = ", ".join(option.split(" = ")[0].strip() for option in options.split(","))
        op.execute(f"alter table {table} reset ({names})")
    for table in ("runs", "steps"):
        op.execute(f"alter table {table} set (fillfactor = 70)")
    for name, table, _, _ in reversed(INDEXES):
        op.drop_index(name, table_name=table)
    op.alter_column("steps", "worker", type_=sa.String(length=200, collation="default"))
