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
    # That of `runs`, which may be long, comes first: while it is built claims and renewals go on.
    for name, table, columns, where in INDEXES:
        op.create_index(name, table, columns, postgresql_where=sa.text(where))
    op.execute('create index ix_steps_attempted on steps (worker collate "C", sent_at) where attempt > 0')
    for table, options in OPTIONS.items():
        op.execute(f"alter table {table} set ({options})")


def downgrade() -> None:
    for table, options in OPTIONS.items():
        names = ", ".join(option.split(" = ")[0].strip() for option in options.split(","))
        op.execute(f"alter table {table} reset ({names})")
    for table in ("runs", "steps"):
        op.execute(f"alter table {table} set (fillfactor = 70)")
    op.drop_index("ix_steps_attempted", table_name="steps")
    for name, table, _, _ in reversed(INDEXES):
        op.drop_index(name, table_name=table)
