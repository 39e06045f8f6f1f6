"""Alembic's entry: runs the migrations on the connection and in the transaction that `migrate` hands over."""

from alembic import context

from drangue_client.store.migrate import VERSION_TABLE
from drangue_client.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
)
context.run_migrations()
