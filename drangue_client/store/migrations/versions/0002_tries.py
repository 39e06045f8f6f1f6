"""What became of a step's earlier attempts: `tries` as the log shows them, `lost` as a hard budget counts them."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("steps", sa.Column("tries", sa.JSON(), nullable=True))
    op.add_column("steps", sa.Column("lost", sa.Integer(), nullable=False, server_default=sa.text("0")))


def downgrade() -> None:
    op.drop_column("steps", "lost")
    op.drop_column("steps", "tries")
